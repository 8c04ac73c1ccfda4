"""FLOOR 0: how sure a counted rate is, and which of some scores bounds a rate."""

from __future__ import annotations

import math


def clopper_pearson(count: int, total: int, level: float) -> tuple[float, float]:
    """Return the exact interval, at `level` (0..1), of the rate of which `count` in `total` were seen; 0..1.

    >>> [round(end, 3) for end in clopper_pearson(0, 60, 0.95)]
    [0.0, 0.06]
    """
    from scipy.special import betaincinv  # scipy.stats would take half a second to import

    tail = (1 - level) / 2
    low = float(betaincinv(count, total - count + 1, tail)) if count else 0.0
    high = float(betaincinv(count + 1, total - count, 1 - tail)) if count < total else 1.0
    return low, high


def threshold_rank(count: int, rate: float) -> int:
    """Return k, from 1 to `count`: at most `rate` (0..1) of further scores lie over the k-th smallest of `count`.

    A further score lies over it with probability 1 - k / (count + 1), whatever the scores' distribution. With too few
    scores for that (count + 1 < 1 / rate) the largest is the best there is.

    >>> threshold_rank(48, 0.05)
    47
    """
    return min(count, max(1, math.ceil((count + 1) * (1 - rate) - 1e-9)))
