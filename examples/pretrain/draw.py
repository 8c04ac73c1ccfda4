"""Draws textures and parts: the only images that the embedded backbone is ever trained on.

A class is a style: the numbers that a drawing program takes (family, scale, angle, palette, ...). Its images share the
style and differ in the layout. Both come from generators seeded by (seed, class[, instance]), so an image is a
function of three integers, whatever machine or process draws it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]  # (size, size), about 0..1
Image = NDArray[np.uint8]  # (size, size, 3), RGB
Rng = np.random.Generator

cv2.setNumThreads(1)  # the callers run one process a core


def unit(field: NDArray) -> Field:
    """Brings any field to a mean of 0.5 and a standard deviation of 0.22, clipped to 0..1."""
    field = field - field.mean()
    return np.clip(0.5 + 0.22 * field / (field.std() + 1e-6), 0, 1).astype(np.float32)


def log_uniform(rng: Rng, low: float, high: float) -> float:
    """Draw a number whose logarithm is uniform: for sizes and contrasts."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def smooth_noise(size: int, rng: Rng, cells: int) -> Field:
    """Noise without detail finer than size / cells."""
    coarse = rng.standard_normal((cells + 1, cells + 1)).astype(np.float32)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)


@functools.cache
def pixel_grid(size: int) -> tuple[Field, Field]:
    """Return the row and the column of each pixel."""
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    return rows, columns


def plane(size: int, style: Rng, rng: Rng) -> tuple[Field, Field]:
    """Pixel coordinates, rotated by the style's angle, shifted by the layout, and for half of the styles bent."""
    angle = style.uniform(0, np.pi) + rng.normal(0, 0.05)
    bend = style.uniform(0, 10) if style.random() < 0.5 else 0.0
    bend_cells = int(style.integers(2, 7))
    rows, columns = pixel_grid(size)
    u = columns * np.cos(angle) + rows * np.sin(angle) + rng.uniform(0, size)
    v = rows * np.cos(angle) - columns * np.sin(angle) + rng.uniform(0, size)
    if bend:
        u = u + bend * smooth_noise(size, rng, bend_cells)
        v = v + bend * smooth_noise(size, rng, bend_cells)
    return u, v


def wave(phase: Field, shape: int) -> Field:
    """A periodic profile of period 1: sine, square, saw, narrow line."""
    if shape == 0:
        return 0.5 + 0.5 * np.sin(2 * np.pi * phase)
    cycle = phase - np.floor(phase)
    return [None, (cycle < 0.5).astype(np.float32), cycle, np.exp(-(((cycle - 0.5) / 0.12) ** 2))][shape]


@functools.cache
def frequencies(size: int) -> tuple[Field, Field]:
    """Return the vertical and horizontal frequency of each of rfft2's coefficients, in cycles a pixel."""
    fy, fx = np.meshgrid(np.fft.fftfreq(size), np.fft.rfftfreq(size), indexing="ij")
    return fy.astype(np.float32), fx.astype(np.float32)


def spectral(size: int, style: Rng, rng: Rng) -> Field:
    """Filtered noise: a power law or a band, round or stretched, plain, folded, sliced or made a contour map."""
    angle, stretch = style.uniform(0, np.pi), log_uniform(style, 1, 20) if style.random() < 0.5 else 1.0
    slope, centre, width = style.uniform(0.4, 2.6), log_uniform(style, 0.015, 0.35), style.uniform(0.15, 0.8)
    banded, fold = style.random() < 0.5, style.integers(6)
    fy, fx = frequencies(size)
    along, across = fx * np.cos(angle) + fy * np.sin(angle), fy * np.cos(angle) - fx * np.sin(angle)
    radius = np.hypot(along * stretch**0.5, across / stretch**0.5) + 0.5 / size
    gain = np.exp(-((np.log(radius / centre) / width) ** 2) / 2) if banded else radius**-slope
    gain[0, 0] = 0
    field = unit(np.fft.irfft2(np.fft.rfft2(rng.standard_normal((size, size))) * gain, s=(size, size)))
    if fold == 0:
        return unit(-np.abs(field - 0.5))
    if fold == 1:
        return unit(1 / (1 + np.exp(-(field - 0.6) * 40)))
    return unit(np.sin(field * 25)) if fold == 2 else field


