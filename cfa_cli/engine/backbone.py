"""A backbone with the weights that a configuration names, ready to compute."""

from __future__ import annotations

from collections.abc import Callable

import torch

from cfa_cli.config import FitConfig
from cfa_cli.model.backbone import Backbone, check_backbone_name
from cfa_cli.records import BackboneInfo
from cfa_cli.weights.loading import load_weights


def load_backbone(config: FitConfig, notify: Callable[[str], None]) -> tuple[Backbone, BackboneInfo]:
    """Build the backbone with the weights that `config` names. Raises WeightsError, and UsageError for its layers."""
    check_backbone_name(config.backbone)
    weights = load_weights(config.weights, config.backbone, notify)
    with torch.random.fork_rng(devices=[]):  # timm draws weights first, which are replaced
        backbone = Backbone(config.backbone, config.layers, weights.state_dict)
    info = BackboneInfo(config.backbone, backbone.layers, weights.origin, weights.sha256, weights.warning)
    return backbone, info
