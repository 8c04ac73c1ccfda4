"""Plain ResNets, without timm, whose import takes longer than scoring an image: the same graphs, the same names."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's images, which timm's weights expect
STEM_CHANNELS = 64


class Plan(NamedTuple):
    """What tells one ResNet from another: blocks a layer, and how their channels widen."""

    depths: tuple[int, int, int, int]
    width: float  # channels inside a bottleneck block, as a multiple of the layer's base
    expansion: int  # channels that leave a block, likewise: 1 makes basic blocks, 4 bottlenecks


PLANS = {
    "resnet18": Plan((2, 2, 2, 2), 1, 1),
    "resnet34": Plan((3, 4, 6, 3), 1, 1),
    "resnet50": Plan((3, 4, 6, 3), 1, 4),
    "resnet101": Plan((3, 4, 23, 3), 1, 4),
    "wide_resnet50_2": Plan((3, 4, 6, 3), 2, 4),
}


class FeatureMap(NamedTuple):
    """One of the maps that a ResNet offers."""

    module: str
    stride: int
    channels: int


def feature_maps(name: str) -> list[FeatureMap]:
    """Return the maps that a ResNet of `PLANS` offers, finest first."""
    layers = [FeatureMap(f"layer{i}", 2 << i, (STEM_CHANNELS << i - 1) * PLANS[name].expansion) for i in range(1, 5)]
    return [FeatureMap("act1", 2, STEM_CHANNELS), *layers]


class ResNet(nn.Module):
    """The part of a ResNet of `PLANS` that leads to some of its maps; to load weights into, for it has none.

    name: one of `PLANS`.
    maps: modules whose output is wanted: "act1", "layer1" to "layer4"; no more than is needed for them is there.
    """

    def __init__(self, name: str, maps: Collection[str]) -> None:
        super().__init__()
        self.maps = [each for each in feature_maps(name) if each.module in maps]
        depths, width, expansion = PLANS[name]
        self.conv1 = _Convolution(3, STEM_CHANNELS, 7, stride=2, padding=3, bias=False)
        self.bn1 = _Normalisation(STEM_CHANNELS)
        self.layers: list[str] = []
        channels = STEM_CHANNELS
        for index in range(feature_maps(name).index(self.maps[-1])):
            base = STEM_CHANNELS << index
            blocks: list[_Block] = []
            for number in range(depths[index]):
                stride = 2 if index and not number else 1
                if expansion == 1:
                    blocks.append(_Basic(channels, base, stride))
                else:
                    blocks.append(_Bottleneck(channels, int(base * width), base * expansion, stride))
                channels = base * expansion
            self.layers.append(f"layer{index + 1}")
            self.add_module(self.layers[-1], nn.Sequential(*blocks))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map normalised images (B, 3, H, W) to the wanted maps [(B, C_l, h_l, w_l)], finest first."""
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        wanted = {each.module for each in self.maps}
        found = [x] if "act1" in wanted else []  # what is not wanted is let go at once: large images' maps are large
        x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        for layer in self.layers:
            x = self.get_submodule(layer)(x)
            if layer in wanted:
                found.append(x)
        return found

    def map_shapes(self, input_size: tuple[int, int]) -> list[tuple[int, int, int]]:
        """Return (C_l, h_l, w_l) of each wanted map of an image of (height, width) px: sides are rounded up."""
        height, width = input_size
        return [(each.channels, -(-height // each.stride), -(-width // each.stride)) for each in self.maps]

    def draw_weights(self) -> None:
        """Draw random weights, as He et al. do; on the meta device there are none."""
        for module in self.modules():
            if isinstance(module, _Convolution) and not module.weight.is_meta:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, _Normalisation) and not module.weight.is_meta:
                nn.BatchNorm2d.reset_parameters(module)


class _Convolution(nn.Conv2d):
    def reset_parameters(self) -> None:
        """Leave the weights as they are: to draw them takes longer than to load them."""


class _Normalisation(nn.BatchNorm2d):
    def reset_parameters(self) -> None:
        """Leave the weights as they are."""


class _Block(nn.Module):
    """What basic and bottleneck blocks share: the way past the convolutions."""

    def _add_shortcut(self, channels: int, out_channels: int, stride: int) -> None:
        self.downsample: nn.Module | None = None
        if stride > 1 or channels != out_channels:
            convolution = _Convolution(channels, out_channels, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(convolution, _Normalisation(out_channels))

    def _join(self, x: Tensor, shortcut: Tensor) -> Tensor:
        if self.downsample is not None:
            shortcut = self.downsample(shortcut)
        return F.relu(x.add_(shortcut), inplace=True)


class _Basic(_Block):
    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _Convolution(channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = _Normalisation(out_channels)
        self.conv2 = _Convolution(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = _Normalisation(out_channels)
        self._add_shortcut(channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return self._join(self.bn2(self.conv2(inner)), x)


class _Bottleneck(_Block):
    def __init__(self, channels: int, width: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _Convolution(channels, width, 1, bias=False)
        self.bn1 = _Normalisation(width)
        self.conv2 = _Convolution(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = _Normalisation(width)
        self.conv3 = _Convolution(width, out_channels, 1, bias=False)
        self.bn3 = _Normalisation(out_channels)
        self._add_shortcut(channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(x)), inplace=True)
        inner = F.relu(self.bn2(self.conv2(inner)), inplace=True)
        return self._join(self.bn3(self.conv3(inner)), x)
