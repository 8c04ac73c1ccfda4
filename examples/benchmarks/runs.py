"""The finished runs of a study, kept in its work folder, so that none is done twice."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cfa_cli.atomic import atomic_path


def open_runs(work: Path) -> dict[str, Any]:
    """Return the runs that the folder has, by key; make the folder if it is missing."""
    work.mkdir(parents=True, exist_ok=True)
    kept = work / "runs.json"
    return json.loads(kept.read_text()) if kept.exists() else {}


def keep_run(work: Path, runs: dict[str, Any], key: str, run: Mapping[str, float | None]) -> None:
    """Add a run, write all of them, and print it."""
    runs[key] = run
    with atomic_path(work / "runs.json") as temporary:
        temporary.write_text(json.dumps(runs, indent=0))
    print(key, {name: value if value is None else round(value, 4) for name, value in run.items()}, flush=True)
