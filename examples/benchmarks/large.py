"""Measure fit and predict on large drawn images, and write large.md (--out).

    python examples/benchmarks/large.py [--sizes 512x512 1024x1024 2048x2048 3000x4000] [--train 4] [--test 2]

Parts are drawn (drawn.py) at each size, height x width, and computed at `--size full`: the network sees every pixel.
Costs are the whole command's, with Python's start and all that it writes: seconds of the processor (user and system),
which other work beside hardly changes, and peak resident memory. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from speed import describe_machine, words

HERE = Path(__file__).resolve().parent


def cost(*command: object) -> tuple[float, float]:
    """Run a Python command; return its processor seconds and its peak memory in MB."""
    process = subprocess.Popen([sys.executable, *words(*command)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit(f"{command} failed")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def measure(size: str, train: int, test: int) -> dict[str, float]:
    """Fit and predict once at a size."""
    height, width = map(int, size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model.safetensors")
        counts = ("--train", train, "--good", 0, "--defective", test)
        cost(HERE / "drawn.py", folder, "--size", size, *counts)
        fit = ("fit", f"{folder}/train/good", "--size", "full", "--weights", "embedded", "--out", model, "--quiet")
        fit_s, fit_peak = cost("-m", "cfa_cli", *fit)
        predict = ("predict", f"{folder}/test", "--model", model, "--out", f"{folder}/maps", "--quiet")
        predict_s, predict_peak = cost("-m", "cfa_cli", *predict)
    return {
        "megapixels": height * width / 1e6,
        "fit_s": fit_s,
        "fit_peak_MB": fit_peak,
        "predict_s": predict_s,
        "predict_peak_MB": predict_peak,
    }


def main() -> None:
    """Measure every size and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["512x512", "1024x1024", "2048x2048", "3000x4000"])
    parser.add_argument("--train", type=int, default=4)
    parser.add_argument("--test", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE / "large.md")
    options = parser.parse_args()
    found = {}
    for size in options.sizes:
        found[size] = measure(size, options.train, options.test)
        print(size, found[size], file=sys.stderr, flush=True)
    lines = [
        "# Large images",
        "",
        f"`--size full`, embedded weights, `--preset default`; fit: {options.train} drawn images, predict: "
        f"{options.test}, overlays and report included. Processor seconds (user and system) of the whole command and "
        f"peak memory. {describe_machine()}, of which {torch.get_num_threads()} in use; torch {torch.__version__}.",
        "",
        "| height x width | megapixels | fit, CPU s | fit, peak MB | predict, CPU s | predict, peak MB |",
        "|---|---:|---:|---:|---:|---:|",
        *(
            f"| {size} | {each['megapixels']:.2g} | {each['fit_s']:.0f} | {each['fit_peak_MB']:.0f} | "
            f"{each['predict_s']:.0f} | {each['predict_peak_MB']:.0f} |"
            for size, each in found.items()
        ),
        "",
    ]
    options.out.write_text("\n".join(lines), encoding="utf-8")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
