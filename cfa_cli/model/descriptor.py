"""From backbone maps to patch descriptors (paper, section III-B: the patch descriptor is a 1x1 CoordConv)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def pool_levels(maps: Sequence[Tensor], divide_by_channels: bool = False) -> list[Tensor]:
    """Average each map (B, C_l, h_l, w_l) over 3x3 neighbours, stride 1, zero padding 1.

    `divide_by_channels` also divides each by its channel count, as the authors do for EfficientNets.
    """
    pooled = [F.avg_pool2d(m, kernel_size=3, stride=1, padding=1) for m in maps]
    return [p / p.shape[1] for p in pooled] if divide_by_channels else pooled


def is_efficientnet(backbone: str) -> bool:
    """Tell whether the authors' rules for EfficientNets hold: maps over channel count, D = 2C / gamma_d."""
    return "efficientnet" in backbone


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

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Map levels [(B, C_l, h_l, w_l)], finest first, to descriptors (B, h, w, D) on the first level's grid."""
        height, width = levels[0].shape[-2:]
        weights = torch.split(self.weight.flatten(1), [*self.channels, 2], dim=1)
        place = coordinates(height, width, self.weight) @ weights[-1].T + self.bias
        result: Tensor | None = None
        for level, weight in zip(levels, weights, strict=False):
            projected = upsample(level.permute(0, 2, 3, 1) @ weight.T, (height, width))
            result = projected + place if result is None else result.add_(projected)
        assert result is not None
        return result


def coordinates(height: int, width: int, like: Tensor) -> Tensor:
    """Return each position's row and column scaled to [-1, 1]: (h, w, 2); a single row or column lies at -1."""
    rows = torch.linspace(-1, 1, height, dtype=like.dtype, device=like.device)
    columns = torch.linspace(-1, 1, width, dtype=like.dtype, device=like.device)
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)


def upsample(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring channels-last maps (B, h_l, w_l, D) to (B, h, w, D), bilinear, align_corners false."""
    if x.shape[1:3] == size:
        return x
    return F.interpolate(x.permute(0, 3, 1, 2), size=size, mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
