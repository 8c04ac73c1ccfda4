"""Networks that the trunk learns from: what they see at each place, and how far apart two places look to them."""

from __future__ import annotations

import math
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

STRIDES = (4, 8, 16)
ADAPT = 0.01  # of the running statistics, a step


class Teacher(nn.Module):
    """A frozen timm network's maps at strides 4, 8 and 16, averaged over 3x3 places, each channel standardised.

    file: its weights (.safetensors), in timm's names.
    """

    def __init__(self, name: str, file: Path) -> None:
        super().__init__()
        self.net = timm.create_model(name, features_only=True, pretrained=False)
        tensors = load_file(file)
        missing = [key for key in self.net.state_dict() if key not in tensors and "num_batches" not in key]
        if missing:
            raise SystemExit(f"{file} lacks {missing[0]}, which {name} needs")
        self.net.load_state_dict({key: tensors[key] for key in self.net.state_dict() if key in tensors}, strict=False)
        info = self.net.feature_info
        self.picked = [info.reduction().index(stride) for stride in STRIDES]
        self.widths = [info.channels()[index] for index in self.picked]
        config = timm.get_pretrained_cfg(name)
        assert config is not None
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(config.std).view(1, 3, 1, 1))
        for level, width in enumerate(self.widths):
            self.register_buffer(f"centre{level}", torch.zeros(width))
            self.register_buffer(f"variance{level}", torch.ones(width))
        self.register_buffer("steps", torch.zeros(()))
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps of (B, 3, S, S) images in 0..1: [(B, C_l, S/4, S/4), (.., S/8, ..), (.., S/16, ..)]."""
        x = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        maps = self.net(x)
        standard = []
        self.steps += 1
        rate = max(ADAPT, 1 / float(self.steps))
        for level, index in enumerate(self.picked):
            found = F.avg_pool2d(maps[index].float(), 3, 1, 1)
            centre, variance = getattr(self, f"centre{level}"), getattr(self, f"variance{level}")
            centre.lerp_(found.mean((0, 2, 3)), rate)
            variance.lerp_((found - centre[:, None, None]).square().mean((0, 2, 3)), rate)
            standard.append((found - centre[:, None, None]) * (variance[:, None, None] + 1e-6).rsqrt())
        return standard

    def train(self, mode: bool = True) -> Teacher:
        """Stay in evaluation: a teacher's batch statistics are its own."""
        return super().train(False)


def maps_loss(guessed: list[list[Tensor]], taught: list[list[Tensor]]) -> Tensor:
    """Smooth L1 between the trunk's linear guesses and the teachers' maps, by teacher and level."""
    parts = [
        F.smooth_l1_loss(guess.float(), real)
        for guesses, reals in zip(guessed, taught, strict=True)
        for guess, real in zip(guesses, reals, strict=True)
    ]
    return torch.stack(parts).mean()


def joint(levels: list[Tensor]) -> Tensor:
    """Bring maps of all strides to stride 8, each level with the same say: (B, C, S/8, S/8)."""
    middle = levels[1].shape[-2:]
    same = [
        F.avg_pool2d(levels[0], 2),
        levels[1],
        F.interpolate(levels[2], middle, mode="bilinear", align_corners=False),
    ]
    return torch.cat([level / math.sqrt(level.shape[1]) for level in same], 1)


def distances_loss(features: Tensor, taught: list[list[Tensor]], group: int) -> Tensor:
    """Compare how far apart places look to the trunk with how far they look to the teachers together.

    features (B, C, s, s); `group` images in a row show the same product. Within a group, all pairs' distances are
    taken relative to their mean, so that no group's and no network's scale matters; smooth L1 of the two.
    """
    theirs = torch.cat([joint(levels) for levels in taught], 1)
    apart = max(1, features.shape[-1] // 6)  # places, so that large crops do not cost more than they tell
    features, theirs = features[..., ::apart, ::apart], theirs[..., ::apart, ::apart]
    ours = _relative(features, group)
    return F.smooth_l1_loss(ours, _relative(theirs, group), beta=0.2)


def _relative(features: Tensor, group: int) -> Tensor:
    """Distances of all pairs of places in each group over their mean: (B / group, N, N)."""
    batch, channels, side, _ = features.shape
    x = features.float().flatten(2).transpose(1, 2).reshape(batch // group, group * side * side, channels)
    squared = x.square().sum(2)
    pairs = (squared[:, :, None] + squared[:, None, :] - 2 * x @ x.mT).clamp_min(1e-6).sqrt()
    return pairs / pairs.mean((1, 2), keepdim=True)
