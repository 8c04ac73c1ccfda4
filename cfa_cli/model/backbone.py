"""The frozen backbone: any timm model, at its own feature maps or at any of its modules."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn

from cfa_cli.config import AUTHORS_LAYERS
from cfa_cli.errors import UsageError, WeightsError
from cfa_cli.model.extractor import extract

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

    Raises WeightsError for an unknown name, a model without feature maps and weights that do not fit; UsageError for
    layers that the model does not have.
    """

    def __init__(
        self, name: str, layers: Sequence[str] | None = None, state_dict: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__()
        check_backbone_name(name)
        model: Any = timm.create_model(name, pretrained=False)
        if not hasattr(model, "forward_intermediates") or not hasattr(model, "prune_intermediate_layers"):
            raise WeightsError(
                f"The backbone {name} offers no feature maps.", "Choose another one, for example resnet18."
            )
        infos = _feature_infos(model)
        wanted = _name_layers(name, model, infos, layers)
        # The statistics that the weights expect of their input: RGB, of values in 0..1.
        self.mean: tuple[float, float, float] = tuple(model.pretrained_cfg["mean"])
        self.std: tuple[float, float, float] = tuple(model.pretrained_cfg["std"])
        self.name = name
        # For each layer which of a graph's outputs are stacked; None: the model's own feature maps are taken.
        self.places: tuple[tuple[int, ...], ...] | None = None
        by_module = {str(info["module"]): i for i, info in enumerate(infos)}
        if all(layer in by_module for layer in wanted):
            self.indices = sorted(by_module[layer] for layer in wanted)
            self.layers = tuple(str(infos[i]["module"]) for i in self.indices)
            self.channels = tuple(int(infos[i]["num_chs"]) for i in self.indices)
            model.prune_intermediate_layers(self.indices, prune_norm=False, prune_head=True)
            self.model = model
        else:
            side = model.pretrained_cfg["input_size"][-1]
            self.model, self.layers, self.channels, self.places = extract(model.eval(), wanted, side)
        if state_dict is not None:
            self.check_weights(state_dict)
            self.model.load_state_dict({key: state_dict[key] for key in self.weights()}, strict=False)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map normalised images (B, 3, H, W) to the chosen maps [(B, C_l, h_l, w_l)], finest first."""
        if self.places is not None:
            outputs = self.model(images)
            return [torch.cat([outputs[i] for i in of_layer], dim=1) for of_layer in self.places]
        return list(self.model.forward_intermediates(images, indices=self.indices, intermediates_only=True))

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


def _feature_infos(model: Any) -> list[dict[str, Any]]:
    infos = model.feature_info
    return list(infos if isinstance(infos, list) else infos.info)


def _name_layers(name: str, model: nn.Module, infos: list[dict[str, Any]], layers: Sequence[str] | None) -> list[str]:
    """Return the names of the modules that `layers` stands for. Raises UsageError."""
    last_of_stride = {int(info["reduction"]): str(info["module"]) for info in infos}
    if layers is not None and tuple(layers) == AUTHORS_LAYERS:
        layers = _AUTHORS.get(name)
    if layers is None:
        chosen = [last_of_stride[stride] for stride in DEFAULT_STRIDES if stride in last_of_stride]
        # Transformers keep one stride throughout: their last three blocks stand in for three scales.
        return chosen if len(chosen) > 1 else [str(info["module"]) for info in infos[-3:]]
    if not layers:
        raise UsageError("No layer of the backbone is named.", "Write for example --layers 4,8,16.")
    by_stride = {str(stride): module for stride, module in last_of_stride.items()}
    known = {*(str(info["module"]) for info in infos), *(path for path, _ in model.named_modules() if path)}
    named = ["+".join(by_stride.get(part, part) for part in layer.split("+")) for layer in layers]
    unknown = [part for layer in named for part in layer.split("+") if part not in known]
    if unknown:
        maps = ", ".join(f"{info['module']} (stride {info['reduction']})" for info in infos)
        raise UsageError(f"{name} has no layer '{unknown[0]}'.", f"Choose from {maps}, or name any other module of it.")
    return list(dict.fromkeys(named))
