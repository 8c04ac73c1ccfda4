"""Draw large images of a part: a brushed metal plate with holes, good or with defects, in MVTec's layout.

    python examples/benchmarks/drawn.py FOLDER [--size 3648x5472] [--train 12] [--good 4] [--defective 4]
    cfa fit FOLDER/train/good --size 1024 --out FOLDER/plate.safetensors
    cfa predict FOLDER/test --model FOLDER/plate.safetensors --out FOLDER/maps

3648 x 5472 px are 20 megapixels. Each defective image has a square and a scratch of each size in --defects (px).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

SIZE = (3648, 5472)  # height, width
FINE, BRUSHED, MOTTLED = 0.015, 0.025, 0.03  # standard deviations of the texture, of full brightness
CLEAR = 0.2  # of the sides: defects keep to what lies between the holes


@dataclass(frozen=True)
class Defect:
    """A darker mark. A scratch of a size has a square's area: four times as long and a quarter as wide."""

    shape: str  # "square" or "scratch"
    size: float  # px of the square's side
    contrast: float  # by how much of the brightness there it is darker, 0 to 1
    row: float  # its centre
    column: float
    angle: float  # radians


def draw_plate(seed: int, size: tuple[int, int]) -> np.ndarray:
    """Draw a good part (height, width) float32, 0 to 1: no two have the same texture, place or light."""
    rng, (height, width) = np.random.default_rng(seed), size
    side, shift = min(size), rng.uniform(-0.004, 0.004, 2)
    noise = rng.standard_normal(size, dtype=np.float32)
    image = _textured(noise, (1, 1), 0.7, FINE)
    image += _textured(noise, (1 + side // 40, 1), 0, BRUSHED)
    coarse = rng.standard_normal((height // 64 + 2, width // 64 + 2), dtype=np.float32)
    image += MOTTLED * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    light = rng.uniform(-0.06, 0.06, 2)
    rows, columns = (np.linspace(-1, 1, length, dtype=np.float32) for length in size)
    image += 0.55 + light[0] * rows[:, None] + light[1] * columns
    inside = np.zeros(size, np.uint8)
    edge = round(0.04 * side)
    corner = round(edge + shift[0] * side), round(edge + shift[1] * side)  # row, column
    far = corner[0] + height - 2 * edge, corner[1] + width - 2 * edge
    cv2.rectangle(inside, corner[::-1], far[::-1], 255, -1)
    for row in (corner[0] + 3 * edge, far[0] - 3 * edge):
        for column in (corner[1] + 3 * edge, far[1] - 3 * edge):
            cv2.circle(inside, (column, row), round(1.4 * edge), 0, -1, cv2.LINE_AA)
    return np.asarray(image * (0.15 + 0.85 * (inside.astype(np.float32) / 255))).clip(0, 1)


def add_defects(image: np.ndarray, defects: Sequence[Defect]) -> tuple[np.ndarray, np.ndarray]:
    """Return the image with the defects in it, and their mask, uint8 0/255, of the same size."""
    marked, mask = image.copy(), np.zeros(image.shape, np.uint8)
    for defect in defects:
        long, wide = (4 * defect.size, defect.size / 4) if defect.shape == "scratch" else (defect.size, defect.size)
        row, column, reach = round(defect.row), round(defect.column), math.ceil(long)
        top, left = max(0, row - reach), max(0, column - reach)
        window = slice(top, row + reach + 1), slice(left, column + reach + 1)
        down, across = (np.arange(length) for length in marked[window].shape)
        down, across = (down + top - row)[:, None], across + left - column
        along = across * math.cos(defect.angle) + down * math.sin(defect.angle)
        beside = -across * math.sin(defect.angle) + down * math.cos(defect.angle)
        # How much of each pixel the mark covers: narrower ones than a pixel are fainter.
        cover = _covered(along, long) * _covered(beside, wide)
        marked[window] *= 1 - defect.contrast * cover
        mask[window] |= np.where(cover > min(0.5, cover.max() / 2), 255, 0).astype(np.uint8)
    return marked, mask


def draw_defects(seed: int, size: tuple[int, int], marks: Sequence[tuple[str, float, float]]) -> list[Defect]:
    """Place (shape, size, contrast) marks, each in a field of its own of a grid over the clear part of the plate."""
    rng = np.random.default_rng(seed)
    across = math.ceil(math.sqrt(len(marks)))
    fields = rng.permutation(across * across)[: len(marks)]
    step = [length * (1 - 2 * CLEAR) / across for length in size]
    return [
        Defect(
            *mark,
            row=size[0] * CLEAR + step[0] * (field // across + rng.uniform(0.3, 0.7)),
            column=size[1] * CLEAR + step[1] * (field % across + rng.uniform(0.3, 0.7)),
            angle=rng.uniform(0, math.pi),
        )
        for mark, field in zip(marks, fields, strict=True)
    ]


def to_pixels(image: np.ndarray) -> np.ndarray:
    """Turn values of 0 to 1 into 0 to 255."""
    return np.asarray(np.rint(image * 255).astype(np.uint8))


def _textured(noise: np.ndarray, box: tuple[int, int], sigma: float, deviation: float) -> np.ndarray:
    """Smooth noise, and bring it to a standard deviation."""
    smooth = cv2.GaussianBlur(noise, (0, 0), sigma) if sigma else cv2.blur(noise, box)
    return np.asarray(smooth * (deviation / smooth.std()))


def _covered(distance: np.ndarray, length: float) -> np.ndarray:
    """Return how much of each pixel at a distance from the middle lies within a length."""
    return (np.minimum(distance + 0.5, length / 2) - np.maximum(distance - 0.5, -length / 2)).clip(0, 1)


def main() -> None:
    """Write the images and masks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", default="x".join(map(str, SIZE)), help="HEIGHTxWIDTH, px")
    parser.add_argument("--train", type=int, default=12)
    parser.add_argument("--good", type=int, default=4)
    parser.add_argument("--defective", type=int, default=4)
    parser.add_argument("--defects", type=float, nargs="+", default=[10, 20, 40], help="px")
    parser.add_argument("--contrast", type=float, default=0.25)
    options = parser.parse_args()
    height, width = map(int, options.size.split("x"))
    marks = [(shape, each, options.contrast) for shape in ("square", "scratch") for each in options.defects]
    seed = 0
    for place, count in (
        ("train/good", options.train),
        ("test/good", options.good),
        ("test/defect", options.defective),
    ):
        for number in range(count):
            seed += 1
            image, name = draw_plate(seed, (height, width)), f"{number:03d}"
            if place == "test/defect":
                image, mask = add_defects(image, draw_defects(seed, (height, width), marks))
                _write(options.folder / "ground_truth/defect" / f"{name}_mask.png", mask)
            _write(options.folder / place / f"{name}.png", to_pixels(image))


def _write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels)


if __name__ == "__main__":
    main()
