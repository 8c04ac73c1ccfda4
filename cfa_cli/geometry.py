"""The one home of the way from an image to the network's input and of a map's way back: resize, crop, place back."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cfa_cli.bands import bands_of
from cfa_cli.config import MAX_SIDE, MIN_SIDE
from cfa_cli.records import Geometry

AUTO_PIXELS = 224 * 224, 448 * 448  # of the network's input: at least, at most
SMALL_PIXELS = 224 * 224, 320 * 320  # the same of `--size small`
MULTIPLE = 16  # px: the coarsest stride


def auto_size(sizes: Sequence[tuple[int, int]], pixels: tuple[int, int] = AUTO_PIXELS) -> tuple[int, int]:
    """Choose (height, width) for images of these sizes (height, width): their median aspect, and about as many pixels.

    pixels: the fewest and the most. Within them images are not enlarged: that would show nothing more.

    Both sides are multiples of the coarsest stride. Aspects past 1:8 are cut to it; without any images, the size is
    square and the largest.
    """
    fewest, most = pixels
    aspect = float(np.clip(np.median([height / width for height, width in sizes]) if sizes else 1.0, 1 / 8, 8))
    area = float(np.clip(np.median([height * width for height, width in sizes]) if sizes else most, fewest, most))
    return _in_multiples((area * aspect) ** 0.5), _in_multiples((area / aspect) ** 0.5)


def full_size(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Choose (height, width) for at least one image of these sizes (height, width): the median's own.

    Both are multiples of the coarsest stride. Sizes with a side of more than `MAX_SIDE` are reduced to it.
    """
    height, width = (float(np.median(side)) for side in zip(*sizes, strict=True))
    scale = min(1.0, MAX_SIDE / max(height, width))
    return _in_multiples(height * scale), _in_multiples(width * scale)


def _in_multiples(side: float) -> int:
    return max(MIN_SIDE, round(side / MULTIPLE) * MULTIPLE)


def to_input(image: np.ndarray, geometry: Geometry) -> Tensor:
    """Resize, crop and normalise an image (h, w, 3), RGB, uint8 or uint16, to (3, H, W) float32.

    The resize is bilinear with antialiasing (the triangle filter widens with the scale), over the full frame.
    """
    full_scale = float(np.iinfo(image.dtype).max)
    pixels = _resize_and_crop(image, geometry)
    mean, std = torch.tensor(geometry.mean).view(3, 1, 1), torch.tensor(geometry.std).view(3, 1, 1)
    return pixels[0].div_(full_scale).sub_(mean).div_(std)  # in place: a large image's values are gigabytes


def keep_at_input(ignored: np.ndarray, geometry: Geometry) -> Tensor:
    """Bring what is ignored of an image, (h, w) 1 there and 0 elsewhere, to the network's input: (H, W) float32.

    It is 1 where a pixel is kept, and 0 where anything ignored enters it: what is kept shows nothing of the rest.
    """
    return (_resize_and_crop(ignored[..., None], geometry)[0, 0] == 0).float()


def _resize_and_crop(image: np.ndarray, geometry: Geometry) -> Tensor:
    """Bring an image (h, w, C) to (1, C, H, W) float32."""
    if image.shape[:2] == geometry.size:
        pixels = _to_tensor(image)
    else:  # the widths of a few rows at a time, then all heights: the filter is separable
        width = geometry.size[1]
        bands = [_resize(_to_tensor(image[rows]), (rows.stop - rows.start, width)) for rows in bands_of(image.shape)]
        pixels = _resize(torch.cat(bands, dim=2), geometry.size)
    top, left = crop_offsets(geometry)
    height, width = geometry.input_size
    return pixels[..., top : top + height, left : left + width]


def _to_tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]


def _resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=True)


def crop_offsets(geometry: Geometry) -> tuple[int, int]:
    """Return the centre crop's first row and column within the resized frame."""
    if geometry.crop is None:
        return 0, 0
    return (geometry.size[0] - geometry.crop[0]) // 2, (geometry.size[1] - geometry.crop[1]) // 2


def resize_map(score_map: np.ndarray, geometry: Geometry, source_size: tuple[int, int]) -> np.ndarray:
    """Bring a score map (H, W) float32 at the network's input size back to the source's frame: (h, w) float32.

    Bilinear, pixel centres at half coordinates. Under a centre crop the map covers the crop's place alone; what the
    network has not seen is 0.
    """
    height, width = source_size
    if geometry.crop is None:
        return np.asarray(cv2.resize(score_map, (width, height), interpolation=cv2.INTER_LINEAR))
    (full_height, full_width), (crop_height, crop_width) = geometry.size, geometry.crop
    top, left = crop_offsets(geometry)
    bottom, right = full_height - crop_height - top, full_width - crop_width - left
    # The edge is repeated before resizing and cut away after it: blending with the zeros would weaken the border.
    framed = cv2.copyMakeBorder(score_map, top, bottom, left, right, cv2.BORDER_REPLICATE)
    resized = np.asarray(cv2.resize(framed, (width, height), interpolation=cv2.INTER_LINEAR))
    rows, columns = seen_window(geometry, source_size)
    resized[: rows.start] = resized[rows.stop :] = 0
    resized[:, : columns.start] = resized[:, columns.stop :] = 0
    return resized


def seen_window(geometry: Geometry, source_size: tuple[int, int]) -> tuple[slice, slice]:
    """Return the rows and columns of a source of (height, width) px whose centres lie in what the network sees."""

    def window(side: int, full: int, start: int, length: int) -> slice:
        # Pixel i's centre lies at (2 i + 1) full / (2 side) of the resized frame; in whole numbers, rounded up.
        first, last = (-(-(2 * edge * side - full) // (2 * full)) for edge in (start, start + length))
        return slice(max(first, 0), min(last, side))

    offsets, input_size = crop_offsets(geometry), geometry.input_size
    rows, columns = map(window, source_size, geometry.size, offsets, input_size)
    return rows, columns


def resize_and_crop(images: Tensor, geometry: Geometry) -> Tensor:
    """Do to images (B, 3, h, w) of any size what `to_input` does: bilinear with antialiasing, then the centre.

    The filter is separable: one matrix for the rows and one for the columns, made from the size at hand. So the result
    is the same in every runtime, whatever its own operator for resizing does.
    """
    top, left = crop_offsets(geometry)
    height, width = geometry.input_size
    rows = triangle_filter(images.shape[2], geometry.size[0])[top : top + height]
    columns = triangle_filter(images.shape[3], geometry.size[1])[left : left + width]
    return rows @ images @ columns.T


def triangle_filter(source: int, target: int) -> Tensor:
    """Return the (target, source) float32 matrix that resizes; the triangle is as wide as the larger pixel."""
    # In whole numbers, so that centres are exact: of output pixel i, (2 i + 1) / (2 target) of the side.
    distance = (2 * torch.arange(source) + 1) * target - (2 * torch.arange(target)[:, None] + 1) * source
    distance = distance.abs().float()
    # source or target may be symbolic, so the larger of the two is taken on the quotients
    weights = (1 - torch.minimum(distance / (2 * source), distance / (2 * target))).clamp_min(0)
    return weights / weights.sum(1, keepdim=True)
