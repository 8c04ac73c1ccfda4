from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy import ndimage

from cfa_cli.geometry import resize_map
from cfa_cli.records import Geometry, Prediction, Source
from cfa_cli.results.overlays import (
    CONTOUR,
    blend,
    draw_heatmap,
    draw_overlay,
    draw_thumbnail,
    to_8_bit,
)
from cfa_cli.results.regions import mark, mark_reduced
from tests.results.runs import CALIBRATION, make_bundle, make_prediction

LOW, MIDDLE, HIGH = CALIBRATION.display_low, CALIBRATION.pixel_threshold, CALIBRATION.display_high


def geometry(size, crop=None):
    return Geometry(size, crop, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def bilinear(grid, y, x):
    """The value at (y, x) in px, where px (i, j) has its centre at (i + 0.5, j + 0.5); edges are repeated."""
    height, width = grid.shape
    y, x = np.clip(y - 0.5, 0, height - 1), np.clip(x - 0.5, 0, width - 1)
    top, left = int(min(y, height - 2)), int(min(x, width - 2))
    fy, fx = y - top, x - left
    upper = grid[top, left] * (1 - fx) + grid[top, left + 1] * fx
    lower = grid[top + 1, left] * (1 - fx) + grid[top + 1, left + 1] * fx
    return upper * (1 - fy) + lower * fy


@pytest.mark.parametrize("source", [(17, 29), (5, 40), (4, 6)])
def test_a_map_comes_back_at_the_sources_size(source):
    small = np.random.default_rng(0).random((8, 12), np.float32)
    expected = [
        [bilinear(small, (i + 0.5) * 8 / source[0], (j + 0.5) * 12 / source[1]) for j in range(source[1])]
        for i in range(source[0])
    ]
    resized = resize_map(small, geometry((8, 12)), source)
    assert resized.dtype == np.float32
    np.testing.assert_allclose(resized, expected, atol=1e-5)


def test_a_cropped_map_covers_the_crops_place_alone():
    small = 1 + np.random.default_rng(0).random((6, 8), np.float32)
    # The frame of 10 x 12 is the source of 30 x 24 resized: a crop px is 3 x 2 px there, and starts at (2, 2) px.
    resized = resize_map(small, geometry((10, 12), (6, 8)), (30, 24))
    expected = np.zeros((30, 24))
    for i in range(6, 24):
        for j in range(4, 20):
            expected[i, j] = bilinear(small, (i + 0.5) / 3 - 2, (j + 0.5) / 2 - 2)
    np.testing.assert_allclose(resized, expected, atol=1e-5)


def test_the_colour_scale_is_the_models_and_grows_lighter_all_the_way():
    ramp = np.linspace(LOW, HIGH, 256, dtype=np.float32)[None]
    colours = draw_heatmap(ramp, CALIBRATION)
    lightness = cv2.cvtColor(colours, cv2.COLOR_RGB2LAB)[0, :, 0].astype(int)
    assert (np.diff(lightness) >= -1).all()
    assert lightness[-1] - lightness[0] > 200
    assert abs(lightness[128] - lightness[-1] / 2) < 40  # the pixel threshold is in the middle
    # A map's own extremes do not matter, and what lies outside of the scale takes its end.
    for value, place in ((LOW, 0), (MIDDLE, 128), (HIGH, 255), (HIGH * 9, 255), (0.0, 0)):
        assert (draw_heatmap(np.full((2, 2), value, np.float32), CALIBRATION) == colours[0, place]).all()


def test_without_an_extent_threshold_a_mask_is_what_lies_over_the_pixel_threshold():
    over = np.nextafter(np.float32(MIDDLE), np.float32(2))
    mask = mark(np.array([[0, MIDDLE, over]], np.float32), CALIBRATION)
    assert mask.dtype == np.uint8
    assert mask.tolist() == [[0, 0, 255]]


def test_a_region_reaches_down_to_the_extent_threshold():
    calibration = replace(CALIBRATION, extent_threshold=0.6)
    score_map = cv2.GaussianBlur(np.random.default_rng(0).random((200, 300), np.float32), None, 3)
    score_map = 0.2 + (score_map - score_map.min()) / np.ptp(score_map)
    labels, _ = ndimage.label(score_map > 0.6, np.ones((3, 3)))
    with_core = np.setdiff1d(np.unique(labels[score_map > MIDDLE]), [0])
    expected = np.isin(labels, with_core)
    assert 0 < (score_map > MIDDLE).sum() < expected.sum() < (score_map > 0.6).sum()
    np.testing.assert_array_equal(mark(score_map, calibration) > 0, expected)
    assert not mark(np.minimum(score_map, np.float32(MIDDLE)), calibration).any()  # no core: no region


def test_heat_is_seen_on_black_and_on_white():
    """Lightness (L* of CIELAB, 0..100) of the heat at and over the threshold differs from the photograph's."""
    ramp = np.tile(np.linspace(LOW, HIGH, 200, dtype=np.float32), (20, 1))
    none = np.zeros(ramp.shape, np.uint8)

    def lab(value):
        picture = blend(np.full((20, 200, 3), value, np.uint8), ramp, CALIBRATION, none)
        return cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[10]

    for value in (0, 20, 128, 255):
        shown = lab(value)
        distance = np.linalg.norm(shown - shown[0], axis=1)
        assert (distance[100:] > 18).all(), value  # eight times a difference that is just seen
        assert distance[:38].max() < 1  # the lowest fifth of the scale leaves the photograph as it is


def legend_of(overlay, plain):
    """Rows and columns (top, bottom, left, right) that differ from the plain photograph."""
    rows, columns = np.nonzero((overlay != plain).any(axis=2))
    return rows.min(), rows.max() + 1, columns.min(), columns.max() + 1


def prediction(score):
    return Prediction(Source(Path("a.png"), "a.png"), score, 0.5, 1.5, "anomalous" if score > 1.5 else "good", 1.0)


@pytest.mark.parametrize("size", [(200, 300), (2000, 3000)])
def test_a_good_part_is_the_plain_photograph_and_a_legend_in_a_corner(size):
    photograph = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    score_map = np.full(size, LOW + 0.1, np.float32)
    overlay = draw_overlay(photograph, score_map, prediction(0.6), CALIBRATION)
    assert overlay.shape == photograph.shape
    assert overlay.dtype == np.uint8
    top, bottom, left, right = legend_of(overlay, photograph)
    assert (bottom, left) == (size[0], 0)
    assert 0.1 < (bottom - top) / size[0] < 0.25  # as large on a large image as on a small one
    assert 0.1 < (right - left) / size[1] < 0.4


@pytest.mark.parametrize("size", [(64, 64), (32, 400)])
def test_small_images_have_no_legend(size):
    photograph = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    overlay = draw_overlay(photograph, np.full(size, LOW, np.float32), prediction(0.6), CALIBRATION)
    np.testing.assert_array_equal(overlay, photograph)


@pytest.mark.parametrize("corner", [(0, 0), (0, 360), (260, 0), (260, 360)])
def test_the_legend_hides_no_defect(corner):
    photograph = np.full((300, 400, 3), 128, np.uint8)
    score_map = np.full((300, 400), LOW, np.float32)
    y, x = corner
    score_map[y : y + 40, x : x + 40] = HIGH
    overlay = draw_overlay(photograph, score_map, prediction(2.0), CALIBRATION)
    inside = overlay[y + 10 : y + 30, x + 10 : x + 30].reshape(-1, 3)
    assert len(np.unique(inside, axis=0)) == 1
    assert (inside[0] != 128).any()
    assert (overlay != photograph).any(axis=2).sum() > 40 * 40 + 1000  # there is a legend elsewhere


def test_without_a_free_corner_there_is_no_legend():
    photograph = np.full((300, 400, 3), 128, np.uint8)
    score_map = np.full((300, 400), LOW, np.float32)
    for y, x in ((0, 0), (0, 360), (260, 0), (260, 360)):
        score_map[y : y + 40, x : x + 40] = HIGH
    overlay = draw_overlay(photograph, score_map, prediction(2.0), CALIBRATION)
    np.testing.assert_array_equal(overlay, blend(photograph, score_map, CALIBRATION, mark(score_map, CALIBRATION)))


def test_opacity_rises_with_the_score_and_regions_are_outlined():
    levels = np.linspace(LOW, HIGH, 40, dtype=np.float32)
    score_map = np.repeat(np.tile(levels, (100, 1)), 4, axis=1)
    dark, light = (
        draw_overlay(np.full((100, 160, 3), value, np.uint8), score_map, prediction(2.0), CALIBRATION).astype(int)
        for value in (64, 192)
    )
    # What differs between a dark and a light photograph is what is left of them.
    left = (light - dark)[50, 2::4, 0] / 128
    away_from_the_contour = np.r_[0:18, 24:40]
    assert left[0] == 1
    assert (np.diff(left[away_from_the_contour]) <= 0.01).all()
    assert 0.3 < left[-2] < 0.6  # at the last, the contour along the border takes its share
    outlined = np.abs(dark - CONTOUR).max(axis=2) < 60  # smoothed
    first = int(np.argmax(levels > MIDDLE)) * 4
    assert outlined[10:90, first].all()
    assert not outlined[:, : first - 2].any()


def test_16_bit_is_scaled_by_the_depth_it_uses():
    assert to_8_bit(np.array([[[0, 32768, 65535]]], np.uint16)).tolist() == [[[0, 128, 255]]]
    assert to_8_bit(np.array([[[0, 2048, 4095]]], np.uint16)).tolist() == [[[0, 8, 16]]]  # dark, and shown so


def test_thumbnails_are_small_and_keep_the_aspect():
    shown = make_prediction(Path("a.png"), 2.0, size=(900, 1800))
    small = draw_thumbnail(shown.image, shown.score_map, make_bundle())
    assert small.shape == (160, 320, 3)
    assert (small[48, 96] != 128).any()  # the spot
    plain = draw_thumbnail(shown.image, None, make_bundle(), side=100)
    assert plain.shape == (50, 100, 3)
    assert (plain == 128).all()


def test_small_pictures_mark_what_counts_at_full_size():
    score_map = np.full((32, 32), 0.5, np.float32)
    score_map[4:6, 4:6] = score_map[16:24, 16:24] = 2.0  # of 320 x 320 px about 900 and 7,500
    bundle = make_bundle()
    image = np.full((320, 320, 3), 128, np.uint8)
    for min_area, marked in ((1, (True, True)), (2500, (False, True)), (9000, (False, False))):
        calibration = replace(bundle.calibration, min_area=min_area)
        full = mark(resize_map(score_map, bundle.geometry, (320, 320)), calibration)
        small = mark_reduced(resize_map(score_map, bundle.geometry, (40, 40)), calibration, full.copy)
        assert (full[50, 50] > 0, full[200, 200] > 0) == marked
        assert (small[6, 6] > 0, small[25, 25] > 0) == marked
        picture = draw_thumbnail(image, score_map, replace(bundle, calibration=calibration), 160)
        outlined = np.abs(picture.astype(int) - CONTOUR).sum(axis=2) < 90
        assert (outlined[:60, :60].any(), outlined[60:, 60:].any()) == marked
