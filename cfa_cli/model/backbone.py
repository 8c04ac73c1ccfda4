"""The frozen backbone: any timm model, at its own feature maps or at any of its modules.

timm is imported where it is needed: plain ResNets at their own maps do without it (`cfa_cli.model.resnet`).
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cfa_cli.config import AUTHORS_LAYERS
from cfa_cli.errors import UsageError, WeightsError
from cfa_cli.model.quantised import QuantisedResNet, count_ranges
from cfa_cli.model.resnet import MEAN, PLANS, STD, FeatureMap, ResNet, feature_maps

DEFAULT_STRIDES = (4, 8, 16)
# The maps that the authors take where they are not the last ones of strides 4, 8 and 16.
_AUTHORS = {
    "vgg19_bn": ("features.25", "features.38", "features.52"),  # the third after its pooling: stride 32
    "efficientnet_b5": (
        "blocks.1.0+blocks.1.1+blocks.1.2+blocks.1.3+blocks.1.4",
        "blocks.2.2+blocks.2.3+blocks.2.4",
        "blocks.4.6",
    ),
}


def check_backbone_name(name: str) -> None:
    """Raise WeightsError, with the nearest names, unless timm knows the model `name`."""
    if name in PLANS:
        return
    import timm

    if timm.is_model(name):
        return
    near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
    hint = f"Did you mean {', '.join(near)}?" if near else "Try resnet18 or wide_resnet50_2."
    raise WeightsError(f"There is no backbone called '{name}'.", hint)


class Backbone(nn.Module):
    """Feature maps of a timm model at chosen layers, without gradients.

    name: timm's.
    layers: strides ("8"), module names ("layer2.0") and modules whose maps are stacked ("layer2.0+layer2.1");
        ("authors",) takes those of the paper's authors; None strides 4, 8 and 16, the last map of each.
    state_dict: weights under timm's names; those behind the last chosen layer need not be there. None: random ones.

    `stride`, which may be set, is the px of the input that positions of the pooled maps lie apart, at least: see
    `model.descriptor.thinning`.

    Raises WeightsError for an unknown name, a model without feature maps and weights that do not fit; UsageError for
    layers that the model does not have.
    """

    def __init__(
        self, name: str, layers: Sequence[str] | None = None, state_dict: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__()
        check_backbone_name(name)
        self.name, self.stride = name, 1
        if layers is not None and tuple(layers) == AUTHORS_LAYERS:
            layers = _AUTHORS.get(name)
        # The statistics that the weights expect of their input: RGB, of values in 0..1.
        self.mean, self.std = MEAN, STD
        # For each layer which of a graph's outputs are stacked; None: the model's own feature maps are taken.
        self.places: tuple[tuple[int, ...], ...] | None = None
        maps = _choose_maps(name, feature_maps(name), layers) if name in PLANS else None
        self.model: Any
        if maps is not None:
            self.model = ResNet(name, [each.module for each in maps])
        else:
            self.model, of_model = _create(name)
            self.mean, self.std = (tuple(self.model.pretrained_cfg[key]) for key in ("mean", "std"))
            maps = _choose_maps(name, of_model, layers)
            if maps is not None:
                self.indices = [of_model.index(each) for each in maps]
                self.model.prune_intermediate_layers(self.indices, prune_norm=False, prune_head=True)
            else:
                self._extract(_name_modules(name, self.model, of_model, layers or ()))
        if maps is not None:
            self.layers = tuple(each.module for each in maps)
            self.channels = tuple(each.channels for each in maps)
        if state_dict is not None:
            self.check_weights(state_dict)
            self.model.load_state_dict({key: state_dict[key] for key in self.weights()}, strict=False)
        elif isinstance(self.model, ResNet):
            self.model.draw_weights()
        self.quantised: QuantisedResNet | None = None  # None: the maps are computed in floating point
        self.eval().requires_grad_(False)

    def _extract(self, modules: Sequence[str]) -> None:
        """Take the part of timm's model that leads to any modules."""
        from cfa_cli.model.extractor import extract

        side = self.model.pretrained_cfg["input_size"][-1]
        self.model, self.layers, self.channels, self.places = extract(self.model.eval(), modules, side)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map normalised images (B, 3, H, W) to the chosen maps [(B, C_l, h_l, w_l)], finest first."""
        if self.quantised is not None:
            return self.quantised(images)
        if self.places is not None:
            outputs = self.model(images)
            return [torch.cat([outputs[i] for i in of_layer], dim=1) for of_layer in self.places]
        if isinstance(self.model, ResNet):
            return [*self.model(images)]
        return list(self.model.forward_intermediates(images, indices=self.indices, intermediates_only=True))

    def map_shapes(self, input_size: tuple[int, int]) -> list[tuple[int, int, int]]:
        """Return (C_l, h_l, w_l) of each map of an image of (height, width) px; nothing is computed."""
        if isinstance(self.model, ResNet):
            return self.model.map_shapes(input_size)
        from cfa_cli.model.extractor import map_shapes

        return [(channels, height, width) for _, channels, height, width in map_shapes(self, input_size)]

    def quantise(self, ranges: Tensor) -> None:
        """Compute in 8-bit integers from now on, where the weights are.

        ranges: (`range_count`,) float32 > 0: see `model.quantised.recorded_ranges`.
        """
        lowest = min((0 - mean) / std for mean, std in zip(self.mean, self.std, strict=True))
        highest = max((1 - mean) / std for mean, std in zip(self.mean, self.std, strict=True))
        quantised = QuantisedResNet(self.model, ranges.tolist(), lowest, highest)
        self.quantised = quantised if quantised.finite else None  # floating point lets infinities be seen

    def unquantised(self) -> Backbone:
        """Return this backbone, computing in floating point; the weights are the same ones."""
        plain = copy.copy(self)
        plain.quantised = None
        return plain

    @property
    def range_count(self) -> int:
        """How many ranges `quantise` takes; 0 where this backbone cannot compute in integers."""
        return count_ranges(self.model) if isinstance(self.model, ResNet) and "act1" not in self.layers else 0

    def weights(self) -> dict[str, Tensor]:
        """Return the tensors that a bundle needs: parameters and buffers, less those that inference never reads."""
        return {k: v for k, v in self.model.state_dict().items() if not k.endswith("num_batches_tracked")}

    def check_weights(self, state_dict: Mapping[str, Tensor]) -> None:
        """Raise WeightsError unless `state_dict` has this backbone's tensors; works on the meta device too."""
        own = self.weights()
        missing = [key for key in own if key not in state_dict]
        if missing:
            raise WeightsError(
                f"The weights do not fit {self.name}: {len(missing)} of {len(own)} tensors are missing, the first is "
                f"{missing[0]}.",
                "Check that --backbone names the model that the weights were trained for.",
            )
        for key, value in own.items():
            if state_dict[key].shape != value.shape:
                raise WeightsError(
                    f"The weights do not fit {self.name}: {key} has shape {tuple(state_dict[key].shape)}, expected "
                    f"{tuple(value.shape)}.",
                    "Check that --backbone names the model that the weights were trained for.",
                )


