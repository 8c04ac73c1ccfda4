"""`cfa info BUNDLE`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cfa_cli.cli import options


def info(
    bundle: Annotated[Path, typer.Argument(help="A model that `cfa fit` wrote.")] = options.DEFAULT_MODEL,
    json: options.Json = False,
) -> None:
    """Show what a model is: its backbone, geometry, threshold and where it comes from."""
    from cfa_cli.bundle import load_bundle
    from cfa_cli.cli import describe, render

    model = load_bundle(bundle)
    if json:
        from cfa_cli.engine.describe import model_document

        render.print_json({"command": "info", "model": str(bundle), **model_document(model)})
        return
    images = f"{model.provenance.images} good images (list sha256 {model.provenance.images_sha256[:12]})"
    versions = f"torch {model.provenance.torch}, timm {model.provenance.timm}, Python {model.provenance.python}"
    size = render.file_size(bundle.stat().st_size)
    facts = [
        ("File", f"{render.short_path(bundle)} ({size})"),
        ("Images", images),
        *describe.model_facts(model),
        ("Versions", versions),
    ]
    render.print_facts("Model", facts)
