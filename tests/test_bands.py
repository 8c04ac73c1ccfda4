"""Large images are handled in bands of rows: the results are those of the whole image, without copies of it."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cfa_cli.bands import BAND, bands_of, swap_red_and_blue
from cfa_cli.evidence import Calibration
from cfa_cli.geometry import to_input
from cfa_cli.records import Geometry, Prediction, Source
from cfa_cli.results.overlays import draw_overlay, scale_map
from cfa_cli.results.pictures import write_picture

CALIBRATION = Calibration(0.01, 2.0, 2.0, 1.0, 3.0, 0.0, 1.0, (), (), extent_threshold=1.5)


def noise(height: int, width: int, kind: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(height).integers(0, np.iinfo(kind).max, (height, width, 3), kind, endpoint=True)


@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (BAND + 1, 1), (3, BAND + 1), (451, 999)])
def test_bands_are_all_rows_once(shape: tuple[int, int]) -> None:
    rows = [row for band in bands_of(shape) for row in range(shape[0])[band]]
    assert rows == list(range(shape[0]))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(701, 900), (2500, 90), (64, 5000), (48, 48), (40, 96)])
def test_an_image_is_resized_in_bands_as_it_is_whole(shape: tuple[int, int], kind: type) -> None:
    image, geometry = noise(*shape, kind), Geometry((64, 96), None, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    pixels = torch.from_numpy(image.astype(np.float32) / np.float32(np.iinfo(kind).max)).permute(2, 0, 1)[None]
    whole = F.interpolate(pixels, (64, 96), mode="bilinear", align_corners=False, antialias=True)[0]
    expected = (whole - torch.tensor(geometry.mean).view(3, 1, 1)) / torch.tensor(geometry.std).view(3, 1, 1)
    torch.testing.assert_close(to_input(image, geometry), expected, rtol=0, atol=1e-5)


def test_red_and_blue_are_swapped_in_place() -> None:
    image = noise(451, 999)
    swapped = image.copy()
    swap_red_and_blue(swapped)
    np.testing.assert_array_equal(swapped, image[..., ::-1])


def test_no_copies_of_a_large_image_are_made(tmp_path: Path) -> None:
    """Memory that NumPy and OpenCV take, beside the 36 MB of the image and the 48 MB of its map."""
    image, score_map = noise(4000, 3000), np.zeros((4000, 3000), np.float32)
    score_map[100:200, 100:200] = 2.5
    prediction = Prediction(Source(Path("a.png"), "a.png"), 2.5, 0.6, 2.0, "anomalous", 1.0)

    def peak(work) -> float:  # type: ignore[no-untyped-def]
        tracemalloc.start()
        work()
        most = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
        return most

    assert peak(lambda: to_input(image, Geometry((64, 64), None, (0.0,) * 3, (1.0,) * 3))) < 5  # type: ignore[arg-type]
    assert peak(lambda: scale_map(score_map, CALIBRATION)) < 12 + 5
    # Its labels (int32) and two masks, and after them the picture of 36 MB and a mask.
    assert peak(lambda: draw_overlay(image, score_map, prediction, CALIBRATION)) < 48 + 24 + 24
    flat = np.zeros_like(image)
    assert peak(lambda: write_picture(tmp_path / "a.png", flat)) < 5
    assert cv2.imread(str(tmp_path / "a.png")).shape == image.shape
