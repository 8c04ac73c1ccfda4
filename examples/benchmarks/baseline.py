"""Study what dividing scores by their position's baseline brings, and write baseline.md (--out).

    python examples/benchmarks/baseline.py DATA [--seed 0 ...] [--backbone NAME --weights FILE] [--out baseline.md]

DATA is a folder of categories in MVTec's layout. A model is fitted to each without a baseline; the scores of its
positions are then divided by baselines of several forms, all from held-out good images. Finished categories are kept
in --work and not run again. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from torch import Tensor, nn

from cfa_cli import Bundle, FitConfig, fit
from cfa_cli.atomic import atomic_path
from cfa_cli.data.category import Category
from cfa_cli.data.datasets import open_dataset
from cfa_cli.data.images import read_image
from cfa_cli.data.masks import read_mask
from cfa_cli.engine.metrics import PixelMetrics, image_metrics
from cfa_cli.engine.network import build_network
from cfa_cli.engine.thresholds import split_holdout
from cfa_cli.geometry import resize_map, to_input
from cfa_cli.model.scoremap import position_baseline

FORMS: dict[str, Callable[[Tensor], Tensor]] = {  # held-out position scores (n, h, w) to a baseline (h, w)
    "none": lambda held: torch.ones_like(held[0]),
    "root of the mean (the default)": lambda held: position_baseline(len(held), held.sum(0)),
    "mean": lambda held: position_baseline(len(held), held.sum(0)).square(),
    "mean and two deviations": lambda held: position_baseline(len(held), _allowance(held).sum(0)).square(),
}
METRICS = ("image_auroc", "pixel_auroc", "aupro")
Row = dict[str, float | None]


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seed", type=int, action="append")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--weights", default="embedded")
    parser.add_argument("--category", action="append", default=[])
    parser.add_argument("--work", type=Path, default=Path("baseline-work"))
    parser.add_argument("--out", type=Path, default=Path("baseline.md"))
    options = parser.parse_args()
    rows: dict[str, dict[str, list[Row]]] = {}  # by category and form: a row a seed
    for seed in options.seed or [0]:
        config = FitConfig(
            backbone=options.backbone, weights=options.weights, seed=seed, normalize_positions=False, epochs=1
        )
        for category in open_dataset(str(options.data), None, options.category).categories:
            kept = options.work / f"{options.backbone}-{Path(options.weights).stem}-{seed}-{category.name}.json"
            found: dict[str, Row] = json.loads(kept.read_text()) if kept.exists() else measure(category, config)
            with atomic_path(kept) as temporary:
                temporary.write_text(json.dumps(found))
            for form, row in found.items():
                rows.setdefault(category.name, {}).setdefault(form, []).append(row)
    title = f"## {options.backbone}, {Path(options.weights).name} weights, seeds {options.seed or [0]}"
    with atomic_path(options.out) as temporary:
        temporary.write_text(table(title, rows))
    print(json.dumps({"out": str(options.out), "categories": list(rows)}))


def measure(category: Category, config: FitConfig) -> dict[str, Row]:
    """Fit on a category's good images and measure each form of the baseline on its test images."""
    bundle = fit(list(category.train), config).bundle
    network = build_network(bundle)
    network.use_quick_search()
    to_map, network.score_map = network.score_map, nn.Identity()  # so that it gives the positions' scores
    _, held = split_holdout(len(category.train), config.holdout, config.seed)
    holdout = torch.cat([_positions(network, bundle, category.train[index]) for index in held])
    positions = [_positions(network, bundle, image.path) for image in category.test]
    sizes = [read_image(image.path).shape[:2] for image in category.test]
    labels = [image.anomalous for image in category.test]
    found: dict[str, Row] = {}
    for form, make in FORMS.items():
        baseline, pixels, scores = make(holdout), PixelMetrics(), []
        for image, scored, size in zip(category.test, positions, sizes, strict=True):
            score_map = to_map(scored / baseline)[0].numpy()
            scores.append(float(score_map.max()))
            if category.has_masks:
                mask = read_mask(image.mask) if image.mask else np.zeros(size, np.uint8)
                pixels.update(resize_map(score_map, bundle.geometry, mask.shape), mask)
        curves = pixels.compute()
        found[form] = {
            "image_auroc": image_metrics(scores, labels).auroc,
            "pixel_auroc": curves.auroc,
            "aupro": curves.aupro,
        }
    return found


def _positions(network: nn.Module, bundle: Bundle, path: Path) -> Tensor:
    with torch.inference_mode():
        _, positions = network(to_input(read_image(path), bundle.geometry)[None])
    return positions


def _allowance(held: Tensor) -> Tensor:
    """What the mean and two deviations come to, as n equal images."""
    return (held.mean(0) + 2 * held.std(0, correction=0)).expand_as(held)


def table(title: str, rows: dict[str, dict[str, list[Row]]]) -> str:
    """Write the means over seeds: a row a category, image AUROC / pixel AUROC / AUPRO by form."""
    lines = [title, "", "| image AUROC / pixel AUROC / AUPRO | " + " | ".join(FORMS) + " |", "|---" * 5 + "|"]
    means: dict[str, list[list[float | None]]] = {form: [] for form in FORMS}
    for category, forms in rows.items():
        cells = []
        for form in FORMS:
            values = [_mean([row[metric] for row in forms[form]]) for metric in METRICS]
            means[form].append(values)
            cells.append(_text(values))
        lines.append(f"| {category} | " + " | ".join(cells) + " |")
    averages = [_text([_mean(list(column)) for column in zip(*means[form], strict=True)]) for form in FORMS]
    return "\n".join([*lines, "| **mean** | " + " | ".join(averages) + " |", ""])


def _mean(values: list[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return fmean(there) if there else None


def _text(values: list[float | None]) -> str:
    return " / ".join("–" if value is None else f"{value:.3f}" for value in values)


if __name__ == "__main__":
    main()
