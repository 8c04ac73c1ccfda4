"""From backbone maps to patch descriptors (paper, section III-B: the patch descriptor is a 1x1 CoordConv)."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfa_cli.model.search import Frame


def pool_levels(maps: Sequence[Tensor], steps: Sequence[int], divide_by_channels: bool = False) -> list[Tensor]:
    """Average each map (B, C_l, h_l, w_l) over 3x3 neighbours, zero padding 1, at every `step`-th row and column.

    steps: of each map: see `thinning`. Windows are wider where a step is more than 3, so that nothing is passed over.
    divide_by_channels: also divide each by its channel count, as the authors do for EfficientNets.
    """
    windows = [max(3, step | 1) for step in steps]
    pooled = [
        F.avg_pool2d(m, kernel_size=window, stride=step, padding=window // 2)
        for m, window, step in zip(maps, windows, steps, strict=True)
    ]
    return [p / p.shape[1] for p in pooled] if divide_by_channels else pooled


def thinning(input_height: int, map_height: int, stride: int) -> int:
    """Return by which step a map's rows (and columns) are thinned, so that they lie `stride` px of the input apart.

    1 for maps that are no finer than that. The step is that of a strided convolution: rows 0, step, 2 step, ... are
    kept, where the network's own coarser maps have theirs.
    """
    return max(1, stride * map_height // input_height)


def is_efficientnet(backbone: str) -> bool:
    """Tell whether the authors' rules for EfficientNets hold: maps over channel count, D = 2C / gamma_d.

    Where two backbones are joined, each map has a scale of its own instead.
    """
    return "efficientnet" in backbone and "+" not in backbone


def descriptor_channels(backbone: str, channels: Sequence[int], gamma_d: int) -> int:
    """Return D for the levels' channel counts: C / gamma_d, for EfficientNets 2C / gamma_d; at least 1."""
    total = sum(channels) * (2 if is_efficientnet(backbone) else 1)
    return max(1, total // gamma_d)


class Descriptor(nn.Module):
    """A 1x1 CoordConv over the concatenated levels: weight (D, C + 2, 1, 1), bias (D,).

    The last two input channels are the row and the column, each scaled to [-1, 1].

    A 1x1 convolution commutes with bilinear upsampling, so each level is projected at its own resolution and only
    then brought to the first level's size: the same result as for the concatenated maps, with far fewer products.
    """

    def __init__(self, channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.channels = tuple(channels)
        convolution = nn.Conv2d(sum(channels) + 2, out_channels, kernel_size=1)  # for its initialisation
        self.weight = nn.Parameter(convolution.weight.detach())
        self.bias = nn.Parameter(convolution.bias.detach() if convolution.bias is not None else torch.zeros(0))

    def forward(self, levels: Sequence[Tensor], rows: tuple[int, int] | None = None) -> Tensor:
        """Map levels [(B, C_l, h_l, w_l)], finest first, to descriptors (B, h, w, D) on the first level's grid.

        rows: the first row and that after the last; None: all.
        """
        return describe(levels, self.weight.flatten(1), self.bias, rows)

    def at(self, levels: Sequence[Tensor], positions: Tensor) -> Tensor:
        """Map levels of a single image to the descriptors (n, D) at positions (n,) int64, counted row by row."""
        return describe_at(levels, self.weight.flatten(1), self.bias, positions)

    def in_frame(self, frame: Frame) -> tuple[Tensor, Tensor]:
        """Return the weight (D, C + 2) and bias (D,) for `describe` that give the descriptors in the frame."""
        return frame.axes.T @ self.weight.flatten(1), (self.bias - frame.origin) @ frame.axes

    def moved_to(self, frame: Frame) -> Descriptor:
        """Return a descriptor whose output is this one's in the frame."""
        moved = copy.deepcopy(self).requires_grad_(False)
        weight, bias = self.in_frame(frame)
        moved.load_state_dict({"weight": weight[..., None, None], "bias": bias})
        return moved


def describe(levels: Sequence[Tensor], weight: Tensor, bias: Tensor, rows: tuple[int, int] | None = None) -> Tensor:
    """Map levels [(B, C_l, h_l, w_l)] by a weight (D, C + 2) and bias (D,) to descriptors (B, h, w, D).

    levels: in any precision; all is computed in float32.
    rows: the first row of the first level's grid and that after the last; None: all.
    """
    _, _, height, width = levels[0].shape
    place = coordinates(height, width, weight)
    if rows is None:
        levels = [_widen(level) for level in levels]
    else:
        place = place[slice(*rows)]
        levels = [_interpolate_rows(level, rows, height) for level in levels]
    batch, _, height, width = levels[0].shape
    place = place.expand(batch, height, width, 2)
    *by_level, by_place = torch.split(weight, [*(level.shape[1] for level in levels), 2], dim=1)
    # The finest level's product, which takes the coordinates and the bias along, is added to the sum of the others.
    finest = torch.cat([levels[0].permute(0, 2, 3, 1), place, place.new_ones(batch, height, width, 1)], dim=-1)
    finest_weight = torch.cat([by_level[0], by_place, bias[:, None]], dim=1).T
    coarser: Tensor | None = None
    for level, part in zip(levels[1:], by_level[1:], strict=True):
        projected = upsample(level.permute(0, 2, 3, 1) @ part.T, (height, width))
        coarser = projected if coarser is None else coarser.add_(projected)
    if coarser is None:
        return finest @ finest_weight
    return coarser.flatten(0, 2).addmm_(finest.flatten(0, 2), finest_weight).view(batch, height, width, -1)


def describe_at(levels: Sequence[Tensor], weight: Tensor, bias: Tensor, positions: Tensor) -> Tensor:
    """Do what `describe` does at some positions (n,) int64 of a single image, counted row by row: (n, D).

    Where they are few, it is much less work: levels are interpolated there alone.
    """
    _, _, height, width = levels[0].shape
    rows, columns = positions // width, positions % width
    features = []
    for level in levels:
        values = level[0].permute(1, 2, 0)
        if level.shape[2:] == (height, width):
            features.append(values[rows, columns].float())
            continue
        above, below, down = _between(rows, level.shape[2], height)
        left, right, along = _between(columns, level.shape[3], width)
        upper, lower = (
            values[row, left].float().lerp(values[row, right].float(), along[:, None]) for row in (above, below)
        )
        features.append(upper.lerp(lower, down[:, None]))
    features.append(coordinates(height, width, weight)[rows, columns])
    return torch.addmm(bias, torch.cat(features, dim=1), weight.T)


def coordinates(height: int, width: int, like: Tensor) -> Tensor:
    """Return each position's row and column scaled to [-1, 1]: (h, w, 2); a single row or column lies at -1."""
    rows = torch.linspace(-1, 1, height, dtype=like.dtype, device=like.device)
    columns = torch.linspace(-1, 1, width, dtype=like.dtype, device=like.device)
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)


def _interpolate_rows(level: Tensor, rows: tuple[int, int], height: int) -> Tensor:
    """Return what a level (B, C, h_l, w_l) has at some of `height` rows, bilinear, align_corners false."""
    if level.shape[2] == height:
        return _widen(level[:, :, slice(*rows)])
    below, above, share = _between(torch.arange(*rows, device=level.device), level.shape[2], height)
    return _widen(level[:, :, below]).lerp(_widen(level[:, :, above]), share[:, None])


def _between(places: Tensor, source: int, target: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return between which two of `source` rows (or columns) some of `target` lie, and how close to the second."""
    centres = ((places + 0.5) * (source / target) - 0.5).clamp(0, source - 1)
    below = centres.long()
    return below, (below + 1).clamp_max(source - 1), centres - below


def _widen(level: Tensor) -> Tensor:
    """Return a level (B, C, h, w) in float32, channels last where it was not."""
    return level if level.dtype == torch.float32 else level.to(torch.float32, memory_format=torch.channels_last)


def upsample(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring channels-last maps (B, h_l, w_l, D) to (B, h, w, D), bilinear, align_corners false."""
    if x.shape[1:3] == size:
        return x
    return F.interpolate(x.permute(0, 3, 1, 2), size=size, mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
