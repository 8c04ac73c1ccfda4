"""The field's five metrics, exact: no binning, no sampling, ties counted as ties.

Image AUROC and image F1-max judge one score an image. Pixel AUROC, AUPRO and pixel F1-max judge every pixel of a
category's maps together, at the masks' own resolution.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np

from cfa_cli.errors import InputError

AUPRO_LIMIT = 0.3  # false-positive rate up to which the per-region overlap is integrated
CURVE_POINTS = 100  # of a curve that is drawn
_RUN_PIXELS = 1 << 21  # pixels that are sorted together: 8 MB of float32
_DENSE = 1 << 13  # values of one bucket from which counting by table beats counting by sorting

Array = np.ndarray[Any, np.dtype[Any]]
_Part = tuple[Array, Array]  # low halves (uint16), and each pixel's share of its region (float64; none for good pixels)


CurvePoint = tuple[float, float, float]  # false-positive rate, recall, mean overlap with regions; all 0..1


@dataclass(frozen=True)
class CurveMetrics:
    """What the ranking of good and anomalous samples is worth. None: not defined for these samples."""

    auroc: float | None  # 0..1; needs both kinds
    f1_max: float | None  # 0..1, the best F1 of all thresholds; needs one anomalous sample
    aupro: float | None  # 0..1; needs a defect region and a defect-free pixel; pixels only
    points: tuple[CurvePoint, ...] = field(default=(), compare=False, repr=False)  # to draw; at most CURVE_POINTS


@dataclass(frozen=True)
class ThresholdMetrics:
    """What one image threshold does on labelled images (score > threshold: anomalous)."""

    fpr: float | None  # share of good images flagged, 0..1; None without good images
    recall: float | None  # share of anomalous images flagged, 0..1; None without anomalous images
    f1: float | None  # 0..1; None without anomalous images


def image_metrics(scores: Sequence[float] | Array, anomalous: Sequence[bool] | Array) -> CurveMetrics:
    """AUROC and F1-max of image scores (N,) with labels (N,), True for anomalous images.

    Infinite scores rank as such. Raises InputError on NaN and on lengths that differ.
    """
    values = np.asarray(scores, dtype=np.float64).ravel()
    labels = np.asarray(anomalous, dtype=bool).ravel()
    if len(values) != len(labels):
        raise InputError(f"There are {len(values)} image scores for {len(labels)} labels.")
    if np.isnan(values).any():
        raise InputError("An image score is not a number (NaN).", "Fit the model again.")
    thresholds, place = np.unique(values, return_inverse=True)
    good = np.bincount(place[~labels], minlength=len(thresholds))
    bad = np.bincount(place[labels], minlength=len(thresholds))
    curve = _Curve(int(good.sum()), int(bad.sum()))
    curve.lower(good[::-1], bad[::-1], np.zeros(len(thresholds)))
    return replace(curve.metrics(), aupro=None)


def threshold_metrics(
    scores: Sequence[float] | Array, anomalous: Sequence[bool] | Array, limit: float
) -> ThresholdMetrics:
    """False-positive rate, recall and F1 of image scores (N,) with labels (N,) at the threshold `limit`."""
    labels = np.asarray(anomalous, dtype=bool).ravel()
    flagged = np.asarray(scores, dtype=np.float64).ravel() > limit
    good, bad = int((~labels).sum()), int(labels.sum())
    false, true = int((flagged & ~labels).sum()), int((flagged & labels).sum())
    return ThresholdMetrics(
        fpr=false / good if good else None,
        recall=true / bad if bad else None,
        f1=2 * true / (bad + true + false) if bad else None,
    )


def split_pixels(shape: tuple[int, ...], mask: Array | None, ignored: Array | None) -> tuple[Array, Array]:
    """Tell defect-free pixels and defects apart, (H, W) bool each; what is ignored is neither.

    mask, ignored: (H, W), nonzero on defects and on what is ignored; None: nowhere.
    """
    judged = np.ones(shape, bool) if ignored is None else ignored == 0
    defects = np.zeros(shape, bool) if mask is None else judged & (mask != 0)
    return judged & ~defects, defects


class PixelMetrics:
    """Pixel AUROC, AUPRO and pixel F1-max of one category, image by image.

    A float32 becomes a 32-bit key of the same order. Keys are grouped by their high halves, in runs of some million
    pixels, and a run keeps the low halves and where each high half begins: two bytes a defect-free pixel and four a
    defective one, whatever the scores are. `compute` walks down the high halves and counts the low ones under each.
    """

    def __init__(self) -> None:
        self._regions: Counter[str] = Counter()  # of each kind of image
        self._good: defaultdict[str, _Pile] = defaultdict(_Pile)
        self._bad: defaultdict[str, _Pile] = defaultdict(_Pile)

    def update(self, score_map: Array, mask: Array | None, kind: str = "", ignored: Array | None = None) -> None:
        """Add one image: its map (H, W), taken as float32, and its mask (H, W), nonzero on defects; None if good.

        `kind` is what `compute` can be asked for. Pixels where `ignored` (H, W) is not zero are left out; regions are
        those of what remains. Infinite scores rank as such. Raises InputError on NaN and on shapes that differ.
        """
        scores = np.asarray(score_map, dtype=np.float32)
        if mask is not None and mask.shape != scores.shape:
            raise InputError(f"A mask of {mask.shape} px does not fit a map of {scores.shape} px (height, width).")
        if np.isnan(scores).any():
            raise InputError("A score map holds values that are not numbers (NaN).", "Fit the model again.")
        keys = order_keys(scores)
        good, defects = split_pixels(keys.shape, mask, ignored)
        if not defects.any():
            self._good[kind].add(keys[good])
            return
        count, labels, stats, _ = cv2.connectedComponentsWithStats(defects.view(np.uint8), connectivity=8)
        self._regions[kind] += count - 1
        areas = stats[:, cv2.CC_STAT_AREA].astype(np.uint32)
        self._good[kind].add(keys[good])
        self._bad[kind].add(keys[defects], areas[labels[defects]])

    def compute(self, kinds: Collection[str] | None = None) -> CurveMetrics:
        """The metrics of all images added so far, or of those of some kinds."""
        chosen = set(self._good) | set(self._bad) if kinds is None else set(kinds)
        goods = [self._good[kind] for kind in sorted(chosen & set(self._good))]
        bads = [self._bad[kind] for kind in sorted(chosen & set(self._bad))]
        good, bad = _sizes(goods), _sizes(bads)
        regions = sum(self._regions[kind] for kind in chosen)
        curve = _Curve(int(good.sum()), int(bad.sum()))
        for high in np.flatnonzero(good + bad)[::-1]:
            if good[high] and bad[high]:
                good_steps, bad_steps, overlap = _count(_lows(goods, high), _lows(bads, high))
            else:  # between thresholds that meet samples of one kind alone every curve is straight: one step is exact
                good_steps, bad_steps = good[high : high + 1], bad[high : high + 1]
                overlap = np.array([sum(float(shares.sum()) for _, shares in _lows(bads, high))])
            curve.lower(good_steps, bad_steps, overlap / max(regions, 1))
        return curve.metrics()


class _Curve:
    """Walks the threshold down from above the highest score, and integrates on the way."""

    def __init__(self, good: int, bad: int) -> None:
        self._good, self._bad = good, bad  # numbers of samples
        self._limit = AUPRO_LIMIT * good  # in false positives
        self._false, self._true, self._overlap = 0, 0, 0.0  # at the present threshold
        self._pairs = 0  # twice the (good, bad) pairs in the right order; a tie counts half
        self._area = 0.0  # under overlap over false positives, up to the limit
        self._best = 0.0  # F1
        self._points: list[Array] = []  # to draw: false and true positives and overlap at some thresholds, (n, 3)

    def lower(self, good: Array, bad: Array, overlap: Array) -> None:
        """Pass the next scores, highest first: at each, how many samples (int64), and how much mean region overlap."""
        false = self._false + np.concatenate([[0], np.cumsum(good)])
        true = self._true + np.concatenate([[0], np.cumsum(bad)])
        heights = self._overlap + np.concatenate([[0.0], np.cumsum(overlap)])
        self._pairs += int((bad * (2 * (self._good - false[1:]) + good)).sum())
        if self._bad:
            self._best = max(self._best, float((2 * true[1:] / (self._bad + true[1:] + false[1:])).max()))
        if false[0] < self._limit:
            self._area += area_under(false.astype(np.float64), heights, self._limit)
        self._false, self._true, self._overlap = int(false[-1]), int(true[-1]), float(heights[-1])
        some = np.unique(np.linspace(0, len(false) - 1, CURVE_POINTS).astype(int))
        self._points.append(np.column_stack([false[some], true[some], heights[some]]))

    def metrics(self) -> CurveMetrics:
        """What the whole walk gave."""
        both = self._good > 0 and self._bad > 0
        return CurveMetrics(
            auroc=self._pairs / (2 * self._good * self._bad) if both else None,
            f1_max=self._best if self._bad else None,
            aupro=min(self._area / self._limit, 1.0) if both else None,
            points=self._thinned() if both else (),
        )

    def _thinned(self) -> tuple[CurvePoint, ...]:
        """Rates at points that are evenly spaced along the curves of recall and overlap together."""
        rates = np.concatenate(self._points) / (self._good, self._bad, 1)
        length = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(rates, axis=0)).sum(axis=1))])
        wanted = np.linspace(0, length[-1], CURVE_POINTS)
        chosen = np.unique(np.minimum(np.searchsorted(length, wanted), len(rates) - 1))
        return tuple((float(x), float(y), float(z)) for x, y, z in rates[chosen].round(6))


def area_under(x: Array, y: Array, limit: float) -> float:
    """Trapezoid under y over the ascending x, cut at `limit` with y interpolated there."""
    end = int(np.searchsorted(x, limit, side="right"))
    if end < len(x):
        cut = y[end - 1] + (y[end] - y[end - 1]) * (limit - x[end - 1]) / (x[end] - x[end - 1])
        x, y = np.append(x[:end], limit), np.append(y[:end], cut)
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1])) / 2)


def order_keys(scores: Array) -> Array:
    """uint32 keys in the order of the float32 scores; -0.0 equals 0.0."""
    bits = (scores + np.float32(0)).view(np.uint32)
    return bits ^ np.where(bits >> 31, np.uint32(0xFFFFFFFF), np.uint32(0x80000000))


class _SortedRun:
    """Keys grouped by their high halves; those of defects with the share that each is of its region."""

    def __init__(self, keys: Array, areas: Array | None) -> None:
        high = (keys >> 16).astype(np.uint16)
        order = np.argsort(high, kind="stable")  # numpy's radix sort: several times faster than sorting the keys
        self.starts = np.concatenate([[0], np.cumsum(np.bincount(high, minlength=1 << 16))]).astype(np.uint32)
        self._low = keys.astype(np.uint16)[order]
        self._region, self._shares = np.zeros(0, np.uint16), np.zeros(0)
        if areas is not None:
            # regions of k different areas have k²/2 pixels or more: 16 bits number the areas of any run
            different, place = np.unique(areas, return_inverse=True)
            self._region, self._shares = place.astype(np.uint16)[order], 1.0 / different

    def lows(self, high: int) -> _Part:
        """What lies under one high half."""
        part = slice(self.starts[high], self.starts[high + 1])
        return self._low[part], self._shares[self._region[part]]


class _Pile:
    """All keys of one kind: those still to be sorted, and the runs."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Array, ...]] = []
        self._pixels = 0
        self._runs: list[_SortedRun] = []

    def add(self, *columns: Array) -> None:
        """Add keys, and for defects the areas beside them."""
        self._waiting.append(columns)
        self._pixels += len(columns[0])
        if self._pixels >= _RUN_PIXELS:
            self._sort()

    def _sort(self) -> None:
        if self._pixels:
            keys, *areas = (np.concatenate(column) for column in zip(*self._waiting, strict=True))
            self._runs.append(_SortedRun(keys, areas[0] if areas else None))
        self._waiting, self._pixels = [], 0

    def sizes(self) -> Array:
        """How many keys each high half has, (65536,) int64."""
        self._sort()
        return sum((np.diff(run.starts) for run in self._runs), np.zeros(1 << 16, np.int64))

    def lows(self, high: int) -> list[_Part]:
        """What the runs hold under one high half; small parts are joined, so that they are counted at once."""
        parts = [run.lows(high) for run in self._runs]
        if not parts or sum(len(low) for low, _ in parts) > _RUN_PIXELS:
            return parts
        return [(np.concatenate([low for low, _ in parts]), np.concatenate([shares for _, shares in parts]))]


