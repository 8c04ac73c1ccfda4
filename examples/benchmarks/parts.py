"""Take the time of a prediction apart, and compare each part with the least that this processor could take.

    python examples/benchmarks/parts.py CATEGORY [--model FILE] [--images 40]

CATEGORY is a folder in MVTec's layout. Without --model one is fitted by the default recipe. One thread computes; each
figure is the median over images of the milliseconds that the thread ran. The least is the larger of two: the part's
multiplications at the speed of a large product of the same number type, and the bytes that it has to read and write at
the speed of a copy. Both speeds are measured first.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from speed import describe_machine
from torch import Tensor, nn

from cfa_cli import fit
from cfa_cli.bundle import load_bundle
from cfa_cli.data.images import read_image
from cfa_cli.data.inputs import find_images
from cfa_cli.data.statistics import measure
from cfa_cli.engine.scorer import NetworkScorer, load_scorer
from cfa_cli.model.quantised import _NativeConvolution
from cfa_cli.model.scoremap import position_scores
from cfa_cli.model.tiles import extract_levels
from cfa_cli.results.pictures import write_picture

TO_KEEP_BUSY = 0.5  # seconds for which each speed is measured


@dataclass
class Part:
    """Work that is measured once an image."""

    name: str
    products: float = 0.0  # multiplications with an addition each
    speed: float = 1.0  # of them a second, at most
    bytes: float = 0.0  # read and written at least
    milliseconds: list[float] = field(default_factory=list)

    def __call__(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Do the work, and keep the time that this thread ran."""
        start = time.thread_time()
        result = work(*arguments)
        self.milliseconds.append(1000 * (time.thread_time() - start))
        return result

    def least(self, copied: float) -> float:
        """Milliseconds that the processor needs at least; `copied`: bytes a second."""
        return 1000 * max(self.products / self.speed, self.bytes / copied)


def speed_of(work: Callable[[], object], amount: float) -> float:
    """The most of an amount a second, over repeated calls."""
    best, start = 0.0, time.thread_time()
    while time.thread_time() - start < TO_KEEP_BUSY:
        before = time.thread_time()
        work()
        best = max(best, amount / (time.thread_time() - before))
    return best


def product_speed(dtype: torch.dtype, side: int = 1024) -> float:
    """Multiplications (with an addition each) a second of a large product on one thread."""
    left, right = torch.randn(side, side).to(dtype), torch.randn(side, side).to(dtype)
    return speed_of(lambda: left @ right, side**3)


def convolution_speed(side: int = 28, channels: int = 256) -> float:
    """Multiplications a second of a convolution of bytes with 8-bit integers."""
    convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False).requires_grad_(False)
    native = _NativeConvolution(convolution, nn.BatchNorm2d(channels).requires_grad_(False), 1.0, 0)
    data = torch.randint(0, 255, (1, channels, side, side), dtype=torch.uint8)
    data = data.contiguous(memory_format=torch.channels_last)
    return speed_of(lambda: native(data, out_step=1.0), side**2 * channels**2 * 9)


def copy_speed(size: int = 40_000_000) -> float:
    """Bytes a second that a copy reads and writes, past the core's own cache."""
    source, target = torch.zeros(size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)
    return speed_of(lambda: target.copy_(source), 2 * size)


def count_products(scorer: NetworkScorer, image: Tensor) -> float:
    """Multiplications of the backbone's convolutions for an image."""
    counts = []

    def count(convolution: nn.Conv2d, _: Any, maps: Tensor) -> None:
        counts.append(maps.numel() * convolution.weight[0].numel())

    for module in scorer.network.backbone.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    extract_levels(scorer.network.backbone, image)
    return float(sum(counts))


def main() -> None:
    """Measure all parts and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("category", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--images", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)

    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        model = options.model or Path(folder, "model.safetensors")
        if options.model is None:
            fit(options.category / "train" / "good", out=model)
        bundle = load_bundle(model)
        scorer = load_scorer(bundle, "cpu")
        network = scorer.network
        assert network.search is not None
        paths = find_images(options.category / "test")
        paths = paths[:: max(1, len(paths) // options.images)]

        x = scorer.prepare(read_image(paths[0]))[None].contiguous(memory_format=torch.channels_last)
        levels = extract_levels(network.backbone, x)
        descriptors = network.descriptor(levels)
        positions, channels = descriptors[..., 0].numel(), descriptors.shape[-1]
        network.search(descriptors.flatten(0, 2), network.neighbours)  # chooses its filter
        columns = min(len(each.columns) for each in network.search._filters.values())
        centroids = len(network.bank)
        precision = str(bundle.backbone.precision)
        float32, bfloat16, int8 = product_speed(torch.float32), product_speed(torch.bfloat16), convolution_speed()
        copied = copy_speed()

        backbone = Part(f"backbone, {precision}", count_products(load_scorer(bundle, "cpu", "float32"), x))
        backbone.speed = {"int8": int8, "bfloat16": bfloat16}.get(precision, float32)
        describe = Part("description", sum(level[0].numel() for level in levels) * channels, float32)
        search = Part(f"search, filter of {columns} columns", positions * centroids * columns, bfloat16)
        search.bytes = 2 * 2 * positions * centroids  # every short distance is written once and read once
        reading, statistics, preparing = Part("decoding"), Part("statistics"), Part("resizing, normalising")
        mapping, picture = Part("scores and map"), Part("map as TIFF")
        parts = [reading, statistics, preparing, backbone, describe, search, mapping, picture]
        for path in paths:
            image = reading(read_image, path)
            statistics(measure, image)
            x = preparing(scorer.prepare, image)[None].contiguous(memory_format=torch.channels_last)
            levels = backbone(extract_levels, network.backbone, x)
            found = describe(network.descriptor, levels)
            squared, _ = search(network.search, found.flatten(0, 2), network.neighbours)
            scores = position_scores(squared).view(found.shape[:3]) / network.baseline
            score_map = mapping(network.score_map, scores)[0].numpy()
            picture(write_picture, Path(folder, "map.tiff"), score_map)

    print(f"{options.category.name}, {tuple(x.shape[2:])} px, {len(paths)} images, one thread. {describe_machine()}.")
    print(f"Large products, 10^9 a second: int8 {int8 / 1e9:.0f}, bfloat16 {bfloat16 / 1e9:.0f}, ", end="")
    print(f"float32 {float32 / 1e9:.0f}; a copy {copied / 1e9:.1f} GB/s.\n")
    print("| part | ms | products, 10^6 | bytes, 10^6 | the least, ms |\n|---|---:|---:|---:|---:|")
    for part in parts:
        cells = [f"{part.products / 1e6:.0f}", f"{part.bytes / 1e6:.0f}", f"{part.least(copied):.1f}"]
        cells = [cell if part.products else "" for cell in cells]
        print(f"| {part.name} | {median(part.milliseconds):.1f} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