def grating(size: int, style: Rng, rng: Rng) -> Field:
    """Stripes, corrugations, grids."""
    u, v = plane(size, style, rng)
    shape, period = int(style.integers(4)), log_uniform(style, 3.5, 40)
    field = wave(u / period, shape)
    if style.random() < 0.4:
        field = field * wave(v / (period * log_uniform(style, 0.5, 4)), int(style.integers(4)))
    return unit(field)


def weave(size: int, style: Rng, rng: Rng) -> Field:
    """Warp and weft threads, over and under by turns."""
    u, v = plane(size, style, rng)
    period, twill = log_uniform(style, 5, 28), int(style.integers(1, 4))
    i, j = np.floor(u / period), np.floor(v / period)
    across = np.abs(np.sin(np.pi * u / period)) * (0.6 + 0.4 * np.abs(np.cos(np.pi * v / period)))
    down = np.abs(np.sin(np.pi * v / period)) * (0.6 + 0.4 * np.abs(np.cos(np.pi * u / period)))
    over = (i + twill * j) % (twill + 1) < 1
    return unit(np.where(over, across, style.uniform(0.5, 1) * down))


def bricks(size: int, style: Rng, rng: Rng) -> Field:
    """Bricks, planks or tiles with joints."""
    u, v = plane(size, style, rng)
    height = log_uniform(style, 6, 40)
    width, gap, offset = height * style.uniform(1, 3), style.uniform(0.8, 4), style.choice([0, 0.5, 0.33])
    row = np.floor(v / height)
    column = np.floor(u / width + offset * row)
    x, y = (u / width + offset * row - column) * width, v - row * height
    tone = rng.random(4096).astype(np.float32)[((row * 57 + column * 131).astype(np.int64)) % 4096]
    joint = (x < gap) | (y < gap)
    return unit(np.where(joint, style.uniform(-1, 2), style.uniform(0, 0.6) * tone + 0.01 * x / gap))


def dots(size: int, style: Rng, rng: Rng) -> Field:
    """A square or hexagonal lattice of spots, rings or holes."""
    u, v = plane(size, style, rng)
    pitch, hexagonal, radius = log_uniform(style, 5, 36), style.random() < 0.5, style.uniform(0.15, 0.48)
    v = v / (pitch * (0.866 if hexagonal else 1))
    row = np.floor(v)
    u = u / pitch + 0.5 * (row % 2) * hexagonal
    distance = np.hypot(u - np.floor(u) - 0.5, v - row - 0.5)
    if style.random() < 0.3:
        return unit(-np.abs(distance - radius))
    return unit(1 / (1 + np.exp((distance - radius) * style.uniform(8, 60))))


def voronoi(size: int, style: Rng, rng: Rng) -> Field:
    """Cells: metal grains, leather, cracked mud, foam."""
    sites = int(log_uniform(style, 12, 900))
    kind = style.integers(4)
    seeds = np.full((size, size), 255, np.uint8)
    seeds[rng.integers(0, size, sites), rng.integers(0, size, sites)] = 0
    distance, label = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    if kind == 0:
        return unit(distance)
    tone = rng.random(label.max() + 1).astype(np.float32)[label]
    if kind == 1:
        return unit(tone)
    edge = cv2.morphologyEx(label.astype(np.float32), cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8)) > 0
    return unit(np.where(edge, style.uniform(-1, 2), tone * style.uniform(0, 0.5) + 0.3))


