"""Which files cfa wrote itself: they are never its input."""

from __future__ import annotations

import json
from pathlib import Path

from cfa_cli.data.files import read_file
from cfa_cli.errors import ImageError
from cfa_cli.records import RESULT_FOLDERS

_BEGINNING = 2**16  # bytes of a file that are looked at


def holds_results(folder: Path) -> bool:
    """Whether `folder` is one that cfa wrote results to: run.jsonl of `cfa predict`, or a benchmark's results.json."""
    try:
        first, _, _ = _beginning(folder / "run.jsonl").partition(b"\n")
        if first and {"format", "folder"} <= dict(json.loads(first)).keys():
            return True
    except (ValueError, TypeError, RecursionError):
        pass
    results = _beginning(folder / "results.json")
    return results.startswith(b"{") and b'"averages": ' in results and b'"dataset": ' in results


def is_result(path: Path) -> bool:
    """Whether `path` is, or lies in, a folder of images beside results that cfa wrote."""
    absolute = path.absolute()
    return any(each.name in RESULT_FOLDERS and holds_results(each.parent) for each in (absolute, *absolute.parents))


def _beginning(path: Path) -> bytes:
    try:
        return read_file(path, limit=2**63, size=_BEGINNING)
    except ImageError:
        return b""
