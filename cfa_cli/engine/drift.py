"""Whether the images of a run have drifted away from those that the model's threshold rests on.

Scores, brightness, contrast and sharpness of the images judged good are compared with those of the held-out images
that the same threshold judges good: Welch's t-test of each one's logarithm, as light and focus act by factors.

How often it is wrong. A run of 200 images is compared 8 times at most (its last 50 images after every 25, and its
end), in 4 statistics: each comparison may be wrong once in 6,400 (Bonferroni), so that one run in 200 is. One in 100 is
promised: images of a run may come from one batch, and tell less than their number. For the same reason they are taken
for half as many as the held-out ones, where they are more. What is certain, but too small to matter, is no alarm.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from statistics import NormalDist

import numpy as np

from cfa_cli.evidence import Drift, HoldoutImages
from cfa_cli.records import Bundle, ImageStatistics, Prediction

LEVEL = 0.005  # runs of 200 images with a false alarm: half of what is promised, as images of a run are not independent
WINDOW, STEP = 50, 25  # images: while a run goes on, the last of them are looked at now and then
COMPARISONS = 200 // STEP  # of a run of 200 images
FEWEST, FEWEST_HELD = 20, 4  # images judged good in a run, and in the hold-out, that tell anything
MIN_CHANGE = 0.05  # of brightness, contrast and sharpness
MIN_SPREADS = 0.5  # of scores: their standard deviation over the hold-out
FLOOD = 0.9  # share of a run that is over the threshold: too few good images are left to compare
STATISTICS = ("scores", "brightness", "contrast", "sharpness")
SIGNIFICANCE = LEVEL / COMPARISONS / len(STATISTICS)  # of one statistic, in one comparison
_WORDS = {  # of a rise and of a fall
    "brightness": ("brighter by", "darker by"),
    "contrast": ("contrast up by", "contrast down by"),
    "sharpness": ("sharper by", "less sharp by"),
}
_ADVICE = "If they are good, choose new thresholds: cfa calibrate MODEL GOOD... --replace --out NEW"

Values = np.ndarray  # (4,) float64, logarithms in the order of STATISTICS


class DriftMonitor:
    """Looks at a run's images one by one, and raises at most one alarm.

    rolling: compare the last `WINDOW` images after every `STEP`, and not the whole run at its end.
    """

    def __init__(self, bundle: Bundle, *, rolling: bool) -> None:
        calibration = bundle.calibration
        self.drift: Drift | None = None
        self._held = _held(calibration.holdout_scores, bundle.holdout)
        self._held_good = self._held[: sum(score <= calibration.threshold for score in calibration.holdout_scores)]
        self._fpr_high = calibration.fpr_high
        self._images = 0
        self._window: deque[tuple[Values, bool]] | None = deque() if rolling else None
        self._good, self._all = _Moments(), _Moments()

    def add(self, prediction: Prediction) -> Drift | None:
        """Look at one more image, where it has a score. Return an alarm."""
        if prediction.score is None:
            return None
        values, good = _values(prediction.score, prediction.statistics), prediction.label == "good"
        self._images += 1
        self._count(values, good, 1)
        if self._window is None:
            return None
        self._window.append((values, good))
        if len(self._window) > WINDOW:
            self._count(*self._window.popleft(), -1)
        return self._look() if len(self._window) == WINDOW and self._images % STEP == 0 else None

    def finish(self) -> Drift | None:
        """Look at the whole run, or at its last images. Return an alarm."""
        return self._look()

    def _count(self, values: Values, good: bool, sign: int) -> None:
        self._all.add(values, sign)
        if good:
            self._good.add(values, sign)

    def _look(self) -> Drift | None:
        """Return the alarm if it is raised now."""
        count, good = self._all.count, self._good.count
        if self.drift is not None or count < FEWEST:
            return None
        flagged = count - good
        if flagged >= max(FLOOD, self._fpr_high) * count:
            like = [cause for cause in _causes(self._held, self._all) if not cause.startswith("scores")]
            causes = (f"{flagged} of {count} images are over the threshold", *like)
            message = f"{', '.join(causes)}: unless they are defective, the images have changed. {_ADVICE}"
        elif good >= FEWEST and (causes := tuple(_causes(self._held_good, self._good))):
            which = f"the {'last ' if self._window is not None else ''}{good} images judged good"
            message = f"Drift: {which} differ from the held-out ones: {', '.join(causes)}. {_ADVICE}"
        else:
            return None
        self.drift = Drift(self._images, good, causes, message)
        return self.drift


def differences(bundle: Bundle, scores: Sequence[float], images: Sequence[ImageStatistics]) -> tuple[str, ...]:
    """Say in what further good images differ from the hold-out; () where they are too few to tell."""
    further = _Moments()
    for score, image in zip(scores, images, strict=True):
        further.add(_values(score, image))
    if further.count < FEWEST_HELD:
        return ()
    return tuple(_causes(_held(bundle.calibration.holdout_scores, bundle.holdout), further))


class _Moments:
    """Number, sum and sum of squares of values; all can be taken back."""

    def __init__(self) -> None:
        self.count = 0
        self._total = self._squares = np.zeros(len(STATISTICS))

    def add(self, values: Values, sign: int = 1) -> None:
        self.count += sign
        self._total = self._total + sign * values
        self._squares = self._squares + sign * values * values

    @property
    def mean(self) -> Values:
        return self._total / self.count

    @property
    def variance(self) -> Values:
        return np.maximum(0, self._squares - self._total**2 / self.count) / (self.count - 1)


def _causes(held: np.ndarray, run: _Moments) -> Iterator[str]:
    """Say in what a run differs from the hold-out (n, 4): significantly, and by enough to matter."""
    n, m = len(held), run.count
    if n < FEWEST_HELD:
        return
    shift = run.mean - held.mean(0)
    spread = np.sqrt(np.maximum(held.var(0, ddof=1), 1e-12))
    of_held, of_run = spread**2 / n, run.variance / min(m, n / 2)
    t = np.abs(shift) / np.sqrt(of_held + of_run)
    # Of scores upwards alone: the model's own training images score lower, and nothing is wrong with them.
    matters = np.append(shift[0] / spread[0] >= MIN_SPREADS, np.abs(np.expm1(shift[1:])) >= MIN_CHANGE)
    # The normal distribution's tails are thinner than t's: what is not even significant by them needs no exact look,
    # for which scipy is imported, a quarter of a second.
    candidates = matters & (t > NormalDist().inv_cdf(1 - SIGNIFICANCE / 2))  # not where it is not known
    if not candidates.any():
        return
    from scipy.special import stdtr

    freedom = (of_held + of_run) ** 2 / (of_held**2 / (n - 1) + of_run**2 / (m - 1))
    for index in np.flatnonzero(candidates & (2 * stdtr(freedom, -t) < SIGNIFICANCE)):
        if STATISTICS[index] == "scores":
            yield f"scores up by {shift[index] / spread[index]:.1f} spreads"
        else:
            change = math.expm1(shift[index])
            yield f"{_WORDS[STATISTICS[index]][change < 0]} {abs(change):.0%}"


def _held(scores: tuple[float, ...], images: HoldoutImages | None) -> np.ndarray:
    """Return the hold-out's logarithms (n, 4); NaN where an earlier version did not keep them."""
    unknown = [math.nan] * len(scores)
    like = [unknown] * 3 if images is None else [images.brightness, images.contrast, images.sharpness]
    return _logarithms(np.array([scores, *like]).T)


def _values(score: float, image: ImageStatistics | None) -> Values:
    """Return an image's logarithms."""
    like = [math.nan] * 3 if image is None else [image.brightness, image.contrast, image.sharpness]
    return _logarithms(np.array([score, *like]))


def _logarithms(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.log(np.maximum(values, 1e-6)))
