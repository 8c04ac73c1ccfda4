"""`cfa fit GOOD_DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cfa_cli.cli import options
from cfa_cli.config import FitConfig, check_max_pixels
from cfa_cli.errors import ExitCode
from cfa_cli.records import MAX_PIXELS

if TYPE_CHECKING:
    from cfa_cli.engine.save import SavedFit


@options.fit_options()
def fit(
    good_dir: Annotated[Path, typer.Argument(metavar="FOLDER", help="Good images; its subfolders are searched too.")],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="The model to write; with --each a folder, by default models.",
            rich_help_panel=options.FILES,
        ),
    ] = options.DEFAULT_MODEL,
    each: Annotated[
        bool,
        typer.Option(
            "--each",
            help="Make a model OUT/NAME.safetensors for each sub-folder NAME: one for each product.",
            rich_help_panel=options.FILES,
        ),
    ] = False,
    report: Annotated[
        bool,
        typer.Option(
            "--report",
            help="Also write a page about the training beside the model (.html).",
            rich_help_panel=options.FILES,
        ),
    ] = False,
    force: options.Force = False,
    max_pixels: options.MaxPixels = MAX_PIXELS,
    ignore: options.FitIgnore = None,
    config: FitConfig = FitConfig(),
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Learn what good parts look like, from a folder of good images alone.

    Some of the images are held out from training: the threshold comes from them. The model is one file that
    `cfa predict` needs nothing beside.
    """
    from cfa_cli.cli import render

    if each:
        from cfa_cli.cli.each import fit_products

        return fit_products(
            good_dir,
            Path("models") if out == options.DEFAULT_MODEL else out,
            config,
            report=report,
            force=force,
            max_pixels=max_pixels,
            as_json=json,
            terminal=render.Terminal(quiet, verbose),
        )
    page = out.with_suffix(".html") if report else None
    with render.Terminal(quiet, verbose) as terminal:
        terminal.note("Starting ...")
        check_max_pixels(max_pixels)
        _check(good_dir, out, page, force, config, ignore)
        from cfa_cli.engine.fit import fit as run_fit
        from cfa_cli.engine.save import save_fit

        result = run_fit(
            good_dir,
            config,
            ignore=ignore,
            max_pixels=max_pixels,
            progress=terminal.progress,
            notify=terminal.note,
        )
        saved = save_fit(
            result,
            good_dir,
            out,
            page,
            force=force,
            device=config.device,
            max_pixels=max_pixels,
            ignore=ignore,
            progress=terminal.progress,
        )
    for path, reason in result.skipped:
        terminal.warn(f"Left out: {reason or path}")
    for warning in (*result.left_out.sentences(), *result.warnings):
        terminal.warn(warning)
    if json:
        render.print_json(saved.document())
    else:
        _show(saved)
    return ExitCode.PARTIAL if result.skipped else ExitCode.DONE


def _check(good_dir: Path, out: Path, page: Path | None, force: bool, config: FitConfig, ignore: Path | None) -> None:
    """Say what is wrong with the paths and weights before torch is imported, which takes seconds."""
    from cfa_cli.bundle import check_free
    from cfa_cli.data.ignore import find_ignore_masks
    from cfa_cli.data.inputs import find_good_images
    from cfa_cli.weights.loading import check_spec

    images = find_good_images(good_dir)
    if ignore is not None:
        find_ignore_masks(ignore, images)
    check_spec(config.weights, config.backbone)
    for file in filter(None, (out, page)):
        check_free(file, force)


def _show(saved: SavedFit) -> None:
    from cfa_cli.cli import describe, render

    result = saved.result
    images = f"{result.train_images} to train on, {result.holdout_images} held out for the threshold"
    if found := result.bundle.provenance.found:
        images += f"; drawn from {found} (--max-images {result.bundle.config.max_images})"
    render.print_facts(
        "Model",
        [
            ("Images", images + (f", {len(result.skipped)} left out" if result.skipped else "")),
            *describe.model_facts(result.bundle),
            ("Time", render.duration(result.seconds)),
            ("File", f"{render.short_path(saved.model)} ({render.file_size(saved.bytes)})"),
            *([("Report", render.short_path(saved.report))] if saved.report else []),
        ],
    )