def _create(name: str) -> tuple[Any, list[FeatureMap]]:
    """Make timm's model with random weights; return it and the maps that it offers. Raises WeightsError."""
    import timm

    model: Any = timm.create_model(name, pretrained=False)
    if not hasattr(model, "forward_intermediates") or not hasattr(model, "prune_intermediate_layers"):
        raise WeightsError(f"The backbone {name} offers no feature maps.", "Choose another one, for example resnet18.")
    infos = model.feature_info if isinstance(model.feature_info, list) else model.feature_info.info
    maps = [FeatureMap(str(info["module"]), int(info["reduction"]), int(info["num_chs"])) for info in infos]
    return model, maps


def _choose_maps(name: str, maps: Sequence[FeatureMap], layers: Sequence[str] | None) -> list[FeatureMap] | None:
    """Return those of a model's maps that `layers` stands for; None where not all of it are such maps.

    Raises UsageError for no layer at all.
    """
    last_of_stride = {each.stride: each for each in maps}
    if layers is None:
        chosen = [last_of_stride[stride] for stride in DEFAULT_STRIDES if stride in last_of_stride]
        # Transformers keep one stride throughout: their last three blocks stand in for three scales.
        return chosen if len(chosen) > 1 else list(maps[-3:])
    if not layers:
        raise UsageError("No layer of the backbone is named.", "Write for example --layers 4,8,16.")
    known = {each.module: each for each in maps} | {str(stride): each for stride, each in last_of_stride.items()}
    if not known.keys() >= set(layers):
        return None
    return sorted({known[layer] for layer in layers}, key=maps.index)


def _name_modules(name: str, model: nn.Module, maps: Sequence[FeatureMap], layers: Sequence[str]) -> list[str]:
    """Return the names of the modules that `layers` stands for. Raises UsageError where the model has no such ones."""
    by_stride = {str(each.stride): each.module for each in maps}
    known = {*(each.module for each in maps), *(path for path, _ in model.named_modules() if path)}
    named = ["+".join(by_stride.get(part, part) for part in layer.split("+")) for layer in layers]
    unknown = [part for layer in named for part in layer.split("+") if part not in known]
    if unknown:
        offered = ", ".join(f"{each.module} (stride {each.stride})" for each in maps)
        raise UsageError(
            f"{name} has no layer '{unknown[0]}'.", f"Choose from {offered}, or name any other module of it."
        )
    return list(dict.fromkeys(named))
