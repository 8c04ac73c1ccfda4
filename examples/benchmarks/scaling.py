"""Measure how cfa's cost grows, and write scaling.md and scaling.svg into --out. Needs matplotlib.

    python examples/benchmarks/scaling.py IMAGES [--counts 100 1000 10000] [--weights embedded] [--out FOLDER]

IMAGES is a folder of good images, which are scored over and over for the larger counts. The network's input goes from
128 to 1024 px with gamma_c such that the bank stays at about 3,000 centroids; then D and M vary at 224 px.
Times are cfa's own, without the start of Python; peak memory is the process's. The last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from speed import describe_machine, run_json, words

HERE = Path(__file__).resolve().parent
TRAINED_ON = 12  # images: the cost of fit is given per image and epoch
TITLES = {
    "images": "Number of images (predict)",
    "size": "Size of the network's input, px",
    "gamma_d": "Descriptor channels D = C / gamma_d",
    "gamma_c": "Centroids M = h*w / gamma_c",
}
SIZES = (128, 224, 320, 512, 768, 1024)
Point = dict[str, float]


def run(*arguments: object) -> tuple[dict[str, Any], float]:
    """Run cfa; return its JSON document and its peak memory in MB."""
    return run_json(words(*arguments))


def repeat(images: list[Path], count: int, folder: Path) -> Path:
    """A folder of `count` links to the images."""
    folder.mkdir(parents=True)
    for number, image in enumerate(itertools.islice(itertools.cycle(images), count)):
        (folder / f"{number:06d}{image.suffix}").symlink_to(image.resolve())
    return folder


def measure(images: list[Path], weights: str, work: Path, *options: object) -> Point:
    """Fit one epoch on a few images, and score them twice over."""
    folder = repeat(images, TRAINED_ON, work / "few")
    model = work / "model.safetensors"
    fitted, fit_peak = run("fit", folder, "--preset", "paper", "--weights", weights, "--out", model, *options)
    scored, peak = run("predict", repeat(images, 48, work / "more"), "--model", model, "--out", work / "out")
    bank, descriptor = fitted["tensors"]["bank"], fitted["tensors"]["descriptor.weight"]
    return {
        "M": bank[0],
        "D": descriptor[0],
        "fit_s": fitted["seconds"],
        "fit_peak_MB": fit_peak,
        "predict_ms": 1000 * scored["seconds"] / scored["images"],
        "predict_peak_MB": peak,
    }


def count_images(images: list[Path], weights: str, work: Path, counts: list[int]) -> list[Point]:
    """Score more and more images with one model."""
    folder, model = repeat(images, TRAINED_ON, work / "few"), work / "model.safetensors"
    run("fit", folder, "--preset", "paper", "--epochs", 1, "--weights", weights, "--out", model)
    points = []
    for count in counts:
        many = repeat(images, count, work / str(count))
        scored, peak = run("predict", many, "--model", model, "--out", work / f"out{count}", "--save", "none")
        points.append({"images": count, "predict_ms": 1000 * scored["seconds"] / count, "predict_peak_MB": peak})
    return points


def significant(value: float) -> str:
    """Two digits and all that stand before the point."""
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def table(title: str, points: list[Point]) -> list[str]:
    """A markdown table of points."""
    names = list(points[0])
    rows = [f"| {' | '.join(significant(point[name]) for name in names)} |" for point in points]
    return [f"## {title}", "", f"| {' | '.join(names)} |", f"|{'---|' * len(names)}", *rows, ""]


def plot(found: dict[str, list[Point]], out: Path) -> None:
    """Draw time (above) and memory (below) over each variable."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator, NullLocator

    curves = {
        "time": {"predict_ms": "predict, ms an image", "fit_s": "fit, s"},
        "peak memory, MB": {"predict_peak_MB": "predict", "fit_peak_MB": "fit"},
    }
    figure, axes = plt.subplots(2, len(found), figsize=(3.6 * len(found), 6), sharex="col", constrained_layout=True)
    for column, (name, points) in enumerate(found.items()):
        x = [point[name] for point in points]
        for axis, (label, lines) in zip(axes[:, column], curves.items(), strict=True):
            for key, title in lines.items():
                if key in points[0]:
                    axis.plot(x, [point[key] for point in points], marker="o", label=title)
            axis.set(xscale="log", yscale="log", ylabel=label)
            axis.set_xticks(x, [f"{value:.0f}" for value in x], fontsize=8)
            axis.xaxis.set_minor_locator(NullLocator())
            low, high = axis.get_ylim()
            axis.set_ylim(low / 2, high * 2)  # what hardly changes shall look so
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_locator(NullLocator())
            axis.grid(alpha=0.3)
            axis.legend(fontsize=8)
        axes[0, column].set_title(TITLES[name], fontsize=10)
        axes[1, column].set_xlabel(name)
    figure.savefig(out)


def main() -> None:
    """Measure all and write the tables and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--counts", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--weights", default="embedded")
    parser.add_argument("--out", type=Path, default=HERE)
    options = parser.parse_args()
    images = sorted(path for path in options.images.rglob("*") if path.is_file())
    found: dict[str, list[Point]] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        found["images"] = count_images(images, options.weights, work / "count", options.counts)
        for name, values, option in [
            ("size", SIZES, lambda s: ("--size", s, "--gamma-c", max(1, round((s / 224) ** 2)))),
            ("gamma_d", (1, 2, 4), lambda g: ("--gamma-d", g)),
            ("gamma_c", (1, 4, 16), lambda g: ("--gamma-c", g)),
        ]:
            for value in values:
                point = measure(images, options.weights, work / f"{name}{value}", "--epochs", 1, *option(value))
                found.setdefault(name, []).append({name: value, **point})
                print(found[name][-1], file=sys.stderr, flush=True)
    lines = [
        "# How the cost grows",
        "",
        f"`--preset paper`; fit: {TRAINED_ON} images, 1 epoch, all included. {describe_machine()}, of which "
        f"{torch.get_num_threads()} in use; torch {torch.__version__}.",
        "",
    ]
    for name, points in found.items():
        lines += table(TITLES[name], points)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "scaling.md").write_text("\n".join([*lines, "![Time and memory](scaling.svg)", ""]))
    plot(found, options.out / "scaling.svg")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
