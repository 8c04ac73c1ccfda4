"""A model as a JSON document."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from cfa_cli.records import Bundle
from cfa_cli.separation import separation
from cfa_cli.visibility import visibility


def model_document(bundle: Bundle) -> dict[str, Any]:
    """Describe a model for --json."""
    names = ("config", "geometry", "backbone", "calibration", "provenance")
    document: dict[str, Any] = {name: asdict(getattr(bundle, name)) for name in names}
    for name in ("training", "holdout", "recalibration"):
        section = getattr(bundle, name)
        document[name] = None if section is None else asdict(section)
    seen, separated = visibility(bundle), separation(bundle)
    document["visibility"] = None if seen is None else asdict(seen)
    document["separation"] = None if separated is None else asdict(separated)
    document["grid"] = bundle.grid
    document["unknown"] = bundle.unknown
    document["tensors"] = {name: list(t.shape) for name, t in bundle.tensors.items() if not name.startswith("backbone")}
    return document
