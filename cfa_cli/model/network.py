"""The whole of CFA at inference: images in, scores and maps out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from cfa_cli.model.descriptor import Descriptor
from cfa_cli.model.joined import AnyBackbone
from cfa_cli.model.scoremap import ScoreMap, image_scores, position_scores
from cfa_cli.model.search import NeighbourSearch, nearest_plain
from cfa_cli.model.tiles import extract_levels, row_bands


class Network(nn.Module):
    """Backbone, descriptor, memory bank and score map.

    backbone: may run in a shorter number type (see `backbone_dtype`); everything after it is float32.
    descriptor: projects the backbone's feature maps to D channels.
    bank: (M, D) float32, the centroids.
    baseline: (h, w) float32 > 0; each position's score is divided by it.
    input_size: (H, W) px.
    neighbours: K of the score, 1 to M.
    sigma: of the score map's Gaussian, px of the input.
    keep: (H, W) float32, 1 on pixels that are kept and 0 on those that are ignored; None keeps all. The backbone does
        not see what is ignored: it is the mean colour there, so that nothing in it can change what lies beside it.
    """

    bank: Tensor
    baseline: Tensor
    keep: Tensor | None

    def __init__(
        self,
        backbone: AnyBackbone,
        descriptor: Descriptor,
        bank: Tensor,
        baseline: Tensor,
        input_size: tuple[int, int],
        neighbours: int,
        sigma: float,
        keep: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.descriptor, self.neighbours = backbone, descriptor, neighbours
        self.register_buffer("bank", bank)
        self.register_buffer("baseline", baseline)
        self.register_buffer("keep", keep)
        self.score_map = ScoreMap((baseline.shape[0], baseline.shape[1]), input_size, sigma, keep)
        self.search: NeighbourSearch | None = None  # None: the plain search

    def use_quick_search(self) -> None:
        """Search by `NeighbourSearch` from now on, and describe in its coordinates: the same scores, sooner."""
        self.search = NeighbourSearch(self.bank)
        self.descriptor = self.descriptor.moved_to(self.search.frame)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Score normalised images (B, 3, H, W) float32: image scores (B,) and maps (B, H, W), float32, >= 0.

        keep: (B, H, W) float32 in place of the network's own. The backbone sees what that one ignores and this keeps;
        what only this ignores it sees as well, as it did in training.
        """
        if self.keep is not None:
            images = images * (self.keep if keep is None else torch.maximum(self.keep, keep)[:, None])
        return self.score(extract_levels(self.backbone, images), keep)

    def score(self, levels: Sequence[Tensor], keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Score pooled feature maps [(B, C_l, h_l, w_l)] float32."""
        positions = torch.cat([self._score_rows(levels, rows) for rows in row_bands(*levels[0].shape[2:])], dim=1)
        maps = self.score_map(positions / self.baseline, keep)
        return image_scores(maps), maps

    def _score_rows(self, levels: Sequence[Tensor], rows: tuple[int, int] | None) -> Tensor:
        """Score the positions of a band of rows, or of all: (B, rows, w)."""
        descriptors = self.descriptor(levels, rows)
        search = self.search or partial(nearest_plain, bank=self.bank)
        squared, _ = search(descriptors.flatten(0, 2), k=self.neighbours)
        return position_scores(squared).view(descriptors.shape[:3])
