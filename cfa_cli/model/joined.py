"""Two backbones in one model: the maps of both, each scaled by its own spread over good images."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from cfa_cli.config import AUTHORS_LAYERS, backbone_names
from cfa_cli.errors import UsageError, WeightsError
from cfa_cli.model.backbone import Backbone

SCALES = "scales"  # the name of the scales among the weights


class JoinedBackbone(nn.Module):
    """Feature maps of several backbones, those of the first one first, without gradients.

    parts: their images are normalised as the first one's weights expect it; the others' are brought to that.

    Weights and layers have the names of their parts', with the part's number before them: "1.blocks.2". Two backbones'
    maps differ in how far they spread: without the `scales`, which a fit measures, the wider ones would decide alone.
    """

    scales: Tensor  # (L,), powers of two: exact in every number type

    def __init__(self, parts: Sequence[Backbone]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.name, self.stride = "+".join(part.name for part in parts), 1
        self.layers = tuple(_numbered(number, layer) for number, part in enumerate(parts) for layer in part.layers)
        self.channels = tuple(channels for part in parts for channels in part.channels)
        self.mean, self.std = parts[0].mean, parts[0].std
        self.register_buffer(SCALES, torch.ones(len(self.channels)))
        for number, part in enumerate(parts):
            factor, shift = _renormalisation(self.mean, self.std, part.mean, part.std)
            self.register_buffer(f"factor{number}", factor, persistent=False)
            self.register_buffer(f"shift{number}", shift, persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map normalised images (B, 3, H, W) to all maps [(B, C_l, h_l, w_l)], scaled."""
        maps: list[Tensor] = []
        for number, part in enumerate(self._parts):
            same = (part.mean, part.std) == (self.mean, self.std)
            factor, shift = getattr(self, f"factor{number}"), getattr(self, f"shift{number}")
            maps += part(images if same else images * factor + shift)
        return [each * scale for each, scale in zip(maps, self.scales, strict=True)]

    def map_shapes(self, input_size: tuple[int, int]) -> list[tuple[int, int, int]]:
        """Return (C_l, h_l, w_l) of each map of an image of (height, width) px; nothing is computed.

        Raises UsageError where the first one is not the finest: its grid is the model's.
        """
        shapes = [shape for part in self._parts for shape in part.map_shapes(input_size)]
        if max(height for _, height, _ in shapes) > shapes[0][1]:
            raise UsageError(
                f"The first map of {self.name} is not the finest.", "Name the backbone with the finer maps first."
            )
        return shapes

    def weights(self) -> dict[str, Tensor]:
        """Return the tensors that a bundle needs: see `Backbone.weights`."""
        found = {f"{number}.{name}": t for number, part in enumerate(self._parts) for name, t in part.weights().items()}
        return found | {SCALES: self.scales}

    def check_weights(self, state_dict: Mapping[str, Tensor]) -> None:
        """Raise WeightsError unless `state_dict` has the tensors of all parts, and scales that are positive."""
        for number, part in enumerate(self._parts):
            part.check_weights(_of_part(number, state_dict))
        scales = state_dict.get(SCALES)
        if scales is None or scales.shape != self.scales.shape or not bool((scales > 0).all()):
            raise WeightsError(f"The scales of the maps of {self.name} are missing, too few or not positive.")

    @property
    def _parts(self) -> list[Backbone]:
        return [part for part in self.parts if isinstance(part, Backbone)]


AnyBackbone = Backbone | JoinedBackbone


def make_backbone(
    name: str, layers: Sequence[str] | None, state_dicts: Sequence[Mapping[str, Tensor]] | None
) -> AnyBackbone:
    """Make a backbone, or join two ("resnet18+tf_efficientnet_lite0").

    layers: of two, strides are taken of both, and modules of one have its number before them: "0.layer1". A layer that
        is a number, or `authors`, goes to both. None: see `Backbone`.
    state_dicts: the weights of each; None: random ones.

    Raises what `Backbone` raises, and UsageError for layers of which it is not said whose they are.
    """
    names = backbone_names(name)
    chosen: Sequence[Mapping[str, Tensor] | None] = state_dicts or [None] * len(names)
    if len(names) == 1:
        return Backbone(name, layers, chosen[0])
    return JoinedBackbone(
        [
            Backbone(each, _layers_of(number, layers), state_dict)
            for number, (each, state_dict) in enumerate(zip(names, chosen, strict=True))
        ]
    )


def restore_backbone(name: str, layers: Sequence[str], state_dict: Mapping[str, Tensor]) -> AnyBackbone:
    """Make the backbone whose `weights` these are. Raises what `make_backbone` raises, and WeightsError."""
    names = backbone_names(name)
    if len(names) == 1:
        return Backbone(name, layers, state_dict)
    joined = make_backbone(name, layers, [_of_part(number, state_dict) for number in range(len(names))])
    joined.check_weights(state_dict)
    assert isinstance(joined, JoinedBackbone)
    joined.scales.copy_(state_dict[SCALES])
    return joined


def _of_part(number: int, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = f"{number}."
    return {name.removeprefix(prefix): t for name, t in state_dict.items() if name.startswith(prefix)}


def _numbered(number: int, layer: str) -> str:
    return "+".join(f"{number}.{module}" for module in layer.split("+"))


def _layers_of(number: int, layers: Sequence[str] | None) -> list[str] | None:
    """Return which of the layers are this part's. Raises UsageError."""
    if layers is None:
        return None
    found = []
    for layer in layers:
        if layer.isdecimal() or (layer,) == AUTHORS_LAYERS:
            found.append(layer)
            continue
        named = [re.fullmatch(r"([0-9])\.(.+)", module) for module in layer.split("+")]
        owners = {match[1] for match in named if match is not None}
        if None in named or len(owners) != 1 or int(min(owners)) > 1:
            raise UsageError(
                f"Of which backbone the layer '{layer}' is, is not said.",
                f"Write 0.{layer} for the first, 1.{layer} for the second, or strides for both.",
            )
        if owners == {str(number)}:
            found.append("+".join(match[2] for match in named if match is not None))
    return found


def _renormalisation(
    mean: Sequence[float], std: Sequence[float], other_mean: Sequence[float], other_std: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Return the factor and shift (3, 1, 1) that turn normalised values into values normalised by other statistics."""
    first, second = torch.tensor([mean, std]), torch.tensor([other_mean, other_std])
    factor, shift = first[1] / second[1], (first[0] - second[0]) / second[1]
    return factor.view(3, 1, 1), shift.view(3, 1, 1)