def _sizes(piles: Sequence[_Pile]) -> Array:
    """How many keys each high half has in piles, (65536,) int64."""
    return sum((pile.sizes() for pile in piles), np.zeros(1 << 16, np.int64))


def _lows(piles: Sequence[_Pile], high: int) -> list[_Part]:
    """What piles hold under one high half."""
    return [part for pile in piles for part in pile.lows(high)]


def _count(good: list[_Part], bad: list[_Part]) -> tuple[Array, Array, Array]:
    """Good pixels, bad pixels and region shares of each score under one high half, highest first."""
    lows = [low for low, _ in good + bad]
    few = sum(map(len, lows)) < _DENSE
    scores = np.unique(np.concatenate(lows)) if few else np.arange(1 << 16)

    def histogram(parts: list[_Part], weighted: bool) -> Array:
        counts = np.zeros(len(scores), np.float64 if weighted else np.int64)
        for low, shares in parts:
            place = np.searchsorted(scores, low) if few else low
            counts += np.bincount(place, shares if weighted else None, minlength=len(scores))
        return counts

    good_steps, bad_steps, overlap = histogram(good, False), histogram(bad, False), histogram(bad, True)
    used = np.flatnonzero(good_steps + bad_steps)[::-1]
    return good_steps[used], bad_steps[used], overlap[used]
