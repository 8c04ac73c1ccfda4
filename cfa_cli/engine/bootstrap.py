"""How much of the difference between two models may be chance: a paired bootstrap over the test images."""

from __future__ import annotations

from typing import Any

import numpy as np

from cfa_cli.engine.measure import Measured
from cfa_cli.results.benchmark import Difference

RESAMPLES = 2000
LEVEL = 0.95

Array = np.ndarray[Any, np.dtype[Any]]
Drawn = tuple[float, Array]  # a figure's difference, and what it is in each resample


def drawn_differences(first: Measured, second: Measured) -> dict[str, Drawn]:
    """Return how far the second's figures lie from the first's on the same images, as they are and drawn again.

    Good and defective images are drawn apart, as many as there are of each, and for both models the same. What is drawn
    depends on these numbers alone. Figures that are not defined are left out.
    """
    weights = _draw(np.array([image.anomalous for image in first.images], bool))
    ours, theirs = _figures(first, weights), _figures(second, weights)
    return {
        metric: (theirs[metric][0] - ours[metric][0], theirs[metric][1] - ours[metric][1])
        for metric in ours
        if metric in theirs
    }


def average(drawn: list[dict[str, Drawn]]) -> dict[str, Drawn]:
    """Return the averages over categories of what `drawn_differences` returned for each."""
    shared = [metric for metric in drawn[0] if all(metric in each for each in drawn)]
    return {
        metric: (
            float(np.mean([each[metric][0] for each in drawn])),
            np.mean([each[metric][1] for each in drawn], axis=0),
        )
        for metric in shared
    }


def with_intervals(category: str, first: str, second: str, drawn: dict[str, Drawn]) -> list[Difference]:
    """Turn what was drawn into records: of the two models' names, and the percentile interval at `LEVEL`."""
    tail = (1 - LEVEL) / 2
    found = []
    for metric, (value, values) in drawn.items():
        low, high = np.nanquantile(values, [tail, 1 - tail])
        found.append(Difference(category, metric, first, second, value, float(low), float(high)))
    return found


def _draw(labels: Array) -> Array:
    """Return how often each image is drawn in each resample: (RESAMPLES, n)."""
    rng = np.random.default_rng(0)
    weights = np.zeros((RESAMPLES, len(labels)))
    for kind in (False, True):
        count = int((labels == kind).sum())
        if count:
            weights[:, labels == kind] = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    return weights


def _figures(measured: Measured, weights: Array) -> dict[str, Drawn]:
    """Return each figure that is defined: as it is, and in each resample."""
    scores = np.array([image.score for image in measured.images])
    labels = np.array([image.anomalous for image in measured.images], bool)
    found: dict[str, Drawn] = {}
    if measured.image.auroc is not None:
        found["image_auroc"] = measured.image.auroc, _auroc(scores, labels, weights)
    if measured.pixels.aupro is not None:
        found["aupro"] = measured.pixels.aupro, measured.regions.resampled(weights)
    flagged = (scores > measured.threshold).astype(np.float64)
    for metric, chosen in (("fpr", ~labels), ("recall", labels)):
        rate: float | None = getattr(measured.at_threshold, metric)
        if rate is not None:
            found[metric] = rate, weights[:, chosen] @ flagged[chosen] / chosen.sum()
    return found


def _auroc(scores: Array, labels: Array, weights: Array) -> Array:
    """AUROC (r,) of images taken `weights` (r, n) times: the share of pairs in the right order, a tie counting half."""
    bad, good = scores[labels][:, None], scores[~labels][None]
    order = (bad > good) + 0.5 * (bad == good)
    pairs = ((weights[:, labels] @ order) * weights[:, ~labels]).sum(axis=1)
    return np.asarray(pairs / (labels.sum() * (~labels).sum()))
