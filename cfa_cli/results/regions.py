"""Which part of a score map is marked: a region shows that there is a defect, and how far it reaches.

Regions are 8-connected. One counts if at least `Calibration.min_area` of its px lie over the pixel threshold; smaller
ones are specks. The image score follows: it is the highest level at which a region would still count, so that an image
is over its threshold where it shows a region.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from cfa_cli.bands import bands_of
from cfa_cli.evidence import Calibration
from cfa_cli.geometry import resize_map
from cfa_cli.records import Geometry, Region


def image_score(score_map: np.ndarray, geometry: Geometry, size: tuple[int, int], min_area: int) -> float:
    """Score an image of `size` (height, width) px by its map (H, W) float32 at the network's input.

    That is the map's maximum, or, for a `min_area` of more than 1 px of the image, the highest level that a region of
    at least that area reaches.
    """
    return highest_level(score_map if min_area <= 1 else resize_map(score_map, geometry, size), min_area)


def highest_level(score_map: np.ndarray, min_area: int) -> float:
    """Return the highest level at which a map (h, w) float32 has a region of at least `min_area` px.

    A region at a level is a connected area whose values all reach it. So this is the maximum of the map's grayscale
    area opening; its minimum where it has no more than `min_area` px.
    """
    low, high, _, _ = cv2.minMaxLoc(score_map)
    if min_area <= 1:
        return float(high)
    level, above = np.float32(low), np.nextafter(np.float32(high), np.float32(np.inf))
    parts = [score_map]  # a region that is large enough at a level over `level` lies within one of these
    while level < (middle := (level + above) / np.float32(2)) < above:  # until no float32 lies between them
        if found := [part for whole in parts for part in _large_regions(whole, middle, min_area)]:
            level, parts = middle, found
        else:
            above = middle
    return float(level)


def _large_regions(score_map: np.ndarray, level: np.float32, min_area: int) -> list[np.ndarray]:
    """Return the boxes of the regions at a level that have at least `min_area` px."""
    reached = (score_map >= level).view(np.uint8)
    if cv2.countNonZero(reached) < min_area:
        return []
    _, _, boxes, _ = cv2.connectedComponentsWithStats(reached, connectivity=8)
    large = boxes[1:][boxes[1:, cv2.CC_STAT_AREA] >= min_area]
    return [score_map[top : top + height, left : left + width] for left, top, width, height, _ in large.tolist()]


def mark(score_map: np.ndarray, calibration: Calibration) -> np.ndarray:
    """Mark the regions of a score map (h, w) float32: (h, w) uint8, 255 in them, 0 elsewhere.

    Hysteresis thresholding: a region is an area over the extent threshold in which there is one over the pixel
    threshold, of `min_area` px or more. So a good image shows one as rarely as the pixel threshold says, and a defect
    is marked to its edge and not only at its core.
    """
    core = np.multiply(score_map > calibration.pixel_threshold, np.uint8(255))
    if calibration.min_area > 1 and core.any():
        box = _box(core)
        _, labels, boxes, _ = cv2.connectedComponentsWithStats(core[box], connectivity=8)
        large = boxes[:, cv2.CC_STAT_AREA] >= calibration.min_area
        large[0] = False  # all that is not in the core
        _paint(core[box], labels, large)
    extent = calibration.extent_threshold
    if extent is None or extent >= calibration.pixel_threshold or not core.any():
        return core
    reached = (score_map > extent).view(np.uint8)
    for contour in cv2.findContours(core, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)[0]:
        column, row = contour[0, 0].tolist()
        if reached[row, column] == 1:  # not filled from another core: to label all that is reached would take longer
            cv2.floodFill(reached, None, (column, row), 255, flags=8)
    return np.asarray(np.multiply(reached == 255, np.uint8(255)))


def mark_reduced(small_map: np.ndarray, calibration: Calibration, marked: Callable[[], np.ndarray]) -> np.ndarray:
    """Mark the regions of an image in a picture of it that is reduced to (h, w) px.

    small_map: (h, w) float32.
    marked: gives what `mark` makes of the map at the image's own size: where areas count, they are those.
    """
    if calibration.min_area <= 1:
        return mark(small_map, calibration)
    size = small_map.shape[1], small_map.shape[0]
    return np.multiply(cv2.resize(marked(), size, interpolation=cv2.INTER_AREA) > 0, np.uint8(255))


def _box(mask: np.ndarray) -> tuple[slice, slice]:
    """Return the rows and columns of the smallest box that holds all of a mask that is not 0: labels cost time."""
    left, top, width, height = cv2.boundingRect(mask)
    return slice(top, top + height), slice(left, left + width)


def _paint(mask: np.ndarray, labels: np.ndarray, chosen: np.ndarray) -> None:
    """Set a mask to 255 where its label (h, w) int32 is chosen, (n,) bool, and to 0 elsewhere, in place."""
    values = np.multiply(chosen, np.uint8(255))
    for rows in bands_of(mask.shape):  # all at once would need much memory
        mask[rows] = values[labels[rows]]


def find_regions(
    score_map: np.ndarray, calibration: Calibration, marked: np.ndarray | None = None
) -> tuple[Region, ...]:
    """Measure the regions that `mark` marks, by falling peak.

    score_map: (h, w) float32, at the source's size; boxes and positions are in its px.
    marked: what `mark` makes of the map, if that is known.
    """
    mask = mark(score_map, calibration) if marked is None else marked
    contours, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    # Of outer borders alone, which have no parent: each is a region's.
    regions = [
        _measure(score_map, mask, contour)
        for contour, (*_, parent) in zip(contours, () if hierarchy is None else hierarchy[0].tolist(), strict=True)
        if parent < 0
    ]
    return tuple(sorted(regions, key=lambda region: (-region.peak, region.top, region.left)))


def _measure(score_map: np.ndarray, mask: np.ndarray, contour: np.ndarray) -> Region:
    """Measure the region of a mask (h, w) uint8 that has this outer border, (n, 1, 2) int32."""
    left, top, width, height = cv2.boundingRect(contour)
    box = np.s_[top : top + height, left : left + width]
    column, row = (contour[0, 0] - (left, top)).tolist()
    inside = mask[box].copy()  # other regions may reach into its box, or lie within it
    area, _, _, _ = cv2.floodFill(inside, None, (column, row), 1, flags=8)
    inside = (inside == 1).view(np.uint8)
    moments = cv2.moments(inside, binaryImage=True)
    centroid = left + moments["m10"] / moments["m00"], top + moments["m01"] / moments["m00"]
    _, peak, _, (column, row) = cv2.minMaxLoc(score_map[box], inside)
    return Region(left, top, width, height, area, centroid, peak, (left + column, top + row))
