"""A model that is opened once and scores as often as it is asked to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cfa_cli.config import Precision
from cfa_cli.engine.ignore import Ignore, open_ignore
from cfa_cli.engine.runtimes import load_model
from cfa_cli.engine.scorer import NetworkScorer, Scorer, load_scorer, score_batches
from cfa_cli.engine.thresholds import recalibrate
from cfa_cli.engine.warnings import threshold_warnings
from cfa_cli.errors import UsageError
from cfa_cli.records import Bundle, Prediction, Source


@dataclass(frozen=True)
class Model:
    """A model ready to score. Make one with `open_model`, and give it to `predict` in place of a path."""

    bundle: Bundle
    scorer: Scorer
    warnings: tuple[str, ...] = ()  # what a user should know before trusting its scores

    def with_threshold(self, *, threshold: float | None = None, max_fpr: float | None = None) -> Model:
        """Return the model with another threshold, or the one for `max_fpr` by its held-out scores.

        Raises UsageError unless threshold > 0 and 0 < max_fpr < 1.
        """
        calibration = recalibrate(self.bundle.calibration, max_fpr, threshold)
        warnings = () if max_fpr is None else tuple(threshold_warnings(calibration))
        return Model(replace(self.bundle, calibration=calibration), self.scorer, self.warnings + warnings)

    def open_ignore(self, path: str | Path) -> Ignore:
        """Open what is ignored in place of what the model keeps: see `cfa_cli.engine.ignore.open_ignore`.

        Raises UsageError for an exported model.
        """
        if not isinstance(self.scorer, NetworkScorer):
            raise UsageError(
                "--ignore does not go with an exported model: what it ignores is part of its graph.",
                "Use the bundle, or export a model that was fitted with --ignore.",
            )
        return open_ignore(path, self.bundle)

    @property
    def bundles(self) -> dict[str, Bundle]:
        """The only one; a `ModelFolder` has several, by name."""
        return {"": self.bundle}

    def score_batches(
        self,
        sources: Iterable[Source | None],
        *,
        keep_images: bool,
        max_pixels: float,
        ignore: Ignore | None = None,
    ) -> Iterator[list[Prediction]]:
        """Do what `scorer.score_batches` does, with this model's thresholds."""
        calibration = self.bundle.calibration
        return score_batches(
            self.scorer, sources, calibration, keep_images=keep_images, max_pixels=max_pixels, ignore=ignore
        )

    def warm_up(self) -> None:
        """Score a blank image: the first call is slow, and a first image that arrives should not wait for it."""
        blank = np.zeros((*self.bundle.geometry.size, 3), np.uint8)
        self.scorer(self.scorer.prepare(blank)[None])


def open_model(
    model: str | Path | Bundle | Model,
    *,
    device: str = "auto",
    precision: Precision | None = None,
    compiled: bool = False,
) -> Model:
    """Make a model ready to score: a bundle's or an exported model's path, or a Bundle; an opened one is returned.

    device: "auto", "cpu", "cuda", "cuda:N" or "mps". precision: the backbone's numbers, by default as it was fitted.
    compiled: compile the backbone, which takes up to minutes; not for exported models.

    Raises BundleError if the model cannot be used, DeviceError, UsageError.
    """
    if isinstance(model, Model):
        return model
    scorer: Scorer
    if isinstance(model, Bundle):
        bundle, scorer = model, load_scorer(model, device, precision)
    else:
        bundle, scorer = load_model(model, device, precision)
    if compiled:
        if not isinstance(scorer, NetworkScorer):
            raise UsageError("--compile does not go with an exported model.", "Leave --compile out.")
        scorer.compile()
    return Model(bundle, scorer, (*bundle.warnings, *scorer.warnings))
