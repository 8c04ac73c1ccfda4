"""`cfa info BUNDLE...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cfa_cli.cli import options
from cfa_cli.records import Bundle

_DEFAULT = [options.DEFAULT_MODEL]


def info(
    bundles: Annotated[
        list[Path],
        typer.Argument(help="Models that `cfa fit` wrote; several are shown side by side.", metavar="BUNDLES"),
    ] = _DEFAULT,
    json: options.Json = False,
) -> None:
    """Show what a model is: its backbone, geometry, threshold and where it comes from."""
    from cfa_cli.bundle import load_bundle
    from cfa_cli.cli import render

    models = [(path, load_bundle(path)) for path in bundles]
    if json:
        from cfa_cli.engine.describe import model_document

        documents = [{"model": str(path), **model_document(model)} for path, model in models]
        content = documents[0] if len(documents) == 1 else {"models": documents}
        render.print_json({"command": "info", **content})
    elif len(models) == 1:
        render.print_facts("Model", _facts(*models[0]))
    else:
        columns = [_by_name(_facts(path, model)) for path, model in models]
        names = dict.fromkeys(name for column in columns for name in column)
        rows = [[name, *(column.get(name, "") for column in columns)] for name in names]
        render.print_table("Models", ["", *(f"{number}" for number in range(1, len(models) + 1))], rows)


def _facts(path: Path, model: Bundle) -> list[tuple[str, str]]:
    from cfa_cli.cli import describe, render

    provenance = model.provenance
    return [
        ("File", f"{render.short_path(path)} ({render.file_size(path.stat().st_size)})"),
        ("Images", f"{provenance.images} good images (list sha256 {provenance.images_sha256[:12]})"),
        *describe.model_facts(model),
        ("Versions", f"torch {provenance.torch}, timm {provenance.timm}, Python {provenance.python}"),
    ]


def _by_name(facts: list[tuple[str, str]]) -> dict[str, str]:
    """Facts by name; a model's warnings, which share theirs, are one text."""
    found: dict[str, str] = {}
    for name, value in facts:
        found[name] = f"{found[name]} {value}" if name in found else value
    return found
