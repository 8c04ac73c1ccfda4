"""Render the example product: turned steel flanges on a conveyor belt, good ones and defective ones.

    python examples/render.py [OUT]      writes OUT (default: examples/parts), about 2 MB, in MVTec's layout

Everything is drawn with numpy and OpenCV from fixed seeds: no photograph, no download. The same OpenCV draws the same
pixels; the committed ones are of OpenCV 5.0, whose letters differ from those of 4.x.
Each part is a height map that is lit from one side. Good parts differ in position, angle, turning marks, light, colour
and sensor noise. A defect changes the height map or the surface, and its mask is the region that it changes.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

SIZE = 320  # px a side of the finished image
SCALE = 2  # it is drawn larger, and then averaged: smooth edges
SIDE = SIZE * SCALE
RADIUS, BORE, BOLT_CIRCLE, BOLT = 248.0, 62.0, 176.0, 21.0  # of the flange, px of the large drawing
BOLTS = 6
COUNTS = {"train/good": 40, "test/good": 10, "test/scratch": 6, "test/dent": 6, "test/stain": 6, "test/missing_hole": 6}

Rng = np.random.Generator
Y, X = np.mgrid[:SIDE, :SIDE].astype(np.float32)


class Part:
    """One flange while it is drawn; every array is (SIDE, SIDE) float32, and lengths are px of the large drawing."""

    def __init__(self, centre: tuple[float, float], turn: float) -> None:
        self.centre, self.turn = centre, turn
        dx, dy = X - centre[0], Y - centre[1]
        self.u = np.cos(turn, dtype=np.float32) * dx + np.sin(turn, dtype=np.float32) * dy  # turned with the flange
        self.v = np.cos(turn, dtype=np.float32) * dy - np.sin(turn, dtype=np.float32) * dx
        self.r = np.hypot(self.u, self.v)
        self.angle = np.arctan2(self.v, self.u)  # clockwise from the right
        self.height = np.zeros_like(X)
        self.solid = np.zeros_like(X)  # 1 where there is metal, 0 where the belt shows
        self.bare = np.zeros_like(X)  # 1 where a cut shows bright metal
        self.stain = np.zeros_like(X)  # 0 clean .. 1 covered
        self.defect = np.zeros_like(X)  # 1 where the part is not as it should be

    def place(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """(n, 2) x, y in the drawing of points in the flange's own coordinates."""
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        return np.stack([u * cos - v * sin + self.centre[0], u * sin + v * cos + self.centre[1]], axis=-1)


