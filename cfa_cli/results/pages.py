"""What all pages share: their templates, and how they are written."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from cfa_cli.atomic import atomic_path


def templates() -> Environment:
    """Return the pages' templates; all that is put into them is escaped."""
    return Environment(
        loader=PackageLoader("cfa_cli.results"),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def write_page(path: Path, page: str) -> Path:
    """Write a page, whole or not at all, and return its path. Raises InputError."""
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")
    return path
