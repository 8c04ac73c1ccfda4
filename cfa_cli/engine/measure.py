"""What a model reaches on the test images of a category: every image's score, and the figures of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from cfa_cli.data.category import Category, TestImage
from cfa_cli.data.ignore import IgnoreMasks, read_ignored
from cfa_cli.data.masks import read_mask, require_fit
from cfa_cli.engine.metrics import CurveMetrics, PixelMetrics, ThresholdMetrics, image_metrics, threshold_metrics
from cfa_cli.engine.model import Model
from cfa_cli.engine.region_curves import RegionCurves
from cfa_cli.engine.scorer import score_sources
from cfa_cli.errors import InputError
from cfa_cli.geometry import resize_map, seen_window
from cfa_cli.records import Geometry, Progress, ProgressCallback, Source
from cfa_cli.results.benchmark import GOOD, ImageScore, KindFigures
from cfa_cli.results.pictures import write_picture


@dataclass(frozen=True)
class Measured:
    """What a model reaches on a category."""

    threshold: float  # the model's own
    images: tuple[ImageScore, ...]  # in the order of the category's
    image: CurveMetrics
    pixels: CurveMetrics
    at_threshold: ThresholdMetrics
    kinds: tuple[KindFigures, ...]
    milliseconds: float  # an image, on average
    regions: RegionCurves  # image by image; empty where the category has no masks


def measure(
    category: Category,
    model: Model,
    *,
    maps: Path | None = None,
    ignore: IgnoreMasks | None = None,
    progress: ProgressCallback = lambda step: None,
) -> Measured:
    """Score a category's test images and measure; nothing is trained. `maps` is a folder to keep the score maps in.

    Pixel metrics are taken at each mask's own resolution, on good images at the image's; with a crop, inside it.
    What is ignored is not looked at, and in no pixel metric.
    Raises InputError for test images or masks that cannot be read or do not fit together.
    """
    geometry, calibration = model.bundle.geometry, model.bundle.calibration
    threshold = calibration.threshold
    pixels, regions = PixelMetrics(), RegionCurves()
    scores: list[float] = []
    times: list[float] = []
    sources = [Source(image.path, image.path.name) for image in category.test]
    opened = None if ignore is None else model.open_ignore(ignore.path)
    predictions = score_sources(model.scorer, sources, calibration, keep_images=True, ignore=opened)
    for number, (image, prediction) in enumerate(zip(category.test, predictions, strict=True), start=1):
        if prediction.score is None or prediction.score_map is None or prediction.image is None:
            raise InputError(f"A test image cannot be read: {prediction.error}", "Copy the data set again.")
        scores.append(prediction.score)
        times.append(prediction.milliseconds or 0.0)
        size = prediction.image.shape[:2]
        if maps is not None:
            write_picture(map_path(maps, category, image), resize_map(prediction.score_map, geometry, size))
        if category.has_masks:
            score_map, mask, ignored = _judged(image, prediction.score_map, size, geometry, ignore)
            pixels.update(score_map, mask, image.kind, ignored)
            regions.add(score_map, mask, ignored)
        progress(Progress("testing", number, len(category.test)))
    shares = regions.of_images() or [None] * len(scores)
    images = tuple(
        ImageScore((Path(image.kind, image.folder) / image.path.name).as_posix(), image.kind, score, share)
        for image, score, share in zip(category.test, scores, shares, strict=True)
    )
    labels = [image.anomalous for image in images]
    figures, at_threshold = image_metrics(scores, labels), threshold_metrics(scores, labels, threshold)
    if all(labels):  # F1 without good images says what recall says
        figures, at_threshold = replace(figures, f1_max=None), replace(at_threshold, f1=None)
    return Measured(
        threshold=threshold,
        images=images,
        image=figures,
        pixels=pixels.compute(),
        at_threshold=at_threshold,
        kinds=_kinds(images, threshold, pixels),
        milliseconds=float(np.mean(times)),
        regions=regions,
    )


def map_path(maps: Path, category: Category, image: TestImage) -> Path:
    """Where MVTec's evaluator looks for a test image's map."""
    return Path(maps, category.name, "test", image.kind, image.folder, f"{image.path.stem}.tiff")


def _judged(
    image: TestImage, score_map: np.ndarray, size: tuple[int, int], geometry: Geometry, ignore: IgnoreMasks | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return an image's map, mask and what is ignored, at the mask's resolution, inside the crop. Raises InputError."""
    mask = read_mask(image.mask) if image.mask is not None else np.zeros(size, np.uint8)
    if image.mask is not None:
        require_fit(image.mask, mask, size)
    seen = seen_window(geometry, mask.shape)  # what a crop cuts away is not judged
    path, ignored = None if ignore is None else ignore.find(image.path), None
    if path is not None:
        ignored = cv2.resize(read_ignored(path), mask.shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)[seen]
    return resize_map(score_map, geometry, mask.shape)[seen], mask[seen], ignored


def _kinds(images: Sequence[ImageScore], threshold: float, pixels: PixelMetrics) -> tuple[KindFigures, ...]:
    """Figures of each kind of defect, against all good images."""
    found = []
    for kind in sorted({image.kind for image in images if image.anomalous}):
        chosen = [image for image in images if image.kind in (kind, GOOD)]
        of_kind = [image.score for image in chosen if image.anomalous]
        figures = image_metrics([image.score for image in chosen], [image.anomalous for image in chosen])
        caught = sum(score > threshold for score in of_kind)
        found.append(KindFigures(kind, len(of_kind), caught, figures.auroc, pixels.compute([GOOD, kind]).aupro))
    return tuple(found)
