"""The verb `predict`: images in, scores and maps out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from cfa_cli.config import Precision
from cfa_cli.data.inputs import find_sources
from cfa_cli.engine.calibrate import recalibrate
from cfa_cli.engine.scorer import load_scorer, score_sources
from cfa_cli.geometry import resize_map
from cfa_cli.records import Bundle, Prediction


def predict(
    bundle: Bundle,
    inputs: str | Path | Sequence[str | Path],
    *,
    max_fpr: float | None = None,
    threshold: float | None = None,
    device: str = "auto",
    precision: Precision | None = None,
    stdin: Iterable[str] | None = None,
) -> Iterator[Prediction]:
    """Score images as a stream, in input order: files, folders and globs; "-" reads paths from `stdin`.

    Each Prediction has the decoded `image` (h, w, 3) and its `map` (h, w) float32, both at the source's size. An image
    that cannot be read has its `error` instead. `threshold`, or `max_fpr` with the model's held-out scores, overrides
    the calibrated threshold. Memory does not grow with the number of images.

    Raises InputError if an input names no image, BundleError, UsageError and DeviceError.
    """
    calibration = recalibrate(bundle.calibration, max_fpr, threshold)
    names = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    sources = find_sources([str(name) for name in names], stdin)
    scorer = load_scorer(bundle, device, precision)
    for prediction in score_sources(scorer, sources, calibration.threshold, keep_images=True):
        if prediction.map is not None and prediction.image is not None:
            height, width = prediction.image.shape[:2]
            prediction = replace(prediction, map=resize_map(prediction.map, bundle.geometry, (height, width)))
        yield prediction
