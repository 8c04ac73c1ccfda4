"""10, 12 and 14 bits in 16-bit files: recognised over a set, and applied alike by every command."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from cfa_cli import FitConfig, fit, load_bundle, predict
from cfa_cli.data.depth import recognise_depth, to_full_scale, widen
from cfa_cli.data.statistics import measure, summarise
from tests.conftest import draw_part

RNG = np.random.default_rng(0)


def write(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())
    return path


def in_bits(image: np.ndarray, bits: int) -> np.ndarray:
    """An 8-bit image as a camera of so many bits stores it in 16."""
    return np.rint(image * ((2**bits - 1) / 255)).astype(np.uint16)


def noise(low: int, high: int, step: int = 1) -> np.ndarray:
    return (RNG.integers(low, high, (50, 60, 3)) * step).astype(np.uint16)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ([noise(0, 1024)], 10),
        ([noise(0, 4096)], 12),
        ([noise(0, 16384)], 14),
        ([noise(0, 65536)], 16),
        ([noise(0, 256)], 8),
        ([noise(0, 300), noise(0, 3000), noise(0, 900)], 12),  # the brightest decides
        ([noise(0, 4096, 16)], 16),  # 12 bit, shifted by 4: right as it is
        ([noise(0, 1000, 16)], 16),  # the same, less bright
        ([noise(0, 16384, 4)], 16),
        ([noise(0, 256, 16)], 12),  # 8-bit pictures brought to 12 bit
        ([noise(0, 1)], 16),
    ],
)
def test_the_depth_of_a_set(tmp_path: Path, suffix: str, images: list[np.ndarray], expected: int) -> None:
    paths = [write(tmp_path / f"{i}{suffix}", image) for i, image in enumerate(images)]
    assert recognise_depth(paths) == expected


def test_the_depth_of_other_sets(tmp_path: Path) -> None:
    eight = [write(tmp_path / f"eight{suffix}", draw_part(1)) for suffix in (".png", ".jpg", ".bmp", ".tiff", ".webp")]
    assert recognise_depth(eight) == 8
    twelve = np.tile(noise(0, 4096), (40, 1, 1))
    assert recognise_depth([*eight, write(tmp_path / "grey.png", twelve[..., 0])]) == 12
    twelve[3, 4] = 65535  # a stuck pixel of 2,000 x 60
    assert recognise_depth([write(tmp_path / "stuck.png", twelve)]) == 12
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(16) + b"\x10")
    assert recognise_depth([tmp_path / "bad.png", tmp_path / "gone.png"]) == 8
    (tmp_path / "twelve.pgm").write_bytes(b"P5 60 50 4095\n" + noise(0, 4096)[..., 0].astype(">u2").tobytes())
    assert recognise_depth([tmp_path / "twelve.pgm"]) == 12


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_values_are_spread_over_the_full_scale(bits: int) -> None:
    values = np.arange(2**bits, dtype=np.uint16)
    spread = widen(values, bits)
    assert np.abs(spread - values * (65535 / (2**bits - 1))).max() < 1
    assert (spread[0], spread[-1]) == (0, 65535)
    assert len(np.unique(spread)) == len(values)
    if bits < 16:
        assert widen(np.array([2**bits], np.uint16), bits) == 65535  # cut, not wrapped


def like(bits: int):  # type: ignore[no-untyped-def]
    """What a model knows that was trained on parts of so many bits."""
    return summarise([measure(draw_part(i)) for i in range(5)], bits)


@pytest.mark.parametrize(
    ("model", "image", "read_as", "said"),
    [
        (12, 12, 12, None),
        (16, 16, 16, None),
        (12, 16, 12, r"values over 4095, .* they are cut"),
        (16, 12, 16, r"look like 12-bit values; .*trained on 16-bit ones"),
        (12, 10, 12, r"look like 10-bit values; .*trained on 12-bit ones"),
        (8, 12, 12, r"training images have 8 bit: they are read as 12 bit"),
        (8, 16, 16, r"training images have 8 bit: they are read as 16 bit"),
        (None, 12, 16, r"16-bit files of 12-bit values, .*earlier version"),
        (None, 16, 16, None),
    ],
)
def test_one_image_against_a_model(model: int | None, image: int, read_as: int, said: str | None) -> None:
    picture = in_bits(np.maximum(draw_part(7), 240 * np.eye(72, 80, dtype=np.uint8)[..., None]), image)
    found, misfit = to_full_scale(picture, None if model is None else like(model))
    np.testing.assert_array_equal(found, widen(picture, read_as))
    if said is None:
        assert misfit is None
    else:
        assert misfit is not None
        assert re.search(said, str(misfit))
    assert to_full_scale(draw_part(7), None if model is None else like(model))[1] is None, "8-bit files always fit"


def test_a_dark_frame_of_a_12_bit_model_is_read_as_12_bit() -> None:
    dark = in_bits(draw_part(7) // 3, 12)
    found, _ = to_full_scale(dark, like(12))
    np.testing.assert_array_equal(found, widen(dark, 12))


@pytest.fixture(scope="module")
def twelve_bit(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The same good parts in 8 bits, and in 12 of 16."""
    folders = {bits: tmp_path_factory.mktemp("good") / f"{bits}" for bits in (8, 12)}
    for number in range(8):
        write(folders[8] / f"{number}.png", draw_part(number))
        write(folders[12] / f"{number}.png", in_bits(draw_part(number), 12))
    return folders


