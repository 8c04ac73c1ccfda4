"""Run `cfa benchmark` and other implementations on the same images and weights; write peer.md beside this file.

    python examples/benchmarks/compare_peer.py DATA --weights embedded \\
        --peer "anomalib CFA=peer/bin/python anomalib_run.py cfa" \\
        --peer "anomalib PatchCore=peer/bin/python anomalib_run.py patchcore"

DATA is a folder in MVTec's layout. A peer's command is called with a category's folder and the number of epochs, and
prints one JSON line last: fit_s, test_s, n_test, peak_MB, image_AUROC, image_F1Max, pixel_AUROC, pixel_AUPRO,
pixel_F1Max. It finds its resnet18's weights as torchvision does, in TORCH_HOME. Pixel metrics of such peers are taken
at the network's input size, ours at the masks' own, so ours stand there twice: as `cfa benchmark` gives them, and with
the masks brought to the input size.

Every finished run is kept in --work and not done again, so that the same command goes on after an interruption; the
table is written anew after each of its lines. A later call may ask for more seeds, peers, and runs of them.
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
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import cv2
import torch
import torchvision

from cfa_cli.atomic import atomic_path
from cfa_cli.bundle import load_bundle
from cfa_cli.config import PRESETS
from cfa_cli.data.category import Category
from cfa_cli.data.datasets import open_dataset
from cfa_cli.data.masks import read_mask
from cfa_cli.engine.metrics import PixelMetrics
from cfa_cli.engine.scorer import load_scorer, score_sources
from cfa_cli.records import Source
from cfa_cli.weights.loading import load_weights

HERE = Path(__file__).resolve().parent
METRICS = ("image_auroc", "image_f1max", "pixel_auroc", "aupro", "pixel_f1max")
COSTS = ("fpr", "fit_seconds", "milliseconds", "peak_memory_mb")
HEADINGS = ("image AUROC", "image F1-max", "pixel AUROC", "AUPRO", "pixel F1-max", "FPR@t", "fit, s", "ms/image", "MB")
Row = dict[str, Any]  # one run's figures, under the names above
Line = dict[str, list[Row]]  # a line of the table: the runs of each category


def measure(options: argparse.Namespace, categories: tuple[Category, ...]) -> Iterator[tuple[str, Line]]:
    """The table's lines, one by one, each as soon as all of its runs are there."""
    for preset, arguments in {"paper": ["--epochs", str(options.epochs)], "default": []}.items():
        ours = run_ours(options, preset, arguments)
        epochs = options.epochs if arguments else PRESETS[preset].epochs
        title = f"cfa --preset {preset}, {epochs} epoch{'s' if epochs != 1 else ''}"
        yield title, ours
        resized = {
            category.name: [at_input_size(options, preset, category, run) for run in ours[category.name]]
            for category in categories
        }
        yield f"{title}, masks at the input size", resized
    if options.peer_runs:
        for name, command in options.peer.items():
            yield f"{name} *", {category.name: run_peer(options, name, command, category) for category in categories}


def run_ours(options: argparse.Namespace, preset: str, arguments: list[str]) -> Line:
    """The runs of one preset; `cfa benchmark` itself does not repeat what is finished."""
    out = options.work / preset
    command = [sys.executable, "-m", "cfa_cli", "benchmark", str(options.data), "--preset", preset, *arguments]
    command += ["--weights", options.weights, "--save-models", "--out", str(out)]
    command += [word for seed in range(options.seeds) for word in ("--seed", str(seed))]
    subprocess.run(command, check=True, stdout=sys.stderr)
    line: Line = {}
    for run in sorted(read(out / "results.json")["runs"], key=lambda run: run["seed"]):
        if run["seed"] < options.seeds:
            line.setdefault(run["category"], []).append(run)
    return line


