"""What images are like: size, colour, brightness and sharpness, measured on a thumbnail while they are read."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from cfa_cli.evidence import HoldoutImages
from cfa_cli.records import ImageStatistics, TrainingImages
from cfa_cli.text import printable

THUMBNAIL = 256  # px of the longer side; smaller images are taken as they are
GREY_TOLERANCE = 0.01  # by how much the channels of a grey image may differ, of values in 0..1


def measure(image: np.ndarray) -> ImageStatistics:
    """Measure an image (h, w, 3) RGB, uint8 or uint16 at full scale, in about a millisecond a megapixel."""
    height, width = image.shape[:2]
    factor = THUMBNAIL / max(height, width)
    small = image
    if factor < 1:
        size = max(1, round(width * factor)), max(1, round(height * factor))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    values = small.astype(np.float32) / (255 if image.dtype == np.uint8 else 65535)
    red, green, blue = cv2.split(values)  # over whole planes, what is done to three channels takes a tenth of the time
    grey = (red + green + blue) / 3
    spread = cv2.max(cv2.max(red, green), blue) - cv2.min(cv2.min(red, green), blue)
    return ImageStatistics(
        height,
        width,
        grey=bool(spread.max() <= GREY_TOLERANCE),
        brightness=float(grey.mean(dtype=np.float64)),
        contrast=float(grey.std(dtype=np.float64)),
        sharpness=float(cv2.Laplacian(grey, cv2.CV_32F).std(dtype=np.float64)),
    )


def summarise(images: Sequence[ImageStatistics], bit_depth: int) -> TrainingImages:
    """Summarise at least one image's statistics, in whatever order they come; `bit_depth` is of all of them."""
    aspects = [image.height / image.width for image in images]
    grey = [image.grey for image in images]
    brightness, brightness_spread = _robust([image.brightness for image in images])
    sharpness, sharpness_spread = _robust([image.sharpness for image in images])
    return TrainingImages(
        height=round(float(np.median([image.height for image in images]))),
        width=round(float(np.median([image.width for image in images]))),
        aspect_low=min(aspects),
        aspect_high=max(aspects),
        channels="grey" if all(grey) else "mixed" if any(grey) else "colour",
        bit_depth=bit_depth,
        brightness=brightness,
        brightness_spread=brightness_spread,
        sharpness=sharpness,
        sharpness_spread=sharpness_spread,
        pixels_low=min(image.height * image.width for image in images),
        pixels_high=max(image.height * image.width for image in images),
        brightness_low=min(image.brightness for image in images),
        brightness_high=max(image.brightness for image in images),
        sharpness_low=min(image.sharpness for image in images),
        sharpness_high=max(image.sharpness for image in images),
    )


def by_score(scores: Sequence[float], images: Sequence[ImageStatistics], names: Sequence[str]) -> HoldoutImages:
    """Keep what held-out images are like in the order of their scores, as `Calibration.holdout_scores` has them."""
    order = np.argsort(scores, kind="stable")
    ordered = [images[index] for index in order]
    return HoldoutImages(
        brightness=tuple(image.brightness for image in ordered),
        contrast=tuple(image.contrast for image in ordered),
        sharpness=tuple(image.sharpness for image in ordered),
        names=tuple(printable(names[index]) for index in order),
    )


def join(scores: Sequence[float], first: HoldoutImages, second: HoldoutImages) -> HoldoutImages:
    """Join two sets of held-out images; `scores` are those of the first, then those of the second."""
    order = np.argsort(scores, kind="stable")

    def joined(name: str) -> tuple[float, ...]:
        return tuple(np.array([*getattr(first, name), *getattr(second, name)])[order].tolist())

    names = [*(first.names or [""] * len(first.brightness)), *second.names]
    named = tuple(names[index] for index in order)
    return HoldoutImages(joined("brightness"), joined("contrast"), joined("sharpness"), named)


def _robust(values: Sequence[float]) -> tuple[float, float]:
    """Return the median, and 1.4826 times the median distance from it: a normal distribution's standard deviation."""
    median = float(np.median(values))
    return median, 1.4826 * float(np.median(np.abs(np.array(values) - median)))
