"""A folder that mixes products is noticed."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from cfa_cli import FitConfig, fit
from cfa_cli.engine.kinds import kinds_warning
from tests.conftest import draw_part, write_part

PATHS = [Path(f"{number}.png") for number in range(200)]


def cloud(number: int, centre: float) -> np.ndarray:
    return np.random.default_rng(number).normal(centre, 1, (number, 64)).astype(np.float32)


@pytest.mark.parametrize(
    ("first", "second", "noticed"), [(40, 0, False), (30, 10, True), (39, 1, False), (7, 7, False)]
)
def test_two_clouds_are_two_kinds_and_an_outlier_is_none(first: int, second: int, noticed: bool) -> None:
    means = np.concatenate([cloud(first, 0), cloud(second, 8)])
    said = kinds_warning(means, PATHS)
    assert (said is not None) == noticed
    if said is not None:
        assert said.startswith(f"These images look like 2 kinds: {first} like ")
        assert f"{second} like " in said


def test_fit_says_it(tmp_path: Path) -> None:
    for number in range(12):
        write_part(tmp_path / f"a{number:02}.png", number)
        blocks = 255 - np.kron(draw_part(number)[::8, ::8], np.ones((8, 8, 1), np.uint8))
        cv2.imwrite(str(tmp_path / f"b{number:02}.png"), blocks)
    warnings = fit(tmp_path, FitConfig(weights="embedded", size=(64, 64), epochs=1)).warnings
    (said,) = [warning for warning in warnings if "2 kinds" in warning]
    assert "12 like a" in said
    assert "12 like b" in said
