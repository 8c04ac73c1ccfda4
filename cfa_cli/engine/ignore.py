"""What is ignored of each image, at the network's input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cfa_cli.data.ignore import ASPECT_TOLERANCE, NOTHING, IgnoreMasks, find_ignore_masks, read_ignored
from cfa_cli.errors import ImageError, InputError
from cfa_cli.geometry import keep_at_input
from cfa_cli.model.scoremap import kept_positions
from cfa_cli.records import Bundle, Geometry

MIN_POSITIONS = 16  # of the grid, that must be kept


@dataclass(frozen=True)
class Ignore:
    """What is ignored: one thing of all images, or something else of each. Make one with `open_ignore`."""

    masks: IgnoreMasks | None  # None: nothing is ignored
    geometry: Geometry
    grid: tuple[int, int]
    common: Tensor | None  # (H, W) float32, 1 on what is kept of all images, else 0; None: of each something else

    def keep(self, image: Path, size: tuple[int, int] | None = None) -> Tensor:
        """Return what is kept of an image of `size` (height, width) px, if it is known: (H, W) float32, 1 or 0.

        Raises ImageError if its mask cannot be read, is of another shape, or leaves nearly nothing.
        """
        if self.common is not None:
            return self.common
        path = None if self.masks is None else self.masks.find(image)
        if path is None:
            return torch.ones(self.geometry.input_size)
        try:
            aspect = None if size is None else size[0] / size[1]
            return _read(path, None if aspect is None else (aspect, aspect), self.geometry, self.grid)
        except InputError as error:
            raise ImageError(f"{image} cannot be used: {error.message}", error.hint) from error

    @property
    def digest(self) -> str:
        """What tells it from other things to ignore. Raises InputError where a file cannot be read."""
        return NOTHING if self.masks is None else self.masks.digest

    def note(self, image: Path) -> str | None:
        """Return a sentence if a folder has no mask for an image."""
        if self.masks is None or self.masks.find(image) is not None:
            return None
        return f"Images without a mask in {self.masks.path}: nothing of them is ignored."


def open_ignore(path: str | Path, bundle: Bundle) -> Ignore:
    """Open what is ignored in place of what a model ignores by itself; "none" ignores nothing.

    Raises InputError as `find_ignore_masks` and `read_ignored` do, and for a mask for all images that is of another
    shape than the model's images, or leaves nearly nothing.
    """
    if str(path) == NOTHING:
        return Ignore(None, bundle.geometry, bundle.grid, torch.ones(bundle.geometry.input_size))
    training = bundle.training
    aspects = None if training is None else (training.aspect_low, training.aspect_high)
    return make_ignore(find_ignore_masks(path), aspects, bundle.geometry, bundle.grid)


def make_ignore(
    masks: IgnoreMasks, aspects: tuple[float, float] | None, geometry: Geometry, grid: tuple[int, int]
) -> Ignore:
    """Do what `open_ignore` does with masks that are found.

    aspects: the smallest and the largest height / width of the images; None: unknown.
    """
    common = None if masks.files is not None else _read(masks.path, aspects, geometry, grid)
    return Ignore(masks, geometry, grid, common)


def ignore_warnings(masks: IgnoreMasks, images: Sequence[Path], *, kept: bool) -> list[str]:
    """Return what to know of a model that was made from `images` with these masks, a sentence or two each.

    kept: the model keeps what they ignore.
    """
    forgotten = f"What {masks.path} ignores is not kept in the model: give it to `cfa predict --ignore` as well."
    warnings = [] if kept else [forgotten]
    if without := sum(masks.find(image) is None for image in images):
        warnings.append(f"{without} of {len(images)} images have no mask in {masks.path}: nothing of them is ignored.")
    return warnings


def _read(path: Path, aspects: tuple[float, float] | None, geometry: Geometry, grid: tuple[int, int]) -> Tensor:
    ignored = read_ignored(path)
    height, width = ignored.shape
    own = height / width
    low, high = aspects or (own, own)
    if not low * (1 - ASPECT_TOLERANCE) <= own <= high * (1 + ASPECT_TOLERANCE):
        raise InputError(
            f"The mask {path} is {width} x {height} px: its height is {own:.3g} of its width, that of the images "
            f"{low:.3g}{f' to {high:.3g}' if high > low else ''}.",
            "Draw it over the full frame of an image.",
        )
    keep = keep_at_input(ignored, geometry)
    positions, total = int(kept_positions(keep[None], grid).sum()), grid[0] * grid[1]
    if not positions:
        raise InputError(f"{path} ignores everything.", "White is ignored, black is kept: it may be inverted.")
    if positions < min(MIN_POSITIONS, total):
        raise InputError(
            f"{path} leaves {positions} of the model's {total} positions; at least {MIN_POSITIONS} are needed.",
            "Ignore less, or fit with a larger --size.",
        )
    return keep
