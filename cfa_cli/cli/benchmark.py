"""`cfa benchmark mvtec|visa|btad|mpdd|DIR`."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cfa_cli.cli import options
from cfa_cli.errors import ExitCode

if TYPE_CHECKING:
    from rich.progress import TaskID

    from cfa_cli.cli.render import Terminal
    from cfa_cli.engine.benchmark import BenchmarkProgress
    from cfa_cli.engine.tables import Table


def benchmark(
    dataset: Annotated[str, typer.Argument(help="mvtec, visa, btad, mpdd, or a folder in MVTec's layout.")],
    data_root: Annotated[
        Path | None, typer.Option(help="Where the data set lies; default: the working folder.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write the results to.")] = Path("benchmark"),
    category: Annotated[list[str] | None, typer.Option(help="A category; several are allowed; default: all.")] = None,
    backbone: Annotated[
        list[str] | None, typer.Option(help="Any timm model with feature maps; several are allowed.")
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Several are allowed: mean and spread are shown.")] = None,
    preset: options.PresetOption = "default",
    layers: options.Layers = None,
    weights: options.WeightsOption = None,
    size: options.Size = None,
    crop: options.Crop = None,
    bank: options.Bank = None,
    gamma_c: options.GammaC = None,
    gamma_d: options.GammaD = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    lr: options.LearningRate = None,
    holdout: options.Holdout = None,
    max_fpr: options.MaxFpr = None,
    device: options.Device = "auto",
    precision: options.PrecisionOption = None,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", help="Categories at a time; several GPUs are taken in turn.")
    ] = 1,
    save_models: Annotated[bool, typer.Option("--save-models", help="Keep the models in OUT/models.")] = False,
    save_maps: Annotated[
        bool,
        typer.Option("--save-maps", help="Keep the score maps in OUT/maps: float TIFFs, as MVTec's evaluator reads."),
    ] = False,
    threshold_report: Annotated[
        bool, typer.Option("--threshold-report", help="Show in full what the calibrated threshold does.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Start over, whatever OUT holds.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Fit and test on a data set, category by category, and print the field's table.

    Image AUROC, image F1-max, pixel AUROC, AUPRO and pixel F1-max are exact; published figures stand beside them where
    data, backbone and weights are the same. The same command goes on where an interrupted one stopped.
    """
    from cfa_cli.cli import render

    config = options.build_config(
        preset,
        size=size,
        crop=crop,
        layers=layers,
        weights=weights,
        bank=bank,
        gamma_c=gamma_c,
        gamma_d=gamma_d,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        holdout=holdout,
        max_fpr=max_fpr,
        device=device,
        precision=precision,
    )
    terminal = render.Terminal(quiet, verbose)  # for its notes; the bars are this command's own
    terminal.note("Starting ...")
    from cfa_cli.data.datasets import open_dataset
    from cfa_cli.engine.benchmark import benchmark as run_benchmark
    from cfa_cli.engine.results import document
    from cfa_cli.engine.tables import remarks, tables

    with Bars(terminal) as bars:
        results = run_benchmark(
            open_dataset(dataset, data_root, category or ()),
            config,
            out=out,
            backbones=backbone or (),
            seeds=seed or (),
            jobs=jobs,
            save_models=save_models,
            save_maps=save_maps,
            force=force,
            command=shlex.join(["cfa", *sys.argv[1:]]),
            progress=bars.show,
            notify=terminal.note,
        )
    if json:
        render.print_json({"command": "benchmark", "out": str(out), **document(results)})
    else:
        for table in tables(results, threshold_report):
            _print(table)
        for remark in remarks(results):
            print(remark)
        render.print_facts("Written", [("Table", str(out / "results.md")), ("Runs", str(out / "results.csv, .json"))])
    return ExitCode.PARTIAL if results.failures else ExitCode.DONE


class Bars:
    """Progress on stderr: a bar over all runs, and one of each run under way. A context manager."""

    def __init__(self, terminal: Terminal) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._terminal = terminal
        self._start, self._first = time.monotonic(), 0
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=terminal.console,
            transient=True,
            disable=terminal.quiet or not terminal.console.is_terminal,
        )
        self._all: TaskID | None = None
        self._runs: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()
        if kind is KeyboardInterrupt:
            self._terminal.note("What is finished is kept: the same command goes on from there.")

    def show(self, at: BenchmarkProgress) -> None:
        """Show where the benchmark is."""
        if self._all is None:
            self._all = self._bars.add_task("Categories", total=at.total, completed=at.done, note="")
            self._start, self._first = time.monotonic(), at.done
            if at.done:
                self._terminal.note(f"{at.done} of {at.total} were done before.")
        if at.run is None:
            return
        if at.step is not None:
            if at.run not in self._runs:
                self._runs[at.run] = self._bars.add_task(at.run, note="")
            epoch = f"epoch {at.step.epoch}/{at.step.epochs}" if at.step.epoch else ""
            text = f"{at.run}: {at.step.phase}"
            self._bars.update(
                self._runs[at.run], description=text, completed=at.step.done, total=at.step.total, note=epoch
            )
            return
        if at.run in self._runs:
            self._bars.remove_task(self._runs.pop(at.run))
        self._bars.update(self._all, completed=at.done, note=self._eta(at))
        if self._bars.disable:
            self._terminal.note(f"{at.done}/{at.total}  {at.run}  {self._eta(at)}")

    def _eta(self, at: BenchmarkProgress) -> str:
        from cfa_cli.cli.render import duration

        each = (time.monotonic() - self._start) / (at.done - self._first)
        return f"ETA {duration(each * (at.total - at.done))}" if at.done < at.total else ""


def _print(table: Table) -> None:
    """A table on stdout; rows are never folded, a narrow terminal shows them as they are."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as RichTable

    shown = RichTable(title=table.title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for number, heading in enumerate(table.header):
        justify: Literal["left", "right"] = "right" if number else "left"
        shown.add_column(heading if number == 0 else heading.replace(" ", "\n"), justify=justify, no_wrap=True)
    for number, row in enumerate(table.rows, start=1):
        shown.add_row(*map(escape, row), style="bold" if number == len(table.rows) else None)
    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, Console(width=1000).measure(shown).maximum)
    console.print(shown)
    for note in table.notes:
        console.print(note, markup=False, style="dim")
    console.print()
