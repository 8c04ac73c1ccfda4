"""Small models for the tests of exporting: random weights, few images."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch

from cfa_cli import FitConfig, fit, save_bundle
from cfa_cli.model.backbone import Backbone


def random_weights(name: str) -> dict[str, torch.Tensor]:
    """Make a backbone's state dict: random, with the normalisation's statistics taken from noise.

    Without those, deep networks' outputs hardly depend on the image, and their differences drown in rounding.
    """
    torch.manual_seed(0)
    backbone = Backbone(name)
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.train()
            module.momentum = 1.0
    with torch.no_grad():
        backbone(torch.randn(4, 3, 96, 96))
    return backbone.weights()


def write_image(path: Path, image: np.ndarray) -> None:
    """Write an image and the folder it is in."""
    path.parent.mkdir(exist_ok=True)
    cv2.imwrite(str(path), image)


def make_bundle(path: Path, ignore: Path | None = None, **config: object) -> Path:
    """Fit a model to six noisy images (46 x 60 px) for one epoch, write it to `path`, and return that."""
    good = path.parent / "good"
    rng = np.random.default_rng(0)
    for number in range(6):
        image = rng.normal(120, 30, (46, 60, 3)).clip(0, 255).astype(np.uint8)
        write_image(good / f"{number}.png", image)
    options = FitConfig(**{"size": (64, 96), "epochs": 1, "precision": "float32", **config})
    weights = path.with_suffix(".pth")
    torch.save(random_weights(options.backbone), weights)
    result = fit(good, FitConfig(**{**vars(options), "weights": str(weights)}), ignore=ignore)
    save_bundle(result.bundle, path, force=True)
    return path
