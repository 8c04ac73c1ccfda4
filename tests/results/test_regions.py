"""Regions against scipy.ndimage, which labels, measures and finds maxima by itself."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from scipy import ndimage

from cfa_cli.geometry import resize_map
from cfa_cli.records import Geometry
from cfa_cli.results.regions import find_regions, highest_level, image_score, mark
from tests.results.runs import CALIBRATION

EIGHT = np.ones((3, 3))


@pytest.mark.parametrize("extent", [None, 0.7])
@pytest.mark.parametrize("min_area", [1, 12])
def test_regions_are_scipys(extent, min_area):
    calibration = replace(CALIBRATION, extent_threshold=extent, min_area=min_area)
    noise = cv2.GaussianBlur(np.random.default_rng(1).random((180, 260), np.float32), None, 3)
    score_map = np.float32(0.2) + (noise - noise.min()) / np.ptp(noise)
    score_map[0, :3] = score_map[-1, -1] = 1.1  # at the border
    cores, number = ndimage.label(score_map > CALIBRATION.pixel_threshold, EIGHT)
    large = np.isin(cores, [core for core in range(1, number + 1) if (cores == core).sum() >= min_area])
    assert 0 < large.sum() < (cores > 0).sum() or min_area == 1
    labels, count = ndimage.label(score_map > (extent or CALIBRATION.pixel_threshold), EIGHT)
    expected = []
    for label in range(1, count + 1):
        inside = labels == label
        if not large[inside].any():
            continue
        rows, columns = ndimage.find_objects(labels)[label - 1]
        row, column = ndimage.maximum_position(score_map, labels, label)
        box = (columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
        expected.append(
            (score_map[row, column], *box, inside.sum(), ndimage.center_of_mass(inside)[::-1], (column, row))
        )
    expected.sort(key=lambda one: -one[0])
    found = find_regions(score_map, calibration)
    assert len(found) == len(expected) > 2
    for region, (peak, left, top, width, height, area, centroid, peak_at) in zip(found, expected, strict=True):
        assert (region.left, region.top, region.width, region.height) == (left, top, width, height)
        assert (region.area, region.peak, region.peak_at) == (area, peak, peak_at)
        assert region.centroid == pytest.approx(centroid)


def opened_maximum(score_map, area):
    """The maximum of the area opening, level by level."""
    reached = [score_map.min()]
    for level in np.unique(score_map):
        labels, _ = ndimage.label(score_map >= level, EIGHT)
        if (np.bincount(labels.ravel())[1:] >= area).any():
            reached.append(level)
    return max(reached)


@pytest.mark.parametrize("kind", ["noise", "smooth", "steps", "flat"])
@pytest.mark.parametrize("area", [1, 2, 7, 40, 300, 5000])
def test_the_highest_level_is_the_area_openings_maximum(kind, area):
    rng = np.random.default_rng(area)
    for shape in [(23, 31), (1, 40), (30, 7)]:
        score_map = rng.random(shape, np.float32)
        if kind == "smooth":
            score_map = cv2.GaussianBlur(score_map, None, 2)
        elif kind in ("steps", "flat"):
            score_map = np.round(score_map * (4 if kind == "steps" else 0)) / np.float32(4)
        assert highest_level(score_map, area) == opened_maximum(score_map, area)


def test_an_image_is_over_the_threshold_where_it_shows_a_region():
    """Whatever the size of the image, the scale of the map and the smallest area."""
    rng, geometry = np.random.default_rng(0), Geometry((48, 64), None, (0, 0, 0), (1, 1, 1))
    shown = []
    for number in range(60):
        score_map = cv2.GaussianBlur(rng.random((48, 64), np.float32), None, 2)
        size, area = [(96, 131), (480, 640), (40, 30)][number % 3], [1, 9, 60][number % 4 % 3]
        full = resize_map(score_map, geometry, size)
        score = image_score(score_map, geometry, size, area) if area > 1 else float(full.max())
        level = float(np.quantile(full, 1 - 10 ** rng.uniform(-5, -1)))
        calibration = replace(CALIBRATION, threshold=level, pixel_threshold=level, min_area=area)
        regions = find_regions(full, calibration)
        assert (score > level) == bool(regions)
        assert all(region.area >= area for region in regions)
        shown.append(bool(regions))
    assert 10 < sum(shown) < 50


def test_a_diagonal_is_one_region_and_a_good_map_has_none():
    assert len(find_regions(np.eye(9, dtype=np.float32) * 2, CALIBRATION)) == 1
    good = np.full((9, 9), CALIBRATION.pixel_threshold, np.float32)
    assert find_regions(good, CALIBRATION) == ()
    assert not mark(good, CALIBRATION).any()


def test_regions_within_each_others_boxes_and_holes_are_told_apart():
    """Rings around rings, around a spot, and a bar whose box reaches into theirs; a core lies in each other one."""
    score_map = np.full((60, 60), 0.5, np.float32)
    row, column = np.ogrid[:60, :60]
    distance = np.maximum(abs(row - 25), abs(column - 25))
    for radius, peak in ((0, 1.9), (4, 0.9), (8, 1.8), (12, 0.95), (20, 1.7)):
        score_map[distance == radius] = 0.8
        score_map[25, 25 + radius] = peak
    score_map[40 + np.arange(15), 45 + np.arange(15)] = 0.8  # its first px touches the outermost ring at a corner
    found = find_regions(score_map, replace(CALIBRATION, pixel_threshold=1.0, extent_threshold=0.7))
    assert [(region.left, region.width, region.area) for region in found] == [(25, 1, 1), (17, 17, 64), (5, 55, 174)]
    assert [region.peak_at for region in found] == [(25, 25), (33, 25), (45, 25)]
    assert [region.centroid for region in found[:2]] == [(25, 25), (25, 25)]