def dead_leaves(size: int, style: Rng, rng: Rng) -> Field:
    """Opaque shapes, each covering what lies below: circles, ellipses, polygons or boxes, of many sizes."""
    count, power = int(log_uniform(style, 30, 350)), style.uniform(0.8, 3)
    low, high, shape = log_uniform(style, 1.5, 5), style.uniform(12, 60), int(style.integers(5))
    elongation, angle, spread = style.uniform(1, 5), style.uniform(0, 180), style.choice([8, 180])
    field = np.full((size, size), 0.5, np.float32)
    for k in range(count):
        radius = low + (high - low) * rng.random() ** (power * 2) * (1.2 - k / count)
        centre = (int(rng.integers(size)), int(rng.integers(size)))
        tone, turn = float(rng.random()), angle + rng.uniform(-spread, spread)
        kind = shape if shape < 4 else int(rng.integers(4))
        if kind == 0:
            cv2.circle(field, centre, int(radius), tone, -1)
        elif kind == 1:
            cv2.ellipse(field, (centre, (radius * 2, 1 + radius * 2 / elongation), turn), tone, -1)
        elif kind == 2:
            corners = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 7))))
            points = np.stack([np.cos(corners), np.sin(corners)], 1) * radius + centre
            cv2.fillPoly(field, [points.astype(np.int32)], tone)
        else:
            box = cv2.boxPoints((centre, (radius * 2, 1 + radius * 2 / elongation), turn))
            cv2.fillPoly(field, [box.astype(np.int32)], tone)
    return field


def strokes(size: int, style: Rng, rng: Rng) -> Field:
    """Fibres, brush marks, machining marks: many lines, straight or bent, along one direction or along none."""
    count, length, width = int(log_uniform(style, 20, 300)), log_uniform(style, 6, 120), int(style.integers(1, 4))
    angle, spread, curl = style.uniform(0, np.pi), style.choice([0.03, 0.3, 3.0]), style.choice([0, 0, 0.5])
    field = np.full((size, size), 128, np.uint8)
    for _ in range(count):
        heading = angle + rng.normal(0, spread) + np.cumsum(rng.normal(0, curl, 6) if curl else np.zeros(6))
        steps = np.stack([np.cos(heading), np.sin(heading)], 1) * length / 6
        points = rng.uniform(-0.1, 1.1, 2) * size + np.cumsum(steps, 0)
        cv2.polylines(field, [(points * 8).astype(np.int32)], False, int(rng.integers(256)), width, cv2.LINE_AA, 3)
    return unit(field.astype(np.float32))


def rings(size: int, style: Rng, rng: Rng) -> Field:
    """Growth rings, marble and lathe marks: level lines of a bent distance."""
    u, v = plane(size, style, rng)
    far, period = style.uniform(0, 4), log_uniform(style, 4, 30)
    distance = np.hypot(u - size * rng.uniform(0.5, 1.5), (v - size * rng.uniform(0.5, 1.5)) / (1 + far))
    distance = distance + style.uniform(0, 14) * smooth_noise(size, rng, int(style.integers(2, 12)))
    return unit(wave(distance / period, int(style.integers(4))))


def glyphs(size: int, style: Rng, rng: Rng) -> Field:
    """Print: rows of characters."""
    scale, thickness, font = style.uniform(0.3, 1.2), int(style.integers(1, 3)), int(style.integers(0, 6))
    alphabet = style.choice(np.array(list("ABCDEFGHKLMNPRSTUXYZ0123456789/-.+")), 8)
    field = np.full((size, size), int(style.integers(20, 235)), np.uint8)
    tone = int(style.integers(256))
    for baseline in np.arange(rng.uniform(0, 20), size + 20, 34 * scale):
        text = "".join(rng.choice(alphabet, 24))
        start = (int(rng.uniform(-30, 10)), int(baseline))
        cv2.putText(field, text, start, font, scale, tone, thickness, cv2.LINE_AA)
    return field.astype(np.float32) / 255


