"""What training starts from and what scores are compared with: the memory bank, and what is usual at each position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count, repeat

import torch
from torch import Tensor

from cfa_cli.engine.features import FeatureStore
from cfa_cli.engine.workers import Workers
from cfa_cli.model.bank import KMEANS_ITERATIONS, compress, ema_bank, kmeans_bank, mean_bank
from cfa_cli.model.descriptor import Descriptor
from cfa_cli.model.scoremap import position_scores, usual_scores
from cfa_cli.model.search import NeighbourSearch
from cfa_cli.records import FitConfig, Progress, ProgressCallback


def build_bank(
    store: FeatureStore,
    images: Sequence[int],
    descriptor: Descriptor,
    config: FitConfig,
    progress: ProgressCallback,
) -> Tensor:
    """Build the bank (M, D) from the initial descriptor's output, image by image."""
    device = descriptor.weight.device
    steps, passes = count(1), 1 + KMEANS_ITERATIONS if config.bank == "kmeans" else 1

    def described() -> Iterator[Tensor]:
        for image in images:
            yield descriptor(store.levels([image], device)).flatten(0, 2)
            progress(Progress("building the bank", next(steps), passes * len(images)))

    with torch.no_grad():
        if config.bank == "kmeans":
            positions = store.shapes[0][1] * store.shapes[0][2]
            return kmeans_bank(described, len(images), positions // config.gamma_c, config.seed)
        bank = mean_bank(described()) if config.bank == "mean" else ema_bank(described())
        return compress(bank, config.gamma_c, config.seed)


def score_positions(
    store: FeatureStore,
    images: Sequence[int],
    descriptor: Descriptor,
    bank: Tensor,
    config: FitConfig,
    progress: ProgressCallback,
) -> Tensor:
    """Score the positions of stored images: (n, h, w) float32, on the CPU."""
    _, height, width = store.shapes[0]
    search = NeighbourSearch(bank)
    described = descriptor.moved_to(search.frame)

    def score(image: int) -> Tensor:
        with torch.no_grad():
            queries = described(store.levels([image], bank.device)).flatten(0, 2)
            return position_scores(search(queries, config.score_neighbours)[0]).view(height, width).cpu()

    scores: list[Tensor] = []
    with Workers(bank.device, config.batch_size) as workers:
        for start in range(0, len(images), config.batch_size):
            scores += workers.map(score, images[start : start + config.batch_size])
            progress(Progress("calibrating", len(scores), len(images)))
    return torch.stack(scores)


def usual_for_each(positions: Tensor, relative: bool) -> Iterator[Tensor]:
    """Yield what is usual at each position (h, w): of all held-out images (n, h, w), then of all but the first, ...

    Parts of a product differ in how much good ones vary there; what is unusual at a quiet place is not at a busy one.
    An image that is judged by what is usual must not have a say in it, so that thresholds hold for new images as well.
    Ones throughout, if scores are not to be `relative`.
    """
    if not relative:
        yield from repeat(torch.ones_like(positions[0]), 1 + len(positions))
        return
    scores = positions.double()
    total, squares = scores.sum(0), scores.square().sum(0)
    yield usual_scores(len(scores), total, squares)
    for own in scores:
        yield usual_scores(len(scores) - 1, total - own, squares - own.square())
