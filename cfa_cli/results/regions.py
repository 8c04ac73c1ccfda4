"""Which part of a score map is marked: a region shows that there is a defect, and how far it reaches."""

from __future__ import annotations

import cv2
import numpy as np

from cfa_cli.evidence import Calibration
from cfa_cli.records import Region


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
    for line, line_labels in zip(core, labels, strict=True):
        line[:] = marked[line_labels]
    return core


def find_regions(score_map: np.ndarray, calibration: Calibration, min_area: int = 1) -> tuple[Region, ...]:
    """Measure the regions that `mark` marks, of `min_area` px or more, by falling peak.

    score_map: (h, w) float32, at the source's size; boxes and positions are in its px.
    """
    mask = mark(score_map, calibration)
    if not mask.any():
        return ()
    _, labels, boxes, centroids = cv2.connectedComponentsWithStats(mask, connectivity=8)
    regions = []
    for label, (left, top, width, height, area) in enumerate(boxes.tolist()):
        if label == 0 or area < min_area:  # 0 is all that is not marked
            continue
        box = np.s_[top : top + height, left : left + width]
        values = np.where(labels[box] == label, score_map[box], -np.inf)
        row, column = divmod(int(values.argmax()), width)
        centre = float(centroids[label][0]), float(centroids[label][1])
        peak_at = left + column, top + row
        regions.append(Region(left, top, width, height, area, centre, float(values[row, column]), peak_at))
    return tuple(sorted(regions, key=lambda region: -region.peak))
