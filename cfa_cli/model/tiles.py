"""Large images in parts: the backbone by overlapping tiles, and everything after it by bands of the grid's rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from cfa_cli.model.backbone import Backbone
from cfa_cli.model.descriptor import is_efficientnet, pool_levels, thinning
from cfa_cli.model.joined import AnyBackbone

TILE = 2048  # px a side, without the overlap, of which larger tiles have less
WHOLE_PIXELS = TILE**2  # up to here the backbone takes an image whole
BAND_POSITIONS = 32_768  # of the grid: their descriptors take some 60 MB at 448 channels
PROBE = 64  # px: the other side of the images that tell what depends on what


class Plan(NamedTuple):
    """How an image is cut: px of overlap, and for each pooled map its stride in px and its size (h_l, w_l)."""

    overlap: int
    strides: list[int]
    sizes: list[tuple[int, int]]


def extract_levels(backbone: AnyBackbone, images: Tensor, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Return the pooled feature maps of images, computed in the backbone's number type.

    images: (B, 3, H, W) float32, normalised. Large ones are computed in overlapping tiles, of which only what does not
    depend on their borders is used: the same result, but for rounding, in memory that does not grow with the image.
    Backbones in which every output depends on every pixel take them whole.

    dtype: of what is returned; a shorter one halves the memory of large images' maps.

    Returns [(B, C_l, h_l, w_l)], finest first.
    """
    height, width = images.shape[2:]
    plan = _planned(backbone, height, width) if height * width > WHOLE_PIXELS else None
    if plan is None:
        return [level.to(dtype) for level in _pooled_maps(backbone, images)]
    levels = [
        images.new_empty(len(images), c, *size, dtype=dtype)
        for c, size in zip(backbone.channels, plan.sizes, strict=True)
    ]
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            above, before = max(0, top - plan.overlap), max(0, left - plan.overlap)
            tile = images[:, :, above : top + TILE + plan.overlap, before : left + TILE + plan.overlap]
            parts = _pooled_maps(backbone, tile.contiguous(memory_format=torch.channels_last))
            for level, part, stride in zip(levels, parts, plan.strides, strict=True):
                place = level[:, :, top // stride : (top + TILE) // stride, left // stride : (left + TILE) // stride]
                row, column = (top - above) // stride, (left - before) // stride
                place.copy_(part[:, :, row : row + place.shape[2], column : column + place.shape[3]])
    return levels


def level_shapes(backbone: AnyBackbone, input_size: tuple[int, int]) -> list[tuple[int, int, int]]:
    """Return (C_l, h_l, w_l) of each pooled map of an image of (height, width) px; nothing is computed."""
    shapes = []
    for channels, height, width in backbone.map_shapes(input_size):
        step = thinning(input_size[0], height, backbone.stride)
        shapes.append((channels, -(-height // step), -(-width // step)))
    return shapes


def _planned(backbone: AnyBackbone, height: int, width: int) -> Plan | None:
    """Return the plan for a size, which a backbone makes once: it costs a twentieth of an image."""
    known = _plans.setdefault(backbone, {})
    if (height, width) not in known:
        known[height, width] = plan_tiles(backbone, height, width)
    return known[height, width]


_plans: WeakKeyDictionary[AnyBackbone, dict[tuple[int, int], Plan | None]] = WeakKeyDictionary()


def plan_tiles(backbone: AnyBackbone, height: int, width: int) -> Plan | None:
    """Return how images of a size are cut for a backbone; None if they cannot be.

    What depends on what is asked of the backbone itself: a row of NaN spoils every output that depends on it.
    """
    if isinstance(backbone, Backbone):
        backbone = backbone.unquantised()  # integers know no NaN
    weight = next(backbone.parameters())
    with torch.inference_mode():
        rows = torch.zeros(1, 3, 2 * TILE, PROBE, device=weight.device, dtype=weight.dtype)
        rows[:, :, TILE] = torch.nan
        spoiled = [m.isnan().any(dim=3).any(dim=1)[0] for m in backbone(rows)]
    strides = [2 * TILE // len(rows_of) for rows_of in spoiled]  # of the network's own maps
    reach = 0
    for stride, of_level in zip(strides, spoiled, strict=True):
        hit = torch.nonzero(of_level)[:, 0]
        if not len(hit) or int(hit[0]) == 0 or int(hit[-1]) == len(of_level) - 1 or TILE % stride:
            return None
        reach = max(reach, TILE - int(hit[0]) * stride, (int(hit[-1]) + 1) * stride - TILE)
    coarsest = max(strides)
    overlap = -(-(reach + coarsest) // coarsest) * coarsest  # one position more, for the pooling
    pooled_strides = [2 * TILE // rows for _, rows, _ in level_shapes(backbone, (2 * TILE, PROBE))]
    return Plan(overlap, pooled_strides, [(h, w) for _, h, w in level_shapes(backbone, (height, width))])


def row_bands(height: int, width: int) -> Iterator[tuple[int, int] | None]:
    """Yield (first row, row after the last) of bands that cover a grid (height, width); None where one band is all."""
    rows = max(1, BAND_POSITIONS // width)
    if rows >= height:
        yield None
        return
    for start in range(0, height, rows):
        yield start, min(start + rows, height)


def _pooled_maps(backbone: AnyBackbone, images: Tensor) -> list[Tensor]:
    dtype = next(backbone.parameters()).dtype
    if dtype != torch.float32:
        images = images.to(dtype)
    maps = [m.float() for m in backbone(images)]
    steps = [thinning(images.shape[2], m.shape[2], backbone.stride) for m in maps]
    return pool_levels(maps, steps, divide_by_channels=is_efficientnet(backbone.name))
