"""Whether good images look like two kinds: a folder that mixes products."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

# Measured on seven real data sets and on pairs mixed from them (embedded weights, 20 images or more): within one set
# the separation reached 10.6, and its ratio to the spread 3.2; of mixed pairs two thirds lie above both.
SEPARATION = 12.0  # distance of the two means, in standard deviations along the line between them
RATIO = 3.3  # the same in root mean square distances from the own mean, over all channels
FEWEST = 20  # images that tell anything
SHARE = 0.05  # of the images, and at least 3: fewer are outliers
SAMPLE = 500  # images that the two means are found on


def kinds_warning(means: np.ndarray, paths: Sequence[Path]) -> str | None:
    """Return a warning where images look like two kinds, by 2-means of their mean features (n, C) float32."""
    if len(means) < FEWEST:
        return None
    sample = means[:: -(-len(means) // SAMPLE)].astype(np.float64)
    axis = np.linalg.svd(sample - sample.mean(0), full_matrices=False)[2][0]
    second = (sample - sample.mean(0)) @ axis > 0
    for _ in range(50):
        if second.all() or not second.any():
            return None
        centres = np.stack([sample[~second].mean(0), sample[second].mean(0)])
        before, second = second, _nearest(sample, centres) == 1
        if (before == second).all():
            break
    kind = _nearest(means.astype(np.float64), centres)
    counts = np.bincount(kind, minlength=2)
    if counts.min() < max(3, SHARE * len(means)):
        return None
    line = (centres[1] - centres[0]) / max(float(np.linalg.norm(centres[1] - centres[0])), 1e-12)
    rest = means - centres[kind]
    distance = float(np.linalg.norm(centres[1] - centres[0]))
    along, around = float((rest @ line).std()), float(np.sqrt(np.square(rest).sum(1).mean()))
    if distance < SEPARATION * along or distance < RATIO * around:
        return None
    typical = [int(np.square(means - centre).sum(1).argmin()) for centre in centres]
    told = ", ".join(f"{counts[each]} like {paths[typical[each]].name}" for each in np.argsort(-counts))
    return f"These images look like 2 kinds: {told}. If they are two products, fit a model for each: --each."


def _nearest(rows: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return np.asarray(np.stack([np.square(rows - centre).sum(1) for centre in centres]).argmin(0))
