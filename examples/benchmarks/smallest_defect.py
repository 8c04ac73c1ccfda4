"""Measure the smallest defect that is found, by the size of the network's input, and write smallest_defect.md (--out).

    python examples/benchmarks/smallest_defect.py [--source 2048] [--sizes 224 512 1024] [--train 12] [--images 20]

Parts are drawn (drawn.py), source x source px. Each defective image has four squares or four scratches, one of each
size, at one contrast and far from each other; a scratch has the area of the square of its size. A defect is found if
the score map's peak at it lies over the score that at most 5 % of good images lie over. The last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from pathlib import Path

import cv2
import numpy as np
from drawn import Defect, add_defects, draw_defects, draw_plate, to_pixels

from cfa_cli import FitConfig, fit
from cfa_cli.engine.scorer import NetworkScorer, load_scorer

SHAPES, DEFECTS, CONTRASTS = ("square", "scratch"), (4, 8, 16, 32), (0.10, 0.25)  # DEFECTS in px of the source
FALSE_ALARMS = 0.05  # of good images
AROUND = 12  # px of the input about a defect that count as its place: three sigma of the score map's Gaussian
Found = dict[str, dict[str, float]]  # "1024" -> "square, 10 %, 8 px" -> recall


def train(sizes: list[int], source: int, count: int) -> dict[int, NetworkScorer]:
    """Fit a model for each size of the input on the same drawn parts."""
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(count):
            cv2.imwrite(f"{folder}/{seed}.png", to_pixels(draw_plate(seed, (source, source))))
        configs = {size: FitConfig(weights="embedded", size=(size, size)) for size in sizes}
        return {size: load_scorer(fit(folder, config).bundle) for size, config in configs.items()}


def score(scorer: NetworkScorer, image: np.ndarray) -> tuple[float, np.ndarray]:
    """Score one grey image: its score, and its map at the input's size."""
    scores, maps = scorer(scorer.prepare(np.stack([to_pixels(image)] * 3, axis=-1))[None])
    return float(scores[0]), maps[0]


def peak_at(score_map: np.ndarray, defect: Defect, source: int) -> float:
    """The map's highest value where a defect lies."""
    scale = len(score_map) / source
    reach = AROUND + scale * defect.size * (2 if defect.shape == "scratch" else 0.5)
    rows, columns = (
        slice(max(0, round(centre * scale - reach)), round(centre * scale + reach) + 1)
        for centre in (defect.row, defect.column)
    )
    return float(score_map[rows, columns].max())


def measure(scorers: dict[int, NetworkScorer], source: int, first: int, images: int) -> Found:
    """Recall of each kind of defect, of models for several sizes."""
    seeds = itertools.count(first)
    good_scores: dict[int, list[float]] = {size: [] for size in scorers}
    for _ in range(images):
        image = draw_plate(next(seeds), (source, source))
        for size, scorer in scorers.items():
            good_scores[size].append(score(scorer, image)[0])
    thresholds = {size: sorted(each)[-1 - int(FALSE_ALARMS * images)] for size, each in good_scores.items()}
    hits: dict[int, dict[str, list[bool]]] = {size: {} for size in scorers}
    for shape, contrast in itertools.product(SHAPES, CONTRASTS):
        marks = [(shape, each, contrast) for each in DEFECTS]
        for _ in range(images):
            seed = next(seeds)
            defects = draw_defects(seed, (source, source), marks)
            image, _ = add_defects(draw_plate(seed, (source, source)), defects)
            for size, scorer in scorers.items():
                _, score_map = score(scorer, image)
                for defect in defects:
                    found = peak_at(score_map, defect, source) > thresholds[size]
                    hits[size].setdefault(kind(shape, contrast, defect.size), []).append(found)
        print(
            shape,
            contrast,
            {size: {name: sum(each) for name, each in of.items()} for size, of in hits.items()},
            flush=True,
        )
    return {str(size): {name: sum(each) / images for name, each in of.items()} for size, of in hits.items()}


def kind(shape: str, contrast: float, size: float) -> str:
    """A kind of defect in words."""
    return f"{shape}, {contrast:.0%}, {size:g} px"


def tables(found: Found, source: int) -> list[str]:
    """A markdown table for each shape and contrast: recall by the defect's size and the input's."""
    lines = []
    for shape, contrast in itertools.product(SHAPES, CONTRASTS):
        lines += [f"## {shape.capitalize()}, contrast {contrast:.0%}", ""]
        lines += [f"| input, px | {' | '.join(f'{each} px' for each in DEFECTS)} |", f"|---|{'---:|' * len(DEFECTS)}"]
        for size, recall in found.items():
            cells = " | ".join(f"{recall[kind(shape, contrast, each)]:.0%}" for each in DEFECTS)
            lines.append(f"| {size} (1 px is {source / int(size):.3g} px of the source) | {cells} |")
        lines.append("")
    return lines


def main() -> None:
    """Measure all and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=int, default=2048, help="px a side of the drawn images")
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 512, 1024])
    parser.add_argument("--train", type=int, default=12)
    parser.add_argument(
        "--images", type=int, default=20, help="good ones, and defective ones for each shape and contrast"
    )
    parser.add_argument("--out", type=Path, default=Path("smallest_defect.md"))
    options = parser.parse_args()
    scorers = train(options.sizes, options.source, options.train)
    found = measure(scorers, options.source, options.train, options.images)
    lines = [
        "# The smallest defect that is found",
        "",
        f"Drawn metal plates, {options.source} x {options.source} px; {options.train} to train on, embedded weights,",
        f"`--preset default`. Recall: the share of defects over the score that at most {FALSE_ALARMS:.0%} of",
        f"{options.images} good images lie over; {options.images} defective images for each shape and contrast.",
        "Sizes of defects are px of the source; a scratch is four times as long as its size, and a quarter as wide.",
        "",
        *tables(found, options.source),
    ]
    options.out.write_text("\n".join(lines), encoding="utf-8")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
