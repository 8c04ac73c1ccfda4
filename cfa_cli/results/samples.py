"""Sample results of a benchmark, as papers show them: image, mask, score map and overlay side by side."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from cfa_cli.geometry import resize_map
from cfa_cli.records import Bundle, Prediction
from cfa_cli.results.benchmark import ImageScore
from cfa_cli.results.overlays import blend, draw_heatmap, find_ignored, to_8_bit
from cfa_cli.results.regions import mark, mark_reduced

SAMPLES_FOLDER = "samples"
SAMPLES = ("best", "median", "worst")
SIDE = 180  # px of each picture's longer side
_GAP = 4  # px between pictures
_MAX_BYTES = 1_000_000  # of a file that is put into the page


def choose_samples(images: Sequence[ImageScore]) -> dict[str, int]:
    """Return the places of the best, the median and the worst defective image.

    They are ranked by their shares of AUPRO, or by their scores where there are no masks. Without defective images
    there are none.
    """
    defective = [(place, image) for place, image in enumerate(images) if image.anomalous]
    if any(image.pro is not None for _, image in defective):
        values = [(image.pro, place) for place, image in defective if image.pro is not None]
    else:
        values = [(image.score, place) for place, image in defective]
    if not values:
        return {}
    ordered = [place for _, place in sorted(values, reverse=True)]
    return dict(zip(SAMPLES, (ordered[0], ordered[len(ordered) // 2], ordered[-1]), strict=True))


def sample_path(out: Path, method: str, seed: int, category: str, sample: str) -> Path:
    """Where a sample's picture is kept in a benchmark's folder."""
    return out / SAMPLES_FOLDER / f"{method}-seed{seed}" / f"{category}-{sample}.jpg"


def draw_sample(prediction: Prediction, mask: np.ndarray | None, bundle: Bundle) -> np.ndarray:
    """Draw a prediction's image, its mask (any size; None: black), map and overlay side by side, uint8 RGB.

    What is ignored is hatched.
    """
    image, score_map = prediction.image, prediction.score_map
    assert image is not None
    assert score_map is not None
    height, width = image.shape[:2]
    factor = SIDE / max(height, width)
    size = max(1, round(height * factor)), max(1, round(width * factor))
    small = np.asarray(cv2.resize(to_8_bit(image), size[::-1], interpolation=cv2.INTER_AREA))
    truth = np.zeros((*size, 3), np.uint8)
    if mask is not None:
        shares = cv2.resize(mask.astype(np.float32), size[::-1], interpolation=cv2.INTER_AREA)
        truth[shares > 0] = 255  # a defect of a few px is still seen
    small_map = resize_map(score_map, bundle.geometry, size)
    calibration = bundle.calibration
    marked = mark_reduced(
        small_map, calibration, lambda: mark(resize_map(score_map, bundle.geometry, (height, width)), calibration)
    )
    overlay = blend(small, small_map, calibration, marked, find_ignored(prediction, bundle, size))
    gap = np.full((size[0], _GAP, 3), 255, np.uint8)
    heatmap = draw_heatmap(small_map, calibration)
    return np.concatenate([small, gap, truth, gap, heatmap, gap, overlay], axis=1)


def embedded(path: Path, out: Path) -> str | None:
    """Return a sample's picture as a data URL; None where it is not there, or lies outside `out`."""
    try:
        inside = path.resolve().is_relative_to((out / SAMPLES_FOLDER).resolve())
        if not inside or not path.is_file() or path.stat().st_size > _MAX_BYTES:
            return None
        data = path.read_bytes()
    except (OSError, ValueError):
        return None
    return "data:image/jpeg;base64," + base64.b64encode(data).decode() if data.startswith(b"\xff\xd8") else None
