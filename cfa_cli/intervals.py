"""FLOOR 0: how sure a counted rate is."""

from __future__ import annotations


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
