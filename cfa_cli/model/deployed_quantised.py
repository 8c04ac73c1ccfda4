"""A ResNet in 8-bit integers as an exported graph has it: the integers and steps of `model.quantised`.

Two runtimes, two ways to write the same arithmetic: each is quick with one, and with the other slower than in float32.

* ONNX Runtime has ConvInteger: bytes times bytes, summed exactly. Its quick kernel takes unsigned weights and signed
  inputs, so both are stored shifted by 128, with 128 and -128 as their zeros.
* OpenVINO computes a convolution between DequantizeLinear and QuantizeLinear in integers.

Values between convolutions are float32 and differ in their rounding from the tool's. Where one lies just between two
bytes the other one may be taken, so results agree up to a few such steps, not to the last digits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfa_cli.model.quantised import Convolution, QuantisedResNet

SHIFT = 128  # between a byte with a sign and one without

Operator = Literal["ConvInteger", "DequantizeLinear"]


class DeployedResNet(nn.Module):
    """A quantised ResNet to be traced; by itself, in torch, it computes nothing: ONNX's operators are placeholders.

    operator: what its convolutions are written by.
    """

    def __init__(self, quantised: QuantisedResNet, operator: Operator) -> None:
        super().__init__()
        make = _IntegerConvolution if operator == "ConvInteger" else _DequantisedConvolution
        self.stem = make(quantised.stem)
        self.blocks = nn.ModuleList(_Block(block.convolutions, block.shortcut, make) for block in quantised.blocks)
        self.wanted = quantised.wanted_blocks

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map normalised images (B, 3, H, W) float32 to the wanted maps [(B, C_l, h_l, w_l)] float32, finest first."""
        # Rounding keeps the order, so that pooling before it gives what pooling bytes does.
        sums = F.max_pool2d(self.stem(self.stem.to_bytes(images)), 3, 2, 1).relu()
        first = cast(_Block, self.blocks[0]).first
        sums = first.from_bytes(first.to_bytes(sums))
        maps = []
        for number, block in enumerate(self.blocks):
            sums = block(sums)
            if number in self.wanted:
                maps.append(sums)
        return maps


class _Convolution(nn.Module):
    """What both kinds share; `kind` and `shift` are those of the bytes that it takes."""

    zero: Tensor
    step: Tensor
    weight: Tensor
    bias: Tensor
    kind: torch.dtype
    shift: int

    def __init__(self, convolution: Convolution) -> None:
        super().__init__()
        self.stride, self.padding = convolution.stride, convolution.padding
        self.register_buffer("step", torch.tensor(convolution.step))
        self.register_buffer("zero", torch.tensor(convolution.zero - self.shift, dtype=self.kind))
        self.register_buffer("bias", convolution.bias)

    def to_bytes(self, values: Tensor) -> Tensor:
        """Return float32 values as the bytes that this convolution takes."""
        return _onnx("QuantizeLinear", values, self.step, self.zero, dtype=self.kind, shape=values.shape)

    def from_bytes(self, data: Tensor) -> Tensor:
        """Do the reverse."""
        return _onnx("DequantizeLinear", data, self.step, self.zero, dtype=torch.float32, shape=data.shape)


class _IntegerConvolution(_Convolution):
    kind, shift = torch.int8, SHIFT

    weight_zero: Tensor
    scale: Tensor

    def __init__(self, convolution: Convolution) -> None:
        super().__init__(convolution)
        self.register_buffer("weight", (convolution.integers + SHIFT).to(torch.uint8))
        self.register_buffer("weight_zero", torch.tensor(SHIFT, dtype=torch.uint8))
        self.register_buffer("scale", (convolution.scales * convolution.step)[:, None, None])
        self.bias = self.bias[:, None, None]

    def forward(self, data: Tensor) -> Tensor:
        """Convolve bytes (B, C, H, W): float32."""
        sizes = zip(data.shape[2:], self.weight.shape[2:], self.padding, self.stride, strict=True)
        sides = [(size + 2 * padding - kernel) // stride + 1 for size, kernel, padding, stride in sizes]
        sums = _onnx(
            "ConvInteger",
            *(data, self.weight, self.zero, self.weight_zero),
            strides=self.stride,
            pads=self.padding * 2,
            dtype=torch.int32,
            shape=[data.shape[0], len(self.weight), *sides],
        )
        return sums.float() * self.scale + self.bias


class _DequantisedConvolution(_Convolution):
    kind, shift = torch.uint8, 0

    weight_zeros: Tensor
    scales: Tensor

    def __init__(self, convolution: Convolution) -> None:
        super().__init__(convolution)
        self.register_buffer("weight", convolution.integers.to(torch.int8))
        self.register_buffer("weight_zeros", torch.zeros(len(convolution.scales), dtype=torch.int8))
        self.register_buffer("scales", convolution.scales)

    def forward(self, data: Tensor) -> Tensor:
        """Convolve bytes (B, C, H, W): float32."""
        weight = _onnx(
            "DequantizeLinear",
            *(self.weight, self.scales, self.weight_zeros),
            axis=0,
            dtype=torch.float32,
            shape=self.weight.shape,
        )
        return F.conv2d(self.from_bytes(data), weight, self.bias, self.stride, self.padding)


AnyConvolution = _IntegerConvolution | _DequantisedConvolution


class _Block(nn.Module):
    def __init__(
        self,
        convolutions: Sequence[Convolution],
        shortcut: Convolution | None,
        make: type[AnyConvolution],
    ) -> None:
        super().__init__()
        self.first, *following = (make(each) for each in convolutions)
        self.following = nn.ModuleList(following)
        self.shortcut = None if shortcut is None else make(shortcut)

    def forward(self, sums: Tensor) -> Tensor:
        """Map the sums of the block before, (B, C, H, W) float32 >= 0, to this one's."""
        data = self.first.to_bytes(sums)
        shortcut = sums if self.shortcut is None else self.shortcut(data)
        values = self.first(data)
        for convolution in cast(Iterable[AnyConvolution], self.following):
            values = convolution(convolution.to_bytes(values.relu()))
        result: Tensor = (values + shortcut).relu()
        return result


def _onnx(
    operator: str, *inputs: Tensor, dtype: torch.dtype, shape: Sequence[int], **attributes: int | Sequence[int]
) -> Tensor:
    from torch.onnx import ops  # it takes long to import, and predict, which knows of this module, has no need of it

    return ops.symbolic(operator, inputs, {**attributes}, dtype=dtype, shape=shape)
