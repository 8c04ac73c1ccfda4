"""Compare number types, and what else makes a model quicker, on labelled data sets; write precision.md (--out).

    python examples/benchmarks/precision.py DATA [--study precision|fast] [--seeds 3] [--device cpu] [--jobs 1]

DATA is a folder of data sets in MVTec's layout. Each row is fitted on good images alone and measured on the test
images. Finished runs are kept in --work and not run again. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import torch
from recipe import DEFAULT, Run, measure
from runs import keep_run, open_runs

from cfa_cli import FitConfig
from cfa_cli.config import PRESETS
from cfa_cli.data.category import Category
from cfa_cli.data.datasets import open_dataset
from cfa_cli.engine.reading import sample_sizes
from cfa_cli.geometry import auto_size

FAST = PRESETS["fast"]
STUDIES: dict[str, dict[str, FitConfig]] = {
    "precision": {precision: replace(DEFAULT, precision=precision) for precision in ("float32", "bfloat16", "int8")},
    "fast": {
        "default": DEFAULT,
        "224² px": DEFAULT,
        "160² px": DEFAULT,
        "gamma_c 8": replace(DEFAULT, gamma_c=8),
        "strides 8 and 16": FAST,
        "strides 8 and 16, gamma_d 4": replace(FAST, gamma_d=4),
        "strides 8 and 16, gamma_c 2": replace(FAST, gamma_c=2),
        "strides 8 and 16, 224² px": FAST,
        "strides 8 and 16, 256² px": FAST,
        "strides 8 and 16, 384² px": FAST,
        "stride 8": replace(DEFAULT, layers=("8",)),
    },
}
METRICS = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro": "AUPRO"}
Job = tuple[str, Category, FitConfig]


def configured(title: str, config: FitConfig, category: Category) -> FitConfig:
    """Return a row's configuration, with the input's size in the images' aspect where the title names a side."""
    sides = [int(word.removesuffix("²")) for word in title.split() if word.endswith("²")]
    if not sides:
        return config
    area = sides[0] ** 2
    return replace(config, size=auto_size(sample_sizes(category.train), (area, area)))


def run(job: Job) -> tuple[str, Run]:
    """Fit and measure one row on one data set."""
    key, category, config = job
    torch.set_num_threads(1)
    return key, measure(category, config, every=1)


def run_all(jobs: list[Job], processes: int) -> Iterable[tuple[str, Run]]:
    """Do jobs side by side, and yield each when it is done."""
    if processes == 1:
        yield from map(run, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(processes, maxtasksperchild=4) as pool:
        yield from pool.imap_unordered(run, jobs)


def table(name: str, rows: list[str], categories: list[str], found: dict[tuple[str, str], list[Run]]) -> list[str]:
    """A metric of every row on every data set that has it, and its mean; with seeds' standard deviations."""
    known = [each for each in categories if not math.isnan(found[rows[0], each][0][name])]
    lines = [f"| {METRICS[name]} | {' | '.join(known)} | **mean** |", f"|---|{'---:|' * (len(known) + 1)}"]
    for title in rows:
        cells = []
        for category in known:
            values = [run[name] for run in found[title, category]]
            cells.append(f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else ""))
        mean = fmean(run[name] for category in known for run in found[title, category])
        lines.append(f"| {title} | {' | '.join(cells)} | **{mean:.4f}** |")
    return [*lines, ""]


def main() -> None:
    """Do all runs that are not done, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--study", choices=list(STUDIES), default="precision")
    parser.add_argument("--weights", default="embedded")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("precision-work"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    runs: dict[str, Run] = open_runs(options.work)
    rows, categories = STUDIES[options.study], open_dataset(str(options.data)).categories
    jobs: list[Job] = []
    for seed in range(options.seeds):
        for category in categories:
            for title, config in rows.items():
                key = f"{options.weights} | {title} | {category.name} | {seed}"
                if key not in runs:
                    own = replace(config, weights=options.weights, seed=seed, device=options.device)
                    jobs.append((key, category, configured(title, own, category)))
    for key, done in run_all(jobs, options.jobs):
        keep_run(options.work, runs, key, done)
    names = [category.name for category in categories]
    found = {
        (title, name): [runs[f"{options.weights} | {title} | {name} | {seed}"] for seed in range(options.seeds)]
        for title in rows
        for name in names
    }
    lines = [line for metric in METRICS for line in table(metric, list(rows), names, found)]
    if options.out:
        options.out.write_text("\n".join(lines), encoding="utf-8")
    print(json.dumps(runs))


if __name__ == "__main__":
    main()
