"""The network as it leaves this tool: preprocessing, scores and thresholds in one traceable graph."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from cfa_cli.geometry import resize_and_crop
from cfa_cli.model.backbone import Backbone
from cfa_cli.model.deployed_quantised import DeployedResNet, Operator
from cfa_cli.model.deployed_search import DeployedSearch
from cfa_cli.model.descriptor import coordinates, is_efficientnet, pool_levels, thinning
from cfa_cli.model.joined import AnyBackbone
from cfa_cli.model.network import Network
from cfa_cli.model.scoremap import image_scores, position_scores
from cfa_cli.model.search import principal_frame
from cfa_cli.records import Geometry

INPUT = "images"
OUTPUTS = ("score", "normalized_score", "map", "threshold", "pixel_threshold")
HALF_ELEMENTS = 1024  # smaller tensors stay in float32: they weigh nothing


class DeployedNetwork(nn.Module):
    """Images in, scores out, with nothing but tensor operations; takes a float32 `network` over and changes it.

    With `resize` the input is images (B, H, W, 3) RGB uint8 of any size, without it (B, 3, H, W) float32 RGB in 0..1 at
    the network's input size. `half` stores backbone, descriptor and bank as float16; all is computed in float32.
    A quantised backbone is computed in integers where there is an `operator` that its convolutions are written by.
    Raises OverflowError if a weight is too large for float16.
    """

    mean: Tensor
    std: Tensor
    backbone: AnyBackbone | DeployedResNet
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
        operator: Operator | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.score_map = network.backbone, network.score_map
        self.stride, self.divide_by_channels = network.backbone.stride, is_efficientnet(network.backbone.name)
        if operator is not None and isinstance(network.backbone, Backbone) and network.backbone.quantised is not None:
            self.backbone = DeployedResNet(network.backbone.quantised, operator)
        self.geometry, self.resize = geometry, resize
        # Distances are the same along the bank's axes, and products lose less to rounding around its centre.
        frame = principal_frame(network.bank.double())
        bank = (network.bank.double() - frame.origin) @ frame.axes
        self.descriptor = copy.deepcopy(network.descriptor).double().moved_to(frame).float()
        self.search = DeployedSearch(
            bank.half().double() if half else bank, min(network.neighbours, len(bank)), half=half
        )
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
        images = images if self.keep is None else images * self.keep
        maps = self.backbone(_channels_last(images))
        steps = [thinning(self.geometry.input_size[0], each.shape[2], self.stride) for each in maps]
        levels = pool_levels(maps, steps, divide_by_channels=self.divide_by_channels)
        described = self._describe(levels).permute(0, 2, 3, 1)
        squared = self.search(described.flatten(0, 2), together=self.baseline.numel())
        score_maps = self.score_map(position_scores(squared).view(-1, *self.baseline.shape) / self.baseline)
        scores = image_scores(score_maps)
        threshold, pixel_threshold = self.thresholds[0], self.thresholds[1]
        return scores, scores / (scores + threshold), score_maps, threshold, pixel_threshold

    def _describe(self, levels: list[Tensor]) -> Tensor:
        """Return what `Descriptor` does, as (B, D, h, w), by convolutions, which every runtime has tuned."""
        size = levels[0].shape[2:]
        *weights, place_weight = torch.split(self.descriptor.weight, [*self.descriptor.channels, 2], dim=1)
        place = coordinates(size[0], size[1], self.baseline).permute(2, 0, 1).expand(levels[0].shape[0], -1, -1, -1)
        first = torch.cat([levels[0], place], dim=1)
        weight = torch.cat([weights[0], place_weight], dim=1)
        described = _channels_last(F.conv2d(first, weight, self.descriptor.bias))
        for level, weight in zip(levels[1:], weights[1:], strict=True):
            projected = _channels_last(F.conv2d(level, weight))
            if projected.shape[2:] != size:
                projected = F.interpolate(projected, size=size, mode="bilinear", align_corners=False)
            described = described + projected
        return described


def _channels_last(x: Tensor) -> Tensor:
    """Return the same values, stored as torch is quickest with; other runtimes take no notice."""
    return x.contiguous(memory_format=torch.channels_last)


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
