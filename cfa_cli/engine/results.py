"""What a benchmark found: the records, their file, and means and spreads."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from cfa_cli.atomic import atomic_path
from cfa_cli.config import FitConfig
from cfa_cli.errors import InputError

VERSION = 2  # of results.json
METRICS = {  # in the order of the field's tables
    "image_auroc": "image AUROC",
    "image_f1max": "image F1-max",
    "pixel_auroc": "pixel AUROC",
    "aupro": "AUPRO",
    "pixel_f1max": "pixel F1-max",
}
RunKey = tuple[str, int, str]  # backbone, seed, category


@dataclass(frozen=True)
class Run:
    """What one backbone and seed reach on one category. Metrics are 0..1; None where they are not defined."""

    backbone: str
    seed: int
    category: str
    image_auroc: float | None
    image_f1max: float | None
    pixel_auroc: float | None
    aupro: float | None
    pixel_f1max: float | None
    threshold: float  # from good images
    fpr: float | None  # of this threshold on the good test images
    recall: float | None  # of this threshold on the anomalous test images
    f1: float | None  # of this threshold
    train_images: int
    holdout_images: int  # good images that calibrated the threshold
    test_good: int
    test_anomalous: int
    fit_seconds: float
    milliseconds: float  # an image, from decoding to map
    peak_memory_mb: float | None  # the process's own; None where the system does not tell
    peak_device_memory_mb: float | None  # allocated on the accelerator
    device: str
    input_size: tuple[int, int]  # height and width, px
    weights: str
    weights_sha256: str
    data_sha256: str  # of the category's file names and sizes
    warnings: tuple[str, ...]
    command: str = ""  # that repeats it

    @property
    def key(self) -> RunKey:
        """What tells it from the other runs of a benchmark."""
        return self.backbone, self.seed, self.category


@dataclass(frozen=True)
class Failure:
    """A run that gave no result."""

    backbone: str
    seed: int
    category: str
    error: str  # one or two sentences
    traceback: str | None  # of a bug


@dataclass(frozen=True)
class Results:
    """A benchmark's runs so far."""

    dataset: str  # "MVTec AD", or a folder's name and a slash
    config: FitConfig  # of all runs; its backbone and seed are the first run's
    runs: tuple[Run, ...]
    failures: tuple[Failure, ...]
    versions: dict[str, str]

    @property
    def backbones(self) -> list[str]:
        """All backbones, in the order of their first run."""
        return list(dict.fromkeys(run.backbone for run in self.runs))

    @property
    def categories(self) -> list[str]:
        """All categories, sorted; those that failed too."""
        return sorted({run.category for run in self.runs} | {failure.category for failure in self.failures})


@dataclass(frozen=True)
class Figure:
    """A mean over seeds and how far they lie from it."""

    mean: float
    spread: float | None  # standard deviation; None with one seed


def figure(results: Results, backbone: str, category: str, field: str) -> Figure | None:
    """One field of the runs of a backbone on a category, over its seeds. None if it is not defined."""
    values = [getattr(r, field) for r in results.runs if (r.backbone, r.category) == (backbone, category)]
    values = [value for value in values if value is not None]
    return Figure(fmean(values), stdev(values) if len(values) > 1 else None) if values else None


def average(results: Results, backbone: str, field: str) -> Figure | None:
    """The unweighted mean over categories, and how far the seeds' own averages spread."""
    runs = [run for run in results.runs if run.backbone == backbone and getattr(run, field) is not None]
    categories = {run.category for run in runs}
    means = [fmean(getattr(run, field) for run in runs if run.category == category) for category in categories]
    by_seed = {run.seed: [getattr(each, field) for each in runs if each.seed == run.seed] for run in runs}
    seeds = [fmean(values) for values in by_seed.values() if len(values) == len(categories)]  # others lack a category
    return Figure(fmean(means), stdev(seeds) if len(seeds) > 1 else None) if means else None


def document(results: Results) -> dict[str, Any]:
    """The JSON document of results.json and --json."""
    return {
        "version": VERSION,
        "dataset": results.dataset,
        "averages": {
            backbone: {
                field: dataclasses.asdict(found) if (found := average(results, backbone, field)) else None
                for field in (*METRICS, "fpr", "recall", "f1", "fit_seconds", "milliseconds")
            }
            for backbone in results.backbones
        },
        "runs": [dataclasses.asdict(run) for run in results.runs],
        "failures": [dataclasses.asdict(failure) for failure in results.failures],
        "config": _shared_options(results.config),
        "versions": results.versions,
    }


def read_results(out: Path, fresh: Results) -> Results:
    """`fresh` with the runs that an earlier session left in `out`, if any.

    Raises InputError if `out` holds something else, or runs of another data set or other options.
    """
    path = out / "results.json"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["version"] > VERSION:
            raise InputError(f"{path} was written by a newer cfa.", "Update cfa, or choose another --out.")
        runs = tuple(Run(**_lists_to_tuples(run)) for run in stored["runs"])
        dataset, options = stored["dataset"], {**_shared_options(FitConfig()), **stored["config"]}
        if stored["version"] < 2:
            options["normalize_positions"] = options.pop("relative")
    except FileNotFoundError:
        return fresh
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not the results of a benchmark.", "Choose another --out, or replace them with --force."
        ) from error
    mine = json.loads(json.dumps(_shared_options(fresh.config)))
    different = [f"{name} {options.get(name)}, not {mine[name]}" for name in mine if options.get(name) != mine[name]]
    if dataset != fresh.dataset:
        different.insert(0, f"data {dataset}, not {fresh.dataset}")
    if different:
        raise InputError(
            f"{path} holds results of other options: {'; '.join(different)}.",
            "Choose another --out, or start over with --force.",
        )
    return dataclasses.replace(fresh, runs=runs)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all. Raises InputError."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def rows(results: Results) -> Iterator[list[object]]:
    """results.csv: the names of the columns, then a row a run."""
    fields = [field.name for field in dataclasses.fields(Run)]
    yield list(fields)
    for run in results.runs:
        values = dataclasses.asdict(run)
        values["input_size"] = "x".join(map(str, run.input_size))
        values["warnings"] = " ".join(run.warnings)
        yield ["" if values[field] is None else values[field] for field in fields]


def _shared_options(config: FitConfig) -> dict[str, Any]:
    """What all runs have in common; a device is no option that changes what is computed."""
    options = dataclasses.asdict(config)
    return {name: value for name, value in options.items() if name not in ("backbone", "seed", "device")}


def _lists_to_tuples(run: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in run.items()}