def parts(size: int, style: Rng, rng: Rng) -> Field:
    """A few large shapes with rounded, lit edges: the look of a workpiece."""
    count, round_off = int(style.integers(1, 7)), style.uniform(2, 18)
    light, sides = style.uniform(0, 2 * np.pi), int(style.integers(3, 10))
    field = np.full((size, size), style.uniform(0.1, 0.9), np.float32)
    for _ in range(count):
        mask = np.zeros((size, size), np.uint8)
        corners = np.arange(sides) / sides * 2 * np.pi + rng.uniform(0, 2 * np.pi)
        reach = size * style.uniform(0.1, 0.45) * (1 + 0.3 * np.sin(corners * 2))
        points = np.stack([np.cos(corners), np.sin(corners)], 1) * reach[:, None] + rng.uniform(0.2, 0.8, 2) * size
        cv2.fillPoly(mask, [points.astype(np.int32)], 255)
        if style.random() < 0.4:
            cv2.circle(mask, tuple(int(x) for x in points.mean(0)), int(reach.min() * style.uniform(0.2, 0.8)), 0, -1)
        height = np.minimum(cv2.distanceTransform(mask, cv2.DIST_L2, 3), round_off)
        slope = cv2.Sobel(height, -1, 1, 0) * np.cos(light) + cv2.Sobel(height, -1, 0, 1) * np.sin(light)
        lit = style.uniform(0.15, 0.85) + 0.05 * slope * style.uniform(0.3, 1)
        field = np.where(mask > 0, lit, field)
    return np.clip(field, 0, 1).astype(np.float32)


def cloud(size: int, style: Rng, rng: Rng) -> Field:
    """Almost nothing: a plain surface with soft unevenness and grain."""
    grain = cv2.GaussianBlur(rng.standard_normal((size, size)).astype(np.float32), (0, 0), style.uniform(0.4, 1.5))
    soft = smooth_noise(size, rng, int(style.integers(1, 6)))
    return unit(grain / grain.std() * style.uniform(0.05, 1) + soft * style.uniform(0, 1.5))