def at_input_size(options: argparse.Namespace, preset: str, category: Category, run: Row) -> Row:
    """The same run with pixel metrics at the network's input size, masks brought there by their nearest pixels."""
    kept = options.work / preset / f"{category.name}-seed{run['seed']}-input-size.json"
    if not kept.exists():
        bundle = load_bundle(options.work / preset / f"models/resnet18-seed{run['seed']}/{category.name}.safetensors")
        pixels = PixelMetrics()
        sources = [Source(image.path, image.path.name) for image in category.test]
        predictions = score_sources(load_scorer(bundle), sources, bundle.calibration)
        for image, prediction in zip(category.test, predictions, strict=True):
            size = prediction.score_map.shape[::-1]
            mask = cv2.resize(read_mask(image.mask), size, interpolation=cv2.INTER_NEAREST) if image.mask else None
            pixels.update(prediction.score_map, mask)
        found = pixels.compute()
        keep(kept, {"pixel_auroc": found.auroc, "aupro": found.aupro, "pixel_f1max": found.f1_max})
    return {**run, **read(kept)}


def run_peer(options: argparse.Namespace, name: str, command: str, category: Category) -> list[Row]:
    """A peer's runs of one category. It takes no seed: each run draws its own."""
    rows = []
    for number in range(options.peer_runs):
        kept = options.work / "peers" / f"{name}-{category.name}-{number}.json"
        if not kept.exists():
            print(f"{name}: {category.name}, run {number + 1} of {options.peer_runs} ...", file=sys.stderr)
            words = [*shlex.split(command), str(options.data / category.name), str(options.epochs)]
            environment = {**os.environ, "TORCH_HOME": str((options.work / "torch_home").resolve())}
            done = subprocess.run(words, check=True, env=environment, stdout=subprocess.PIPE, text=True)
            keep(kept, json.loads(done.stdout.strip().splitlines()[-1]))
        told = read(kept)
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


def write_checkpoint(options: argparse.Namespace) -> str:
    """Put the weights where torchvision looks for them, if they are not there, and return what they are."""
    weights = load_weights(options.weights, "resnet18")
    checkpoint = options.work / "torch_home/hub/checkpoints/resnet18-f37072fd.pth"
    if not checkpoint.exists():
        state = torchvision.models.resnet18().state_dict()  # what cfa does not use (layer4, the classifier) is random
        state.update(weights.state_dict)
        with atomic_path(checkpoint) as temporary:
            torch.save(state, temporary)
    return f"{weights.origin} (sha256 {weights.sha256[:12]})"


def require_same_settings(options: argparse.Namespace, weights: str) -> None:
    """Stop if --work holds runs of other data, weights or epochs: they would stand in the same table."""
    settings = {"data": str(options.data.resolve()), "every": options.every, "weights": weights}
    settings["epochs"] = options.epochs
    kept = options.work / "settings.json"
    if not kept.exists():
        keep(kept, settings)
    elif read(kept) != settings:
        sys.exit(f"{options.work} holds runs of other settings: {kept.read_text().strip()}\nChoose another --work.")


def keep(path: Path, document: Row) -> None:
    """Write a JSON file, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(document) + "\n", encoding="utf-8")


def read(path: Path) -> Row:
    """Read a JSON file."""
    document: Row = json.loads(path.read_text(encoding="utf-8"))
    return document


def cells(rows: list[Row]) -> list[str]:
    """A line's cells: means, and spreads where there are several runs."""
    found = []
    for name in (*METRICS, *COSTS):
        values = [row[name] for row in rows if row.get(name) is not None]
        digits = 0 if name in COSTS[1:] else 3
        spread = f"±{stdev(values):.{digits}f}" if len(values) > 1 and digits else ""
        found.append(f"{fmean(values):.{digits}f}{spread}" if values else "-")
    return found


def averages(line: Line) -> list[Row]:
    """The mean over categories of each run."""
    means = []
    for rows in zip(*line.values(), strict=True):
        names = [name for name in (*METRICS, *COSTS) if all(row.get(name) is not None for row in rows)]
        means.append({name: fmean(row[name] for row in rows) for name in names})
    return means


