"""One evaluation of a benchmark: fit on a category's good images, score its test images, measure."""

from __future__ import annotations

import contextlib
import hashlib
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from cfa_cli.bundle import save_bundle
from cfa_cli.config import FitConfig
from cfa_cli.data.category import Category, TestImage
from cfa_cli.data.masks import check_masks, read_mask, require_fit
from cfa_cli.engine.fit import fit
from cfa_cli.engine.metrics import CurveMetrics, PixelMetrics, image_metrics, threshold_metrics
from cfa_cli.engine.scorer import load_scorer, score_sources
from cfa_cli.errors import InputError
from cfa_cli.geometry import resize_map, seen_window
from cfa_cli.records import Bundle, Progress, ProgressCallback, Source
from cfa_cli.results.benchmark import Evaluation, EvaluationKey
from cfa_cli.results.writer import write_picture


@dataclass(frozen=True)
class Job:
    """What to evaluate."""

    category: Category
    config: FitConfig
    model: Path | None = None  # where to keep the model
    maps: Path | None = None  # the folder to keep the score maps in

    @property
    def key(self) -> EvaluationKey:
        """What tells its evaluation from the others of a benchmark."""
        return self.config.backbone, self.config.seed, self.category.name

    def outputs(self) -> list[Path]:
        """The files that the job keeps."""
        maps = [] if self.maps is None else [_map_path(self.maps, self.category, each) for each in self.category.test]
        return maps if self.model is None else [self.model, *maps]


def evaluate(job: Job, progress: ProgressCallback = lambda step: None) -> Evaluation:
    """Fit, score and measure one category. Test images are looked at by the metrics alone.

    Pixel metrics are taken at each mask's own resolution, on good images at the image's; with a crop, inside it.
    Raises what `fit` raises, and InputError for test images or masks that cannot be read or do not fit together.
    """
    category, config = job.category, job.config
    # What is wrong with a mask is said before the fit, which takes minutes.
    masks = [(image.path, image.mask) for image in category.test if image.mask is not None and category.has_masks]
    notes = (*category.notes, *check_masks(masks))
    _reset_peak_memory()
    result = fit(list(category.train), config, progress=progress)
    bundle = result.bundle
    if job.model is not None:
        save_bundle(bundle, job.model, force=True)
    scores, pixels, milliseconds = _score(job, bundle, progress)
    labels = [image.anomalous for image in category.test]
    image = image_metrics(scores, labels)
    threshold = threshold_metrics(scores, labels, bundle.calibration.threshold)
    if all(labels):  # F1 without good images says what recall says
        image, threshold = replace(image, f1_max=None), replace(threshold, f1=None)
    return Evaluation(
        backbone=config.backbone,
        seed=config.seed,
        category=category.name,
        image_auroc=image.auroc,
        image_f1max=image.f1_max,
        pixel_auroc=pixels.auroc,
        aupro=pixels.aupro,
        pixel_f1max=pixels.f1_max,
        threshold=bundle.calibration.threshold,
        fpr=threshold.fpr,
        recall=threshold.recall,
        f1=threshold.f1,
        train_images=result.train_images,
        holdout_images=result.holdout_images,
        test_good=labels.count(False),
        test_anomalous=labels.count(True),
        fit_seconds=result.seconds,
        milliseconds=milliseconds,
        peak_memory_mb=_peak_memory_mb(),
        peak_device_memory_mb=torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else None,
        device=config.device,
        input_size=bundle.geometry.input_size,
        weights=bundle.backbone.weights,
        weights_sha256=bundle.backbone.sha256,
        data_sha256=data_digest(category),
        warnings=(*(f"{path} was left out: {reason}" for path, reason in result.skipped), *result.warnings, *notes),
    )


def data_digest(category: Category) -> str:
    """Digest the names and sizes of a category's files, so that results of other data are not taken for its own."""
    digest = hashlib.sha256()
    for path in (*category.train, *(p for t in category.test for p in (t.path, t.mask) if p is not None)):
        digest.update(f"{path.parent.name}/{path.name}\0{path.stat().st_size}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _map_path(maps: Path, category: Category, image: TestImage) -> Path:
    """Where MVTec's evaluator looks for a test image's map."""
    return Path(maps, category.name, "test", image.kind, image.folder, f"{image.path.stem}.tiff")


def _score(job: Job, bundle: Bundle, progress: ProgressCallback) -> tuple[list[float], CurveMetrics, float]:
    """Image scores in the order of the test images, the pixel metrics, and the mean milliseconds an image."""
    test, pixels = job.category.test, PixelMetrics()
    has_masks = job.category.has_masks
    scores: list[float] = []
    times: list[float] = []
    sources = [Source(image.path, image.path.name) for image in test]
    scorer = load_scorer(bundle, job.config.device)
    predictions = score_sources(scorer, sources, bundle.calibration.threshold, keep_images=True)
    for number, (image, prediction) in enumerate(zip(test, predictions, strict=True), start=1):
        if prediction.score is None or prediction.score_map is None or prediction.image is None:
            raise InputError(f"A test image cannot be read: {prediction.error}", "Copy the data set again.")
        scores.append(prediction.score)
        times.append(prediction.milliseconds or 0.0)
        size = prediction.image.shape[:2]
        if job.maps is not None:
            path = _map_path(job.maps, job.category, image)
            write_picture(path, resize_map(prediction.score_map, bundle.geometry, size))
        if has_masks:
            mask = read_mask(image.mask) if image.mask is not None else np.zeros(size, np.uint8)
            if image.mask is not None:
                require_fit(image.mask, mask, size)
            seen = seen_window(bundle.geometry, mask.shape)  # what a crop cuts away is not judged
            pixels.update(resize_map(prediction.score_map, bundle.geometry, mask.shape)[seen], mask[seen])
        progress(Progress("testing", number, len(test)))
    return scores, pixels.compute(), float(np.mean(times))


def _reset_peak_memory() -> None:
    """Linux can forget a process's peak; elsewhere the peak is that of all runs so far."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # some containers forbid it
            Path("/proc/self/clear_refs").write_text("5", "ascii")


def _peak_memory_mb() -> float | None:
    """Physical memory that this process has used at most; None where the system does not tell."""
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines():
            if line.startswith("VmHWM:"):
                return float(line.split()[1]) * 1024 / 1e6
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return None
