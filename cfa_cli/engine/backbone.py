"""A backbone with the weights that a configuration names, ready to compute."""

from __future__ import annotations

from collections.abc import Callable

import torch

from cfa_cli.config import FitConfig, backbone_names
from cfa_cli.model.backbone import check_backbone_name
from cfa_cli.model.joined import AnyBackbone, make_backbone
from cfa_cli.records import BackboneInfo
from cfa_cli.weights.loading import load_weights, specs_of


def load_backbone(config: FitConfig, notify: Callable[[str], None]) -> tuple[AnyBackbone, BackboneInfo]:
    """Build the backbone with the weights that `config` names. Raises WeightsError, and UsageError for its layers."""
    names = backbone_names(config.backbone)
    for name in names:
        check_backbone_name(name)
    specs = specs_of(config.weights, config.backbone)
    weights = [load_weights(spec, name, notify) for spec, name in zip(specs, names, strict=True)]
    with torch.random.fork_rng(devices=[]):  # timm draws weights first, which are replaced
        backbone = make_backbone(config.backbone, config.layers, [each.state_dict for each in weights])
    backbone.stride = config.stride
    info = BackboneInfo(
        config.backbone,
        backbone.layers,
        " + ".join(each.origin for each in weights),
        "+".join(each.sha256 for each in weights),
        " ".join(dict.fromkeys(each.warning for each in weights if each.warning)) or None,
    )
    return backbone, info
