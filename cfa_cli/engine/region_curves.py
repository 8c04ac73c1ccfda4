"""The curve of region overlap, image by image: what each image adds to AUPRO, and AUPRO of images drawn again."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from cfa_cli.engine.metrics import AUPRO_LIMIT, area_under, order_keys, split_pixels

Array = np.ndarray[Any, np.dtype[Any]]
_SHIFT = 14  # of a 32-bit key: thresholds differ by 0.2 % or more
_THRESHOLDS = 400  # evenly spaced in the false-positive rate, up to the limit and a little past it


class RegionCurves:
    """How many defect-free pixels, and how much of the regions, lie over each threshold: for each image.

    Thresholds are rounded to 9 bits, and some hundred of them are kept: AUPRO from these curves differs by about 0.001
    from the exact one. It is for what needs images one by one.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[Array, Array, Array]] = []  # of each image: bins, defect-free pixels, region overlap
        self._regions: list[int] = []

    def add(self, score_map: Array, mask: Array | None, ignored: Array | None = None) -> None:
        """Add one image: its map (H, W), taken as float32, and its mask (H, W), nonzero on defects; None if good.

        Pixels where `ignored` (H, W) is not zero are left out.
        """
        bins = (order_keys(np.asarray(score_map, np.float32)) >> _SHIFT).astype(np.int64)
        first = int(bins.min())
        bins -= first
        defect_free, defects = split_pixels(bins.shape, mask, ignored)
        count, labels, stats, _ = cv2.connectedComponentsWithStats(defects.view(np.uint8), connectivity=8)
        shares = 1.0 / stats[:, cv2.CC_STAT_AREA][labels[defects]]
        length = int(bins.max()) + 1
        good = np.bincount(bins[defect_free], minlength=length)
        overlap = np.bincount(bins[defects], shares, minlength=length)
        used = np.flatnonzero(good + overlap)
        self._parts.append((used + first, good[used].astype(np.float64), overlap[used]))
        self._regions.append(count - 1)

    def matrices(self) -> tuple[Array, Array, Array, Array]:
        """Return what lies over each threshold t, highest first, of each image n.

        Defect-free pixels (n, t), all of them (n,), region overlap (n, t), regions (n,).
        """
        bins = np.unique(np.concatenate([part for part, _, _ in self._parts]))
        places = [np.searchsorted(bins, part) for part, _, _ in self._parts]
        pooled = np.zeros(len(bins))
        for place, (_, good, _) in zip(places, self._parts, strict=True):
            pooled[place] += good
        over = np.cumsum(pooled[::-1])[::-1] / max(pooled.sum(), 1)  # the share of defect-free pixels at a threshold
        wanted = np.linspace(0, 1.2 * AUPRO_LIMIT, _THRESHOLDS)
        # `over` falls along the bins: the highest thresholds come first in what is returned.
        starts = len(bins) - np.unique(np.searchsorted(over[::-1], wanted, side="right"))
        starts = np.unique(np.append(np.minimum(starts, len(bins) - 1), 0))[::-1]

        def stack(column: int) -> Array:
            rows = []
            for place, part in zip(places, self._parts, strict=True):
                dense = np.zeros(len(bins))
                dense[place] = part[column]
                rows.append(np.cumsum(dense[::-1])[::-1][starts])
            return np.array(rows)

        false, overlap = stack(1), stack(2)
        return false, false[:, -1], overlap, np.array(self._regions, np.float64)

    def of_images(self) -> list[float | None]:
        """Return each image's own share of AUPRO: its regions' overlap over all images' false-positive rate.

        None for images without a region. AUPRO is their mean, each weighing as many times as it has regions.
        """
        if not self._parts:
            return []
        false, good, overlap, regions = self.matrices()
        rates = false.sum(axis=0) / max(good.sum(), 1)
        return [
            min(_area(rates, row / count), 1.0) if count and good.sum() else None
            for row, count in zip(overlap, regions, strict=True)
        ]

    def resampled(self, weights: Array) -> Array:
        """Return AUPRO (r,) of the images taken `weights` (r, n) times; NaN where nothing of a kind is drawn."""
        false, good, overlap, regions = self.matrices()
        with np.errstate(invalid="ignore", divide="ignore"):
            rates = (weights @ false) / (weights @ good)[:, None]
            heights = (weights @ overlap) / (weights @ regions)[:, None]
        return np.array([_area(x, y) for x, y in zip(rates, heights, strict=True)])


def _area(rates: Array, heights: Array) -> float:
    """The normalised area under overlap up to the limit, from (0, 0) on."""
    x, y = np.concatenate([[0.0], rates]), np.concatenate([[0.0], heights])
    return area_under(x, y, AUPRO_LIMIT) / AUPRO_LIMIT