def traces(size: int, style: Rng, rng: Rng) -> Field:
    """Line art of two tones: conductors that run straight, turn by 45 or 90 degrees and end in pads."""
    width, pitch = int(style.integers(1, 6)), int(log_uniform(style, 5, 20))
    pad, count = width * style.uniform(0.9, 2.2), int(log_uniform(style, 8, 60))
    turns = style.choice([45, 90]) * np.pi / 180
    field = np.zeros((size, size), np.uint8)
    for _ in range(count):
        heading, point = turns * int(rng.integers(8)), rng.integers(0, size // pitch + 1, 2) * float(pitch)
        points = [point]
        for _ in range(int(rng.integers(1, 5))):
            point = point + np.array([np.cos(heading), np.sin(heading)]) * pitch * int(rng.integers(1, 7))
            points.append(point)
            heading = heading + turns * int(rng.choice([-1, 1]))
        corners = np.round(points).astype(np.int32)
        cv2.polylines(field, [corners], False, 255, width)
        for end in (corners[0], corners[-1]):
            if rng.random() < 0.7:
                cv2.circle(field, end.tolist(), round(pad), 255, -1)
    if style.random() < 0.3:  # pads with holes
        for column, row in rng.integers(0, size // pitch + 1, (count // 3, 2)) * pitch:
            cv2.circle(field, (int(column), int(row)), round(pad + 1), 255, -1)
            cv2.circle(field, (int(column), int(row)), max(1, round(pad / 2)), 0, -1)
    return field.astype(np.float32) / 255


def grains(size: int, style: Rng, rng: Rng) -> Field:
    """A polycrystal: dark grains of many tones, some twinned, under a few thin bright bars."""
    seeds = np.full((size, size), 255, np.uint8)
    sites = int(log_uniform(style, 20, 300))
    seeds[rng.integers(0, size, sites), rng.integers(0, size, sites)] = 0
    _, label = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    tones = rng.random((2, label.max() + 1)).astype(np.float32)
    u, v = plane(size, style, rng)
    turn = tones[1][label] * 2 * np.pi
    twins = np.sin((u * np.cos(turn) + v * np.sin(turn)) * style.uniform(0.2, 1.5)) > 0.3
    field = 0.1 + style.uniform(0.1, 0.5) * tones[0][label] * (1 - style.uniform(0, 0.4) * twins)
    if style.random() < 0.6:
        bar, gap = style.uniform(0.7, 2.5), log_uniform(style, 20, 120)
        field = np.where((v % gap) < bar, 0.9, field)
    return np.clip(field + style.uniform(0, 0.05) * rng.standard_normal((size, size)), 0, 1).astype(np.float32)


def ground(size: int, style: Rng, rng: Rng) -> Field:
    """Turned or ground metal: fine lines along one direction, noise along and across them, soft shade."""
    across = rng.standard_normal(size).astype(np.float32)
    lines = cv2.GaussianBlur(across[None], (0, 0), style.uniform(0.3, 2)).repeat(size, 0)
    streaks = cv2.GaussianBlur(
        rng.standard_normal((size, size)).astype(np.float32), (0, 0), sigmaX=0.5, sigmaY=log_uniform(style, 2, 30)
    )
    grain = rng.standard_normal((size, size)).astype(np.float32)
    mixed = (
        style.uniform(0, 1) * lines / (lines.std() + 1e-6)
        + style.uniform(0.2, 1) * streaks / (streaks.std() + 1e-6)
        + style.uniform(0, 0.7) * grain
        + style.uniform(0, 1.5) * smooth_noise(size, rng, int(style.integers(1, 5)))
    )
    return unit(np.rot90(mixed, int(style.integers(2))))


FAMILIES: tuple[Callable[[int, Rng, Rng], Field], ...] = (
    spectral, spectral, spectral, grating, weave, bricks, dots, voronoi, voronoi, dead_leaves, dead_leaves,
    strokes, strokes, rings, glyphs, parts, parts, cloud, traces, traces, grains, ground, ground,
)  # fmt: skip


def paint(field: Field, style: Rng, rng: Rng) -> Image:
    """Maps a field to colours through a palette of 2 to 5 colours; two palettes in five are grey."""
    knots = int(style.integers(2, 6))
    colours = style.uniform(0, 255, (knots, 3))
    if style.random() < 0.4:
        colours[:] = colours[:, :1]
    elif style.random() < 0.4:  # near-grey metals, woods, plastics: far more common in factories than rainbows
        colours = 0.75 * colours[:, :1] + 0.25 * colours
    colours = np.clip(colours + rng.normal(0, 6, (knots, 3)), 0, 255)
    place = np.linspace(0, knots - 1, 256)
    palette = np.stack([np.interp(place, np.arange(knots), colours[:, c]) for c in range(3)], 1)
    return palette.astype(np.uint8)[np.clip(field * 255, 0, 255).astype(np.uint8)]


def draw(seed: int, label: int, instance: int, size: int) -> Image:
    """Draws one image of a class: one to three painted fields, stacked, then lit and blurred."""
    style, rng = np.random.default_rng((seed, label)), np.random.default_rng((seed, label, instance))
    layers = int(style.choice([1, 2, 3], p=[0.4, 0.4, 0.2]))
    image = np.zeros((size, size, 3), np.float32)
    for depth in range(layers):
        # The style must be read the same number of times for every image of a class: each layer gets its own.
        layer_style = np.random.default_rng((seed, label, 1 << 30, depth))
        family = FAMILIES[int(layer_style.integers(len(FAMILIES)))]
        field = family(size, layer_style, rng)
        coat = paint(field, layer_style, rng).astype(np.float32)
        if depth == 0:
            image = coat
        elif layer_style.random() < 0.5:  # one shows through the other
            image += (coat - image) * layer_style.uniform(0.2, 0.7)
        else:  # one lies on the other where it is bright
            image = np.where((field > layer_style.uniform(0.4, 0.75))[..., None], coat, image)
    blur = style.uniform(0, 1.2) if style.random() < 0.5 else 0
    if blur > 0.3:
        image = cv2.GaussianBlur(image, (0, 0), blur)
    light = 1 + 0.12 * smooth_noise(size, rng, 1)
    return np.clip(image * light[..., None], 0, 255).astype(np.uint8)
