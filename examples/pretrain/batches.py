"""Turns drawn images into training batches: crops, two textures side by side, defects, light and noise.

Batch k of a run is a function of (seed, k, process) alone, so a run that was cut off goes on as if it had not been.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from defects import spoil
from draw import Field, Image, Rng, log_uniform, smooth_noise
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

IGNORE = -100  # cross entropy's own word for "no target here"
CELL = 16  # pixels a side of a class target: layer3's stride
GROUP = 4  # images in a row that show the same product: what is good in one is good in all


class Batch(NamedTuple):
    """Images and what is to be said about them."""

    images: Tensor  # (B, 3, S, S) uint8
    classes: Tensor  # (B, S/16, S/16) int64, IGNORE where two textures meet
    defects: Tensor  # (B, S, S) uint8, 0 = good


class View(NamedTuple):
    """How a product lies under the camera."""

    degrees: float
    scale: float
    flip: int  # -1: mirrored

    @classmethod
    def draw(cls, rng: Rng) -> View:
        """Any quarter turn and a little more, larger or smaller, mirrored or not."""
        return cls(rng.normal(0, 6) + 90 * rng.integers(4), log_uniform(rng, 0.6, 1.5), -1 if rng.random() < 0.5 else 1)


class Batches(Dataset[Batch]):
    """Batch k of one process of a run."""

    def __init__(self, pool: NDArray[np.uint8], seed: int, batch: int, crops: list[int], rank: int) -> None:
        self.pool, self.seed, self.batch, self.crops, self.rank = pool, seed, batch, crops, rank

    def __getitem__(self, step: int) -> Batch:
        size = int(np.random.default_rng((self.seed, step)).choice(self.crops))  # the same in all processes
        rng = np.random.default_rng((self.seed, step, self.rank))
        drawn = [one for _ in range(self.batch // GROUP) for one in self.draw_group(size, rng)]
        images, classes, defects = (torch.from_numpy(np.stack(part)) for part in zip(*drawn, strict=True))
        return Batch(images.permute(0, 3, 1, 2), classes, defects)

    def draw_group(self, size: int, rng: Rng) -> list[tuple[Image, NDArray[np.int64], NDArray[np.uint8]]]:
        """Draw images of one product, each with its own defects: the class of each cell, the defect of each pixel."""
        label, second, stranger = rng.integers(self.pool.shape[0], size=3).tolist()
        views = [View.draw(rng) for _ in range(2)]
        two_textures = rng.random() < 0.4
        group = []
        for _ in range(GROUP):
            image = self.crop(label, size, views[0], rng)
            classes = np.full((size // CELL, size // CELL), label, np.int64)
            if two_textures:
                other = self.crop(second, size, views[1], rng).astype(np.float32)
                mask = region(size, rng)
                image = np.clip(image + mask[..., None] * (other - image), 0, 255).astype(np.uint8)
                share = cv2.resize(mask, classes.shape[::-1], interpolation=cv2.INTER_AREA)
                classes[share > 0.8] = second
                classes[(share >= 0.2) & (share <= 0.8)] = IGNORE
            donor = self.crop(stranger, size, View.draw(rng), rng)
            defects = np.zeros((size, size), np.uint8)
            for _ in range(int(rng.integers(0, 6))):
                image = spoil(image, defects, donor, rng)
            group.append((image, classes, defects))
        return group

    def crop(self, label: int, size: int, view: View, rng: Rng) -> Image:
        """Return a piece of a random image of a class, turned, scaled and perhaps mirrored nearly as the view says."""
        source = self.pool[label, int(rng.integers(self.pool.shape[1]))]
        side = source.shape[0]
        angle = math.radians(view.degrees + rng.normal(0, 2))
        scale = view.scale * log_uniform(rng, 0.95, 1.05)
        turn = scale * np.array(
            [[np.cos(angle) * view.flip, -np.sin(angle)], [np.sin(angle) * view.flip, np.cos(angle)]]
        )
        centre = rng.uniform(size * scale / 2, side - size * scale / 2, 2) if size * scale < side else side / 2
        shift = centre - turn @ np.array([size / 2, size / 2])
        how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        matrix = np.concatenate([turn, np.reshape(shift, (2, 1))], 1)
        return cv2.warpAffine(source, matrix, (size, size), flags=how, borderMode=cv2.BORDER_REFLECT_101)


def region(size: int, rng: Rng) -> Field:
    """A large part of the image: a ragged half, or a big polygon."""
    if rng.random() < 0.5:
        return np.clip(smooth_noise(size, rng, int(rng.integers(1, 4))) * 20, 0, 1)
    mask = np.zeros((size, size), np.float32)
    corners = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(4, 9))))
    points = np.stack([np.cos(corners), np.sin(corners)], 1) * size * rng.uniform(0.3, 0.7)
    return cv2.fillPoly(mask, [(points + rng.uniform(0.2, 0.8, 2) * size).astype(np.int32)], 1.0)


def light_up(images: Tensor, seed: int) -> Tensor:
    """Makes (B, 3, S, S) uint8 images into 0..1 floats under many lamps, lenses and sensors.

    Contrast goes down to a fifth, because what is to be inspected is often grey, dim and nearly plain. A group's
    images are all grey or all coloured, and share what else is drawn by `chance`.
    """
    count, side, device = images.shape[0], images.shape[-1], images.device
    lamp = torch.Generator(device).manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        shape = shape or (count, 1, 1, 1)
        return torch.empty(shape, device=device).uniform_(low, high, generator=lamp)

    def chance(share: float) -> Tensor:
        drawn = torch.rand((count // GROUP, 1, 1, 1), generator=lamp, device=device) < share
        return drawn.repeat_interleave(GROUP, 0)

    x = images.float() / 255
    x = torch.where(chance(0.4), x.mean(1, keepdim=True).expand_as(x), x)
    x = x * torch.where(chance(0.5), uniform(0.8, 1.2, count, 3, 1, 1), torch.ones((), device=device))
    x = x.clamp(1e-3, 1) ** torch.exp(uniform(-0.6, 0.6))
    shade = F.interpolate(uniform(-1, 1, count, 1, 3, 3), (side, side), mode="bicubic", align_corners=True)
    x = x * (1 + shade * uniform(0, 0.5) * chance(0.6))
    middle = x.mean((1, 2, 3), keepdim=True)
    contrast = torch.where(chance(0.6), torch.exp(uniform(math.log(0.2), math.log(1.3))), torch.ones((), device=device))
    brightness = torch.where(chance(0.7), uniform(0.15, 0.85), middle)
    x = (x - middle) * contrast + brightness
    soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 3, 1)
    x = x + (soft - x) * uniform(-0.6, 1) * chance(0.5)  # below zero: sharpened
    grain = torch.randn(x.shape, generator=lamp, device=device)
    x = x + grain * torch.exp(uniform(math.log(0.002), math.log(0.02))) * chance(0.5)
    return x.clamp(0, 1)
