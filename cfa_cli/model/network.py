"""The whole of CFA at inference: images in, scores and maps out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from cfa_cli.model.backbone import Backbone
from cfa_cli.model.descriptor import Descriptor, is_efficientnet, pool_levels
from cfa_cli.model.scoremap import ScoreMap, image_scores, position_scores
from cfa_cli.model.search import NeighbourSearch, nearest_plain


class Network(nn.Module):
    """Backbone, descriptor, bank and score map.

    bank (M, D) and baseline (h, w) float32: each position's score is divided by its baseline. `input_size` (H, W) and
    `sigma` are in px of the input, `neighbours` is the score's K. The backbone may run in a shorter type (see
    `backbone_dtype`); everything after it is float32.
    """

    bank: Tensor
    baseline: Tensor

    def __init__(
        self,
        backbone: Backbone,
        descriptor: Descriptor,
        bank: Tensor,
        baseline: Tensor,
        input_size: tuple[int, int],
        neighbours: int,
        sigma: float,
    ) -> None:
        super().__init__()
        self.backbone, self.descriptor, self.neighbours = backbone, descriptor, neighbours
        self.register_buffer("bank", bank)
        self.register_buffer("baseline", baseline)
        self.score_map = ScoreMap((baseline.shape[0], baseline.shape[1]), input_size, sigma)
        self.search: NeighbourSearch | None = None  # None: the plain search

    def use_quick_search(self) -> None:
        """Search by `NeighbourSearch` from now on, and describe in its coordinates: the same scores, sooner."""
        self.search = NeighbourSearch(self.bank)
        self.descriptor = self.descriptor.moved_to(self.search.frame)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Score normalised images (B, 3, H, W) float32: image scores (B,) and maps (B, H, W), float32, >= 0."""
        return self.score(extract_levels(self.backbone, images))

    def score(self, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Score pooled levels [(B, C_l, h_l, w_l)] float32."""
        descriptors = self.descriptor(levels)
        batch, height, width, channels = descriptors.shape
        queries = descriptors.reshape(-1, channels)
        search = self.search or partial(nearest_plain, bank=self.bank)
        squared, _ = search(queries, k=self.neighbours)
        maps = self.score_map(position_scores(squared).view(batch, height, width) / self.baseline)
        return image_scores(maps), maps


def extract_levels(backbone: Backbone, images: Tensor) -> list[Tensor]:
    """Return the pooled float32 levels of normalised images (B, 3, H, W) float32, computed in the backbone's type."""
    dtype = next(backbone.parameters()).dtype
    if dtype != torch.float32:
        images = images.to(dtype)
    maps = [m.float() for m in backbone(images)]
    return pool_levels(maps, divide_by_channels=is_efficientnet(backbone.name))
