"""The frozen backbone: any timm model with feature maps."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import timm
from torch import Tensor, nn

from cfa_cli.errors import UsageError, WeightsError

DEFAULT_STRIDES = (4, 8, 16)


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
    layers: strides ("8") or module names ("layer2"); None takes strides 4, 8 and 16, the last map of each.
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
        self.indices = _choose_layers(name, infos, layers)
        self.name = name
        self.layers = tuple(infos[i]["module"] for i in self.indices)
        self.channels = tuple(int(infos[i]["num_chs"]) for i in self.indices)
        # The statistics that the weights expect of their input: RGB, of values in 0..1.
        self.mean: tuple[float, float, float] = tuple(model.pretrained_cfg["mean"])
        self.std: tuple[float, float, float] = tuple(model.pretrained_cfg["std"])
        model.prune_intermediate_layers(self.indices, prune_norm=False, prune_head=True)
        self.model = model
        if state_dict is not None:
            self.check_weights(state_dict)
            self.model.load_state_dict({key: state_dict[key] for key in self.weights()}, strict=False)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map normalised images (B, 3, H, W) to the chosen maps [(B, C_l, h_l, w_l)], finest first."""
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


def _choose_layers(name: str, infos: list[dict[str, Any]], layers: Sequence[str] | None) -> list[int]:
    last_of_stride = {int(info["reduction"]): i for i, info in enumerate(infos)}
    if layers is None:
        chosen = [last_of_stride[s] for s in DEFAULT_STRIDES if s in last_of_stride]
        # Transformers keep one stride throughout: their last three blocks stand in for three scales.
        return chosen if len(chosen) > 1 else list(range(len(infos)))[-3:]
    if not layers:
        raise UsageError("No layer of the backbone is named.", "Write for example --layers 4,8,16.")
    by_name = {str(info["module"]): i for i, info in enumerate(infos)}
    by_name |= {str(stride): i for stride, i in last_of_stride.items()}
    unknown = [layer for layer in layers if layer not in by_name]
    if unknown:
        known = ", ".join(f"{info['module']} (stride {info['reduction']})" for info in infos)
        raise UsageError(f"{name} has no layer '{unknown[0]}'.", f"Choose from {known}.")
    return sorted({by_name[layer] for layer in layers})
