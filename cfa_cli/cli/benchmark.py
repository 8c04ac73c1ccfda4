"""`cfa benchmark mvtec|visa|btad|...|DIR`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypedDict

import typer

from cfa_cli.cli import options
from cfa_cli.config import FitConfig
from cfa_cli.errors import ExitCode, UsageError
from cfa_cli.text import command_line

if TYPE_CHECKING:
    from cfa_cli.cli.render import Terminal
    from cfa_cli.engine.benchmark import BenchmarkProgress
    from cfa_cli.results.benchmark import Results
    from cfa_cli.results.table import Table


DataSet = Annotated[
    str,
    typer.Argument(
        metavar="DATASET",
        help="mvtec, mvtec-ad2, mvtec-loco, visa, btad, mpdd, kolektorsdd, kolektorsdd2, dagm, or a folder: in MVTec's "
        "layout, or of good and bad images.",
    ),
]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Where the data set lies.",
        show_default="the working folder",
        rich_help_panel=options.FILES,
    ),
]
Download = Annotated[
    bool,
    typer.Option("--download", help="Fetch the data set first, if it is not there.", rich_help_panel=options.FILES),
]
Yes = Annotated[
    bool,
    typer.Option("--yes", help="Accept the licence of what --download fetches.", rich_help_panel=options.FILES),
]
OWN = "Own images"  # a panel of --help
TrainFolder = Annotated[
    str | None,
    typer.Option(
        "--train",
        metavar="FOLDER",
        help="Good images to train on.",
        show_default="by name, or 80 % of the good images",
        rich_help_panel=OWN,
    ),
]
GoodFolder = Annotated[
    str | None,
    typer.Option("--good", metavar="FOLDER", help="Good images.", show_default="by name", rich_help_panel=OWN),
]
BadFolders = Annotated[
    list[str] | None,
    typer.Option(
        "--bad",
        metavar="FOLDER",
        help="Images with defects; several are allowed, each is a kind.",
        show_default="by name",
        rich_help_panel=OWN,
    ),
]
MaskFolder = Annotated[
    str | None,
    typer.Option("--masks", metavar="FOLDER", help="Masks of defects.", show_default="by name", rich_help_panel=OWN),
]
Out = Annotated[
    Path,
    typer.Option(
        "--out", "-o", metavar="FOLDER", help="The folder to write the results to.", rich_help_panel=options.FILES
    ),
]
SaveModels = Annotated[
    bool, typer.Option("--save-models", help="Keep the models in OUT/models.", rich_help_panel=options.FILES)
]
SaveMaps = Annotated[
    bool,
    typer.Option(
        "--save-maps",
        help="Keep the score maps in OUT/maps: float TIFFs, as MVTec's evaluator reads.",
        rich_help_panel=options.FILES,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Start over, whatever OUT holds.", rich_help_panel=options.FILES)]
Models = Annotated[
    list[Path] | None,
    typer.Option(
        "--model",
        "-m",
        metavar="FILE|FOLDER",
        help="Measure a model that exists and train nothing; several are compared. A folder has one for each category.",
        show_default=False,
        rich_help_panel=options.FILES,
    ),
]
Categories = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="A category; several are allowed.", show_default="all")
]
Backbones = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME", help="Any timm model with feature maps; several are allowed.", show_default="resnet18"
    ),
]
Seeds = Annotated[
    list[int] | None,
    typer.Option(metavar="N", help="Several are allowed: mean and spread are shown.", show_default="0"),
]
Jobs = Annotated[
    int, typer.Option("--jobs", "-j", min=1, metavar="N", help="Categories at a time, on all GPUs in turn.")
]
ThresholdReport = Annotated[
    bool,
    typer.Option(
        "--threshold-report",
        help="Show in full what the calibrated threshold does.",
        rich_help_panel=options.MESSAGES,
    ),
]


@options.fit_options(leave_out=("backbone", "seed"))
def benchmark(
    dataset: DataSet,
    data_root: DataRoot = None,
    download: Download = False,
    yes: Yes = False,
    train: TrainFolder = None,
    good: GoodFolder = None,
    bad: BadFolders = None,
    masks: MaskFolder = None,
    model: Models = None,
    out: Out = Path("benchmark"),
    save_models: SaveModels = False,
    save_maps: SaveMaps = False,
    ignore: options.FitIgnore = None,
    force: Force = False,
    category: Categories = None,
    backbone: Backbones = None,
    seed: Seeds = None,
    jobs: Jobs = 1,
    ray: options.Ray = None,
    config: FitConfig = FitConfig(),
    threshold_report: ThresholdReport = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Fit and test on a data set, category by category, and print the field's table.

    Image AUROC, image F1-max, pixel AUROC, AUPRO and pixel F1-max are exact; published figures stand beside them where
    data, backbone, weights, size and crop are the same. The same command goes on where an interrupted one stopped.
    Models that exist are measured with --model, and compared where there are several.
    """
    from cfa_cli.cli import obtain, render

    fetch = download and obtain.accept_licence(dataset, data_root, yes)
    with render.Terminal(quiet, verbose) as terminal:
        terminal.note("Starting ...")
        if fetch:
            obtain.obtain(dataset, data_root, terminal)
        from cfa_cli.data.datasets import name_folders, open_dataset
        from cfa_cli.data.ignore import find_ignore_masks
        from cfa_cli.engine.cluster import check_ray
        from cfa_cli.weights.loading import check_spec

        # Mistakes are said before torch is imported.
        check_ray(ray, config.device, jobs)
        if model:
            _check_models(model)
            _check_alone(config, backbone=backbone, seed=seed, jobs=jobs > 1, ray=ray, save_models=save_models)
        named = name_folders(Path(dataset), train, good, bad or (), masks)
        data = open_dataset(dataset, data_root, category or (), named, trains=not model)
        for note in dict.fromkeys(note for each in data.categories for note in each.notes):
            terminal.note(note)
        for each in backbone or [config.backbone]:
            check_spec(config.weights, each)
        if ignore is not None:
            find_ignore_masks(ignore)
        from cfa_cli.engine.benchmark import benchmark as run_benchmark
        from cfa_cli.engine.compare import compare
        from cfa_cli.results.benchmark_files import document

        shared: Shared = {
            "out": out,
            "save_maps": save_maps,
            "ignore": ignore,
            "force": force,
            "command": command_line(["cfa", *sys.argv[1:]]),
            "progress": _Evaluations(terminal).show,
            "notify": terminal.note,
        }
        if model:
            results = compare(data, model, device=config.device, **shared)
        else:
            try:
                results = run_benchmark(
                    data,
                    config,
                    backbones=backbone or (),
                    seeds=seed or (),
                    jobs=jobs,
                    ray=ray,
                    save_models=save_models,
                    **shared,
                )
            except KeyboardInterrupt:
                terminal.note("What is finished is kept: the same command goes on from there.")
                raise
    if json:
        render.print_json({"command": "benchmark", "out": str(out), **document(results)})
    else:
        _show(results, out, threshold_report)
    return ExitCode.PARTIAL if results.failures else ExitCode.DONE


