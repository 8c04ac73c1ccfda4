"""Several products: a folder of models, and which of them an image is scored by."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from cfa_cli.bundle import read_description
from cfa_cli.data.arrays import check_array
from cfa_cli.data.depth import to_full_scale
from cfa_cli.data.images import read_image
from cfa_cli.data.misfits import find_misfits
from cfa_cli.data.statistics import measure
from cfa_cli.engine.ignore import Ignore
from cfa_cli.engine.model import Model, open_model
from cfa_cli.engine.predict_options import PredictOptions
from cfa_cli.engine.scorer import BATCH_SIZE, MAX_BYTES_TOGETHER, score_sources
from cfa_cli.engine.thresholds import recalibrate
from cfa_cli.errors import BundleError, ImageError, UsageError, is_out_of_memory
from cfa_cli.records import BUNDLE_SUFFIX, Bundle, Prediction, Source

MAX_OPEN = 4  # models that are held at a time


def open_models(model: str | Path | Bundle | Model, options: PredictOptions) -> Model | ModelFolder:
    """Open a model, or a folder of models, as `predict` does. Raises what `ModelFolder` and `open_model` raise."""
    if isinstance(model, str | Path) and Path(model).is_dir():
        return ModelFolder(Path(model), options)
    return _open_one(model, options)


def _open_one(model: str | Path | Bundle | Model, options: PredictOptions) -> Model:
    opened = open_model(model, device=options.device, precision=options.precision, compiled=options.compiled)
    return opened.with_threshold(threshold=options.threshold, max_fpr=options.max_fpr)


class ModelFolder:
    """Models of several products, each named like its file; a model is opened when an image needs it."""

    def __init__(self, folder: Path, options: PredictOptions) -> None:
        """Read what the models in `folder` say of themselves; their tensors are read when they are opened.

        options: with `match` each image is scored by the model that fits it best; else by the one named like its
            folder.
        Raises BundleError, and UsageError for a `threshold`.
        """
        if options.threshold is not None:
            raise UsageError("--threshold is one model's; there are several.", "Use --max-fpr, or name one model.")
        paths = sorted(path for path in folder.iterdir() if path.suffix == BUNDLE_SUFFIX and path.name[0] != ".")
        if not paths:
            raise BundleError(f"There are no models in {folder}.", "Make some with `cfa fit PARENT --each`.")
        self._paths = {path.stem: path for path in paths}
        self._options = options
        self._open: OrderedDict[str, Model] = OrderedDict()
        self.bundles: dict[str, Bundle] = {}  # without their tensors
        for name, path in self._paths.items():
            bundle = read_description(path)
            self.bundles[name] = replace(bundle, calibration=recalibrate(bundle.calibration, options.max_fpr))
        self.warnings = tuple(f"{name}: {warning}" for name, each in self.bundles.items() for warning in each.warnings)

    def open_ignore(self, path: str | Path) -> Ignore:
        """Raise UsageError: each model ignores what it was fitted with."""
        raise UsageError(
            "--ignore is one model's; there are several.", "Fit each with --ignore, which it keeps, or name one model."
        )

    def score_batches(
        self,
        sources: Iterable[Source | None],
        *,
        keep_images: bool,
        max_pixels: float,
        ignore: Ignore | None = None,
    ) -> Iterator[list[Prediction]]:
        """Do what `scorer.score_batches` does, each image by its model, whose name its prediction has.

        What is ignored is each model's own: see `open_ignore`.
        """
        if self._options.match:
            return self._by_fit(sources, keep_images, max_pixels)
        return self._by_folder(sources, keep_images, max_pixels)

    def name_for(self, source: Source) -> str | None:
        """The model that is named like a folder of the image below the input, the deepest first, or the input itself.

        None where there is none.
        """
        below = Path(source.name).parent.parts
        above = source.path.absolute().parents
        root = above[len(below)].name if len(below) < len(above) else ""
        return next((name for name in (*reversed(below), root) if name in self.bundles), None)

    def warm_up(self) -> None:
        """Open the first models: a first image that arrives should not wait for them."""
        for name in list(self.bundles)[:MAX_OPEN]:
            self._model(name).warm_up()

    def _model(self, name: str) -> Model:
        if name not in self._open:
            while len(self._open) >= MAX_OPEN:
                self._open.popitem(last=False)
            self._open[name] = _open_one(self._paths[name], self._options)
        self._open.move_to_end(name)
        return self._open[name]

    def _by_folder(
        self, sources: Iterable[Source | None], keep_images: bool, max_pixels: float
    ) -> Iterator[list[Prediction]]:
        current: str | None = None

        def name_of(source: Source | None) -> str | None:
            nonlocal current
            current = current if source is None else self.name_for(source)
            return current

        for name, group in groupby(sources, name_of):
            if name is None:
                yield from ([] if source is None else [self._without_model(source)] for source in group)
                continue
            model = self._model(name)
            for batch in model.score_batches(group, keep_images=keep_images, max_pixels=max_pixels):
                yield [_of_model(prediction, name, model) for prediction in batch]

    def _without_model(self, source: Source) -> Prediction:
        known = ", ".join(list(self.bundles)[:5]) + (", ..." if len(self.bundles) > 5 else "")
        error = f"No model is named like a folder of {source.path} (there are {known})."
        return Prediction(replace(source, array=None), None, None, 0.0, None, None, error)

    def _by_fit(
        self, sources: Iterable[Source | None], keep_images: bool, max_pixels: float
    ) -> Iterator[list[Prediction]]:
        waiting: list[tuple[Source, list[str]]] = []
        held = 0
        for source in sources:
            if source is not None:
                waiting.append(self._candidates(source, max_pixels))
                held += getattr(waiting[-1][0].array, "nbytes", 0)
            if waiting and (source is None or len(waiting) == BATCH_SIZE or held > MAX_BYTES_TOGETHER):
                yield self._best(waiting, keep_images, max_pixels)
                waiting, held = [], 0
            if source is None:
                yield []
        if waiting:
            yield self._best(waiting, keep_images, max_pixels)

    def _candidates(self, source: Source, max_pixels: float) -> tuple[Source, list[str]]:
        """Read an image, and name the models whose training images it is most like: with the fewest misfits."""
        try:
            if source.array is None:
                image = read_image(source.path, max_pixels)
            else:
                image = check_array(source.array, source.name)
            misfits = {}
            for name, bundle in self.bundles.items():
                full, misfit = to_full_scale(image, bundle.training)
                found = () if bundle.training is None else find_misfits(measure(full), bundle.training)
                misfits[name] = len(list(found)) + (misfit is not None)
        except ImageError:  # whichever model is to score it says what is wrong
            return source, list(self.bundles)[:1]
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return source, list(self.bundles)[:1]
        fewest = min(misfits.values())
        return replace(source, array=image), [name for name, count in misfits.items() if count == fewest]

    def _best(self, images: list[tuple[Source, list[str]]], keep_images: bool, max_pixels: float) -> list[Prediction]:
        """Score each image by its candidates, and keep the lowest of its scores, each relative to the threshold."""
        best: list[Prediction | None] = [None] * len(images)
        for name in dict.fromkeys(name for _, names in images for name in names):
            model = self._model(name)
            mine = [index for index, (_, names) in enumerate(images) if name in names]
            found = score_sources(
                model.scorer,
                (images[index][0] for index in mine),
                model.bundle.calibration,
                keep_images=keep_images,
                max_pixels=max_pixels,
            )
            for index, prediction in zip(mine, found, strict=True):
                before = best[index]
                if before is None or _relative(prediction) < _relative(before):
                    scored = prediction.score is not None
                    best[index] = _of_model(prediction, name, model) if scored else prediction
        return [prediction for prediction in best if prediction is not None]


def _of_model(prediction: Prediction, name: str, model: Model) -> Prediction:
    """Say which model scored an image, and what it ignores: runs know several models without their tensors."""
    return replace(prediction, model=name, keep=model.bundle.tensors.get("keep"))


def _relative(prediction: Prediction) -> float:
    return float("inf") if prediction.score is None else prediction.score / prediction.threshold
