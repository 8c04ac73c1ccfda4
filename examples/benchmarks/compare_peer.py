"""Run `cfa benchmark` and another implementation on the same images and weights, and write peer.md beside this file.

    python examples/benchmarks/compare_peer.py DATA --peer "peer/bin/python anomalib_run.py cfa" --weights embedded

DATA is a folder in MVTec's layout. The peer's command is called with a category's folder and the number of epochs, and
prints one JSON line last: fit_s, test_s, n_test, peak_MB, image_AUROC, image_F1Max, pixel_AUROC, pixel_AUPRO,
pixel_F1Max. It finds its resnet18's weights as torchvision does, in TORCH_HOME. What is finished is kept in --work, and
not run again. Pixel metrics of such peers are taken at the network's input size, ours at the masks' own, so ours stand
there twice: as `cfa benchmark` gives them, and with the masks brought to the input size.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import cv2
import torch
import torchvision

from cfa_cli import records
from cfa_cli.engine.metrics import PixelMetrics
from cfa_cli.engine.scorer import load_scorer, score_sources
from cfa_cli.files.bundle import load_bundle
from cfa_cli.files.datasets import Category, open_dataset, read_mask
from cfa_cli.files.weights import load_weights
from cfa_cli.records import Source

HERE = Path(__file__).resolve().parent
METRICS = ("image_auroc", "image_f1max", "pixel_auroc", "aupro", "pixel_f1max")
COSTS = ("fpr", "fit_seconds", "milliseconds", "peak_memory_mb")
HEADINGS = ("image AUROC", "image F1-max", "pixel AUROC", "AUPRO", "pixel F1-max", "FPR@t", "fit, s", "ms/image", "MB")
# A preset that is the same as another is not run twice.
PRESETS = (
    {"paper and default": "paper"}
    if records.PRESETS["paper"] == records.PRESETS["default"]
    else {name: name for name in ("paper", "default")}
)
Row = dict[str, float | None]


def run_ours(options: argparse.Namespace, preset: str) -> dict[str, list[Row]]:
    """The runs of one preset, by category."""
    out = options.work / preset
    command = [sys.executable, "-m", "cfa_cli", "benchmark", str(options.data), "--preset", preset, "--save-models"]
    command += ["--weights", options.weights, "--epochs", str(options.epochs), "--out", str(out)]
    command += [word for seed in range(options.seeds) for word in ("--seed", str(seed))]
    subprocess.run(command, check=True, stdout=sys.stderr)
    found: dict[str, list[Row]] = {}
    for run in json.loads((out / "results.json").read_text())["runs"]:
        found.setdefault(run["category"], []).append(run)
    return found


def at_input_size(options: argparse.Namespace, preset: str, category: Category, runs: list[Row]) -> list[Row]:
    """The same runs with pixel metrics at the network's input size, masks brought there by their nearest pixels."""
    rows = []
    for run in runs:
        kept = options.work / preset / f"{category.name}-seed{run['seed']}-input-size.json"
        if not kept.exists():
            bundle = load_bundle(
                options.work / preset / f"models/resnet18-seed{run['seed']}/{category.name}.safetensors"
            )
            pixels = PixelMetrics()
            sources = [Source(image.path, image.path.name) for image in category.test]
            predictions = score_sources(load_scorer(bundle), sources, bundle.calibration.threshold)
            for image, prediction in zip(category.test, predictions, strict=True):
                size = prediction.map.shape[::-1]
                mask = cv2.resize(read_mask(image.mask), size, interpolation=cv2.INTER_NEAREST) if image.mask else None
                pixels.update(prediction.map, mask)
            found = pixels.compute()
            figures = {"pixel_auroc": found.auroc, "aupro": found.aupro, "pixel_f1max": found.f1_max}
            kept.write_text(json.dumps(figures))
        rows.append({**run, **json.loads(kept.read_text())})
    return rows


def run_peer(options: argparse.Namespace, category: Category) -> list[Row]:
    """The peer's runs of one category. It takes no seed: each run draws its own."""
    home = options.work / "torch_home"
    checkpoint = home / "hub/checkpoints/resnet18-f37072fd.pth"  # the name that torchvision looks for
    if not checkpoint.exists():
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        state = torchvision.models.resnet18().state_dict()  # what cfa does not use (layer4, the classifier) is random
        state.update(load_weights(options.weights, "resnet18").state_dict)
        torch.save(state, checkpoint)
    rows = []
    for number in range(options.peer_runs or options.seeds):
        kept = options.work / f"peer-{category.name}-{number}.json"
        if not kept.exists():
            command = [*shlex.split(options.peer), str(options.data / category.name), str(options.epochs)]
            environment = {**os.environ, "TORCH_HOME": str(home)}
            done = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True)
            kept.write_text(done.stdout.strip().splitlines()[-1])
        told = json.loads(kept.read_text())
        rows.append(
            {
                "image_auroc": told["image_AUROC"],
                "image_f1max": told["image_F1Max"],
                "pixel_auroc": told.get("pixel_AUROC"),
                "aupro": told.get("pixel_AUPRO"),
                "pixel_f1max": told.get("pixel_F1Max"),
                "fit_seconds": told["fit_s"],
                "milliseconds": 1000 * told["test_s"] / told["n_test"],
                "peak_memory_mb": told["peak_MB"],
            }
        )
    return rows


