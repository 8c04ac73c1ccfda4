"""What studies share: to fit and measure a recipe on a data set, and untrained weights."""

from __future__ import annotations

import math
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

from cfa_cli import FitConfig, fit
from cfa_cli.data.category import Category
from cfa_cli.data.masks import read_mask
from cfa_cli.engine.metrics import PixelMetrics, image_metrics
from cfa_cli.engine.scorer import load_scorer, score_sources
from cfa_cli.geometry import resize_map
from cfa_cli.records import Source

Run = dict[str, float]


def measure(category: Category, config: FitConfig) -> Run:
    """Fit on the good images, score the test images, and measure at the masks' own resolution; NaN without masks."""
    bundle, test = fit(list(category.train), config).bundle, category.test
    scorer, pixels = load_scorer(bundle), PixelMetrics()
    sources = [Source(image.path, image.path.name) for image in test]
    scores = []
    predictions = score_sources(scorer, sources, bundle.calibration, keep_images=True)
    for image, found in zip(test, predictions, strict=True):
        assert found.score is not None, found.error
        scores.append(found.score)
        mask = read_mask(image.mask) if image.mask else None
        height, width = found.image.shape[:2] if mask is None else mask.shape
        pixels.update(resize_map(found.score_map, bundle.geometry, (height, width)), mask)
    curves = pixels.compute()
    return {
        "image_auroc": image_metrics(scores, [image.anomalous for image in test]).auroc,
        "pixel_auroc": math.nan if curves.auroc is None else curves.auroc,
        "aupro": math.nan if curves.aupro is None else curves.aupro,
    }


def random_weights(folder: Path) -> str:
    """Write an untrained resnet18 as timm draws it; return its path."""
    path = folder / "random.safetensors"
    if not path.exists():
        torch.manual_seed(0)
        save_file(timm.create_model("resnet18").state_dict(), path)
    return str(path)
