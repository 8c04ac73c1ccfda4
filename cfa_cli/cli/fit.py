"""`cfa fit GOOD_DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cfa_cli.cli import options
from cfa_cli.errors import ExitCode


def fit(
    good_dir: Annotated[Path, typer.Argument(help="A folder of good images; its subfolders are searched too.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The model to write.")] = options.DEFAULT_MODEL,
    preset: options.PresetOption = "default",
    backbone: options.Backbone = None,
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
    seed: options.Seed = None,
    holdout: options.Holdout = None,
    max_fpr: options.MaxFpr = None,
    device: options.Device = "auto",
    precision: options.PrecisionOption = None,
    report: Annotated[
        bool, typer.Option("--report", help="Also write a page about the training beside the model (.html).")
    ] = False,
    force: options.Force = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Learn what good parts look like, from a folder of good images alone.

    Some of the images are held out from training: the threshold comes from them. The model is one file that
    `cfa predict` needs nothing beside.
    """
    from cfa_cli.cli import describe, render

    config = options.build_config(
        preset,
        size=size,
        crop=crop,
        layers=layers,
        backbone=backbone,
        weights=weights,
        bank=bank,
        gamma_c=gamma_c,
        gamma_d=gamma_d,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        seed=seed,
        holdout=holdout,
        max_fpr=max_fpr,
        device=device,
        precision=precision,
    )
    with render.Terminal(quiet, verbose) as terminal:
        terminal.note("Starting ...")
        from cfa_cli.bundle import check_free, save_bundle

        page = out.with_suffix(".html")
        for file in (out, page) if report else (out,):
            check_free(file, force)  # before anything that takes time, the import of torch included
        from cfa_cli.engine.fit import fit as run_fit

        result = run_fit(good_dir, config, progress=terminal.progress, notify=terminal.note)
        written = save_bundle(result.bundle, out, force)
        if report:
            from cfa_cli.cli.predict import score
            from cfa_cli.data.inputs import find_sources
            from cfa_cli.engine.scorer import load_scorer
            from cfa_cli.results.report import write_fit_report

            scorer, sources = load_scorer(result.bundle, device), find_sources([str(good_dir)])
            write_fit_report(page, result, score(scorer, sources, result.bundle.calibration, True, terminal))
    for path, reason in result.skipped:
        terminal.warn(f"Left out: {reason or path}")
    for warning in result.warnings:
        terminal.warn(warning)
    if json:
        render.print_json(
            {
                "command": "fit",
                "model": str(out),
                "bytes": written,
                "report": str(page) if report else None,
                "seconds": result.seconds,
                "train_images": result.train_images,
                "holdout_images": result.holdout_images,
                "skipped": [{"path": path, "reason": reason} for path, reason in result.skipped],
                "losses": result.losses,
                "warnings": result.warnings,
                **describe.model_document(result.bundle),
            }
        )
    else:
        images = f"{result.train_images} to train on, {result.holdout_images} held out for the threshold"
        render.print_facts(
            "Model",
            [
                ("Images", images + (f", {len(result.skipped)} left out" if result.skipped else "")),
                *describe.model_facts(result.bundle),
                ("Time", render.duration(result.seconds)),
                ("File", f"{out} ({render.file_size(written)})"),
                *([("Report", str(page))] if report else []),
            ],
        )
    return ExitCode.PARTIAL if result.skipped else ExitCode.DONE
