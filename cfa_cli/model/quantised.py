"""A ResNet whose convolutions multiply 8-bit integers, which processors with VNNI or AMX do several times as fast.

Each output channel's weights, with the normalisation folded in, are integers from -127 to 127 times a scale of their
own. What flows into a convolution is an integer from 0 to 255 times a scale that its largest value in good images sets;
what is larger is cut. The sums of blocks, and so the feature maps, are float32.

Integers are summed exactly, so all processors and devices compute the same but for the rounding of the few float32
operations between two convolutions. Where bytes cannot be multiplied exactly, float32 takes their place.
"""

from __future__ import annotations

import functools
import platform
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import Any

import cv2
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfa_cli.model.resnet import ResNet

MOST_WEIGHT, MOST_BYTE = 127, 255
MOST_ROUNDED = 2.0**30  # OpenCV rounds to 32-bit integers before it cuts: larger numbers would leave them


@contextmanager
def recorded_ranges(model: ResNet) -> Iterator[Tensor]:
    """Give a tensor (n,) float32 that keeps the largest input so far of each convolution in a ResNet's blocks.

    These are in the network's order, without those of shortcuts, which take the input of their block. Threads may
    compute side by side.

    >>> with recorded_ranges(backbone.model) as ranges:
    ...     backbone(images)
    """
    convolutions = [convolution for block in _blocks(model) for convolution, _ in _convolutions(block)]
    ranges = torch.zeros(len(convolutions), device=next(model.parameters()).device)
    lock = threading.Lock()

    def record(place: int, images: Tensor) -> None:
        largest = images.amax()
        with lock:
            ranges[place] = torch.maximum(ranges[place], largest)

    hooks = [
        each.register_forward_pre_hook(lambda _, inputs, place=place: record(place, inputs[0]))
        for place, each in enumerate(convolutions)
    ]
    try:
        yield ranges
    finally:
        for hook in hooks:
            hook.remove()


