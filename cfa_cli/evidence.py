"""FLOOR 0, a model's thresholds and what they rest on: frozen records without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cfa_cli.text import printable

ThresholdChoice = Literal["max-fpr", "threshold", "catch-all"]


@dataclass(frozen=True)
class Calibration:
    """What the held-out good images say. Scores are distances: >= 0, no unit."""

    max_fpr: float  # share of good images that may be flagged, 0..1
    threshold: float  # image score above which an image is anomalous
    pixel_threshold: float  # map value above which there is a region
    display_low: float  # the colour scale's ends, map values
    display_high: float
    fpr_low: float  # 90 % interval of the false-positive rate that this threshold really has
    fpr_high: float
    holdout_scores: tuple[float, ...]  # image scores, ascending
    holdout_peaks: tuple[float, ...]  # each map's maximum, in the order of holdout_scores
    extent_threshold: float | None = None  # map value down to which a marked region reaches; None: pixel_threshold
    threshold_low: float | None = None  # 90 % interval of the score that `max_fpr` of good images really lie over;
    threshold_high: float | None = None  # None: not estimated, by an earlier version or as the threshold was given
    min_area: int = 1  # px of the source over the pixel threshold, connected: what is smaller is no region

    def is_near(self, score: float) -> bool | None:
        """Tell whether a score lies in the threshold's interval, where either verdict may be wrong; None: unknown."""
        if self.threshold_low is None or self.threshold_high is None:
            return None
        return self.threshold_low <= score <= self.threshold_high


@dataclass(frozen=True)
class HoldoutImages:
    """What each held-out good image was like, in the order of `Calibration.holdout_scores`; see `ImageStatistics`."""

    brightness: tuple[float, ...]
    contrast: tuple[float, ...]
    sharpness: tuple[float, ...]
    names: tuple[str, ...] = ()  # paths below the images' folder; () in models of earlier versions


@dataclass(frozen=True)
class ThresholdRow:
    """What one threshold does to the images that a model was calibrated with."""

    threshold: float
    flagged: int  # good images over it
    fpr_low: float  # 90 % Clopper-Pearson interval of the share of good images over it
    fpr_high: float
    caught: dict[str, int]  # kind of defect -> its images over it


@dataclass(frozen=True)
class Recalibration:
    """How `calibrate` chose a model's thresholds, and what from."""

    date: str  # YYYY-MM-DD, UTC
    cfa: str  # version
    choice: ThresholdChoice
    before: float  # the threshold that it replaced
    good: int  # good images that were given
    good_sha256: str  # of the list of their relative paths and file sizes
    replaced: bool  # they took the place of the hold-out; otherwise they were added to it
    defects: dict[str, int]  # kind -> images
    table: tuple[ThresholdRow, ...]  # by rising threshold; one row is the chosen one

    def describe(self, calibration: Calibration) -> str:
        """Say it in a sentence or two; `calibration` is the model's."""
        found = f"{self.good} further good images {'in place of' if self.replaced else 'beside'} the hold-out"
        text = f"{self.date} by --{self.choice}" + (f", with {found}" if self.good else "")
        row = next((row for row in self.table if row.threshold == calibration.threshold), None)
        if row is None:
            return text
        text += f": {row.flagged} of {len(calibration.holdout_scores)} good images are over the threshold"
        if self.defects:
            kinds = ", ".join(f"{printable(k, 40)} {row.caught.get(k, 0)} of {n}" for k, n in self.defects.items())
            text += f", and of the defects {sum(row.caught.values())} of {sum(self.defects.values())} ({kinds})"
        return text


@dataclass(frozen=True)
class Drift:
    """An alarm: the images of a run are not like those that the model's threshold rests on."""

    images: int  # of the run, when it was raised
    good: int  # images judged good that it rests on
    causes: tuple[str, ...]  # "brighter by 12%", "scores up by 0.6 spreads"
    message: str  # the causes, and what to do
