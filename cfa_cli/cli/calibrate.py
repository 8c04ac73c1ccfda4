"""`cfa calibrate MODEL GOOD...`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cfa_cli.cli import options
from cfa_cli.config import check_max_pixels
from cfa_cli.errors import ExitCode
from cfa_cli.records import MAX_PIXELS

if TYPE_CHECKING:
    from cfa_cli.records import CalibrateResult


def calibrate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The model that `cfa fit` wrote.")],
    good: Annotated[
        list[str] | None,
        typer.Argument(metavar="GOOD", help="Good images that it has not seen: files, folders or globs."),
    ] = None,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="FILE", help="The model to write.", rich_help_panel=options.FILES),
    ] = ...,  # type: ignore[assignment]  # required
    force: options.Force = False,
    defects: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER", help="Known defects, a sub-folder each kind; several are allowed.", show_default="none"
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Put the good images in the place of the hold-out, not beside it.")
    ] = False,
    max_fpr: options.MaxFpr = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            metavar="NUMBER",
            help="Score above which an image is anomalous.",
            show_default="by --max-fpr",
            rich_help_panel="Threshold",
        ),
    ] = None,
    min_area: Annotated[int | None, options.field_option("min_area", "the model's; others need --replace")] = None,
    catch_all: Annotated[
        bool,
        typer.Option(
            "--catch-all", help="Take the largest threshold that all --defects lie over.", rich_help_panel="Threshold"
        ),
    ] = False,
    max_pixels: options.MaxPixels = MAX_PIXELS,
    ignore: options.Ignore = None,
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Give a model new thresholds, from further good images or known defects, without training.

    Good images are added to the hold-out. The position baseline stays the model's: no image that is given here has a
    say in how its own score is judged. With --defects a table shows what each threshold flags and catches.
    """
    from cfa_cli.cli import render

    with render.Terminal(quiet, verbose) as terminal:
        terminal.note("Starting ...")
        from cfa_cli.bundle import check_free, save_bundle
        from cfa_cli.data.ignore import check_ignore
        from cfa_cli.engine.calibrate import calibrate as run_calibrate
        from cfa_cli.engine.calibrate import check_choice, check_is_bundle
        from cfa_cli.engine.labelled import find_labelled

        # Before torch is imported, which takes seconds.
        check_is_bundle(model)
        check_choice(good, defects, max_fpr, threshold, catch_all, replace)
        check_max_pixels(max_pixels)
        check_ignore(ignore)
        find_labelled(good or (), defects or ())
        check_free(out, force)
        result = run_calibrate(
            model,
            good or (),
            defects=defects or (),
            max_fpr=max_fpr,
            threshold=threshold,
            catch_all=catch_all,
            replace_holdout=replace,
            min_area=min_area,
            ignore=ignore,
            device=device,
            max_pixels=max_pixels,
            progress=terminal.progress,
        )
        size = save_bundle(result.bundle, out, force)
    for path, reason in result.skipped:
        terminal.warn(f"Left out: {reason or path}")
    for warning in (*result.left_out.sentences(), *result.warnings):
        terminal.warn(warning)
    if json:
        render.print_json(_document(result, model, out, size))
    else:
        _show(result, out, size)
    return ExitCode.PARTIAL if result.skipped else ExitCode.DONE


def _document(result: CalibrateResult, model: Path, out: Path, size: int) -> dict[str, object]:
    from cfa_cli.engine.describe import model_document

    return {
        "command": "calibrate",
        "from": str(model),
        "model": str(out),
        "bytes": size,
        "seconds": result.seconds,
        "skipped": [{"path": path, "reason": reason} for path, reason in result.skipped],
        "left_out": result.left_out.document(),
        "warnings": result.warnings,
        **model_document(result.bundle),
    }


def _show(result: CalibrateResult, out: Path, size: int) -> None:
    from cfa_cli.cli import describe, render

    evidence = result.evidence
    columns, rows = describe.threshold_table(evidence, result.bundle.calibration)
    render.print_table("What thresholds do", columns, rows, numeric=columns[:-1])
    render.print_facts(
        "Model",
        [
            *describe.threshold_facts(result.bundle),
            ("Before", f"{evidence.before:.4g}"),
            ("Time", render.duration(result.seconds)),
            ("File", f"{render.short_path(out)} ({render.file_size(size)})"),
        ],
    )
