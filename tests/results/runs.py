"""A small model's records and made-up predictions, for tests of what is written from them."""

from pathlib import Path

import cv2
import numpy as np

from cfa_cli.config import FitConfig
from cfa_cli.evidence import Calibration
from cfa_cli.records import BackboneInfo, Bundle, Geometry, Prediction, Provenance, Source

CALIBRATION = Calibration(
    max_fpr=0.05,
    threshold=1.5,
    pixel_threshold=1.0,
    display_low=0.5,
    display_high=1.5,
    fpr_low=0.01,
    fpr_high=0.12,
    holdout_scores=(0.9, 1.0, 1.1, 1.4, 1.6),
    holdout_peaks=(0.9, 1.0, 1.1, 1.4, 1.6),
)
WARNING = "These weights are <small> & made for tests."


def make_bundle(crop: tuple[int, int] | None = None, threshold: float = CALIBRATION.threshold) -> Bundle:
    calibration = Calibration(**{**vars(CALIBRATION), "threshold": threshold})
    return Bundle(
        config=FitConfig(),
        geometry=Geometry((32, 32), crop, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        grid=(8, 8),
        backbone=BackboneInfo("resnet18", ("layer1",), "embedded", "0" * 64, WARNING),
        calibration=calibration,
        provenance=Provenance("0.1.0", "2.6.0", "1.0.15", "3.11.7", "2026-01-31", 25, "1" * 64, 0),
        tensors={"bank": np.zeros((64, 4), np.float32), "descriptor.weight": np.zeros((4, 6, 1, 1), np.float32)},
    )


def make_prediction(
    path: Path, score: float, name: str | None = None, size: tuple[int, int] = (40, 48), threshold: float = 1.5
) -> Prediction:
    """A grey image with a spot of the score's height at its upper left."""
    score_map = np.full((32, 32), 0.5, np.float32)
    score_map[8:12, 8:12] = score
    image = np.full((*size, 3), 128, np.uint8)
    return Prediction(
        source=Source(path, name or path.name),
        score=float(np.float32(score)),
        normalized=score / (score + threshold),
        threshold=threshold,
        label="anomalous" if score > threshold else "good",
        milliseconds=12.3456,
        score_map=score_map,
        image=image,
    )


def make_failure(path: Path, error: str = "it is damaged.") -> Prediction:
    return Prediction(Source(path, path.name), None, None, 1.5, None, None, error)


def write_photograph(path: Path, size: tuple[int, int] = (40, 48)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    path.write_bytes(cv2.imencode(path.suffix, pixels)[1].tobytes())
