"""Thresholds and the colour scale, from held-out good images alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from cfa_cli.config import check_threshold
from cfa_cli.evidence import Calibration, HoldoutImages
from cfa_cli.intervals import clopper_pearson, threshold_rank
from cfa_cli.records import Bundle

INTERVAL = 0.9  # of the false-positive rate that a threshold really has, and of where it really lies


@dataclass(frozen=True)
class Threshold:
    """A score, the 90 % interval of the share of good images that it flags, and that of where it really lies."""

    value: float
    fpr_low: float
    fpr_high: float
    low: float | None  # of the score that `max_fpr` of all good images lie over; None: too few scores to tell
    high: float | None


def split_holdout(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Split `count` >= 2 images into those to train on and those held out, both ascending, at least one each."""
    held = min(count - 1, max(1, round(count * share)))
    order = np.random.default_rng(seed).permutation(count)
    return sorted(order[held:].tolist()), sorted(order[:held].tolist())


def choose_threshold(scores: Sequence[float], max_fpr: float) -> Threshold:
    """Choose the score that at most `max_fpr` of good images lie over, from n held-out good scores.

    It is the k-th smallest of them: see `threshold_rank`. The rate that the threshold really has is distributed as
    Beta(n + 1 - k, k), which gives its interval; for that of the score see `_quantile_interval`. Raises UsageError
    unless 0 < max_fpr < 1.
    """
    check_threshold(None, max_fpr)
    ordered = sorted(scores)
    n = len(ordered)
    k = threshold_rank(n, max_fpr)
    low, high = _fpr_interval(n, k)
    # A threshold of zero, from images without any distance, would leave no scale to show scores on.
    ordered = [max(score, float(np.finfo(np.float32).tiny)) for score in ordered]
    value = ordered[k - 1]
    return Threshold(value, low, high, *_quantile_interval(ordered, value, max_fpr))


def set_thresholds(
    scores: Sequence[float], maps: Sequence[np.ndarray], max_fpr: float, min_area: int = 1
) -> Calibration:
    """Choose all thresholds and the colour scale from the scores and maps of held-out good images.

    scores: n image scores, by regions of `min_area` px or more.
    maps: n maps (H, W), or of each a fixed selection of pixels that has its highest one.

    The pixel threshold aims at the same: at most `max_fpr` of good images have a region over it. It is too high to
    show how far a defect reaches, as the highest of an image's pixels decides it; next to a pixel over it, the question
    is about each pixel by itself. So the extent threshold is the value that `max_fpr` of good images' pixels lie over.
    The colour scale starts at the median pixel of good maps and has the pixel threshold in its middle, so that a good
    part looks good.
    """
    peaks = [float(m.max()) for m in maps]
    extent = float(np.quantile(np.concatenate([m.ravel() for m in maps]), 1 - max_fpr))
    low = float(np.median([np.median(m) for m in maps]))
    return _calibration(scores, peaks, extent, low, max_fpr, min_area)


def add_images(
    calibration: Calibration, scores: Sequence[float], maps: Sequence[np.ndarray], max_fpr: float
) -> Calibration:
    """Choose all thresholds from the kept hold-out and further good images: their scores and maps, as above.

    All scores are by regions of the calibration's `min_area`.

    The pixels of the kept hold-out are not at hand. What rests on pixels, the extent threshold and the colour scale's
    low end, is the mean of the present value and that of the further images, each weighing as many as its images.
    """
    further = set_thresholds(scores, maps, max_fpr, calibration.min_area)
    weights = len(calibration.holdout_scores), len(scores)
    extents = [one.extent_threshold or one.pixel_threshold for one in (calibration, further)]
    lows = [one.display_low for one in (calibration, further)]
    return _calibration(
        [*calibration.holdout_scores, *further.holdout_scores],
        [*calibration.holdout_peaks, *further.holdout_peaks],
        float(np.average(extents, weights=weights)),
        float(np.average(lows, weights=weights)),
        max_fpr,
        calibration.min_area,
    )


def _calibration(
    scores: Sequence[float], peaks: Sequence[float], extent: float, low: float, max_fpr: float, min_area: int
) -> Calibration:
    image, order = choose_threshold(scores, max_fpr), np.argsort(scores, kind="stable")
    pixel = choose_threshold(scores if min_area > 1 else peaks, max_fpr)
    return center_scale(
        Calibration(
            max_fpr=max_fpr,
            threshold=image.value,
            pixel_threshold=pixel.value,
            display_low=low,
            display_high=low,
            fpr_low=image.fpr_low,
            fpr_high=image.fpr_high,
            holdout_scores=tuple(scores[index] for index in order),
            holdout_peaks=tuple(peaks[index] for index in order),
            extent_threshold=min(max(extent, float(np.finfo(np.float32).tiny)), pixel.value),
            threshold_low=image.low,
            threshold_high=image.high,
            min_area=min_area,
        )
    )


def center_scale(calibration: Calibration) -> Calibration:
    """Return the calibration with the pixel threshold in the middle of its colour scale."""
    low = min(calibration.display_low, calibration.pixel_threshold / 2)
    return replace(calibration, display_low=low, display_high=2 * calibration.pixel_threshold - low)


