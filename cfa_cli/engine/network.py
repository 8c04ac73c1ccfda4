"""A bundle's network, rebuilt from its tensors."""

from __future__ import annotations

import torch

from cfa_cli.bundle import MAX_REASON
from cfa_cli.errors import BundleError, CfaError
from cfa_cli.model.backbone import Backbone
from cfa_cli.model.descriptor import Descriptor
from cfa_cli.model.joined import make_backbone, restore_backbone
from cfa_cli.model.network import Network
from cfa_cli.model.tiles import level_shapes
from cfa_cli.records import Bundle
from cfa_cli.text import printable


def build_network(bundle: Bundle) -> Network:
    """Rebuild a bundle's network, in float32 on the CPU. Raises BundleError if its tensors do not fit together."""
    tensors = {name: torch.from_numpy(tensor) for name, tensor in bundle.tensors.items()}
    weights = {n.removeprefix("backbone."): t for n, t in tensors.items() if n.startswith("backbone.")}
    info, input_size = bundle.backbone, bundle.geometry.input_size
    try:
        with torch.device("meta"):  # shapes alone: any timm model may be named, and none is made that the file is not
            outline = make_backbone(info.name, info.layers, None)
            outline.check_weights(weights)
            outline.stride = bundle.config.stride
            shapes = level_shapes(outline, input_size)
        backbone = restore_backbone(info.name, info.layers, weights)
        backbone.stride = bundle.config.stride
    except CfaError as error:
        raise _misfit(f"its backbone cannot be rebuilt: {error.message.rstrip('.')}") from error
    except (AssertionError, RuntimeError, ValueError) as error:  # timm's, for an input of this size
        raise _misfit(f"its backbone {info.name} does not take images of {input_size} px") from error
    expected = (len(tensors["descriptor.bias"]), sum(backbone.channels) + 2, 1, 1)
    if (found := tuple(tensors["descriptor.weight"].shape)) != expected:
        raise _misfit(f"descriptor.weight has shape {found}, expected {expected}")
    count = backbone.range_count if isinstance(backbone, Backbone) else 0
    if "ranges" in tensors and tensors["ranges"].shape != (count,):
        raise _misfit(f"ranges has shape {tuple(tensors['ranges'].shape)}, expected {(count,)}")
    if (grid := shapes[0][1:]) != bundle.grid:
        raise _misfit(f"its grid is {bundle.grid}, expected {grid}")
    descriptor = Descriptor(backbone.channels, expected[0])
    descriptor.load_state_dict({"weight": tensors["descriptor.weight"], "bias": tensors["descriptor.bias"]})
    descriptor.requires_grad_(False)
    config, geometry = bundle.config, bundle.geometry
    return Network(
        backbone,
        descriptor,
        tensors["bank"],
        tensors["baseline"],
        geometry.input_size,
        config.score_neighbours,
        config.sigma,
        tensors.get("keep"),
    )


def _misfit(reason: str) -> BundleError:
    return BundleError(f"The model is damaged: {printable(reason, MAX_REASON)}.", "Fit the model again.")
