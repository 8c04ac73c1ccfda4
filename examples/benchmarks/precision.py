"""Compare number types on labelled data sets; write precision.md's tables (--out).

    python examples/benchmarks/precision.py DATA [--seeds 3] [--device cpu] [--jobs 1]

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
from measuring import Run, measure
from runs import keep_run, open_runs

from cfa_cli import FitConfig
from cfa_cli.config import Precision
from cfa_cli.data.category import Category
from cfa_cli.data.datasets import open_dataset

PRECISIONS: list[Precision] = ["float32", "bfloat16", "int8"]
ROWS = {precision: FitConfig(precision=precision) for precision in PRECISIONS}
METRICS = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro": "AUPRO"}
Job = tuple[str, Category, FitConfig]


def run(job: Job) -> tuple[str, Run]:
    """Fit and measure one row on one data set."""
    key, category, config = job
    torch.set_num_threads(1)
    return key, measure(category, config)


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
    parser.add_argument("--weights", default="embedded")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("precision-work"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    runs: dict[str, Run] = open_runs(options.work)
    categories = open_dataset(str(options.data)).categories
    jobs: list[Job] = []
    for seed in range(options.seeds):
        for category in categories:
            for title, config in ROWS.items():
                key = f"{options.weights} | {title} | {category.name} | {seed}"
                if key not in runs:
                    own = replace(config, weights=options.weights, seed=seed, device=options.device)
                    jobs.append((key, category, own))
    for key, done in run_all(jobs, options.jobs):
        keep_run(options.work, runs, key, done)
    names = [category.name for category in categories]
    found = {
        (title, name): [runs[f"{options.weights} | {title} | {name} | {seed}"] for seed in range(options.seeds)]
        for title in ROWS
        for name in names
    }
    lines = [line for metric in METRICS for line in table(metric, list(ROWS), names, found)]
    if options.out:
        options.out.write_text("\n".join(lines), encoding="utf-8")
    print(json.dumps(runs))


if __name__ == "__main__":
    main()
