"""What the user should know before trusting a model."""

from __future__ import annotations

from collections.abc import Iterator

from cfa_cli.evidence import Calibration
from cfa_cli.records import Bundle
from cfa_cli.separation import separation

FEW_IMAGES = 20


def fit_warnings(bundle: Bundle) -> Iterator[str]:
    """Yield the warnings of a new model, a sentence or two each."""
    calibration, images = bundle.calibration, bundle.provenance.images
    if bundle.backbone.warning:
        yield bundle.backbone.warning
    if images < FEW_IMAGES:
        yield f"Only {images} images: the model has seen little variation. Give it {FEW_IMAGES} or more if you can."
    yield from threshold_warnings(calibration)
    if (separated := separation(bundle)) and separated.outliers:
        yield separated.sentence


def threshold_warnings(calibration: Calibration) -> Iterator[str]:
    """Yield a warning if the held-out images are too few for the wanted false-positive rate."""
    if calibration.fpr_high > 2 * calibration.max_fpr:
        yield (
            f"The threshold rests on {len(calibration.holdout_scores)} held-out images: expect between "
            f"{calibration.fpr_low:.0%} and {calibration.fpr_high:.0%} of good images over it (aim: "
            f"{calibration.max_fpr:.0%})."
        )
