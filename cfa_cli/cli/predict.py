"""`cfa predict PATH...`."""

from __future__ import annotations

import heapq
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cfa_cli.cli import options
from cfa_cli.errors import ExitCode, UsageError
from cfa_cli.records import Bundle, Calibration, Prediction

if TYPE_CHECKING:
    from cfa_cli.cli.render import Terminal
    from cfa_cli.results.scores import Row

WORST_SHOWN = 10
SAVE_CHOICES = ("overlay", "map", "mask", "heatmap", "none")


def predict(
    paths: Annotated[
        list[str] | None, typer.Argument(help="Images, folders or globs; - reads paths from stdin.")
    ] = None,
    watch: Annotated[
        Path | None, typer.Option(help="Stay up and score each image that arrives in this folder, until Ctrl-C.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write results to.")] = Path("maps"),
    model: options.Model = options.DEFAULT_MODEL,
    save: Annotated[
        str, typer.Option(help=f"What to write beside scores.csv, with commas: {', '.join(SAVE_CHOICES)}.")
    ] = "overlay",
    threshold: Annotated[float | None, typer.Option(help="Score above which an image is anomalous.")] = None,
    max_fpr: options.MaxFpr = None,
    fail_on_anomaly: Annotated[bool, typer.Option("--fail-on-anomaly", help="Exit with 1 if one is found.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")] = False,
    force: options.Force = False,
    device: options.Device = "auto",
    precision: options.PrecisionOption = None,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Compile the backbone first: takes up to a minute, saves some 3 ms an image; for many thousands.",
        ),
    ] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Score images and show where their defects are.

    Writes scores.csv, overlays and report.html. Without --threshold or --max-fpr the model's own threshold is used,
    which comes from held-out good images.
    """
    from cfa_cli.cli import render

    saved = _parse_save(save)
    if threshold is not None and max_fpr is not None:
        raise UsageError("--threshold and --max-fpr exclude each other.", "Give one of them.")
    if bool(paths) == (watch is not None):
        raise UsageError("Give either images to score, or --watch with a folder.", "For example: cfa predict photos/")
    with render.Terminal(quiet, verbose) as terminal:
        terminal.note("Starting ...")
        from dataclasses import replace

        from cfa_cli.bundle import check_there
        from cfa_cli.data.inputs import find_sources

        # What was mistyped is said before torch is imported, which takes seconds.
        sources = find_sources(paths, sys.stdin) if paths else []
        check_there(model)
        from cfa_cli.engine.calibrate import recalibrate
        from cfa_cli.engine.runtimes import load_model
        from cfa_cli.results.report import write_report
        from cfa_cli.results.writer import ResultWriter

        bundle, scorer = load_model(model, device, precision)
        bundle = replace(bundle, calibration=recalibrate(bundle.calibration, max_fpr, threshold))
        for warning in (*bundle.warnings, *scorer.warnings):
            terminal.warn(warning)
        if compiled:
            from cfa_cli.engine.scorer import NetworkScorer

            if not isinstance(scorer, NetworkScorer):
                raise UsageError("--compile does not go with an exported model.", "Leave --compile out.")
            terminal.note("Compiling ...")
            scorer.compile()
        summary = Summary()
        with ResultWriter(out, bundle, saved, resume=resume, force=force) as writer:
            for row in writer.earlier:
                summary.add(row)
            waiting = [source for source in sources if not writer.is_done(source)]
            if watch is not None:
                from cfa_cli.cli.watch import watch_folder

                watch_folder(scorer, watch, bundle.calibration.threshold, writer, out, summary.add, terminal, json)
            for prediction in score(scorer, waiting, bundle.calibration, bool(saved), terminal):
                writer.write(prediction)
                summary.add(prediction)
        for _, error in writer.unwritten:
            terminal.warn(error)
        if saved:
            write_report(out, bundle, command=["cfa", *sys.argv[1:]])
    if json and watch is None:
        render.print_json(summary.document(out, bundle))
    elif not json:
        summary.show(out, bundle, already_done=len(sources) - len(waiting))
    if fail_on_anomaly and summary.anomalous:
        return ExitCode.ANOMALY
    return ExitCode.PARTIAL if summary.errors or writer.unwritten else ExitCode.DONE


def score(
    scorer: Any, sources: list[Any], calibration: Calibration, keep_images: bool, terminal: Terminal
) -> Iterator[Prediction]:
    """Score sources in order, and show how far it is."""
    from cfa_cli.engine.scorer import score_sources
    from cfa_cli.records import Progress

    said: set[str] = set()
    stream = score_sources(scorer, sources, calibration.threshold, keep_images=keep_images)
    for number, prediction in enumerate(stream, start=1):
        terminal.progress(Progress("scoring", number, len(sources)))
        if prediction.misfit and prediction.misfit not in said:
            said.add(prediction.misfit)
            terminal.warn(prediction.misfit)
        yield prediction


def _parse_save(text: str) -> frozenset[str]:
    chosen = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [part for part in chosen if part not in SAVE_CHOICES]
    if unknown or not chosen:
        wrong = unknown[0] if unknown else text
        raise UsageError(f"--save does not know '{wrong}'.", f"Choose from {', '.join(SAVE_CHOICES)}, with commas.")
    if "none" in chosen and len(chosen) > 1:
        raise UsageError("--save none excludes everything else.", "Leave none out, or the others.")
    return frozenset(chosen) - {"none"}


class Summary:
    """Counts and the worst images of a run; its memory does not grow with the number of images."""

    def __init__(self) -> None:
        self.good = self.anomalous = self.errors = 0
        self.milliseconds = 0.0
        self.started = time.perf_counter()
        self._worst: list[tuple[float, str, str]] = []
        self._failed: list[tuple[str, str]] = []

    def add(self, result: Prediction | Row) -> None:
        """Count one result: of this run, or a row of the run that it goes on with."""
        path = str(result.source.path if isinstance(result, Prediction) else result.path)
        if result.score is None:
            self.errors += 1
            if len(self._failed) < WORST_SHOWN:
                self._failed.append((path, result.error or ""))
            return
        self.milliseconds += result.milliseconds or 0.0
        if result.label == "anomalous":
            self.anomalous += 1
        else:
            self.good += 1
        entry = (result.score, path, str(result.label))
        if len(self._worst) < WORST_SHOWN:
            heapq.heappush(self._worst, entry)
        else:
            heapq.heappushpop(self._worst, entry)

    def document(self, out: Path, bundle: Bundle) -> dict[str, Any]:
        """Return the run for --json."""
        return {
            "command": "predict",
            "out": str(out),
            "scores": str(out / "scores.csv"),
            "threshold": bundle.calibration.threshold,
            "images": self.good + self.anomalous + self.errors,
            "seconds": time.perf_counter() - self.started,  # all but starting Python and its libraries
            "good": self.good,
            "anomalous": self.anomalous,
            "errors": [{"path": path, "error": error} for path, error in self._failed],
            "error_count": self.errors,
            "worst": [{"path": path, "score": score, "label": label} for score, path, label in self._sorted()],
        }

    def show(self, out: Path, bundle: Bundle, already_done: int) -> None:
        """Print the run on stdout."""
        from cfa_cli.cli import render

        threshold = bundle.calibration.threshold
        rows = [(f"{score:.4g}", f"{score / threshold:.2f}", label, path) for score, path, label in self._sorted()]
        if rows:
            columns = ("score", "of threshold", "label", "image")
            render.print_table("Highest scores", columns, rows, numeric=columns[:2])
        scored = self.good + self.anomalous
        facts = [("Images", f"{self.anomalous} anomalous, {self.good} good")]
        if already_done:
            facts.append(("Done before", f"{already_done}"))
        if self.errors:
            facts.append(("Not read", f"{self.errors}"))
            facts += [("", error) for _, error in self._failed]
        facts.append(("Threshold", f"{threshold:.4g}"))
        if scored:
            facts.append(("Time", f"{self.milliseconds / scored:.1f} ms an image"))
        facts.append(("Results", f"{out / 'scores.csv'}"))
        if (out / "report.html").exists():
            facts.append(("Report", f"{out / 'report.html'}"))
        render.print_facts("Result", facts)

    def _sorted(self) -> list[tuple[float, str, str]]:
        return sorted(self._worst, reverse=True)
