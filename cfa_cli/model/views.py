"""Augmentation: the views of a good image that a model learns beside the image as it is."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cfa_cli.config import Augment
from cfa_cli.records import Geometry


class View(NamedTuple):
    """How an image is turned, and then mirrored."""

    quarter_turns: int  # counter-clockwise
    mirrored: bool  # left to right

    def of(self, image: Tensor) -> Tensor:
        """Return the view of an image (..., H, W)."""
        turned = torch.rot90(image, self.quarter_turns, (-2, -1)) if self.quarter_turns else image
        return turned.flip(-1) if self.mirrored else turned

    def size_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the (height, width) of the view of an image of `size`."""
        return size[::-1] if self.quarter_turns % 2 else size

    def of_kept(self, keep: Tensor, common: Tensor | None) -> Tensor:
        """Return which pixels (H, W) of the view are kept, 1 or 0, where those in `keep` are of the image.

        common: (H, W), what is kept of every image that the model sees, whatever its content is turned by; None: all.
        """
        return self.of(keep) if common is None else self.of(keep) * common


AS_IT_IS = View(0, False)


def views_of(augment: Augment, geometry: Geometry) -> list[View]:
    """Return the views that a model learns, the image as it is first.

    Quarter turns need a square input, of the full frame and of the crop: others are turned by half alone.
    """
    square = all(height == width for height, width in (geometry.size, geometry.input_size))
    turns = (0,) if "rotate" not in augment else (0, 1, 2, 3) if square else (0, 2)
    return [View(turn, mirrored) for mirrored in ((False, True) if "flip" in augment else (False,)) for turn in turns]