def recalibrate(calibration: Calibration, max_fpr: float | None = None, threshold: float | None = None) -> Calibration:
    """Return the calibration for another `max_fpr` (from the kept held-out scores) or a fixed image `threshold`.

    A fixed threshold moves the pixel and the extent threshold in proportion, and has no interval, as it was not
    estimated; another rate leaves the extent threshold,
    as the pixels of held-out maps are not kept. The colour scale stays: it is the model's.
    """
    check_threshold(threshold, max_fpr)
    extent = calibration.extent_threshold
    if threshold is not None:
        n = len(calibration.holdout_scores)
        over = sum(score > threshold for score in calibration.holdout_scores)
        low, high = clopper_pearson(over, n, INTERVAL)
        return replace(
            calibration,
            max_fpr=over / n,
            threshold=threshold,
            pixel_threshold=calibration.pixel_threshold * threshold / calibration.threshold,
            extent_threshold=None if extent is None else extent * threshold / calibration.threshold,
            fpr_low=low,
            fpr_high=high,
            threshold_low=None,
            threshold_high=None,
        )
    if max_fpr is None:
        return calibration
    image = choose_threshold(calibration.holdout_scores, max_fpr)
    levels = calibration.holdout_scores if calibration.min_area > 1 else calibration.holdout_peaks
    pixel_threshold = choose_threshold(levels, max_fpr).value
    return replace(
        calibration,
        max_fpr=max_fpr,
        threshold=image.value,
        pixel_threshold=pixel_threshold,
        extent_threshold=None if extent is None else min(extent, pixel_threshold),
        fpr_low=image.fpr_low,
        fpr_high=image.fpr_high,
        threshold_low=image.low,
        threshold_high=image.high,
    )


def without_min_area(bundle: Bundle) -> tuple[Bundle, str | None]:
    """Return a model for scores that are their maps' maxima, as an exported model's are, and what a user must know.

    The held-out images' maxima choose the threshold as their scores chose the model's. A threshold that was not chosen
    by a rate of false alarms stays: all that is flagged with `min_area` is flagged without it. A model without
    `min_area` is returned as it is, and None.
    """
    before, changed = bundle.calibration, bundle.recalibration
    if before.min_area <= 1:
        return bundle, None
    order = np.argsort(before.holdout_peaks, kind="stable")
    peaks = tuple(before.holdout_peaks[index] for index in order)
    plain = replace(before, min_area=1, holdout_scores=peaks, holdout_peaks=peaks)
    if changed is None or changed.choice == "max-fpr":
        plain = recalibrate(plain, max_fpr=before.max_fpr)
        what = f"is {plain.threshold:.4g} in place of {before.threshold:.4g}, chosen from the same held-out images"
    else:
        plain = recalibrate(plain, threshold=before.threshold)
        what = f"stays {plain.threshold:.4g}: {plain.max_fpr:.1%} of the held-out images are over it, "
        what += f"in place of {before.max_fpr:.1%}"
    images = bundle.holdout and HoldoutImages(
        **{name: tuple(values[index] for index in order if values) for name, values in asdict(bundle.holdout).items()}
    )
    note = (
        f"An exported model's score is its map's maximum, whatever the area: without the model's --min-area "
        f"{before.min_area} its threshold {what}."
    )
    table = changed and replace(changed, table=())  # it counts by the scores that were
    return replace(bundle, calibration=center_scale(plain), holdout=images, recalibration=table), note


def _fpr_interval(n: int, k: int) -> tuple[float, float]:
    """Return the quantiles of Beta(n + 1 - k, k) that hold `INTERVAL` between them."""
    from scipy.special import betaincinv  # scipy.stats would take half a second to import; this a quarter

    low, high = betaincinv(n + 1 - k, k, [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2])
    return float(low), float(high)


def _quantile_interval(
    ordered: Sequence[float], threshold: float, max_fpr: float
) -> tuple[float, float] | tuple[None, None]:
    """Return the 90 % interval of the score that `max_fpr` of all good images lie over.

    Its ends are the highest and the lowest of the n held-out scores, ascending, that it lies below and above with a
    probability of at most 5 % each, whatever the scores' distribution: how many of them lie below it is binomial. Fewer
    than 59 scores have no such upper end at the usual rate: then it lies as many times above the threshold as that lies
    above the lower end.
    """
    from scipy.special import bdtr

    n, tail = len(ordered), (1 - INTERVAL) / 2
    at_most = bdtr(np.arange(n), n, 1 - max_fpr)  # the probability that at most 0 .. n - 1 scores lie below it
    surely_below, surely_above = np.flatnonzero(at_most <= tail), np.flatnonzero(1 - at_most <= tail)
    if len(surely_below):
        low = ordered[surely_below[-1]]
        return low, ordered[surely_above[0]] if len(surely_above) else threshold**2 / low
    if len(surely_above):
        high = ordered[surely_above[0]]
        return threshold**2 / high, high
    return None, None


def normalize(score: float, threshold: float) -> float:
    """Map a score >= 0 to 0..1: 0.5 at the threshold, rising throughout, never reaching 1."""
    return score / (score + threshold)
