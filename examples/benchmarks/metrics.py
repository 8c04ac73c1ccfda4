"""Compare cfa's metrics with anomalib's and torchmetrics': the figures, the time and the memory.

Run it in an environment that has both: pip install . anomalib==2.7.0

    python examples/benchmarks/metrics.py time            # writes metrics.md beside this file
    python examples/benchmarks/metrics.py cases           # writes tests/golden/metrics.json

Each measurement runs in a process of its own, and prints one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np

HERE = Path(__file__).resolve().parent
THREADS = 2
MEASURES = {  # what each implementation computes, in the order of the table
    "cfa: pixel AUROC, AUPRO and F1-max at once": "cfa",
    "anomalib: AUPRO": "AUPRO",
    "anomalib: pixel AUROC": "AUROC",
    "anomalib: pixel F1-max": "F1Max",
}


def maps(count: int, side: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Smooth score maps in 0..1, every second one with three defects, and their masks."""
    rng = np.random.default_rng(0)
    for index in range(count):
        noise = np.abs(rng.normal(size=(side // 16, side // 16))).astype(np.float32)
        scores = cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)
        mask = np.zeros((side, side), np.uint8)
        if index % 2:
            for _ in range(3):
                x, y = rng.integers(side, size=2)
                cv2.circle(mask, (int(x), int(y)), int(rng.integers(side // 200 + 1, side // 8)), 1, -1)
        yield np.clip((scores + mask) / 8, 0, 1), mask


def measure(what: str, count: int, side: int) -> dict[str, float]:
    """Seconds, peak memory above what the imports take (MB), and the figures of one implementation."""
    import torch

    torch.set_num_threads(THREADS)
    cv2.setNumThreads(THREADS)
    metric = Ours() if what == "cfa" else Peer(what)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = 0.0
    for scores, mask in maps(count, side):
        start = time.perf_counter()
        metric.update(scores, mask)
        seconds += time.perf_counter() - start
    start = time.perf_counter()
    figures = metric.figures()
    seconds += time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "peak_mb": (peak - before) / 1024, **figures}


class Ours:
    """cfa's pixel metrics."""

    def __init__(self) -> None:
        from cfa_cli.engine.metrics import PixelMetrics

        self.metric = PixelMetrics()
        self.update = self.metric.update

    def figures(self) -> dict[str, float | None]:
        """The metric of all images."""
        result = self.metric.compute()
        return {"AUROC": result.auroc, "AUPRO": result.aupro, "F1Max": result.f1_max}


class Peer:
    """One of anomalib's metrics."""

    def __init__(self, name: str) -> None:
        from anomalib.metrics import aupro, auroc, f1_score

        self.name = name
        self.metric = {"AUPRO": aupro._AUPRO, "AUROC": auroc._AUROC, "F1Max": f1_score._F1Max}[name]()

    def update(self, scores: np.ndarray, mask: np.ndarray) -> None:
        """Add one image."""
        import torch

        self.metric.update(torch.from_numpy(scores)[None], torch.from_numpy(mask)[None].long())

    def figures(self) -> dict[str, float | None]:
        """The metric of all images."""
        return {self.name: float(self.metric.compute())}


def measure_apart(what: str, count: int, side: int) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "measure", "--what", what, "--maps", str(count), "--side", str(side)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def write_times(count: int, side: int) -> None:
    """metrics.md: one process a measurement, one after the other."""
    rows = []
    for title, what in MEASURES.items():
        result = measure_apart(what, count, side)
        values = ", ".join(f"{name} {result[name]:.6f}" for name in ("AUROC", "AUPRO", "F1Max") if name in result)
        rows.append(f"| {title} | {result['seconds']:.1f} | {result['peak_mb']:.0f} | {values} |")
        print(rows[-1])
    twice = measure_apart("cfa", 2 * count, side)
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "torch", "torchmetrics", "anomalib"))
    text = f"""# Time and memory of the metrics

{count} maps of {side} x {side} px, half of them with three defects, on {os.cpu_count()} {platform.machine()} cores
(Python {platform.python_version()}, {packages}).
Memory is the peak above what the imports take. Making the maps is not counted.

| metric | seconds | memory, MB | figures |
|---|---:|---:|---|
"""
    end = f"""
cfa on {2 * count} such maps: {twice["seconds"]:.1f} s, {twice["peak_mb"]:.0f} MB.

Made by `python examples/benchmarks/metrics.py time`.
"""
    (HERE / "metrics.md").write_text(text + "\n".join(rows) + "\n" + end)


def cases() -> Iterator[tuple[str, list[np.ndarray], list[np.ndarray]]]:
    """Small cases of maps and masks; scores are multiples of 1/256: the same in every type, and often tied.

    None is all defect: anomalib takes the first label that it meets for the background, and overlooks such a region.
    """
    rng = np.random.default_rng(6)

    def case(images: int, shape: tuple[int, int], levels: int, shift: int, draw: Callable[[np.ndarray, int], None]):
        masks = [np.zeros(shape, np.uint8) for _ in range(images)]
        for index, mask in enumerate(masks):
            draw(mask, index)
        noise = [rng.integers(levels, size=shape) * (160 // levels) for _ in masks]
        return [
            np.clip(n + shift * m.astype(int), 0, 256).astype(int) for n, m in zip(noise, masks, strict=True)
        ], masks

    def blob(mask: np.ndarray, index: int) -> None:
        if index:
            cv2.circle(mask, (4 * index, 6), index + 1, 1, -1)

    def dust(mask: np.ndarray, index: int) -> None:
        mask[:] = rng.random(mask.shape) < 0.08 * index

    def half(mask: np.ndarray, index: int) -> None:
        mask[:, mask.shape[1] // 2 :] = 1

    yield "one region an image", *case(3, (16, 20), 160, 60, blob)
    yield "many regions", *case(3, (20, 16), 160, 40, dust)
    yield "many ties", *case(3, (16, 20), 4, 40, blob)
    yield "long and narrow", *case(3, (11, 47), 80, 30, blob)
    yield "half of every image", *case(2, (12, 14), 160, 20, half)
    yield "constant", *case(3, (16, 20), 1, 0, blob)
    yield "perfect", *case(3, (16, 20), 40, 200, blob)
    yield "worse than chance", *case(3, (16, 20), 160, -60, blob)


def image_cases() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Small cases of one score an image, multiples of 1/256, with labels, 1 for anomalous images."""
    rng = np.random.default_rng(7)
    for name, good, bad, levels, shift in [
        ("as many good as bad", 25, 25, 160, 60),
        ("many ties", 30, 20, 4, 40),
        ("few good", 4, 60, 160, 40),
        ("few bad", 60, 4, 160, 40),
        ("constant", 7, 5, 1, 0),
        ("perfect", 10, 10, 40, 200),
        ("worse than chance", 20, 20, 160, -60),
    ]:
        labels = rng.permutation(np.repeat([0, 1], [good, bad]))
        noise = rng.integers(levels, size=len(labels)) * (160 // levels)
        yield name, np.clip(noise + shift * labels, 0, 256), labels


def write_cases() -> None:
    """tests/golden/metrics.json: the cases, and what anomalib and torchmetrics make of them."""
    import torch
    from torchmetrics.functional.classification import binary_auroc

    table, images = [], []
    for name, scores, masks in cases():
        pixels = torch.tensor(np.stack(scores), dtype=torch.float64) / 256
        truth = torch.tensor(np.stack(masks), dtype=torch.long)
        expected: dict[str, float] = {"auroc": float(binary_auroc(pixels.flatten(), truth.flatten()))}
        for key, what in (("aupro", "AUPRO"), ("f1_max", "F1Max")):
            metric = Peer(what)
            for score, mask in zip(scores, masks, strict=True):
                metric.update((score / 256).astype(np.float32), mask)
            expected[key] = metric.figures()[what]
        table.append(
            {
                "case": name,
                "scores_times_256": [score.tolist() for score in scores],
                "masks": [["".join(map(str, row)) for row in mask] for mask in masks],
                "expected": expected,
            }
        )
    for name, image_scores, labels in image_cases():
        f1_max = Peer("F1Max")
        f1_max.update((image_scores / 256).astype(np.float32), labels)
        auroc = binary_auroc(torch.from_numpy(image_scores / 256), torch.from_numpy(labels))
        images.append(
            {
                "case": name,
                "scores_times_256": image_scores.tolist(),
                "labels": labels.tolist(),
                "expected": {"auroc": float(auroc), "f1_max": f1_max.figures()["F1Max"]},
            }
        )
    document = {
        "from": f"anomalib {version('anomalib')} (AUPRO, F1Max), torchmetrics {version('torchmetrics')} (AUROC)",
        "made by": "python examples/benchmarks/metrics.py cases",
        "cases": table,
        "image_cases": images,
    }
    target = HERE.parents[1] / "tests" / "golden" / "metrics.json"
    lines = json.dumps(document, separators=(",", ":")).replace('{"case"', '\n{"case"').replace('"masks"', '\n"masks"')
    target.write_text(lines.replace('"expected"', '\n"expected"') + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=("time", "cases", "measure"))
    parser.add_argument("--what", choices=tuple(MEASURES.values()), default="cfa")
    parser.add_argument("--maps", type=int, default=100)
    parser.add_argument("--side", type=int, default=1024)
    options = parser.parse_args()
    if options.do == "time":
        write_times(options.maps, options.side)
    elif options.do == "cases":
        write_cases()
    else:
        print(json.dumps(measure(options.what, options.maps, options.side)))