def step(x: np.ndarray, width: float = 1.5) -> np.ndarray:
    """0 below -width, 1 above +width, smooth between."""
    t = np.clip(x / (2 * width) + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


def clouds(rng: Rng, grain: float) -> np.ndarray:
    """(SIDE, SIDE) smooth noise of mean 0 and deviation 1, whose blobs are about `grain` px wide."""
    small = round(SIDE / grain * 3)  # a few px a blob, smoothed, so that no grid shows when it is enlarged
    noise = cv2.GaussianBlur(rng.standard_normal((small, small)).astype(np.float32), (0, 0), 1.2)
    noise = cv2.resize(noise, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    return (noise - noise.mean()) / noise.std()


def bolt_centres() -> list[tuple[float, float]]:
    """Of the holes, in the flange's coordinates."""
    angles = np.arange(BOLTS) * 2 * np.pi / BOLTS + np.pi / 6
    return [(float(BOLT_CIRCLE * np.cos(a)), float(BOLT_CIRCLE * np.sin(a))) for a in angles]


def lettering(part: Part) -> np.ndarray:
    """0..1: the type number, bent along a circle below the bore."""
    strip = np.zeros((64, 1024), np.uint8)
    text = ("CF-20/6", cv2.FONT_HERSHEY_DUPLEX, 1.6)
    (width, height), _ = cv2.getTextSize(*text, 3)
    cv2.putText(strip, text[0], (512 - width // 2, 32 + height // 2), *text[1:], 255, 3, cv2.LINE_AA)
    along = 512 - (part.angle - np.pi / 2) * 95 * 1.35
    across = 32 + (part.r - 95) * 1.35
    return cv2.remap(strip, along, across, cv2.INTER_LINEAR).astype(np.float32) / 255


def flange(rng: Rng, missing: int | None) -> Part:
    """A good flange, or one whose bolt hole number `missing` was never drilled."""
    x, y = SIDE / 2 + rng.uniform(-12, 12, 2)
    part = Part((float(x), float(y)), np.deg2rad(rng.uniform(-5, 5)))
    r = part.r
    solid = step(RADIUS - r) * step(r - BORE)
    height = 9 * step(RADIUS - 8 - r, 8) + 9 * step(r - BORE - 7, 7)  # chamfered rim and bore
    height += 7 * step(128 - r, 5)  # the raised hub
    height -= 4 * step(5 - np.abs(r - 224), 3)  # a groove
    knurl = np.sin(part.angle * 90) * step(6 - np.abs(r - RADIUS + 10), 4)
    height += 0.9 * knurl
    for number, (cx, cy) in enumerate(bolt_centres()):
        d = np.hypot(part.u - cx, part.v - cy)
        if number == missing:
            part.defect = np.maximum(part.defect, step(BOLT + 9 - d))
        else:
            solid *= step(d - BOLT)
            height -= 9 * step(BOLT + 5 - d, 5)  # countersink
    height -= 2.2 * lettering(part)
    part.solid, part.height = solid, height
    return part


def spot(rng: Rng, margin: float) -> tuple[float, float]:
    """A random place on the flange's face, at least `margin` px from holes and edges."""
    while True:
        u, v = rng.uniform(-RADIUS, RADIUS, 2)
        clear = [np.hypot(u - cx, v - cy) - BOLT for cx, cy in bolt_centres()]
        if BORE + margin < np.hypot(u, v) < RADIUS - 24 - margin and min(clear) > margin:
            return float(u), float(v)


def scratch(part: Part, rng: Rng) -> None:
    """One to three curved cuts side by side."""
    u, v = spot(rng, 12)
    towards = rng.uniform(0, np.pi)
    bend = rng.uniform(-0.004, 0.004)
    for _ in range(rng.integers(1, 4)):
        length = rng.uniform(70, 150)
        along = np.linspace(-length / 2, length / 2, 60)
        aside = bend * along**2 + rng.uniform(-9, 9)
        points = part.place(
            u + along * np.cos(towards) - aside * np.sin(towards), v + along * np.sin(towards) + aside * np.cos(towards)
        )
        line = np.zeros_like(X)
        width = int(rng.integers(2, 4))
        cv2.polylines(line, [np.round(points * 16).astype(np.int32)], False, 1.0, width, cv2.LINE_AA, shift=4)
        part.height -= rng.uniform(2.5, 4.5) * cv2.GaussianBlur(line, (0, 0), 1.0)
        part.bare = np.maximum(part.bare, line * rng.uniform(0.5, 1.0))
        part.defect = np.maximum(part.defect, step(cv2.GaussianBlur(line, (0, 0), 2.0) - 0.12, 0.02))


def dent(part: Part, rng: Rng) -> None:
    """A blow: a smooth hollow with a slight rim."""
    cu, cv = spot(rng, 24)
    a, b, turn = rng.uniform(16, 27), rng.uniform(12, 20), rng.uniform(0, np.pi)
    du, dv = part.u - cu, part.v - cv
    d = np.hypot((du * np.cos(turn) + dv * np.sin(turn)) / a, (dv * np.cos(turn) - du * np.sin(turn)) / b)
    part.height += rng.uniform(9, 14) * (0.25 * np.exp(-(((d - 1.1) / 0.25) ** 2)) - np.exp(-((d / 0.65) ** 2)))
    part.defect = np.maximum(part.defect, step(1.45 - d, 0.02))


def stain(part: Part, rng: Rng) -> None:
    """Rust-brown residue: a ragged blot, darker at its rim, with a few drops around it."""
    ragged = clouds(rng, 50) * 0.22 + clouds(rng, 16) * 0.05
    cu, cv = spot(rng, 16)
    blot = np.zeros_like(X)
    for number in range(rng.integers(2, 6)):
        size = rng.uniform(26, 42) if number == 0 else rng.uniform(4, 9)
        away = 0.0 if number == 0 else rng.uniform(44, 66)
        towards = rng.uniform(0, 2 * np.pi)
        d = np.hypot(part.u - cu - away * np.cos(towards), part.v - cv - away * np.sin(towards)) / size
        blot = np.maximum(blot, step(1 + ragged - d, 0.18))
    rim = blot * (1 - blot) * 4
    part.stain = np.clip(blot * rng.uniform(0.35, 0.7) * (1 + 0.15 * clouds(rng, 30)) + 0.3 * rim, 0, 1)
    part.defect = np.maximum(part.defect, step(blot - 0.12, 0.02))


def belt(rng: Rng) -> np.ndarray:
    """(SIDE, SIDE, 3) BGR 0..1: a dark green belt with a diamond pattern, never at the same place twice."""
    px, py = rng.uniform(0, 40, 2)
    a, b = (X + px + Y + py) * (2 * np.pi / 26), (X + px - Y - py) * (2 * np.pi / 26)
    weave = np.maximum(np.cos(a), np.cos(b))
    value = 0.20 + 0.04 * weave + 0.012 * clouds(rng, 90) + 0.012 * clouds(rng, 5)
    return value[..., None] * np.array([0.92, 1.06, 0.88], np.float32)


def shade(part: Part, rng: Rng) -> np.ndarray:
    """(SIDE, SIDE, 3) BGR 0..1: the metal, lit from the upper left."""
    light = np.deg2rad(-125 + rng.uniform(-6, 6))
    gx = cv2.Sobel(part.height, cv2.CV_32F, 1, 0, scale=1 / 8)
    gy = cv2.Sobel(part.height, cv2.CV_32F, 0, 1, scale=1 / 8)
    slope = -(gx * np.cos(light) + gy * np.sin(light))
    # Turning marks: noise along the radius, slowly changing around it. They spread the highlight into a bow tie.
    marks = np.pad(rng.standard_normal((24, 420)).astype(np.float32), ((2, 2), (0, 0)), "wrap")
    marks = cv2.remap(marks, part.r * 1.35, 2 + (part.angle + np.pi) * (24 / (2 * np.pi)), cv2.INTER_CUBIC)
    bow = np.abs(np.cos(np.arctan2(Y - SIDE / 2, X - SIDE / 2) - light - rng.uniform(-0.1, 0.1)))
    value = 0.50 + 0.20 * bow**6 + 0.08 * bow**30 + 0.030 * marks * (0.6 + bow**2) + 0.015 * clouds(rng, 60)
    value = value + 0.42 * np.tanh(slope * 1.1) - 0.05 * np.abs(np.tanh(slope)) + 0.22 * part.bare
    metal = value[..., None] * np.array([1.03, 1.0, 0.97], np.float32)
    brown = value[..., None] * np.array([0.22, 0.42, 0.66], np.float32)
    cover = part.stain[..., None]
    return metal * (1 - cover) + brown * cover


def photograph(part: Part, rng: Rng) -> np.ndarray:
    """(SIZE, SIZE, 3) BGR uint8: belt, shadow and part through one camera."""
    moved = np.float32([[1, 0, 9], [0, 1, 13]])
    shadow = cv2.GaussianBlur(cv2.warpAffine(part.solid, moved, (SIDE, SIDE)), (0, 0), 9)
    scene = belt(rng) * (1 - 0.72 * shadow[..., None])
    solid = part.solid[..., None]
    scene = scene * (1 - solid) + shade(part, rng) * solid
    x, y = X / SIDE - 0.5, Y / SIDE - 0.5
    towards = rng.uniform(0, 2 * np.pi)
    lit = 1 + rng.uniform(0.02, 0.10) * (x * np.cos(towards) + y * np.sin(towards)) * 2 - 0.25 * (x * x + y * y)
    tint = 1 + rng.normal(0, 0.012, 3)
    scene = scene * lit[..., None] * tint * rng.uniform(0.94, 1.06)
    image = cv2.resize(scene.astype(np.float32), (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.35, 0.55))
    image += rng.normal(0, 0.006, image.shape) * np.sqrt(np.clip(image, 0.05, 1) / 0.5)
    return np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)


DEFECTS: dict[str, Callable[[Part, Rng], None]] = {"scratch": scratch, "dent": dent, "stain": stain}


def render(group: str, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The image, (SIZE, SIZE, 3) BGR, and its mask, (SIZE, SIZE) of 0 and 255, both uint8."""
    surface, damage = np.random.default_rng([zlib.crc32(group.encode()), number]).spawn(2)
    kind = group.rpartition("/")[2]
    part = flange(surface, missing=int(damage.integers(BOLTS)) if kind == "missing_hole" else None)
    if kind in DEFECTS:
        DEFECTS[kind](part, damage)
    mask = cv2.resize(part.defect * part.solid, (SIZE, SIZE), interpolation=cv2.INTER_AREA) > 0.5
    return photograph(part, surface), mask.astype(np.uint8) * 255


def main(out: Path) -> None:
    """Write all images and masks below `out`."""
    for group, count in COUNTS.items():
        (out / group).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            image, mask = render(group, number)
            cv2.imwrite(str(out / group / f"{number:03}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 88])
            if not group.endswith("good"):
                masks = out / group.replace("test", "ground_truth")
                masks.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(masks / f"{number:03}_mask.png"), mask)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", default=Path(__file__).parent / "parts")
    main(parser.parse_args().out)
