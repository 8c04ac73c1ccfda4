"""Any module's output as a feature map: the part of a model that computes it, as a graph of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import timm
import torch
from torch import fx, nn
from torch.func import functional_call
from torchvision.models.feature_extraction import create_feature_extractor

from cfa_cli.errors import UsageError


class Extraction(NamedTuple):
    """The part of a model that leads to some of its modules."""

    graph: fx.GraphModule  # images -> the modules' outputs; its tensors have the model's own names
    layers: tuple[str, ...]  # "layer1", or "layer1.0+layer1.1" for maps that are stacked; finest first
    channels: tuple[int, ...]  # of each layer
    places: tuple[tuple[int, ...], ...]  # for each layer, which of the graph's outputs are stacked


def extract(model: nn.Module, layers: Sequence[str], side: int) -> Extraction:
    """Take the part of `model` that leads to modules, by name; `a+b` stacks the channels of two.

    side: px of a square image that the model takes.

    Raises UsageError where a module gives no map (B, C, h, w), where stacked maps differ in size, and where the model
    cannot be taken apart.
    """
    names = list(dict.fromkeys(name for layer in layers for name in layer.split("+")))
    try:
        graph = _graph(model, names)
        shapes = dict(zip(names, map_shapes(graph, (side, side)), strict=True))
    except Exception as error:  # the tracer meets the model's own code
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"The layers {', '.join(names)} cannot be taken out of this backbone: {reason.rstrip('.')}.",
            "Choose other layers, by their strides for example.",
        ) from error
    for name, shape in shapes.items():
        if len(shape) != 4 or shape[2] != shape[3]:  # of a square image; some transformers have channels last
            raise UsageError(f"The layer {name} gives no feature map: its output is {shape}.", "Choose another layer.")
    sides = {layer: {shapes[name][2] for name in layer.split("+")} for layer in layers}
    if uneven := next((layer for layer, found in sides.items() if len(found) > 1), None):
        raise UsageError(f"The maps of {uneven} differ in size.", "Write a comma between them.")
    ordered = tuple(sorted(sides, key=lambda layer: -max(sides[layer])))
    return Extraction(
        graph,
        ordered,
        tuple(sum(shapes[name][1] for name in layer.split("+")) for layer in ordered),
        tuple(tuple(names.index(name) for name in layer.split("+")) for layer in ordered),
    )


def map_shapes(module: nn.Module, input_size: tuple[int, int]) -> list[tuple[int, ...]]:
    """Return the shapes of what a module makes of one image of (height, width) px; nothing is computed."""
    with torch.device("meta"):
        weightless = {name: torch.empty(tensor.shape) for name, tensor in module.state_dict().items()}
        maps = functional_call(module, weightless, torch.empty(1, 3, *input_size))
    return [tuple(each.shape) for each in maps]


def _graph(model: nn.Module, names: Sequence[str]) -> fx.GraphModule:
    """Trace a model up to modules: images -> their outputs, in the order of `names`."""
    leaves = {
        "leaf_modules": timm.models.get_notrace_modules(),  # type: ignore[no-untyped-call]
        "autowrap_functions": timm.models.get_notrace_functions(),  # type: ignore[no-untyped-call]
    }
    traced = create_feature_extractor(
        model, return_nodes=list(names), tracer_kwargs=leaves, suppress_diff_warning=True
    ).eval()
    (output,) = traced.graph.find_nodes(op="output")
    by_name = output.args[0]
    copies = []
    for name in names:
        with traced.graph.inserting_after(by_name[name]):  # what follows may work in place
            copies.append(traced.graph.call_method("clone", (by_name[name],)))
    output.args = (tuple(copies),)
    graph = fx.GraphModule(traced, traced.graph)
    if strange := set(graph.state_dict()) - set(model.state_dict()):
        raise ValueError(f"they need {min(strange)}, which is no part of its weights")
    return graph