class Shared(TypedDict):
    """What both kinds of benchmark are told."""

    out: Path
    save_maps: bool
    ignore: Path | None
    force: bool
    command: str
    progress: Callable[[BenchmarkProgress], None]
    notify: Callable[[str], None]


def _check_models(models: list[Path]) -> None:
    """Raise BundleError for models that are not there; what is in folders is found later."""
    from cfa_cli.bundle import check_there

    for model in models:
        if not model.is_dir():
            check_there(model)


def _check_alone(config: FitConfig, **others: object) -> None:
    """Raise UsageError for options of a fit, which do not go with models that exist."""
    given = [name for name, value in others.items() if value]
    given += [
        field.name
        for field in fields(FitConfig)
        if field.name != "device" and getattr(config, field.name) != getattr(FitConfig(), field.name)
    ]
    if given:
        raise UsageError(
            f"--{given[0].replace('_', '-')} does not go with --model, which trains nothing.", "Leave one of them out."
        )


class _Evaluations:
    """How far a benchmark is, on the terminal: a bar over all evaluations, and one of each that is under way."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal

    def show(self, at: BenchmarkProgress) -> None:
        from cfa_cli.records import Progress

        if at.current is not None and at.step is not None:
            self._terminal.progress(at.step, at.current)
            return
        if at.current is not None:
            self._terminal.end(at.current)
        elif at.done:
            self._terminal.note(f"{at.done} of {at.total} were done before.")
        self._terminal.progress(Progress("all evaluations", at.done, at.total, unit="evaluations"))


def _show(results: Results, out: Path, threshold_report: bool) -> None:
    from cfa_cli.cli import render
    from cfa_cli.results.tables import remarks, tables

    models_of_one_category = results.config is None and len(results.categories) == 1
    for table in tables(results, threshold_report or models_of_one_category):
        _print(table)
    for remark in remarks(results):
        print(remark)
    files = {"Page": out / "results.html", "Table": out / "results.md", "Rows": out / "results.csv, .json"}
    render.print_facts("Written", [(name, render.short_path(path)) for name, path in files.items()])


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
        shown.add_row(*map(escape, row), style="bold" if table.has_average and number == len(table.rows) else None)
    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, Console(width=1000).measure(shown).maximum)
    console.print(shown)
    for note in table.notes:
        console.print(note, markup=False, style="dim")
    console.print()
