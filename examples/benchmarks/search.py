"""Time the nearest-centroid search against the full product, and write search.md beside this file.

    python examples/benchmarks/search.py [--device cpu|cuda] [--threads N]

Queries and banks are drawn with the spectrum of real descriptors (most of the variance in a few directions). Medians of
several calls; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from speed import describe_machine

from cfa_cli.model.search import NeighbourSearch, nearest_plain

CASES = [(49, 448), (784, 448), (3136, 64), (3136, 448), (3136, 1792), (12544, 448), (65536, 448)]
QUERIES = 3136  # an image's
NEIGHBOURS = 6


def draw(count: int, channels: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A bank (count, channels), and queries near it."""
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(channels, channels, generator=generator)).Q
    spread = torch.logspace(0, -2.5, channels)
    bank = torch.randn(count, channels, generator=generator) * spread @ axes
    chosen = bank[torch.randint(0, count, (QUERIES,), generator=generator)]
    queries = chosen + 0.3 * torch.randn(QUERIES, channels, generator=generator) * spread @ axes
    return bank.to(device), queries.to(device)


def milliseconds(call: Callable[[], object], device: str, runs: int) -> float:
    """The median of several calls after one to warm up."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - start))
    return median(times[1:])


def main() -> None:
    """Time all cases and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "search.md")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = []
    for count, channels in CASES:
        bank, queries = draw(count, channels, options.device)
        search = NeighbourSearch(bank)
        projected = search.project(queries)  # the descriptor's own layer does this in use
        plain = milliseconds(lambda b=bank, q=queries: nearest_plain(q, b, NEIGHBOURS), options.device, options.runs)  # type: ignore[misc]
        quick = milliseconds(lambda s=search, q=projected: s(q, NEIGHBOURS), options.device, options.runs)  # type: ignore[misc]
        same = (search(projected, 1)[1] == nearest_plain(queries, bank, 1)[1]).float().mean().item()
        rows.append({"M": count, "D": channels, "plain_ms": plain, "search_ms": quick, "same_nearest": same})
    lines = [
        "# Search",
        "",
        f"{QUERIES} queries, {NEIGHBOURS} neighbours, {options.device}, {torch.get_num_threads()} threads; "
        f"ms, median of {options.runs}. {describe_machine()}; torch {torch.__version__}.",
        "",
        "| centroids | channels | full product and top-k | this search | ratio | same nearest |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        times = f"{r['plain_ms']:.1f} | {r['search_ms']:.1f} | {r['plain_ms'] / r['search_ms']:.1f}"
        lines.append(f"| {r['M']} | {r['D']} | {times} | {r['same_nearest']:.2%} |")
    options.out.write_text("\n".join(lines) + "\n")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
