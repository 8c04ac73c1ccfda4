"""The files of a benchmark's results: results.json, which the next session goes on from, .csv, .md and .html."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cfa_cli.atomic import atomic_path
from cfa_cli.config import BEFORE_THEY_WERE_FIELDS, FitConfig
from cfa_cli.errors import InputError
from cfa_cli.parsing import build_record
from cfa_cli.results.benchmark import METRICS, Evaluation, Results, average, versions_text
from cfa_cli.results.folder import is_there
from cfa_cli.results.page import write_results_page
from cfa_cli.results.tables import markdown
from cfa_cli.text import printable

VERSION = 2  # of results.json
MAX_BYTES = 100_000_000  # of a results.json that is read
_OTHER_OUT = "Choose another --out, or replace them with --force."
_NOT_IN_ROWS = ("images", "kinds", "curve")  # of results.csv, which has a row an evaluation


def document(results: Results) -> dict[str, Any]:
    """The JSON document of results.json and --json."""
    return {
        "version": VERSION,
        "dataset": results.dataset,
        "averages": {
            method: {
                field: dataclasses.asdict(found) if (found := average(results, method, field)) else None
                for field in (*METRICS, "fpr", "recall", "f1", "fit_seconds", "milliseconds")
            }
            for method in results.methods
        },
        "runs": [dataclasses.asdict(evaluation) for evaluation in results.evaluations],
        "failures": [dataclasses.asdict(failure) for failure in results.failures],
        "differences": [dataclasses.asdict(difference) for difference in results.differences],
        "config": None if results.config is None else _shared_options(results.config),
        "versions": results.versions,
    }


def write_results(out: Path, results: Results) -> None:
    """Write results.json, .csv, .md and .html to the folder `out`. Raises InputError."""
    write_text(out / "results.json", json.dumps(document(results), indent=1, allow_nan=False) + "\n")
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(rows(results))
    write_text(out / "results.csv", table.getvalue())
    write_text(out / "results.md", markdown(results))
    write_results_page(out, results)


def read_results(out: Path, fresh: Results) -> Results:
    """Return `fresh` with the evaluations that an earlier session left in `out`, if any.

    The file may come from anybody: everything in it is checked. Raises InputError if it holds something else, or
    evaluations of another data set or other options.
    """
    path = out / "results.json"
    if not is_there(path):
        return fresh
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError("it is too large")
        stored = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(stored["version"], int) or stored["version"] < 1:
            raise ValueError("its version is none")
        if stored["version"] > VERSION:
            raise InputError(f"{path} was written by a newer cfa.", "Update cfa, or choose another --out.")
        computed_with = versions_text(build_record(dict[str, str], stored["versions"], "versions"))
        evaluations = tuple(
            build_record(Evaluation, {"versions": computed_with, **entry}, f"runs[{number}]")
            for number, entry in enumerate(stored["runs"])
        )
        if stored["config"] is None:
            raise InputError(f"{path} holds the results of models that were given.", _OTHER_OUT)
        dataset, options = stored["dataset"], _shared_options(FitConfig()) | BEFORE_THEY_WERE_FIELDS | stored["config"]
        if stored["version"] < 2:
            options["normalize_positions"] = options.pop("relative")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path} is not the results of a benchmark, or damaged.",
            _OTHER_OUT,
        ) from error
    _require_same(path, fresh, dataset, options)
    return dataclasses.replace(fresh, evaluations=evaluations)


def _require_same(path: Path, fresh: Results, dataset: object, options: dict[str, Any]) -> None:
    """Raise InputError where the stored results are of other data or options than `fresh`."""
    assert fresh.config is not None
    mine = json.loads(json.dumps(_shared_options(fresh.config)))
    different = [f"{name} {options.get(name)}, not {mine[name]}" for name in mine if options.get(name) != mine[name]]
    if dataset != fresh.dataset:
        different.insert(0, f"data {dataset}, not {fresh.dataset}")
    if different:
        raise InputError(
            f"{path} holds results of other options: {printable('; '.join(different), 500)}.",
            "Choose another --out, or start over with --force.",
        )


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all. Raises InputError."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def rows(results: Results) -> Iterator[list[object]]:
    """results.csv: the names of the columns, then a row an evaluation."""
    fields = [field.name for field in dataclasses.fields(Evaluation) if field.name not in _NOT_IN_ROWS]
    yield list(fields)
    for evaluation in results.evaluations:
        values = dataclasses.asdict(evaluation)
        values["input_size"] = "x".join(map(str, evaluation.input_size))
        values["warnings"] = " ".join(evaluation.warnings)
        yield ["" if values[field] is None else values[field] for field in fields]


def _shared_options(config: FitConfig) -> dict[str, Any]:
    """What all evaluations have in common; a device is no option that changes what is computed."""
    options = dataclasses.asdict(config)
    return {name: value for name, value in options.items() if name not in ("backbone", "seed", "device")}
