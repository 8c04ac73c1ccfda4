"""Draws defects on images, and says where each kind is.

Every kind returns a soft mask and what the image looks like under it. Contrast is drawn on a log scale down to what is
hardly visible, so that the features learn faint defects, and a pixel counts as defective only if it really changed.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from draw import Field, Image, Rng, log_uniform, smooth_noise
from numpy.typing import NDArray

Pixels = NDArray[np.float32]  # (size, size, 3), 0..255
Defect = tuple[Field, Pixels]  # mask 0..1, replacement


def blob(size: int, rng: Rng, smallest: float = 1.5, largest: float = 22) -> Field:
    """A closed shape somewhere in the image: ragged disc, ellipse, box or polygon."""
    mask = np.zeros((size, size), np.uint8)
    radius, stretch, turn = log_uniform(rng, smallest, largest), log_uniform(rng, 1, 3), rng.uniform(0, 180)
    centre = (float(rng.uniform(0, size)), float(rng.uniform(0, size)))
    box = (centre, (2 * radius * stretch**0.5, 2 * radius / stretch**0.5), turn)
    kind = rng.integers(4)
    if kind == 0:
        cv2.ellipse(mask, box, 255, -1, cv2.LINE_AA)
    elif kind == 1:
        cv2.fillPoly(mask, [(cv2.boxPoints(box) * 8).astype(np.int32)], 255, cv2.LINE_AA, 3)
    else:
        corners = int(rng.integers(4, 16))
        angles = np.arange(corners) / corners * 2 * np.pi
        reach = radius * rng.uniform(0.5, 1.3, corners)
        points = np.stack([np.cos(angles) * stretch**0.5, np.sin(angles) / stretch**0.5], 1) * reach[:, None] + centre
        cv2.fillPoly(mask, [(points * 8).astype(np.int32)], 255, cv2.LINE_AA, 3)
    return soften(mask, rng)


def soften(mask: NDArray[np.uint8], rng: Rng) -> Field:
    """Blur a 0/255 mask a little, as a lens would, and scale it to 0..1."""
    blurred = cv2.GaussianBlur(mask, (0, 0), log_uniform(rng, 0.3, 1.2))
    return blurred.astype(np.float32) * (1 / 255)


def shifted(image: Image, rng: Rng, darker: float = 0.65) -> Pixels:
    """The image, darker or brighter, sometimes tinted, sometimes flattened to one colour."""
    shift = log_uniform(rng, 12, 150) * (-1 if rng.random() < darker else 1) * np.ones(3)
    if rng.random() < 0.3:
        shift *= rng.uniform(0, 1, 3)
    pixels = image.astype(np.float32)
    if rng.random() < 0.4:
        pixels = np.broadcast_to(pixels[::7, ::7].mean((0, 1)), pixels.shape)
    return (pixels + shift).astype(np.float32)


def spot(image: Image, donor: Image, rng: Rng) -> Defect:
    """A hole or an inclusion."""
    mask = blob(len(image), rng, 1.2, 9)
    pixels = shifted(image, rng)
    if rng.random() < 0.3:  # a hole's lit rim
        light = np.roll(mask, (1, 1), (0, 1)) - mask
        pixels = pixels + light[..., None] * 60
        mask = np.maximum(mask, np.abs(light))
    return mask, pixels


def pits(image: Image, donor: Image, rng: Rng) -> Defect:
    """A swarm of tiny spots."""
    size = len(image)
    mask = np.zeros((size, size), np.uint8)
    centre, spread = rng.uniform(0.1, 0.9, 2) * size, log_uniform(rng, 3, 14)
    for point in centre + rng.normal(0, spread, (int(rng.integers(4, 30)), 2)):
        cv2.circle(mask, (point * 8).astype(int).tolist(), int(8 * log_uniform(rng, 0.5, 2.2)), 255, -1, cv2.LINE_AA, 3)
    return soften(mask, rng), shifted(image, rng, 0.75)


def scratch(image: Image, donor: Image, rng: Rng) -> Defect:
    """One to three nearly straight, nearly parallel lines."""
    size = len(image)
    mask = np.zeros((size, size), np.uint8)
    angle, start = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.9, 2) * size
    for _ in range(int(rng.integers(1, 4))):
        heading = angle + rng.normal(0, 0.08) + np.cumsum(rng.normal(0, 0.06, 8))
        steps = np.stack([np.cos(heading), np.sin(heading)], 1) * log_uniform(rng, 8, 90) / 8
        points = start + rng.normal(0, 4, 2) + np.cumsum(steps, 0)
        cv2.polylines(mask, [(points * 8).astype(np.int32)], False, 255, int(rng.integers(1, 3)), cv2.LINE_AA, 3)
    return soften(mask, rng), shifted(image, rng, 0.5)


def crack(image: Image, donor: Image, rng: Rng) -> Defect:
    """A jagged line that branches."""
    size = len(image)
    mask = np.zeros((size, size), np.uint8)
    point, heading = rng.uniform(0.1, 0.9, 2) * size, rng.uniform(0, 2 * np.pi)
    for branch in range(int(rng.integers(1, 4))):
        turns = heading + rng.normal(0, 0.6 * branch) + np.cumsum(rng.normal(0, 0.5, int(rng.integers(4, 20))))
        steps = np.stack([np.cos(turns), np.sin(turns)], 1) * rng.uniform(1.5, 5)
        points = point + np.cumsum(steps, 0)
        cv2.polylines(mask, [(points * 8).astype(np.int32)], False, 255, int(rng.integers(1, 4)), cv2.LINE_AA, 3)
        point = points[int(rng.integers(len(points)))]
    return soften(mask, rng), shifted(image, rng, 0.85)


def paste(image: Image, donor: Image, rng: Rng) -> Defect:
    """A piece of the same image, moved and turned, or of another image."""
    source = image if rng.random() < 0.6 else donor
    size = len(image)
    turn = cv2.getRotationMatrix2D((size / 2, size / 2), rng.uniform(0, 360), 1)
    turn[:, 2] += rng.uniform(-0.3, 0.3, 2) * size
    pixels = cv2.warpAffine(source, turn, (size, size), borderMode=cv2.BORDER_REFLECT_101)
    return blob(size, rng, 3, 22), pixels.astype(np.float32)


def blend(image: Image, donor: Image, rng: Rng) -> Defect:
    """Another texture showing through a ragged region."""
    noise = smooth_noise(len(image), rng, int(rng.integers(3, 12)))
    mask = np.clip((noise - rng.uniform(0.9, 1.6)) * 8, 0, 1) * log_uniform(rng, 0.15, 1)
    return mask.astype(np.float32), donor.astype(np.float32)


def bend(image: Image, donor: Image, rng: Rng) -> Defect:
    """Straight lines that are no longer straight: a local push, pull or twist."""
    size = len(image)
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    (row, column), radius = rng.uniform(0.1, 0.9, 2) * size, log_uniform(rng, 4, 16)
    dy, dx = rows - row, columns - column
    window = np.exp(-(dx * dx + dy * dy) / (2 * radius * radius))
    if rng.random() < 0.3:
        amount = rng.uniform(-0.8, 0.8)
        move_x, move_y = -dy * amount * window, dx * amount * window
    else:
        push = rng.normal(0, 1, 2)
        push *= log_uniform(rng, 1.5, 8) / (np.hypot(*push) + 1e-6)
        move_x, move_y = push[0] * window, push[1] * window
    pixels = cv2.remap(
        image, (columns + move_x).astype(np.float32), (rows + move_y).astype(np.float32), cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT_101,
    )  # fmt: skip
    return (window > 0.2).astype(np.float32), pixels.astype(np.float32)


def stain(image: Image, donor: Image, rng: Rng) -> Defect:
    """Oil, dirt, discolouring: the texture stays, its tone does not."""
    noise = smooth_noise(len(image), rng, int(rng.integers(3, 9)))
    mask = np.clip((noise - rng.uniform(0.8, 1.4)) * rng.uniform(1.5, 8), 0, 1)
    gain = 1 + rng.uniform(0.1, 0.6) * (-1 if rng.random() < 0.7 else 1) * (rng.uniform(0.2, 1, 3))
    return mask.astype(np.float32), image * gain.astype(np.float32)


def smear(image: Image, donor: Image, rng: Rng) -> Defect:
    """Structure wiped out: blurred a little, or until nothing of it is left."""
    return blob(len(image), rng, 4, 22), cv2.GaussianBlur(image, (0, 0), log_uniform(rng, 1.5, 15)).astype(np.float32)


def roughen(image: Image, donor: Image, rng: Rng) -> Defect:
    """A region whose grain differs."""
    grain = cv2.GaussianBlur(rng.standard_normal(image.shape[:2]).astype(np.float32), (0, 0), rng.uniform(0.3, 1.8))
    grain *= log_uniform(rng, 6, 50) / (grain.std() + 1e-6)
    return blob(len(image), rng, 4, 22), image + grain[..., None]


def chip(image: Image, donor: Image, rng: Rng) -> Defect:
    """A piece broken off at the border: what lies behind shows, dark or of another texture."""
    size = len(image)
    mask = np.zeros((size, size), np.uint8)
    along, reach, points = rng.uniform(0, 1) * size, log_uniform(rng, 4, 30), int(rng.integers(3, 9))
    x = along + np.linspace(-1, 1, points) * reach * rng.uniform(0.7, 2.5)
    y = np.abs(rng.normal(0.6, 0.3, points)) * reach
    y[0] = y[-1] = -2
    mask = cv2.fillPoly(mask, [np.stack([x, y], 1).astype(np.int32)], 255, cv2.LINE_AA)
    mask = np.ascontiguousarray(np.rot90(mask, int(rng.integers(4))))
    dark = np.full(image.shape, rng.uniform(0, 60) if rng.random() < 0.7 else rng.uniform(180, 255), np.float32)
    return soften(mask, rng), dark if rng.random() < 0.7 else donor.astype(np.float32)


def hairline(image: Image, donor: Image, rng: Rng) -> Defect:
    """A long, thin, faint crack that wanders across the image."""
    size = len(image)
    mask = np.zeros((size, size), np.uint8)
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.35, 40))
    steps = np.stack([np.cos(heading), np.sin(heading)], 1) * log_uniform(rng, 0.6, 4)
    points = rng.uniform(0.1, 0.9, 2) * size + np.cumsum(steps, 0)
    cv2.polylines(mask, [(points * 8).astype(np.int32)], False, 255, 1, cv2.LINE_AA, 3)
    depth = log_uniform(rng, 8, 90) * (-1 if rng.random() < 0.85 else 1)
    return soften(mask, rng), (image + depth).astype(np.float32)


def blotch(image: Image, donor: Image, rng: Rng) -> Defect:
    """A large, faint patch without an edge."""
    size = len(image)
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    (row, column), reach = rng.uniform(0, 1, 2) * size, log_uniform(rng, 6, 40)
    stretch, turn = log_uniform(rng, 1, 4), rng.uniform(0, np.pi)
    along = (columns - column) * np.cos(turn) + (rows - row) * np.sin(turn)
    across = (rows - row) * np.cos(turn) - (columns - column) * np.sin(turn)
    mask = np.exp(-0.5 * ((along / reach / stretch**0.5) ** 2 + (across / reach * stretch**0.5) ** 2))
    shift = log_uniform(rng, 10, 60) * (-1 if rng.random() < 0.6 else 1)
    return mask.astype(np.float32), (image + shift).astype(np.float32)


def grow(image: Image, donor: Image, rng: Rng) -> Defect:
    """Bites, spurs, breaks and bridges: what is dark, or what is bright, grows over what lies beside it."""
    reach = int(rng.integers(3, 10))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach))
    grown = (cv2.dilate if rng.random() < 0.5 else cv2.erode)(image, kernel)
    return blob(len(image), rng, 1.5, 7), grown.astype(np.float32)


def missing(image: Image, donor: Image, rng: Rng) -> Defect:
    """Something is not there: its surroundings go on where it was."""
    size = len(image)
    mask = blob(size, rng, 3, 18)
    inside = mask > 0.5
    rim = (cv2.dilate(mask, np.ones((7, 7), np.uint8)) > 0.5) & ~inside
    colour = np.median(image[rim], 0) if rim.any() else image.mean((0, 1))
    grain = rng.standard_normal(image.shape[:2])[..., None] * rng.uniform(0, 5)
    return mask, (colour + grain).astype(np.float32) * np.ones(image.shape, np.float32)


KINDS: tuple[Callable[[Image, Image, Rng], Defect], ...] = (
    spot, pits, scratch, crack, paste, blend, bend, stain, smear, roughen, chip, hairline, blotch, grow, missing,
)  # fmt: skip


def spoil(image: Image, where: NDArray[np.uint8], donor: Image, rng: Rng) -> Image:
    """Draws one defect; marks its pixels in `where` (size, size) with its kind, 1 for the first of KINDS."""
    kind = int(rng.integers(len(KINDS)))
    mask, pixels = KINDS[kind](image, donor, rng)
    spoiled = np.clip(image + mask[..., None] * (pixels - image), 0, 255).astype(np.uint8)
    change = cv2.absdiff(spoiled, image).max(2)
    visible = cv2.blur(change, (5, 5)) >= 6  # an unchanged pixel amid changed ones is part of the defect
    where[(mask > 0.3 * mask.max()) & visible] = kind + 1
    return spoiled
