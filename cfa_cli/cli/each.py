"""`cfa fit PARENT --each`: a model for each sub-folder, a row each in one table."""

from __future__ import annotations

from pathlib import Path

from cfa_cli.cli import render
from cfa_cli.config import FitConfig
from cfa_cli.engine.each import ProductFit, fit_each
from cfa_cli.errors import ExitCode


def fit_products(
    parent: Path,
    out: Path,
    config: FitConfig,
    *,
    report: bool,
    force: bool,
    max_pixels: float,
    as_json: bool,
    terminal: render.Terminal,
) -> int:
    """Fit each product, show what became of it, and return the exit code."""
    from cfa_cli.weights.loading import check_spec

    check_spec(config.weights, config.backbone)
    products = []
    with terminal:
        terminal.note("Starting ...")
        for product in fit_each(
            parent,
            out,
            config,
            report=report,
            force=force,
            max_pixels=max_pixels,
            progress=terminal.progress,
            notify=terminal.note,
        ):
            products.append(product)
            terminal.end(product.name)
            _tell(product, terminal)
    if as_json:
        render.print_json(
            {"command": "fit", "each": True, "out": str(out), "products": [each.document() for each in products]}
        )
    else:
        columns = ("product", "images", "held out", "threshold", "good ones over it", "model")
        render.print_table("Models", columns, map(_row, products), numeric=columns[1:4])
    whole = all(each.saved is not None and not each.saved.result.skipped for each in products)
    return ExitCode.DONE if whole else ExitCode.PARTIAL


def _tell(product: ProductFit, terminal: render.Terminal) -> None:
    if product.saved is None:
        terminal.warn(f"{product.name} has no model: {product.error}")
        return
    result = product.saved.result
    for path, reason in result.skipped:
        terminal.warn(f"Left out: {reason or path}")
    for warning in (*result.left_out.sentences(), *result.warnings):
        terminal.warn(f"{product.name}: {warning}")


def _row(product: ProductFit) -> tuple[str, ...]:
    if product.saved is None:
        return product.name, "", "", "", "", f"none: {product.error}"
    result, calibration = product.saved.result, product.saved.result.bundle.calibration
    return (
        product.name,
        str(result.train_images + result.holdout_images),
        str(result.holdout_images),
        f"{calibration.threshold:.4g}",
        f"{calibration.fpr_low:.1%} to {calibration.fpr_high:.1%}",
        f"{render.short_path(product.saved.model)} ({render.file_size(product.saved.bytes)})",
    )