def copy_every_nth(data: Path, n: int, out: Path) -> Path:
    """A copy with every n-th image of each folder, for a machine on which all of them would take too long."""
    for folder in sorted({path.parent for path in data.rglob("*") if path.is_file() and path.parent != data}):
        target = out / folder.relative_to(data)
        target.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.iterdir())[::n]:
            shutil.copyfile(path, target / path.name)
    return out


def write(options: argparse.Namespace, weights: str, lines: dict[str, Line]) -> None:
    """The table: a part for each category, and the averages."""
    part = "" if options.every == 1 else f" Every {options.every}-th image of each folder was taken."
    peers = ", ".join(options.peer)
    command = f"DATA --weights {options.weights} --every {options.every} --epochs {options.epochs}"
    command += f" --seeds {options.seeds} --peer-runs {options.peer_runs}"
    command += "".join(f" --peer '{name}=...'" for name in options.peer)
    text = [
        f"# cfa beside {peers}, on the same images and weights" if peers else "# cfa",
        "",
        f"resnet18, weights {weights}. `--epochs {options.epochs}` for `--preset paper` and for peers that train by",
        f"epochs; `--preset default` as it is. Runs: {options.seeds} of cfa, {options.peer_runs} of each peer; means ±",
        f"standard deviations.{part} Measured on {os.cpu_count()} {platform.machine()} cores while other work ran",
        f"beside; Python {platform.python_version()}, torch {torch.__version__}.",
        "",
        f"- cfa trains on {1 - PRESETS['paper'].holdout:.0%} of the good images: the others set its threshold. The",
        "  peers train on all of them.",
        f"- FPR@t: how many good test images lie over that threshold; {PRESETS['paper'].max_fpr:g} was asked for.",
        "- ms/image: ours from decoding to map; the peers' whole test, their metrics included.",
        "- MB: the process's peak memory.",
        "- \\*: its own metrics, with the masks at the input size; compare the pixels with ours at that size.",
        "",
    ]
    parts = {name: {title: line[name] for title, line in lines.items()} for name in next(iter(lines.values()))}
    parts["average"] = {title: averages(line) for title, line in lines.items()}
    for heading, rows in parts.items():
        text += [f"## {heading}", "", "| | " + " | ".join(HEADINGS) + " |", "|---" + "|---:" * len(HEADINGS) + "|"]
        text += [f"| {title} | " + " | ".join(cells(runs)) + " |" for title, runs in rows.items()]
        text += [""]
    text += [f"Made by `python examples/benchmarks/compare_peer.py {command}`."]
    options.out.write_text("\n".join(text) + "\n", encoding="utf-8")


def name_and_command(text: str) -> tuple[str, str]:
    """Take NAME=COMMAND apart."""
    name, equals, command = text.partition("=")
    if not (name and equals and command):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=COMMAND")
    return name, command


def main() -> None:
    """Run everything that is not finished, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument(
        "--peer",
        type=name_and_command,
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="what the table calls a peer, and its command without the category and the epochs; several are allowed",
    )
    parser.add_argument("--weights", default="embedded", help="as of cfa: embedded or a resnet18 file")
    parser.add_argument("--epochs", type=int, default=30, help="of --preset paper and of the peers")
    parser.add_argument("--seeds", type=int, default=3, help="runs of ours")
    parser.add_argument("--peer-runs", type=int, help="runs of each peer; default: as many as of ours")
    parser.add_argument("--every", type=int, default=1, help="take every n-th image of each folder")
    parser.add_argument("--work", type=Path, default=Path("peer-work"), help="where finished runs are kept")
    parser.add_argument("--out", type=Path, default=HERE / "peer.md", help="the table")
    options = parser.parse_args()
    options.peer = dict(options.peer)
    if options.peer_runs is None:
        options.peer_runs = options.seeds

    weights = write_checkpoint(options)
    require_same_settings(options, weights)
    if options.every > 1:
        options.data = copy_every_nth(options.data, options.every, options.work / "data")
    lines: dict[str, Line] = {}
    for title, line in measure(options, open_dataset(str(options.data)).categories):
        lines[title] = line
        write(options, weights, lines)


if __name__ == "__main__":
    main()
