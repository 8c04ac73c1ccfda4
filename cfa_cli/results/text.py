"""Results as lines of text: CSV that spreadsheets and programs read alike, and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator
from typing import Any

from cfa_cli.notes import Misfit
from cfa_cli.records import Region

REGION_COLUMNS = (
    *("path", "left", "top", "width", "height", "area", "centroid_column", "centroid_row"),
    *("peak", "peak_column", "peak_row"),
)


def safe(text: str) -> str:
    """Keep spreadsheets from running a file name as a formula. `./` changes no relative path's meaning."""
    return f"./{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def csv_line(fields: Iterable[str]) -> bytes:
    """A row, its line end "\\n"; fields with a line end of any kind are quoted."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(fields)
    return line.getvalue().removesuffix("\r\n").encode("utf-8", "surrogateescape") + b"\n"


def json_line(entry: dict[str, Any]) -> bytes:
    """An entry of run.jsonl; ASCII alone, whatever its file names are."""
    return json.dumps(entry).encode() + b"\n"


def regions_to_json(regions: Iterable[Region]) -> list[list[float]]:
    """Regions as lists of numbers, in the order of `REGION_COLUMNS`."""
    return [[r.left, r.top, r.width, r.height, r.area, *r.centroid, r.peak, *r.peak_at] for r in regions]


def misfits_to_json(misfits: Iterable[Misfit]) -> list[list[str | None]]:
    """Misfits as pairs of texts."""
    return [[misfit.what, misfit.figures] for misfit in misfits]


def regions_from_json(value: Any) -> tuple[Region, ...]:
    """The regions that `regions_to_json` wrote. Raises ValueError or TypeError for anything else."""
    regions = []
    for left, top, width, height, area, centroid_column, centroid_row, peak, peak_column, peak_row in value:
        whole, real = (left, top, width, height, area, peak_column, peak_row), (centroid_column, centroid_row, peak)
        if any(type(number) is not int for number in whole) or not all(map(math.isfinite, real)):
            raise ValueError("region")
        centroid = float(centroid_column), float(centroid_row)
        regions.append(Region(left, top, width, height, area, centroid, float(peak), (peak_column, peak_row)))
    return tuple(regions)


def region_lines(path: str, regions: Iterable[Region]) -> Iterator[bytes]:
    """The lines of an image's regions in regions.csv."""
    for numbers in regions_to_json(regions):
        yield csv_line([safe(path), *(format(number, ".9g") for number in numbers)])
