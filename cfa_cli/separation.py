"""FLOOR 0, how separable good images are among themselves: held-out ones that score far above the rest.

They may be defective, or of another kind. Such an image sets the threshold by itself, which then hides defects.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from cfa_cli.evidence import Calibration
from cfa_cli.intervals import threshold_rank
from cfa_cli.records import Bundle
from cfa_cli.text import printable

FENCE = 3.0  # interquartile ranges above the upper quartile: Tukey's outer fence, of the scores' logarithms
MIN_RATIO = 1.2  # times the threshold of the others: what lies closer changes the threshold little
FEWEST = 5  # held-out images that tell anything
SHOWN = 5  # of them, in a sentence
TINY = 1e-30  # in place of a score of zero


@dataclass(frozen=True)
class Outlier:
    """A held-out good image that scores far above the rest."""

    name: str  # its path below the images' folder; "" where it is not known
    score: float
    ratio: float  # times the threshold that the others alone would give


@dataclass(frozen=True)
class Separation:
    """How the held-out good images lie to each other."""

    images: int
    median: float  # score
    highest: float
    outliers: tuple[Outlier, ...]  # by falling score
    sentence: str  # for people


def separation(bundle: Bundle) -> Separation | None:
    """Tell how separable held-out good images are; None where they are too few to tell.

    An outlier's score lies over Tukey's outer fence, `FENCE` interquartile ranges above the upper quartile of the
    logarithms (as scores differ by factors), and is at least `MIN_RATIO` times the threshold that the others give.
    """
    calibration = bundle.calibration
    scores, n = calibration.holdout_scores, len(calibration.holdout_scores)
    if n < FEWEST:
        return None
    fence, others = _fence(scores), calibration.threshold
    count = sum(score > fence for score in scores)
    if count:
        rest = scores[: n - count]
        others = max(TINY, rest[threshold_rank(len(rest), bundle.config.max_fpr) - 1])
        count = sum(score > max(fence, MIN_RATIO * others) for score in scores)
    names = ("",) * n if bundle.holdout is None or not bundle.holdout.names else bundle.holdout.names
    outliers = tuple(
        Outlier(name, score, score / others)
        for score, name in sorted(zip(scores[n - count :], names[n - count :], strict=True), reverse=True)
    )
    return Separation(n, statistics.median(scores), scores[-1], outliers, _sentence(outliers, calibration))


def _fence(scores: tuple[float, ...]) -> float:
    """Return the score over which an image is an outlier, if it is far enough above the others."""
    logarithms = [math.log(max(score, TINY)) for score in scores]
    first, _, third = statistics.quantiles(logarithms, n=4, method="inclusive")
    return math.exp(third + FENCE * (third - first))


def _sentence(outliers: tuple[Outlier, ...], calibration: Calibration) -> str:
    scores, n = calibration.holdout_scores, len(calibration.holdout_scores)
    if not outliers:
        spread = scores[-1] / max(statistics.median(scores), TINY)
        return f"None of {n} held-out good images scores far above the rest: the highest {spread:.2g} times the median."
    shown = ", ".join(
        f"{printable(one.name, 80) or 'one'} ({one.ratio:.2g} times the threshold of the others)"
        for one in outliers[:SHOWN]
    )
    more = f" and {len(outliers) - SHOWN} more" if len(outliers) > SHOWN else ""
    verb, pronoun, be = ("scores", "it", "it is") if len(outliers) == 1 else ("score", "them", "they are")
    return (
        f"{len(outliers)} of {n} held-out good images {verb} far above the rest: {shown}{more}. "
        f"Look at {pronoun}: if {be} defective, remove {pronoun} and fit again."
    )
