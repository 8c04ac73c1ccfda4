"""The network as it leaves this tool: preprocessing, scores and thresholds in one traceable graph."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from cfa_cli.geometry import resize_and_crop
from cfa_cli.model.descriptor import coordinates, is_efficientnet, pool_levels
from cfa_cli.model.network import Network
from cfa_cli.model.scoremap import image_scores, position_scores
from cfa_cli.records import Geometry

INPUT = "images"
OUTPUTS = ("score", "normalized_score", "map", "threshold", "pixel_threshold")
CHUNK_ELEMENTS = 1_600_000  # of one image's distance matrix: stays in the processor's cache and bounds the memory
HALF_ELEMENTS = 1024  # smaller tensors stay in float32: they weigh nothing


class DeployedNetwork(nn.Module):
    """Images in, scores out, with nothing but tensor operations; takes a float32 `network` over and changes it.

    With `resize` the input is images (B, H, W, 3) RGB uint8 of any size, without it (B, 3, H, W) float32 RGB in 0..1 at
    the network's input size. `half` stores backbone, descriptor and bank as float16; all is computed in float32.
    Raises OverflowError if a weight is too large for float16.
    """

    centroids: Tensor
    lengths: Tensor
    mean: Tensor
    std: Tensor
    thresholds: Tensor
    baseline: Tensor
    keep: Tensor | None

    def __init__(
        self,
        network: Network,
        geometry: Geometry,
        threshold: float,
        pixel_threshold: float,
        *,
        resize: bool = False,
        half: bool = False,
    ) -> None:
        super().__init__()
        self.backbone, self.descriptor, self.score_map = network.backbone, network.descriptor, network.score_map
        self.neighbours = min(network.neighbours, len(network.bank))
        self.geometry, self.resize = geometry, resize
        with torch.no_grad():
            # Distances do not change under a shift, and products lose less to rounding around the bank's centre.
            centre = network.bank.double().mean(0)
            bank = (network.bank.double() - centre).float()
            self.descriptor.bias.copy_(self.descriptor.bias.double() - centre)
            if half:
                bank = bank.half().float()
        self.register_buffer("centroids", -2 * bank)  # (M, D): |q - b|² = |q|² - 2 q·b + |b|²
        self.register_buffer("lengths", bank.square().sum(1))
        self.register_buffer("mean", torch.tensor(geometry.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(geometry.std).view(3, 1, 1))
        self.register_buffer("baseline", network.baseline)
        self.register_buffer("keep", network.keep)
        self.register_buffer("thresholds", torch.tensor([threshold, pixel_threshold]))
        if half:
            store_half(self)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return `OUTPUTS`, float32: scores (B,), normalised (B,) in 0..1, maps (B, H, W), and both thresholds ()."""
        if self.resize:
            images = resize_and_crop(images.permute(0, 3, 1, 2).float(), self.geometry) / 255
        images = (images - self.mean) / self.std
        maps = self.backbone(images if self.keep is None else images * self.keep)
        levels = pool_levels(maps, divide_by_channels=is_efficientnet(self.backbone.name))
        squared = self._nearest(self._describe(levels).flatten(2).transpose(1, 2))
        score_maps = self.score_map(position_scores(squared).view(-1, *levels[0].shape[2:]) / self.baseline)
        scores = image_scores(score_maps)
        threshold, pixel_threshold = self.thresholds[0], self.thresholds[1]
        return scores, scores / (scores + threshold), score_maps, threshold, pixel_threshold

    def _describe(self, levels: list[Tensor]) -> Tensor:
        """Return what `Descriptor` does, as (B, D, h, w), by convolutions, which every runtime has tuned."""
        size = levels[0].shape[2:]
        *weights, place_weight = torch.split(self.descriptor.weight, [*self.descriptor.channels, 2], dim=1)
        place = coordinates(size[0], size[1], self.lengths).permute(2, 0, 1).expand(levels[0].shape[0], -1, -1, -1)
        first = torch.cat([levels[0], place], dim=1)
        described = F.conv2d(first, torch.cat([weights[0], place_weight], dim=1), self.descriptor.bias)
        for level, weight in zip(levels[1:], weights[1:], strict=True):
            projected = F.conv2d(level, weight)
            if projected.shape[2:] != size:
                projected = F.interpolate(projected, size=size, mode="bilinear", align_corners=False)
            described = described + projected
        return described

    def _nearest(self, queries: Tensor) -> Tensor:
        """Return the squared distances (B, N, K), ascending, of queries (B, N, D) to their nearest centroids."""
        rows = max(1, CHUNK_ELEMENTS // len(self.centroids))
        nearest = []
        for chunk in torch.split(queries, rows, dim=1):
            # One matrix by another, so that no runtime spreads the bank over the batch or the chunks.
            distances = F.linear(chunk.flatten(0, 1), self.centroids, self.lengths)
            values = torch.topk(distances, self.neighbours, dim=1, largest=False).values
            nearest.append(values.view(-1, chunk.shape[1], self.neighbours))
        return torch.cat(nearest, dim=1) + queries.square().sum(2, keepdim=True)


class _Widen(nn.Module):
    def forward(self, stored: Tensor) -> Tensor:
        return stored.float()


def store_half(module: nn.Module) -> None:
    """Keep a module's matrices and kernels as float16, widened to float32 wherever they are read."""
    for part in list(module.modules()):
        tensors = [*part._parameters.items(), *part._buffers.items()]
        for name, tensor in tensors:
            if tensor is None or tensor.ndim < 2 or tensor.numel() < HALF_ELEMENTS or not tensor.is_floating_point():
                continue
            short = tensor.detach().half()
            if not torch.isfinite(short).all():
                raise OverflowError(f"{name} holds values over 65504")
            if isinstance(tensor, nn.Parameter):
                setattr(part, name, nn.Parameter(short, requires_grad=False))
            else:
                part._buffers[name] = short
            parametrize.register_parametrization(part, name, _Widen(), unsafe=True)
