"""Measure how cfa's cost grows, and write scaling.md and scaling.svg into --out.

    python examples/benchmarks/scaling.py IMAGES [--counts 100 1000 10000] [--weights embedded] [--out FOLDER]

IMAGES is a folder of good images, which are scored over and over for the larger counts. The network's input goes from
128 to 1024 px with gamma_c such that the bank stays at about 3,000 centroids; then D and M vary at 224 px.
Times are cfa's own, without the start of Python; peak memory is the process's. The last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from speed import describe_machine, run_json, words

HERE = Path(__file__).resolve().parent
LARGE = "The images' own size up to 50 megapixels: [large images](large.md)."
TRAINED_ON = 12  # images: the cost of fit is given per image and epoch
TITLES = {
    "images": "Number of images (predict)",
    "size": "Size of the network's input, px",
    "gamma_d": "Descriptor channels D = C / gamma_d",
    "gamma_c": "Centroids M = h*w / gamma_c",
}
CURVES = {
    "time": {"predict_ms": "predict, ms an image", "fit_s": "fit, s"},
    "peak memory, MB": {"predict_peak_MB": "predict", "fit_peak_MB": "fit"},
}
WIDTH, HEIGHT = 220, 160  # of one plot, px
COLOURS = ("#1f77b4", "#c2570c")
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


def ticks(low: float, high: float) -> list[float]:
    """Round numbers within a logarithmic axis; over many decades the powers of ten alone."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    leads = (1, 2, 5) if high / low < 1000 else (1,)
    return [tick for decade in decades for lead in leads if low <= (tick := lead * 10.0**decade) <= high]


def panel(name: str, points: list[Point], label: str, lines: dict[str, str]) -> list[str]:
    """SVG elements of one plot, both axes logarithmic, from (0, 0) to (WIDTH, HEIGHT)."""
    lines = {key: title for key, title in lines.items() if key in points[0]}
    x = [point[name] for point in points]
    values = [point[key] for key in lines for point in points]
    low, high = min(values) / 2, max(values) * 2  # what hardly changes shall look so

    def right(value: float) -> float:
        return WIDTH * (0.05 + 0.9 * math.log(value / x[0]) / math.log(x[-1] / x[0]))

    def down(value: float) -> float:
        return HEIGHT * math.log(high / value) / math.log(high / low)

    drawn = [f'<rect width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#888"/>']
    for tick in ticks(low, high):
        drawn.append(f'<path d="M0 {down(tick):.1f}H{WIDTH}" stroke="#ddd"/>')
        drawn.append(f'<text x="-5" y="{down(tick) + 3:.1f}" text-anchor="end">{tick:g}</text>')
    for value in x:
        drawn.append(f'<text x="{right(value):.1f}" y="{HEIGHT + 14}" text-anchor="middle">{value:g}</text>')
    for number, (key, title) in enumerate(lines.items()):
        spots = [(right(point[name]), down(point[key])) for point in points]
        path = " ".join(f"{across:.1f},{below:.1f}" for across, below in spots)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[number]}" stroke-width="2"/>')
        drawn += [
            f'<circle cx="{across:.1f}" cy="{below:.1f}" r="3" fill="{COLOURS[number]}"/>' for across, below in spots
        ]
        drawn.append(f'<text x="{2 + 120 * number}" y="-5" fill="{COLOURS[number]}">{title}</text>')
    drawn.append(f'<text transform="translate(-38 {HEIGHT / 2:g}) rotate(-90)" text-anchor="middle">{label}</text>')
    return drawn


def plot(found: dict[str, list[Point]]) -> str:
    """An SVG of time (above) and memory (below) over each variable, so plain that a rerun changes few lines."""
    width, height = (WIDTH + 65) * len(found) + 5, 2 * HEIGHT + 105
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif"',
        ' font-size="10">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for column, (name, points) in enumerate(found.items()):
        left = 55 + (WIDTH + 65) * column
        drawn.append(f'<text x="{left + WIDTH / 2:g}" y="18" font-size="12" text-anchor="middle">{TITLES[name]}</text>')
        for row, (label, lines) in enumerate(CURVES.items()):
            drawn.append(f'<g transform="translate({left} {42 + (HEIGHT + 40) * row})">')
            drawn += [*panel(name, points, label, lines), "</g>"]
    return "\n".join([*drawn, "</svg>", ""])


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
    (options.out / "scaling.md").write_text(
        "\n".join([*lines, "![Time and memory](scaling.svg)", "", LARGE, ""]), "utf-8"
    )
    (options.out / "scaling.svg").write_text(plot(found), encoding="utf-8")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
