"""Compare sizes of the network's input on labelled data sets, and write size.md (--out).

    python examples/benchmarks/size.py DATA [--sides 224 320 448] [--most 40] [--seeds 1]

DATA is a folder of data sets in MVTec's layout. A side of 224 stands for 224 x 224 px in the images' aspect, as
`--size auto` has it. Each run is fitted on good images alone and measured on the test images. Finished runs are kept
in --work and not run again. Costs are seconds of the processor (user and system), which other work beside hardly
changes. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TypeVar

from recipe import DEFAULT, Run, measure
from runs import keep_run, open_runs

from cfa_cli.data.category import Category
from cfa_cli.data.datasets import open_dataset
from cfa_cli.engine.reading import sample_sizes
from cfa_cli.geometry import auto_size

Image = TypeVar("Image")
METRICS = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro": "AUPRO"}


def spread(images: Sequence[Image], most: int) -> tuple[Image, ...]:
    """At most so many of them, spread evenly."""
    return tuple(images[:: -(-len(images) // most)])


def run(category: Category, side: int, seed: int) -> Run:
    """Fit and measure one category at one size."""
    size = auto_size(sample_sizes(category.train), (side * side, side * side))
    start = time.process_time()
    found = measure(category, replace(DEFAULT, weights="embedded", size=size, seed=seed), every=1)
    return found | {"cpu_s": time.process_time() - start}


def table(
    name: str, title: str, sides: list[int], categories: list[str], runs: dict[tuple[str, int], Run], digits: int = 3
) -> str:
    """A metric of every category at every size, and the mean over categories."""
    heads = " | ".join(f"{side}²" for side in sides)
    lines = [f"| {title} | {heads} |", f"|---|{'---:|' * len(sides)}"]
    known = [each for each in categories if runs[each, sides[0]][name] == runs[each, sides[0]][name]]  # not NaN
    for category in known:
        lines.append(f"| {category} | {' | '.join(f'{runs[category, side][name]:.{digits}f}' for side in sides)} |")
    means = [fmean(runs[category, side][name] for category in known) for side in sides]
    lines.append(f"| **mean** | {' | '.join(f'**{mean:.{digits}f}**' for mean in means)} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Do all runs that are not done, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--categories", nargs="+", default=[], help="all without it")
    parser.add_argument("--sides", type=int, nargs="+", default=[224, 320, 448])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--most", type=int, default=1000, help="images of each list that are taken, spread evenly")
    parser.add_argument("--work", type=Path, default=Path("size-work"))
    parser.add_argument("--out", type=Path, default=Path("size.md"))
    options = parser.parse_args()
    runs: dict[str, Run] = open_runs(options.work)
    categories = [
        replace(each, train=spread(each.train, options.most), test=spread(each.test, options.most))
        for each in open_dataset(str(options.data), categories=options.categories).categories
    ]
    wanted = {
        (category.name, side): [f"{category.name} | {side} | {seed} | {options.most}" for seed in range(options.seeds)]
        for category in categories
        for side in options.sides
    }
    by_name = {category.name: category for category in categories}
    for (name, side), keys in wanted.items():
        for seed, key in enumerate(keys):
            if key not in runs:
                keep_run(options.work, runs, key, run(by_name[name], side, seed))
    means = {
        place: {metric: fmean(runs[key][metric] for key in keys) for metric in (*METRICS, "cpu_s")}
        for place, keys in wanted.items()
    }
    part = f"at most {options.most} images of each list"
    lines = [
        "# The size of the network's input",
        "",
        f"`--preset default`, embedded weights, {part}, {options.seeds} seed(s). 224² stands for 224 x 224 px in the",
        "images' aspect; `--size auto` has about 320².",
        "",
        *(table(metric, title, options.sides, list(by_name), means) for metric, title in METRICS.items()),
        "Scoring costs in proportion to the pixels, twice as much at 320² as at 224² and four times at 448². Where",
        "defects are small and time allows, a larger `--size` may pay: some gain much, some lose.",
        "",
        "Processor time of fit, prediction and metrics together:",
        "",
        table("cpu_s", "CPU, s", options.sides, list(by_name), means, digits=0),
    ]
    options.out.write_text("\n".join(lines), encoding="utf-8")
    print(json.dumps(runs))


if __name__ == "__main__":
    main()
