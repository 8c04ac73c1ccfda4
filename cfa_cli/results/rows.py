"""A row of scores.csv, as a record and as text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfa_cli.notes import Misfit
from cfa_cli.records import Label, Prediction, Region
from cfa_cli.results.text import regions_from_json, safe

COLUMNS = (
    *("path", "score", "normalized", "threshold", "label", "milliseconds", "error"),  # all that cfa before 0.2 wrote
    *("misfit", "model", "near_threshold"),
)
EARLIER_COLUMNS = (COLUMNS[:7], COLUMNS[:9])  # of tables that an earlier version wrote
_YES_NO = {True: "yes", False: "no", None: ""}


@dataclass(frozen=True)
class Row:
    """A row of scores.csv, and what run.jsonl adds to it."""

    path: Path  # as the user gave it; a relative one starts at the run's folder
    name: str  # of its files: POSIX, relative, without suffix
    score: float | None
    normalized: float | None
    threshold: float
    label: Label | None
    milliseconds: float | None
    error: str | None  # why the image has no score, or why its pictures could not be written
    size: tuple[int, int] | None  # (height, width) in px, source size
    state: tuple[int, int] | None = None  # of the file, where it may be overwritten: see `Source`
    regions: tuple[Region, ...] = ()
    misfits: tuple[Misfit, ...] = ()  # in what the image is not like the training images
    model: str | None = None  # which of several models scored it
    near_threshold: bool | None = None  # the score lies in the threshold's interval; None: there is none


def row_from(entry: dict[str, Any], fields: dict[str, str]) -> Row:
    """The row of an entry of run.jsonl and the fields of scores.csv. Raises ValueError, TypeError or KeyError."""

    def number(text: str) -> float | None:
        if not text:
            return None
        if not math.isfinite(value := float(text)):
            raise ValueError(text)
        return value

    label: Label | None = "anomalous" if fields["label"] == "anomalous" else "good" if fields["label"] else None
    return Row(
        path=Path(entry["path"]),
        name=entry["name"],
        score=number(fields["score"]),
        normalized=number(fields["normalized"]),
        threshold=number(fields["threshold"]) or 0.0,
        label=label,
        milliseconds=number(fields["milliseconds"]),
        error=fields["error"] or None,
        size=tuple(entry["size"]) if entry["size"] else None,
        state=tuple(entry["state"]) if entry.get("state") else None,
        regions=regions_from_json(entry.get("regions", [])),
        misfits=tuple(Misfit(what, figures) for what, figures in entry.get("misfits", [])),
        model=fields.get("model") or None,
        near_threshold={"yes": True, "no": False}.get(fields.get("near_threshold", "")),
    )


def row_fields(prediction: Prediction, path: str) -> list[str]:
    """The row's text. 9 significant digits give every float32 back."""

    def text(value: float | None, form: str = ".9g") -> str:
        return "" if value is None else format(value, form)

    normalized = text(prediction.normalized)
    if normalized == "1" and prediction.normalized is not None:  # a score may be any number of times the threshold
        normalized = repr(min(prediction.normalized, math.nextafter(1, 0)))
    return [
        safe(path),
        text(prediction.score),
        normalized,
        text(prediction.threshold),
        prediction.label or "",
        text(prediction.milliseconds, ".3f"),
        safe(prediction.error or ""),
        safe(prediction.misfit or ""),
        safe(prediction.model or ""),
        _YES_NO[prediction.near_threshold],
    ]