def text(rows: list[Row]) -> list[str]:
    """A line's cells: means, and spreads where there are several runs."""
    cells = []
    for name in (*METRICS, *COSTS):
        values = [row[name] for row in rows if row.get(name) is not None]
        digits = 0 if name in COSTS[1:] else 3
        spread = f"±{stdev(values):.{digits}f}" if len(values) > 1 and digits else ""
        cells.append(f"{fmean(values):.{digits}f}{spread}" if values else "-")
    return cells


def averages(by_category: dict[str, list[Row]]) -> list[Row]:
    """The mean over categories of each run."""
    means = []
    for rows in zip(*by_category.values(), strict=True):
        names = [name for name in (*METRICS, *COSTS) if all(row.get(name) is not None for row in rows)]
        means.append({name: fmean(row[name] for row in rows) for name in names})
    return means


def every_nth(data: Path, n: int, out: Path) -> Path:
    """A copy with every n-th image of each folder, for a machine on which all of them would take too long."""
    for folder in sorted({path.parent for path in data.rglob("*") if path.is_file() and path.parent != data}):
        target = out / folder.relative_to(data)
        target.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.iterdir())[::n]:
            shutil.copyfile(path, target / path.name)
    return out


def asked_fpr(options: argparse.Namespace) -> float:
    """The false-positive rate that the threshold was asked for."""
    return float(json.loads((options.work / "paper" / "results.json").read_text())["config"]["max_fpr"])


def main() -> None:
    """Run everything that is not finished, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--peer", required=True, help="the peer's command, without the category and the epochs")
    parser.add_argument("--name", default="anomalib CFA", help="what the table calls the peer")
    parser.add_argument("--weights", default="embedded", help="as of cfa: embedded or a resnet18 file")
    parser.add_argument("--seeds", type=int, default=3, help="runs of ours, and of the peer")
    parser.add_argument("--peer-runs", type=int, help="runs of the peer, where --seeds would take too long")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--work", type=Path, default=Path("peer-work"), help="where finished runs are kept")
    parser.add_argument("--out", type=Path, default=HERE / "peer.md")
    parser.add_argument("--every", type=int, default=1, help="take every n-th image of each folder")
    options = parser.parse_args()
    if options.every > 1:
        options.data = every_nth(options.data, options.every, options.work / "data")

    categories = open_dataset(str(options.data)).categories
    lines: dict[str, dict[str, list[Row]]] = {}
    for name, preset in PRESETS.items():
        ours = run_ours(options, preset)
        lines[f"cfa, {name}"] = ours
        lines[f"cfa, {name}, masks at the input size"] = {
            category.name: at_input_size(options, preset, category, ours[category.name]) for category in categories
        }
    lines[f"{options.name} (its own metrics, masks at the input size)"] = {
        category.name: run_peer(options, category) for category in categories
    }
    write(options, categories, lines)


def write(options: argparse.Namespace, categories: tuple[Category, ...], lines: dict[str, dict[str, Any]]) -> None:
    """peer.md: a table a category, and the averages."""
    first = next(iter(lines.values()))[categories[0].name][0]
    weights = f"{first['weights']} (sha256 {str(first['weights_sha256'])[:12]})"
    peer_runs = options.peer_runs or options.seeds
    runs = f"means and standard deviations of {options.seeds} runs of cfa and {peer_runs} of {options.name}"
    part = "" if options.every == 1 else f" Every {options.every}th image of each folder was taken."
    out = [
        f"# cfa and {options.name} on the same images and weights",
        "",
        f"resnet18, weights {weights}, {options.epochs} epochs in batches of 4; {runs}. Measured on {os.cpu_count()}",
        f"{platform.machine()} cores while other work ran beside; Python {platform.python_version()}, torch",
        f"{torch.__version__}. FPR@t: how many good test images lie over the threshold that good training images gave,",
        f"{asked_fpr(options):g} being asked for. ms/image: ours from decoding to map, the peer's its whole test with",
        f"its metrics. MB: the process's peak memory.{part}",
        "",
    ]
    parts = {each.name: {name: rows[each.name] for name, rows in lines.items()} for each in categories}
    parts["average"] = {name: averages(rows) for name, rows in lines.items()}
    for title, rows in parts.items():
        out += [f"## {title}", "", "| | " + " | ".join(HEADINGS) + " |", "|---" + "|---:" * len(HEADINGS) + "|"]
        out += [f"| {name} | " + " | ".join(text(runs)) + " |" for name, runs in rows.items()]
        out += [""]
    words = f"DATA --peer ... --weights {options.weights} --every {options.every} --epochs {options.epochs}"
    words += f" --seeds {options.seeds} --peer-runs {peer_runs}"
    out += [f"Made by `python examples/benchmarks/compare_peer.py {words}`."]
    options.out.write_text("\n".join(out) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
