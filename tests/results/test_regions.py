"""Regions against scipy.ndimage, which labels, measures and finds maxima by itself."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from scipy import ndimage

from cfa_cli.results.regions import find_regions, mark
from tests.results.runs import CALIBRATION

EIGHT = np.ones((3, 3))


@pytest.mark.parametrize("extent", [None, 0.7])
@pytest.mark.parametrize("min_area", [1, 30])
def test_regions_are_scipys(extent, min_area):
    calibration = replace(CALIBRATION, extent_threshold=extent)
    noise = cv2.GaussianBlur(np.random.default_rng(1).random((180, 260), np.float32), None, 3)
    score_map = np.float32(0.2) + (noise - noise.min()) / np.ptp(noise)
    score_map[0, :3] = score_map[-1, -1] = 1.1  # at the border
    labels, count = ndimage.label(score_map > (extent or CALIBRATION.pixel_threshold), EIGHT)
    expected = []
    for label in range(1, count + 1):
        inside = labels == label
        if inside.sum() < min_area or not (score_map[inside] > CALIBRATION.pixel_threshold).any():
            continue
        rows, columns = ndimage.find_objects(labels)[label - 1]
        row, column = ndimage.maximum_position(score_map, labels, label)
        box = (columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
        expected.append(
            (score_map[row, column], *box, inside.sum(), ndimage.center_of_mass(inside)[::-1], (column, row))
        )
    expected.sort(key=lambda one: -one[0])
    found = find_regions(score_map, calibration, min_area)
    assert len(found) == len(expected) > 2
    for region, (peak, left, top, width, height, area, centroid, peak_at) in zip(found, expected, strict=True):
        assert (region.left, region.top, region.width, region.height) == (left, top, width, height)
        assert (region.area, region.peak, region.peak_at) == (area, peak, peak_at)
        assert region.centroid == pytest.approx(centroid)


def test_a_diagonal_is_one_region_and_a_good_map_has_none():
    assert len(find_regions(np.eye(9, dtype=np.float32) * 2, CALIBRATION)) == 1
    good = np.full((9, 9), CALIBRATION.pixel_threshold, np.float32)
    assert find_regions(good, CALIBRATION) == ()
    assert not mark(good, CALIBRATION).any()
