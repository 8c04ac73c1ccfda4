"""Augmentation: good images are learned, and judged, turned and mirrored as well."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from cfa_cli import FitConfig, calibrate, fit, predict
from cfa_cli.engine.bank import leave_one_out_baselines
from cfa_cli.engine.thresholds import split_holdout
from cfa_cli.model.views import AS_IT_IS, View, views_of
from cfa_cli.records import Geometry
from tests.conftest import draw_part
from tests.engine.test_ignore import write_mask

SMALL = FitConfig(weights="embedded", size=(64, 64), epochs=1, max_fpr=0.25, precision="float32")
TURN = {0: None, 1: cv2.ROTATE_90_COUNTERCLOCKWISE, 2: cv2.ROTATE_180, 3: cv2.ROTATE_90_CLOCKWISE}


def square_part(number: int, defect: bool = False) -> np.ndarray:
    """RGB, 64 x 64 px: as it is, it is the network's input, so that turning it is exact."""
    part = draw_part(number, defect)[:64, :64, ::-1].copy()
    part[:20, :8] = 30  # a mark at the upper left, so that each turn looks different
    return part


def turned(image: np.ndarray, turns: int, mirrored: bool = False) -> np.ndarray:
    image = image if TURN[turns] is None else cv2.rotate(image, TURN[turns])
    return cv2.flip(image, 1) if mirrored else image


def write(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", image[..., ::-1])[1].tobytes())
    return path


def scores(model, images) -> list[float]:  # type: ignore[no-untyped-def]
    return [prediction.score for prediction in predict(model, images)]


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("square")
    for number in range(16):
        write(folder / f"{number:02}.png", square_part(number))
    return folder


@pytest.fixture(scope="module")
def plain(parts):  # type: ignore[no-untyped-def]
    return fit(parts, SMALL).bundle


@pytest.fixture(scope="module")
def rotated(parts):  # type: ignore[no-untyped-def]
    return fit(parts, replace(SMALL, augment="rotate")).bundle


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("mirrored", [False, True])
def test_views_are_what_opencv_makes(turns, mirrored):
    image = square_part(1)[:40]
    expected = turned(image, turns, mirrored)
    found = View(turns, mirrored).of(torch.from_numpy(image).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("size", "crop", "augment", "expected"),
    [
        ((64, 64), None, "none", [(0, False)]),
        ((64, 64), None, "rotate", [(0, False), (1, False), (2, False), (3, False)]),
        ((64, 96), None, "rotate", [(0, False), (2, False)]),
        ((64, 96), (48, 48), "rotate", [(0, False), (2, False)]),  # a square of an oblong is no turned square
        ((64, 64), (32, 48), "flip", [(0, False), (0, True)]),
        ((64, 96), None, "rotate+flip", [(0, False), (2, False), (0, True), (2, True)]),
    ],
)
def test_which_views_there_are(size, crop, augment, expected):
    geometry = Geometry(size, crop, (0.5,) * 3, (0.5,) * 3)
    assert views_of(augment, geometry) == expected
    assert views_of(augment, geometry)[0] == AS_IT_IS


def test_turned_good_parts_are_good_and_defects_are_found_whichever_way_a_part_lies(plain, rotated):
    good = [square_part(number) for number in range(100, 108)]
    bad = [square_part(number, defect=True) for number in range(100, 104)]
    for turns in range(4):
        new, defects = [turned(each, turns) for each in good], [turned(each, turns) for each in bad]
        assert np.median(scores(rotated, new)) < rotated.calibration.threshold
        assert min(scores(rotated, defects)) > max(scores(rotated, new))
    assert min(scores(plain, [turned(each, 2) for each in good])) > plain.calibration.threshold


def test_held_out_images_are_judged_by_their_highest_view(parts, rotated):
    """Each by the baseline of the other images' views: with a hold-out of 3 of 16."""
    _, held = split_holdout(16, 0.2, 0)
    assert len(rotated.calibration.holdout_scores) == len(held) == 3
    names = sorted(path.name for path in parts.iterdir())
    assert sorted(rotated.holdout.names) == [names[index] for index in held]
    unnormalised = fit(parts, replace(SMALL, augment="rotate", normalize_positions=False)).bundle
    expected = []
    for index in held:
        image = cv2.imread(str(parts / names[index]))[..., ::-1]
        expected.append(max(scores(unnormalised, [turned(image, turns).copy() for turns in range(4)])))
    assert unnormalised.calibration.holdout_scores == pytest.approx(sorted(expected), rel=1e-3)
    assert unnormalised.calibration.holdout_peaks == pytest.approx(sorted(expected), rel=1e-3)


def test_a_baseline_leaves_out_all_views_of_its_own_image():
    positions = torch.rand(6, 4, 5) + 1
    found = list(leave_one_out_baselines(positions, True, views=2))
    alone = [next(leave_one_out_baselines(part, True)) for part in (positions, positions[2:], positions[[0, 1, 4, 5]])]
    for one, expected in zip(found, [*alone, next(leave_one_out_baselines(positions[:4], True))], strict=True):
        assert torch.allclose(one, expected)


def test_calibrate_judges_further_images_by_their_highest_view(rotated, tmp_path):
    further = [square_part(number) for number in range(200, 203)]
    for number, image in enumerate(further):
        write(tmp_path / f"{number}.png", image)
    found = calibrate(rotated, tmp_path, replace_holdout=True).bundle.calibration
    expected = [max(scores(rotated, [turned(image, turns).copy() for turns in range(4)])) for image in further]
    assert found.holdout_scores == pytest.approx(sorted(expected), rel=1e-5)


def test_what_is_ignored_stays_where_it_is_while_parts_turn(parts, tmp_path):
    """A mark that the camera adds at the lower right, which all parts have and no model with this mask sees."""
    marked, mask = tmp_path / "marked", write_mask(tmp_path / "mask.png", np.s_[48:64, 48:64], size=(64, 64))
    rng = np.random.default_rng(0)
    for number in range(16):
        image = square_part(number)
        image[48:64, 48:64] = rng.integers(0, 255, (16, 16, 3))
        write(marked / f"{number:02}.png", image)
    config = replace(SMALL, augment="rotate")
    first = fit(marked, config, ignore=mask).bundle
    second = fit(parts, config, ignore=mask).bundle
    for name in ("bank", "descriptor.weight", "baseline"):
        assert np.array_equal(first.tensors[name], second.tensors[name])
    assert first.calibration == second.calibration


def test_the_config_keeps_it_and_info_shows_it(cfa, good_dir):
    done = cfa("fit", good_dir, "--weights", "embedded", "--size", 32, "--augment", "flip")
    assert done.code == 0, done.err
    shown = cfa("info")
    assert any(line.split() == ["Augmented", "flip"] for line in shown.out.splitlines())
