"""The verb `benchmark` for models that exist: nothing is trained, each is measured, and they are compared."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from cfa_cli.bundle import check_there
from cfa_cli.data.category import Category
from cfa_cli.data.datasets import Dataset
from cfa_cli.data.ignore import IgnoreMasks, find_ignore_masks
from cfa_cli.engine.benchmark import BenchmarkCallback, BenchmarkProgress, name_data, versions
from cfa_cli.engine.bootstrap import Drawn, average, drawn_differences, with_intervals
from cfa_cli.engine.evaluate import check_category, describe, reset_peak_memory
from cfa_cli.engine.measure import Measured, measure
from cfa_cli.engine.model import open_model
from cfa_cli.engine.samples import write_samples
from cfa_cli.errors import CfaError, InputError, UsageError
from cfa_cli.records import MODEL_SUFFIXES, Progress, ProgressCallback
from cfa_cli.results.benchmark import Difference, Evaluation, Failure, Results, evaluation_label, versions_text
from cfa_cli.results.benchmark_files import write_results
from cfa_cli.results.folder import is_there, locked


def compare(
    dataset: Dataset,
    models: Sequence[Path],
    *,
    out: Path,
    device: str = "auto",
    save_maps: bool = False,
    ignore: str | Path | None = None,
    force: bool = False,
    command: str = "",
    progress: BenchmarkCallback = lambda step: None,
    notify: Callable[[str], None] = lambda note: None,
) -> Results:
    """Measure models on a data set, and say how much of their differences may be chance.

    models: bundles or exported models, of a data set of one category; of several, folders with CATEGORY.safetensors
    (or another model) for each. The first is what the others are compared with.

    `ignore` names what is not looked at, in place of what the models ignore, and in no pixel metric.
    Writes `results.json`, `.csv`, `.md` and `.html` to `out`. What cannot be measured is in the results' failures.
    Raises UsageError and InputError for models that are not there, and for an `out` that holds results, unless `force`.
    """
    names = _names(models)
    files = {
        (name, category.name): find_model(model, category.name, alone=len(dataset.categories) == 1)
        for name, model in zip(names, models, strict=True)
        for category in dataset.categories
    }
    masks = None if ignore is None else find_ignore_masks(ignore)
    comparison = _Comparison(names, device, out, save_maps, masks)
    done = 0
    with locked(out):
        if is_there(out / "results.json") and not force:
            raise InputError(f"{out} holds results.", "Choose another --out, or replace them with --force.")
        for category in dataset.categories:
            for name in names:
                label = evaluation_label(category.name, "", 0, name)

                def report(step: Progress, label: str = label, done: int = done) -> None:
                    progress(BenchmarkProgress(done, len(files), label, step))

                error = comparison.add(category, name, files[name, category.name], report)
                if error:
                    notify(f"{label} failed: {error}")
                done += 1
                progress(BenchmarkProgress(done, len(files), label, None))
            comparison.end(category)
        results = comparison.results(name_data(dataset, masks), command)
        write_results(out, results)
    return results


def find_model(path: Path, category: str, *, alone: bool) -> Path:
    """Return a category's model: `path` itself, or the one named after the category in the folder `path`.

    `alone`: it is the only category. Raises UsageError for one file where there are several categories, InputError
    where a folder lacks the model, and BundleError where there is none.
    """
    if path.is_dir():
        found = [file for suffix in MODEL_SUFFIXES if (file := path / f"{category}{suffix}").is_file()]
        if not found:
            raise InputError(
                f"{path} has no model {category}{MODEL_SUFFIXES[0]}.",
                "A folder of models has one for each category, as `cfa benchmark --save-models` writes them.",
            )
        return found[0]
    check_there(path)
    if not alone:
        raise UsageError(
            f"{path} is one model, and the data set has several categories.",
            "Choose one with --category, or give a folder with a model for each.",
        )
    return path


class _Comparison:
    """Collects what is measured of models, category by category, and their differences from the first of them."""

    def __init__(
        self, names: Sequence[str], device: str, out: Path, save_maps: bool, ignore: IgnoreMasks | None
    ) -> None:
        self._names, self._device, self._out, self._save_maps = names, device, out, save_maps
        self._ignore = ignore
        self._evaluations: list[Evaluation] = []
        self._failures: list[Failure] = []
        self._differences: list[Difference] = []
        self._measured: dict[str, Measured] = {}  # of the present category
        self._drawn: dict[str, list[dict[str, Drawn]]] = {name: [] for name in names[1:]}  # of each category

    def add(self, category: Category, name: str, file: Path, progress: ProgressCallback) -> str | None:
        """Measure a model on a category; return what went wrong, if anything did."""
        try:
            notes = check_category(category)
            reset_peak_memory()
            model = open_model(file, device=self._device)
            maps = self._out / "maps" / name if self._save_maps else None
            measured = measure(category, model, maps=maps, ignore=self._ignore, progress=progress)
        except CfaError as error:
            failure = Failure("", 0, category.name, " ".join(filter(None, (error.message, error.hint))), None, name)
            self._failures.append(failure)
            return failure.error
        evaluation = describe(category, measured, model.bundle, self._device, self._ignore)
        evaluation = replace(evaluation, model=name, warnings=(*model.warnings, *notes))
        write_samples(self._out, category, model, evaluation, self._ignore)
        self._evaluations.append(evaluation)
        self._measured[name] = measured
        return None

    def end(self, category: Category) -> None:
        """Compare the models on the category that all of them have been measured on."""
        first = self._names[0]
        for name in self._names[1:]:
            if first in self._measured and name in self._measured:
                drawn = drawn_differences(self._measured[first], self._measured[name])
                self._drawn[name].append(drawn)
                self._differences += with_intervals(category.name, first, name, drawn)
        self._measured = {}

    def results(self, dataset: str, command: str) -> Results:
        """All that was found."""
        ours = versions()
        differences = list(self._differences)
        for name, drawn in self._drawn.items():
            if len(drawn) > 1:
                differences += with_intervals("average", self._names[0], name, average(drawn))
        evaluations = (replace(each, command=command, versions=versions_text(ours)) for each in self._evaluations)
        return Results(dataset, None, tuple(evaluations), tuple(self._failures), ours, tuple(differences))


def _names(models: Sequence[Path]) -> list[str]:
    """Name each model by its file or folder, and those of one name by their whole paths."""
    short = [model.name or str(model) for model in models]
    whole = [str(model).replace(os.sep, "_") for model in models]
    names = [long if short.count(name) > 1 else name for name, long in zip(short, whole, strict=True)]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"--model {twice} is given twice.", "Give each model once.")
    return names
