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
from cfa_cli.parsing import build_record
from cfa_cli.results.folder import is_there
from cfa_cli.text import printable

VERSION = 2  # of results.json
MAX_BYTES = 100_000_000  # of a results.json that is read
METRICS = {  # in the order of the field's tables
    "image_auroc": "image AUROC",
    "image_f1max": "image F1-max",
    "pixel_auroc": "pixel AUROC",
    "aupro": "AUPRO",
    "pixel_f1max": "pixel F1-max",
}
EvaluationKey = tuple[str, int, str]  # backbone, seed, category


@dataclass(frozen=True)
class Evaluation:
    """What one backbone and seed reach on one category: one fit and its test. Metrics: 0..1, None where undefined."""

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
    versions: str = ""  # "cfa 0.1.0, torch 2.9.0, timm 1.0.22": what it was computed with

    @property
    def key(self) -> EvaluationKey:
        """What tells it from the others of a benchmark."""
        return self.backbone, self.seed, self.category


@dataclass(frozen=True)
class Failure:
    """An evaluation that gave no result."""

    backbone: str
    seed: int
    category: str
    error: str  # one or two sentences
    traceback: str | None  # of a bug


@dataclass(frozen=True)
class Results:
    """A benchmark's evaluations so far."""

    dataset: str  # "MVTec AD", or a folder's name and a slash
    config: FitConfig  # of all evaluations; its backbone and seed are the first one's
    evaluations: tuple[Evaluation, ...]
    failures: tuple[Failure, ...]
    versions: dict[str, str]

    @property
    def backbones(self) -> list[str]:
        """All backbones, in the order of their first evaluation."""
        return list(dict.fromkeys(each.backbone for each in self.evaluations))

    def weights(self, backbone: str) -> str:
        """Say where a backbone's weights came from."""
        return ", ".join(dict.fromkeys(each.weights for each in self.evaluations if each.backbone == backbone))

    @property
    def categories(self) -> list[str]:
        """All categories, sorted; those that failed too."""
        return sorted({each.category for each in self.evaluations} | {failure.category for failure in self.failures})


@dataclass(frozen=True)
class Figure:
    """A mean over seeds and how far they lie from it."""

    mean: float
    spread: float | None  # standard deviation; None with one seed


def figure(results: Results, backbone: str, category: str, field: str) -> Figure | None:
    """One field of the evaluations of a backbone on a category, over its seeds. None if it is not defined."""
    values = [getattr(r, field) for r in results.evaluations if (r.backbone, r.category) == (backbone, category)]
    values = [value for value in values if value is not None]
    return Figure(fmean(values), stdev(values) if len(values) > 1 else None) if values else None


def average(results: Results, backbone: str, field: str) -> Figure | None:
    """The unweighted mean over categories, and how far the seeds' own averages spread."""
    evaluations = [
        evaluation
        for evaluation in results.evaluations
        if evaluation.backbone == backbone and getattr(evaluation, field) is not None
    ]
    categories = {evaluation.category for evaluation in evaluations}
    means = [
        fmean(getattr(evaluation, field) for evaluation in evaluations if evaluation.category == category)
        for category in categories
    ]
    by_seed = {
        evaluation.seed: [getattr(each, field) for each in evaluations if each.seed == evaluation.seed]
        for evaluation in evaluations
    }
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
        "runs": [dataclasses.asdict(evaluation) for evaluation in results.evaluations],
        "failures": [dataclasses.asdict(failure) for failure in results.failures],
        "config": _shared_options(results.config),
        "versions": results.versions,
    }


def versions_text(versions: dict[str, str]) -> str:
    """Return the versions that figures depend on most as an evaluation keeps them."""
    return ", ".join(f"{name} {versions[name]}" for name in ("cfa", "torch", "timm") if name in versions)


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
        dataset, options = stored["dataset"], {**_shared_options(FitConfig()), **stored["config"]}
        if stored["version"] < 2:
            options["normalize_positions"] = options.pop("relative")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path} is not the results of a benchmark, or damaged.",
            "Choose another --out, or replace them with --force.",
        ) from error
    _require_same(path, fresh, dataset, options)
    return dataclasses.replace(fresh, evaluations=evaluations)


def _require_same(path: Path, fresh: Results, dataset: object, options: dict[str, Any]) -> None:
    """Raise InputError where the stored results are of other data or options than `fresh`."""
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
    fields = [field.name for field in dataclasses.fields(Evaluation)]
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
