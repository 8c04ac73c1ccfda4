"""An exported model against this tool: the same images through both, and how far the results lie apart."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cfa_cli.data.depth import to_full_scale
from cfa_cli.data.images import read_image
from cfa_cli.data.inputs import find_images
from cfa_cli.engine.runtimes import ExportedScorer
from cfa_cli.engine.scorer import BATCH_SIZE, Scorer
from cfa_cli.records import Geometry, Progress, ProgressCallback, TrainingImages

IMAGES = 16  # at most, evenly spaced over the folder's
TIMED_RUNS = 5
AT_THRESHOLD = 1e-4  # a score this near, relatively, has no label: the threshold is one of the held-out images' scores


@dataclass(frozen=True)
class Verification:
    """How far an exported model's results lie from this tool's, both on the CPU."""

    images: int
    drawn: bool  # the images were drawn, not read
    max_absolute: float  # error of any score or map value
    max_relative: float  # the same, relative to its image's score or, where that is more, the threshold
    labels_agree: int  # of all images
    milliseconds: float  # an image through the exported model, without decoding; median, one image at a time
    tool_milliseconds: float  # through this tool in the same numbers, likewise; resizing counts where the graph resizes


def read_images(folder: Path, training: TrainingImages | None, limit: int = IMAGES) -> list[np.ndarray]:
    """Read at most `limit` images of a folder, evenly spaced, as (h, w, 3) RGB uint8; 16 bit is rounded to 8.

    `training` are a model's images: by their depth 16-bit files are brought to the full scale.

    Raises InputError if there are none, ImageError for an unreadable one.
    """
    paths = find_images(folder)
    return [_to_8_bit(to_full_scale(read_image(path), training)[0]) for path in paths[:: -(-len(paths) // limit)]]


def render_images(geometry: Geometry) -> list[np.ndarray]:
    """Draw images (h, w, 3) uint8: smooth colours, a bright rectangle and noise; 8 of one size, 4 of others."""
    rng = np.random.default_rng(0)
    height, width = geometry.size
    sizes = [(2 * height + 37, width + 51)] * BATCH_SIZE
    sizes += [(height, width), (height // 2 + 19, width), (3 * height, 3 * width), (33, 47)]
    return [_draw(size, rng) for size in sizes]


def verify(
    scorer: ExportedScorer,
    reference: Scorer,
    images: list[np.ndarray],
    threshold: float,
    progress: ProgressCallback,
    *,
    drawn: bool,
) -> Verification:
    """Score images one by one, and in batches of equal size where the export takes any batch, and compare."""
    inputs, expected_inputs = [scorer.prepare(i) for i in images], [reference.prepare(i) for i in images]
    expected = [reference(one[None]) for one in expected_inputs]
    batches = [[i] for i in range(len(images))]
    if scorer.takes_any_batch:
        for _, same in groupby(range(len(images)), key=lambda i: inputs[i].shape):
            numbers = list(same)
            batches += [numbers[i : i + BATCH_SIZE] for i in range(0, len(numbers), BATCH_SIZE) if len(numbers) > 1]
    absolute, relative, agree = [0.0], [0.0], [True] * len(images)
    for done, batch in enumerate(batches, start=1):
        scores, maps = scorer(torch.stack([inputs[i] for i in batch]))
        for row, i in enumerate(batch):
            score, score_map = float(expected[i][0][0]), expected[i][1][0]
            error = max(abs(float(scores[row]) - score), float(np.abs(maps[row] - score_map).max()))
            absolute.append(error)
            relative.append(error / max(score, threshold))
            equal = (float(scores[row]) > threshold) == (score > threshold)
            agree[i] = agree[i] and (equal or abs(score - threshold) <= AT_THRESHOLD * threshold)
        progress(Progress("verifying", done, len(batches), unit="batches"))
    return Verification(
        images=len(images),
        drawn=drawn,
        max_absolute=_max(absolute),
        max_relative=_max(relative),
        labels_agree=sum(agree),
        milliseconds=time_scorer(scorer, inputs[0]),
        tool_milliseconds=time_scorer(reference, expected_inputs[0], images[0] if scorer.takes_any_size else None),
    )


def _max(errors: list[float]) -> float:
    """The largest, or NaN where one is: not a number is no small error."""
    return float(np.max(errors))


def time_scorer(scorer: Scorer, one: Tensor, image: np.ndarray | None = None) -> float:
    """Return the median milliseconds of one input; where `image` is given, of making it as well."""
    times = []
    for _ in range(TIMED_RUNS + 1):
        start = time.perf_counter()
        scorer((one if image is None else scorer.prepare(image))[None])
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times[1:])


def _to_8_bit(image: np.ndarray) -> np.ndarray:
    return image if image.dtype == np.uint8 else np.round(image / 257).astype(np.uint8)


def _draw(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    height, width = size
    y, x = np.mgrid[:height, :width] / np.array([height, width]).reshape(2, 1, 1)
    waves = [np.sin(6 * (a * y + b * x + c)) for a, b, c in rng.uniform(0, 2, (3, 3))]
    image = 128 + 70 * np.stack(waves, axis=-1) + rng.normal(0, 6, (height, width, 3))
    top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
    image[top : top + height // 4, left : left + width // 5] += rng.uniform(-90, 90, 3)
    return image.clip(0, 255).astype(np.uint8)
