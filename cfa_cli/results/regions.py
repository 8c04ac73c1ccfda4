"""Which part of a score map is marked: a region shows that there is a defect, and how far it reaches."""

from __future__ import annotations

import cv2
import numpy as np

from cfa_cli.records import Calibration


def mark(score_map: np.ndarray, calibration: Calibration) -> np.ndarray:
    """Mark the regions of a score map (h, w) float32: (h, w) uint8, 255 in them, 0 elsewhere.

    Hysteresis thresholding: a region is an 8-connected area over the extent threshold with a value over the pixel
    threshold in it. So a good image shows one as rarely as the pixel threshold says, and a defect is marked to its edge
    and not only at its core.
    """
    core = np.multiply(score_map > calibration.pixel_threshold, np.uint8(255))
    extent = calibration.extent_threshold
    if extent is None or extent >= calibration.pixel_threshold or not core.any():
        return core
    count, labels = cv2.connectedComponents((score_map > extent).astype(np.uint8), connectivity=8)
    marked = np.zeros(count, np.uint8)
    marked[labels[core > 0]] = 255
    return np.asarray(marked[labels])
