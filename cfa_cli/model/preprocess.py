"""From a decoded image to the network's input."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cfa_cli.records import Geometry


def to_input(image: np.ndarray, geometry: Geometry) -> Tensor:
    """Resize, crop and normalise an image (h, w, 3), RGB, uint8 or uint16, to (3, H, W) float32.

    The resize is bilinear with antialiasing (the triangle filter widens with the scale), over the full frame.
    """
    full_scale = float(np.iinfo(image.dtype).max)
    pixels = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
    if pixels.shape[-2:] != geometry.size:
        pixels = F.interpolate(pixels, size=geometry.size, mode="bilinear", align_corners=False, antialias=True)
    if geometry.crop is not None:
        top, left = crop_offsets(geometry)
        height, width = geometry.crop
        pixels = pixels[..., top : top + height, left : left + width]
    mean, std = torch.tensor(geometry.mean).view(3, 1, 1), torch.tensor(geometry.std).view(3, 1, 1)
    return (pixels[0] / full_scale - mean) / std


def crop_offsets(geometry: Geometry) -> tuple[int, int]:
    """Return the centre crop's first row and column within the resized frame."""
    if geometry.crop is None:
        return 0, 0
    return (geometry.size[0] - geometry.crop[0]) // 2, (geometry.size[1] - geometry.crop[1]) // 2
