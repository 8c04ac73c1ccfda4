"""Study what each part of the default recipe brings, and write recipe.md (--out).

    python examples/benchmarks/recipe.py DATA [--weights embedded --weights random ...] [--every 3] [--rows default ...]

DATA is a folder in MVTec's layout. Each row changes one thing of `--preset default`; each is fitted on good images
alone and measured on the test images, for every category, seed and weights. Finished runs are kept in --work and not
run again. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import timm
import torch
from runs import keep_run, open_runs
from safetensors.torch import save_file

from cfa_cli import FitConfig, fit
from cfa_cli.config import PRESETS
from cfa_cli.data.category import Category
from cfa_cli.data.datasets import open_dataset
from cfa_cli.data.masks import read_mask
from cfa_cli.engine.metrics import PixelMetrics, image_metrics
from cfa_cli.engine.scorer import load_scorer, score_sources
from cfa_cli.geometry import resize_map
from cfa_cli.records import Source

DEFAULT = PRESETS["default"]
ROWS: dict[str, FitConfig] = {
    "default": DEFAULT,
    "the paper, but 5 epochs": replace(PRESETS["paper"], epochs=5),
    "scores not normalised by position": replace(DEFAULT, normalize_positions=False),
    "scores by softmin, K = 3": replace(DEFAULT, score_neighbours=3),
    "bank: mean, 5 epochs": replace(DEFAULT, bank="mean", epochs=5),
    "bank: ema": replace(DEFAULT, bank="ema"),
    "bank: a quarter of the centroids": replace(DEFAULT, gamma_c=4),
    "1 epoch": replace(DEFAULT, epochs=1),
    "3 epochs": replace(DEFAULT, epochs=3),
    "gamma_d 1": replace(DEFAULT, gamma_d=1),
    "gamma_d 4": replace(DEFAULT, gamma_d=4),
    "strides 8 and 16": replace(DEFAULT, layers=("8", "16")),
    "strides 4 and 8": replace(DEFAULT, layers=("4", "8")),
    "224 x 224 px, whatever the aspect": replace(DEFAULT, size=(224, 224)),
    "160 x 160 px": replace(DEFAULT, size=(160, 160)),
    "320 x 320 px": replace(DEFAULT, size=(320, 320)),
    "448 x 448 px": replace(DEFAULT, size=(448, 448)),
    "sigma 8 px": replace(DEFAULT, sigma=8.0),
    "float32 throughout": replace(DEFAULT, precision="float32"),
}
METRICS = ("image_auroc", "image_auroc_top", "pixel_auroc", "aupro")
Run = dict[str, float]


def measure(category: Category, config: FitConfig, every: int) -> Run:
    """Fit on every n-th good image, score every n-th test image, and measure at the masks' own resolution."""
    result = fit(list(category.train[::every]), config)
    bundle, test = result.bundle, category.test[::every]
    scorer, pixels = load_scorer(bundle), PixelMetrics()
    sources = [Source(image.path, image.path.name) for image in test]
    scores, tops, times = [], [], []
    predictions = score_sources(scorer, sources, bundle.calibration, keep_images=True)
    for image, found in zip(test, predictions, strict=True):
        assert found.score is not None, found.error
        scores.append(found.score)
        times.append(found.milliseconds)
        ordered = np.sort(found.score_map, axis=None)
        tops.append(float(ordered[-len(ordered) // 100 :].mean()))
        mask = read_mask(image.mask) if image.mask else None
        height, width = found.image.shape[:2] if mask is None else mask.shape
        pixels.update(resize_map(found.score_map, bundle.geometry, (height, width)), mask)
    labels, curves = [image.anomalous for image in test], pixels.compute()
    return {
        "image_auroc": image_metrics(scores, labels).auroc,
        "image_auroc_top": image_metrics(tops, labels).auroc,
        "pixel_auroc": math.nan if curves.auroc is None else curves.auroc,  # of a data set without masks
        "aupro": math.nan if curves.aupro is None else curves.aupro,
        "fit_s": result.seconds,
        "ms": fmean(times),
    }


def random_weights(folder: Path) -> str:
    """Write an untrained resnet18 as timm draws it; return its path."""
    path = folder / "random.safetensors"
    if not path.exists():
        torch.manual_seed(0)
        save_file(timm.create_model("resnet18").state_dict(), path)
    return str(path)


def cells(runs: list[Run]) -> list[str]:
    """Means and standard deviations over seeds, then mean costs."""
    row = []
    for name in METRICS:
        values = [run[name] for run in runs]
        row.append(f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else ""))
    return [*row, f"{fmean(run['fit_s'] for run in runs):.0f}", f"{fmean(run['ms'] for run in runs):.0f}"]


def main() -> None:
    """Do all runs that are not done, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", action="append", help="embedded, random, or a resnet18 file; several times")
    parser.add_argument("--rows", action="append", help="titles of the rows to run; all without it")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--every", type=int, default=1, help="take every n-th image of each list")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--work", type=Path, default=Path("recipe-work"))
    parser.add_argument("--out", type=Path, default=Path("recipe.md"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    runs: dict[str, Run] = open_runs(options.work)
    categories = open_dataset(str(options.data)).categories
    all_weights = options.weights or ["embedded"]
    titles = options.rows or list(ROWS)
    for seed in range(options.seeds):
        for weights in all_weights:
            file = random_weights(options.work) if weights == "random" else weights
            for title in titles:
                for category in categories:
                    key = f"{weights} | {title} | {category.name} | {seed} | {options.every}"
                    if key not in runs:
                        config = replace(ROWS[title], weights=file, seed=seed)
                        keep_run(options.work, runs, key, measure(category, config, options.every))

    part = f"every {options.every}th image of each list" if options.every > 1 else "all images"
    lines = [
        "# The default recipe: what each part brings",
        "",
        f"resnet18, {part}, {options.seeds} seeds from 0 on (they draw the hold-out, the descriptor, the bank's start",
        "and the order of images), mean ± standard deviation. Each row changes one thing of `--preset default`.",
        "*Top 1 %*: the image AUROC if an image's score were the mean of its map's highest hundredth, not the maximum.",
        "Seconds and milliseconds were taken while other work ran beside: compare them roughly.",
        "",
    ]
    heads = "| | image AUROC | ... top 1 % | pixel AUROC | AUPRO | fit, s | ms/image |"
    for weights in all_weights:
        for category in categories:
            lines += [f"## {category.name}, {Path(weights).stem} weights", "", heads, "|---|---|---|---|---|---:|---:|"]
            for title in titles:
                keys = [f"{weights} | {title} | {category.name} | {seed}" for seed in range(options.seeds)]
                found = [runs[f"{key} | {options.every}"] for key in keys]
                lines.append(f"| {title} | {' | '.join(cells(found))} |")
            lines.append("")
    options.out.write_text("\n".join(lines), encoding="utf-8")
    print(json.dumps(runs))


if __name__ == "__main__":
    main()