class QuantisedResNet:
    """A ResNet in 8-bit integers, up to its last wanted map. Threads may share it.

    model: in float32, on the device to compute on.
    ranges: (n,) > 0, of each convolution in its blocks the largest input: see `recorded_ranges`.
    lowest, highest: of the model's input, whose values are cut to that.

    `stem` is the convolution before the blocks. `finite` tells whether all weights are within float32's range with the
    normalisation folded in.
    """

    def __init__(self, model: ResNet, ranges: Sequence[float], lowest: float, highest: float) -> None:
        self._wanted = {each.module for each in model.maps}
        step = (highest - lowest) / MOST_BYTE
        device = next(model.parameters()).device
        make = _NativeConvolution if multiplies_bytes(device) else _SimulatedConvolution
        self.stem = make(model.conv1, model.bn1, step, round(-lowest / step))
        steps = iter([largest / MOST_BYTE for largest in ranges])
        self._layers = [
            (name, [_Block(block, steps, make) for block in model.get_submodule(name).children()])
            for name in model.layers
        ]

        convolutions = [self.stem, *(each for block in self.blocks for each in block.all)]
        self.finite = all(bool(each.scales.isfinite().all() and each.bias.isfinite().all()) for each in convolutions)

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Map normalised images (B, 3, H, W) float32 to the wanted maps [(B, C_l, h_l, w_l)] float32, finest first."""
        step = self._layers[0][1][0].step
        pooled = _max_pool(self.stem(_to_bytes(images, self.stem.step, self.stem.zero), out_step=step))
        data: Tensor | None = pooled
        sums = pooled.float().mul_(step)
        maps = []
        for name, blocks in self._layers:
            for block in blocks:
                sums, data = block(sums, data), None
            if name in self._wanted:
                maps.append(sums)
        return maps

    @property
    def blocks(self) -> list[_Block]:
        """The blocks of all layers, in order."""
        return [block for _, blocks in self._layers for block in blocks]

    @property
    def wanted_blocks(self) -> list[int]:
        """The places in `blocks` of those whose sums are wanted maps."""
        ends = accumulate(len(blocks) for _, blocks in self._layers)
        return [end - 1 for (name, _), end in zip(self._layers, ends, strict=True) if name in self._wanted]


def count_ranges(model: ResNet) -> int:
    """Return how many ranges `QuantisedResNet` takes for a model."""
    return sum(len(_convolutions(block)) for block in _blocks(model))


@functools.cache
def multiplies_bytes(device: torch.device) -> bool:
    """Tell whether the device multiplies bytes quickly and exactly; older processors cut sums of two products.

    It is asked of the product itself, as what a processor has is told differently by each system.
    """
    if device.type != "cpu" or platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    convolution = nn.Conv2d(64, 64, 3, bias=False, device="meta")  # draws no weights
    convolution.weight = nn.Parameter(torch.ones(64, 64, 3, 3), requires_grad=False)
    norm = nn.BatchNorm2d(64, eps=0).requires_grad_(False)
    largest = torch.full((1, 64, 8, 8), MOST_BYTE, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    try:
        found = _NativeConvolution(convolution, norm, 1.0, 0)(largest)
    except (AttributeError, RuntimeError, NotImplementedError):  # oneDNN is not there, or its operators are others
        return False
    return bool(torch.allclose(found, torch.tensor(64.0 * 9 * MOST_BYTE)))


class Convolution:
    """A convolution of bytes with the normalisation that follows it.

    step, zero: a byte b of its input stands for (b - zero) * step.
    """

    def __init__(self, convolution: nn.Conv2d, norm: nn.BatchNorm2d, step: float, zero: int) -> None:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        self.step, self.zero, self.bias = step, zero, norm.bias - norm.running_mean * factor
        self.stride, self.padding = list(convolution.stride), [int(side) for side in convolution.padding]
        weight = convolution.weight * factor[:, None, None, None]
        self.scales = weight.abs().amax((1, 2, 3)).div(MOST_WEIGHT).clamp_min(torch.finfo(weight.dtype).tiny)
        self.integers = (weight / self.scales[:, None, None, None]).round()

    def quantise(self, values: Tensor) -> Tensor:
        """Turn values (B, C, H, W) float32 >= 0 into the bytes that are its input."""
        return _to_bytes(values, self.step)


class _NativeConvolution(Convolution):
    """By oneDNN: bytes times bytes."""

    def __init__(self, convolution: nn.Conv2d, norm: nn.BatchNorm2d, step: float, zero: int) -> None:
        super().__init__(convolution, norm, step, zero)
        self._zeros = torch.zeros(len(self.scales), dtype=torch.int32)
        prepack: Any = torch.ops.onednn.qconv_prepack
        weight = self.integers.to(torch.int8)
        self._packed = prepack(weight, self.scales, step, zero, self.stride, self.padding, [1, 1], 1, None)

    def quantise(self, values: Tensor) -> Tensor:
        """Do so in one pass, where torch takes four: the same bytes."""
        factor = 1 / self.step
        if not float(values.amax()) * factor < MOST_ROUNDED:  # nor NaN
            return super().quantise(values)
        data = torch.empty_like(values, dtype=torch.uint8)
        source, target = (each.permute(0, 2, 3, 1).view(-1, each.shape[1]).numpy() for each in (values, data))
        cv2.convertScaleAbs(source, target, factor)
        return data

    def __call__(
        self, data: Tensor, out_step: float | None = None, shortcut: Tensor | None = None, relu: bool = True
    ) -> Tensor:
        """Convolve bytes (B, C, H, W): float32, plus a shortcut, which is overwritten, or bytes of `out_step`."""
        operator: Any = torch.ops.onednn.qconv2d_pointwise
        source = (data, self.step, self.zero, self._packed, self.scales, self._zeros)
        shape = (self.bias, self.stride, self.padding, [1, 1], 1)
        act = "relu" if relu else "none"
        if shortcut is not None:
            add: Any = (1.0, 0, torch.float32, 1.0, 0, "sum", 1.0, act, [], "")
            result: Tensor = operator.binary(*source, shortcut, *shape, *add)
            return result
        kind = torch.float32 if out_step is None else torch.uint8
        result = operator(*source, *shape, 1.0 if out_step is None else out_step, 0, kind, act, [], "")
        return result


class _SimulatedConvolution(Convolution):
    """By float32 on any device: integers below 2^24 are exact in it, and so are nearly all of their sums."""

    def __call__(
        self, data: Tensor, out_step: float | None = None, shortcut: Tensor | None = None, relu: bool = True
    ) -> Tensor:
        """Convolve bytes (B, C, H, W): float32, plus a shortcut, or bytes of `out_step`."""
        sums = F.conv2d(data.float() - self.zero, self.integers, stride=self.stride, padding=self.padding)
        values = sums * (self.scales * self.step)[:, None, None] + self.bias[:, None, None]
        if shortcut is not None:
            values = values + shortcut
        if relu:
            values = values.relu()
        return values if out_step is None else _to_bytes(values, out_step)


class _Block:
    """A basic or bottleneck block: `convolutions` one after the other, and beside them a `shortcut`, or None.

    Both take the same input, whose step is `step`.
    """

    def __init__(self, block: nn.Module, steps: Iterator[float], make: type[Any]) -> None:
        self.convolutions = [make(*each, next(steps), 0) for each in _convolutions(block)]
        self.step = self.convolutions[0].step
        downsample: Any = getattr(block, "downsample", None)
        self.shortcut = None if downsample is None else make(*downsample, self.step, 0)
        self.all = [*self.convolutions, *([] if self.shortcut is None else [self.shortcut])]

    def __call__(self, sums: Tensor, data: Tensor | None = None) -> Tensor:
        """Map the sums of the block before, (B, C, H, W) float32 >= 0, to this one's.

        They are overwritten where nothing is convolved in the shortcut, as nothing is within a layer.
        `data` is the same as bytes, where they are there already.
        """
        data = self.convolutions[0].quantise(sums) if data is None else data
        shortcut = sums if self.shortcut is None else self.shortcut(data, relu=False)
        for convolution, following in pairwise(self.convolutions):
            data = convolution(data, out_step=following.step)
        result: Tensor = self.convolutions[-1](data, shortcut=shortcut)
        return result


def _blocks(model: ResNet) -> list[nn.Module]:
    return [block for layer in model.layers for block in model.get_submodule(layer).children()]


def _convolutions(block: nn.Module) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Return a block's convolutions, each with the normalisation that follows it, without that of its shortcut."""
    own: Any = block
    numbers = [number for number in (1, 2, 3) if hasattr(block, f"conv{number}")]
    return [(getattr(own, f"conv{number}"), getattr(own, f"bn{number}")) for number in numbers]


def _to_bytes(values: Tensor, step: float, zero: int = 0) -> Tensor:
    scaled = values * (1 / step)
    if zero:
        scaled += zero
    return scaled.round_().clamp_(0, MOST_BYTE).to(torch.uint8)


def _max_pool(data: Tensor) -> Tensor:
    """Pool bytes (B, C, H, W) by their largest, 3 x 3 with stride 2 and padding 1: torch does it for floats."""
    for dim in (2, 3):
        every_other = (slice(None),) * dim
        even, odd = data[(*every_other, slice(0, None, 2))], data[(*every_other, slice(1, None, 2))]
        data = even.clone()
        for part, neighbours in (
            (data.narrow(dim, 0, odd.shape[dim]), odd),
            (data.narrow(dim, 1, even.shape[dim] - 1), odd.narrow(dim, 0, even.shape[dim] - 1)),
        ):
            torch.maximum(part, neighbours, out=part)
    return data