def test_the_commands_give_12_bit_images_the_scores_of_8_bit_ones(cfa, tmp_path: Path, twelve_bit) -> None:  # type: ignore[no-untyped-def]
    scores = {}
    for bits, folder in twelve_bit.items():
        # Without training and integers, which enlarge differences of rounding.
        options = ("--weights", "embedded", "--size", 64, "--precision", "float32", "-o", f"{bits}.safetensors")
        outcome = cfa("fit", folder, *options)
        assert outcome.code == 0, outcome.err
        assert ("hold 12-bit values: 4095 is white" in outcome.err) is (bits == 12)
        assert cfa("predict", folder, "-m", f"{bits}.safetensors", "-o", f"out{bits}").code == 0
        rows = list(csv.DictReader((tmp_path / f"out{bits}/scores.csv").open()))
        scores[bits] = [float(row["score"]) for row in rows]
        document = json.loads(cfa("info", f"{bits}.safetensors", "--json").out)
        assert document["training"]["bit_depth"] == bits
    assert scores[12] == pytest.approx(scores[8], rel=0.05)
    overlays = [cv2.imread(str(tmp_path / f"out{bits}/overlays/0.png")) for bits in (8, 12)]
    assert np.abs(overlays[0].astype(int) - overlays[1]).mean() < 3

    outcome = cfa("predict", twelve_bit[12], "-m", "8.safetensors", "-o", "cross", "--save", "none")
    rows = list(csv.DictReader((tmp_path / "cross/scores.csv").open()))
    assert [float(row["score"]) for row in rows] == pytest.approx(scores[8], rel=0.05)
    assert (
        outcome.err.count("8 of 8 images are 16-bit files, where the training images have 8 bit: they are read as 12")
        == 1
    ), "said once"


def test_what_the_training_images_were_like_is_kept(tmp_path: Path, twelve_bit) -> None:  # type: ignore[no-untyped-def]
    from cfa_cli import save_bundle

    bundle = fit(twelve_bit[12], FitConfig(weights="embedded", size=(64, 64), epochs=1)).bundle
    save_bundle(bundle, tmp_path / "m.safetensors")
    training = load_bundle(tmp_path / "m.safetensors").training
    assert training == bundle.training
    assert training is not None
    assert (training.height, training.width, training.channels, training.bit_depth) == (72, 80, "colour", 12)
    assert training.aspect_low == training.aspect_high == 0.9
    means = [draw_part(number).mean() / 255 for number in range(8)]
    median = np.median(means)
    assert training.brightness == pytest.approx(median, abs=1e-3)
    assert training.brightness_spread == pytest.approx(1.4826 * np.median(np.abs(means - median)), abs=1e-3)
    blurred = cv2.GaussianBlur(draw_part(1), (0, 0), 2)
    assert measure(blurred).sharpness < measure(draw_part(1)).sharpness / 3
    assert next(iter(predict(bundle, twelve_bit[12]))).misfit is None
