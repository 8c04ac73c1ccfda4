"""Time cfa and other implementations in turns, on the same images and weights; write speed.md (--out).

    python examples/benchmarks/speed.py CATEGORY --weights resnet18.pth --epochs 3 --runs 3 \
        --peer "anomalib's CFA=peer/bin/python anomalib_run.py cfa"

CATEGORY is a folder in MVTec's layout. A peer's command is called with it and the number of epochs, and prints one
JSON line last: fit_s, test_s, n_test, peak_MB. Its times start after its imports, and so do ours.
They include decoding, the bank, training and calibration, and for predict the model, scores.csv, the maps as TIFF and
the report's pictures; "scores alone" is --save none, which writes tables alone. Peers have one figure for both.
Ours holds out two images, so that both train on nearly the same number. Medians of the runs; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch

# What a command imports while it runs is imported before.
START = """
import cfa_cli.engine.fit, cfa_cli.engine.predictions, cfa_cli.engine.products, cfa_cli.results.report
from cfa_cli.__main__ import main
main()
"""
Figures = dict[str, float]  # fit_s, ms_per_image, plain_ms_per_image, fit_peak_MB, predict_peak_MB
RECIPES = {  # of this tool; the first two compute what the peer does
    "cfa": ("--preset", "paper", "--size", "224"),
    "cfa, float32": ("--preset", "paper", "--size", "224", "--precision", "float32"),
    "cfa, default recipe": (),
    "cfa, fast": ("--preset", "fast"),
}


def run_cfa(options: argparse.Namespace, recipe: tuple[str, ...]) -> Figures:
    """Fit and predict once with this tool; the default and the fast recipe do without epochs."""
    good, test = options.category / "train" / "good", options.category / "test"
    count = sum(path.is_file() for path in good.rglob("*"))
    with tempfile.TemporaryDirectory() as folder:
        model, out = Path(folder, "model.safetensors"), Path(folder, "maps")
        fit = words("fit", good, "--out", model, *recipe, *(("--epochs", options.epochs) if "paper" in recipe else ()))
        fit += words("--weights", options.weights, "--backbone", options.backbone, "--holdout", 2 / count)
        trained, fit_peak = run_json(fit)
        # In the precision that the model was fitted with.
        scored, predict_peak = run_json(words("predict", test, "--model", model, "--out", out, "--save", "map"))
        plain, _ = run_json(words("predict", test, "--model", model, "--out", Path(folder, "plain"), "--save", "none"))
    return {
        "fit_s": trained["seconds"],
        "ms_per_image": 1000 * scored["seconds"] / scored["images"],
        "plain_ms_per_image": 1000 * plain["seconds"] / plain["images"],
        "fit_peak_MB": fit_peak,
        "predict_peak_MB": predict_peak,
    }


def words(*parts: object) -> list[str]:
    """Command-line words from whatever they are."""
    return [str(part) for part in parts]


def run_json(arguments: list[str]) -> tuple[dict[str, Any], float]:
    """Run cfa; return its JSON document and its peak memory in MB."""
    command = [sys.executable, "-c", START, *arguments, "--json", "--quiet"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit(f"{shlex.join(command)} failed")
    return json.loads(output), usage.ru_maxrss / 1024


def run_peer(peer: str, options: argparse.Namespace) -> Figures:
    """Fit and test once with another implementation."""
    command = [*shlex.split(peer), str(options.category), str(options.epochs)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return {
        "fit_s": found["fit_s"],
        "ms_per_image": 1000 * found["test_s"] / found["n_test"],
        "plain_ms_per_image": 1000 * found["test_s"] / found["n_test"],
        "fit_peak_MB": found["peak_MB"],  # one process does both
        "predict_peak_MB": found["peak_MB"],
    }


def describe_machine() -> str:
    """The processor, as far as the system tells."""
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    units = [flag for flag in ("amx_int8", "amx_bf16", "avx512_bf16", "avx512f", "avx2") if flag in flags]
    return f"{name}, {os.cpu_count()} cores, {', '.join(units[:2]) or 'no vector extensions known'}"


def main() -> None:
    """Run all in turns and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("category", type=Path)
    parser.add_argument("--weights", required=True, help="the file that both use")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument(
        "--peer", action="append", default=[], help="NAME=COMMAND; the first one's figures are compared"
    )
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("speed.md"))
    options = parser.parse_args()

    peers = dict(peer.split("=", 1) for peer in options.peer)
    runs: dict[str, list[Figures]] = {name: [] for name in [*RECIPES, *peers]}
    for turn in range(options.runs):
        for name, figures in runs.items():
            figures.append(run_peer(peers[name], options) if name in peers else run_cfa(options, RECIPES[name]))
            print(f"turn {turn + 1}: {name}: {figures[-1]}", file=sys.stderr, flush=True)
    medians = {name: {key: median(run[key] for run in all_) for key in all_[0]} for name, all_ in runs.items()}

    lines = [
        "# Speed",
        "",
        f"{options.backbone}, {options.epochs} epochs, {options.category.name}; median of {options.runs} runs, "
        f"in turns. {describe_machine()}; torch {torch.__version__}.",
        "",
        "| | fit, s | predict, ms an image | scores alone, ms | peak memory of fit, MB | of predict, MB |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in medians.items():
        cells = [f"{row['fit_s']:.1f}", f"{row['ms_per_image']:.1f}", f"{row['plain_ms_per_image']:.1f}"]
        cells += [f"{row['fit_peak_MB']:.0f}", f"{row['predict_peak_MB']:.0f}"]
        if peers and name not in peers:
            first = medians[next(iter(peers))]
            cells = [f"{c} ({first[k] / row[k]:.1f}x)" for c, k in zip(cells, row, strict=True)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", f"In brackets: {next(iter(peers))}'s figure over ours."] if peers else []
    options.out.write_text("\n".join(lines) + "\n")
    print(json.dumps({"category": options.category.name, "epochs": options.epochs, **medians}))


if __name__ == "__main__":
    main()
