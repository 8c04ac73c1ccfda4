"""`cfa predict PATH...`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from cfa_cli.cli import options
from cfa_cli.cli.garbage import nothing_to_collect
from cfa_cli.errors import ExitCode, UsageError
from cfa_cli.records import MAX_PIXELS, SaveKind

if TYPE_CHECKING:
    from cfa_cli.cli.render import Terminal
    from cfa_cli.engine.predictions import Predictions

SAVE_CHOICES = (*get_args(SaveKind), "none")


def predict(
    paths: Annotated[
        list[str] | None, typer.Argument(metavar="IMAGES", help="Images, folders or globs; - reads paths from stdin.")
    ] = None,
    watch: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Stay up and score each image that arrives in this folder, until Ctrl-C."),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="FOLDER", help="The folder to write results to.", rich_help_panel=options.FILES
        ),
    ] = Path("maps"),
    model: Annotated[
        Path,
        typer.Option(
            "--model",
            "-m",
            help="The model to use, or a folder of models: each image takes the one named like its folder.",
            metavar="FILE|FOLDER",
            rich_help_panel=options.FILES,
        ),
    ] = options.DEFAULT_MODEL,
    match: Annotated[
        bool,
        typer.Option(
            "--match",
            help="Of a folder of models, take the one that fits an image best.",
            rich_help_panel=options.FILES,
        ),
    ] = False,
    save: Annotated[
        str,
        typer.Option(
            metavar="KINDS",
            help=f"What to write beside scores.csv, with commas: {', '.join(SAVE_CHOICES)}.",
            rich_help_panel=options.FILES,
        ),
    ] = "overlay",
    threshold: Annotated[
        float | None,
        typer.Option(
            metavar="NUMBER",
            help="Score above which an image is anomalous.",
            show_default="the model's",
            rich_help_panel="Threshold",
        ),
    ] = None,
    max_fpr: options.MaxFpr = None,
    fail_on_anomaly: Annotated[
        bool, typer.Option("--fail-on-anomaly", help="Exit with 1 if one is found.", rich_help_panel="Threshold")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where an interrupted run stopped.", rich_help_panel=options.FILES)
    ] = False,
    force: options.Force = False,
    max_pixels: options.MaxPixels = MAX_PIXELS,
    ignore: options.Ignore = None,
    device: options.Device = "auto",
    precision: options.PrecisionOption = None,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Compile the backbone first: takes up to a minute, saves some 3 ms an image; for many thousands.",
            rich_help_panel="Computing",
        ),
    ] = False,
    ray: options.Ray = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Score images and show where their defects are.

    Writes scores.csv, overlays and report.html. Without --threshold or --max-fpr the model's own threshold is used,
    which comes from held-out good images.
    """
    from cfa_cli.cli.render import Terminal

    arguments: dict[str, Any] = {
        "out": out,
        "save": _parse_save(save),
        "resume": resume,
        "force": force,
        "threshold": threshold,
        "max_fpr": max_fpr,
        "max_pixels": max_pixels,
        "ignore": ignore,
        "device": device,
        "precision": precision,
        "compiled": compiled,
        "match": match,
        "command": ["cfa", *sys.argv[1:]],
    }
    if bool(paths) == (watch is not None):
        raise UsageError("Give either images to score, or --watch with a folder.", "For example: cfa predict photos/")
    with Terminal(quiet, verbose) as terminal:
        terminal.note("Starting ...")
        if watch is not None:
            if ray is not None:
                raise UsageError("--ray does not go with --watch.", "Leave one of them out.")
            from cfa_cli.cli.watch import watch_folder

            run = watch_folder(model, watch, terminal, as_json=json, **arguments)
        else:
            run = _score(model, paths or [], terminal, as_json=json, ray=ray, **arguments)
    return _conclude(run, as_json=json, lines=watch is not None or _streams(paths), fail_on_anomaly=fail_on_anomaly)


def _score(model: Path, paths: list[str], terminal: Terminal, *, as_json: bool, **arguments: Any) -> Predictions:
    """Score the images that are named; print a line each where they come from standard input."""
    from cfa_cli.cli.predictions import print_line, warn
    from cfa_cli.engine.predict import predict as start

    with nothing_to_collect():
        run = start(model, paths, stdin=sys.stdin, progress=terminal.progress, **arguments)
    with run:
        warn(terminal, run.warnings)
        for prediction in run:
            warn(terminal, run.warnings)
            if _streams(paths):
                print_line(prediction.result, as_json)
        warn(terminal, run.warnings)
    return run


def _streams(paths: list[str] | None) -> bool:
    return "-" in (paths or ())


def _conclude(run: Predictions, *, as_json: bool, lines: bool, fail_on_anomaly: bool) -> int:
    """Show the run's summary, unless its lines are JSON already, and return the exit code."""
    from cfa_cli.cli import render
    from cfa_cli.cli.predictions import print_summary

    if not as_json:
        print_summary(run.summary)
    elif not lines:
        render.print_json(run.complete_summary.document())
    if fail_on_anomaly and run.summary.anomalous:
        return ExitCode.ANOMALY
    return ExitCode.PARTIAL if run.summary.error_count else ExitCode.DONE


def _parse_save(text: str) -> frozenset[str]:
    chosen = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [part for part in chosen if part not in SAVE_CHOICES]
    if unknown or not chosen:
        wrong = unknown[0] if unknown else text
        raise UsageError(f"--save does not know '{wrong}'.", f"Choose from {', '.join(SAVE_CHOICES)}, with commas.")
    if "none" in chosen and len(chosen) > 1:
        raise UsageError("--save none excludes everything else.", "Leave none out, or the others.")
    return frozenset(chosen) - {"none"}
