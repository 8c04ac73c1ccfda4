"""The memory bank, which training starts from, and the baseline of each position, which scores are divided by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count, repeat

import torch
from torch import Tensor

from cfa_cli.config import MAX_AUTO_CENTROIDS, FitConfig
from cfa_cli.engine.features import FeatureStore
from cfa_cli.engine.workers import Workers, images_at_a_time
from cfa_cli.model.bank import KMEANS_ITERATIONS, compress, ema_bank, kmeans_bank, mean_bank
from cfa_cli.model.descriptor import Descriptor
from cfa_cli.model.scoremap import position_baseline, position_scores
from cfa_cli.model.search import NeighbourSearch
from cfa_cli.model.tiles import row_bands
from cfa_cli.records import Progress, ProgressCallback


def resolve_gamma_c(gamma_c: float | None, grid: tuple[int, int]) -> float:
    """Return gamma_c; for None (auto) the smallest that keeps h*w / gamma_c within `MAX_AUTO_CENTROIDS`.

    grid: (h, w) positions.
    """
    return gamma_c or max(1.0, grid[0] * grid[1] / MAX_AUTO_CENTROIDS)


def count_centroids(gamma_c: float | None, grid: tuple[int, int], positions: int | None = None) -> int:
    """Return M = h*w / gamma_c, rounded down, of a grid (h, w); gamma_c None: auto.

    positions: how many of the grid's are not ignored; None: all.
    """
    count = grid[0] * grid[1] if positions is None else positions
    return int(count / resolve_gamma_c(gamma_c, grid) + 1e-6)  # 3136 may come out as 3135.9999999999995


def build_bank(
    store: FeatureStore,
    images: Sequence[int],
    descriptor: Descriptor,
    config: FitConfig,
    progress: ProgressCallback,
) -> Tensor:
    """Build the memory bank from the initial descriptor's output, image by image.

    store: the images' feature maps.
    images: numbers of the training images in it.
    descriptor: before training.
    progress: counts images; K-means passes over them many times, and an image counts for each share of that work.

    Returns (M, D) float32, M = h*w / gamma_c, of the positions that are not ignored.
    """
    device = descriptor.weight.device
    steps, passes = count(1), 1 + KMEANS_ITERATIONS if config.bank == "kmeans" else 1

    def kept() -> Iterator[Tensor | None]:
        for image in images:
            positions = store.kept([image])
            yield None if positions is None else positions.flatten().to(device)

    def drawable() -> Iterator[DrawnDescriptors]:
        for index, own in zip(images, kept(), strict=True):
            yield DrawnDescriptors(store.levels([index], device), descriptor, own)
            image, rest = divmod(next(steps), passes)
            if not rest:
                progress(Progress("building the bank", image, len(images)))

    _, height, width = store.shapes[0]
    with torch.no_grad():
        if config.bank == "kmeans":
            clusters = count_centroids(config.gamma_c, (height, width), _count_known(store, images))
            return kmeans_bank(drawable, len(images), clusters, config.seed)
        if config.bank == "mean":
            bank = mean_bank((each.all() for each in drawable()), kept())
        else:
            bank = ema_bank(each.kept() for each in drawable())
        return compress(bank, count_centroids(config.gamma_c, (height, width), len(bank)), config.seed)


def _count_known(store: FeatureStore, images: Sequence[int]) -> int:
    """Count the positions that some image does not ignore."""
    _, height, width = store.shapes[0]
    known = torch.zeros(1, height, width, dtype=torch.bool)
    for image in images:
        own = store.kept([image])
        if own is None:
            return height * width
        known = known | own
    return int(known.sum())


class DrawnDescriptors:
    """An image's descriptors (h*w, D), of which few are looked at: computed by bands of rows, and not kept.

    kept: (h*w,) bool, those that there are; None: all.
    """

    def __init__(self, levels: Sequence[Tensor], descriptor: Descriptor, kept: Tensor | None = None) -> None:
        self._levels, self._descriptor = levels, descriptor
        self._places = None if kept is None else torch.nonzero(kept)[:, 0]

    def __len__(self) -> int:
        if self._places is not None:
            return len(self._places)
        return self._levels[0].shape[2] * self._levels[0].shape[3]

    def all(self) -> Tensor:
        """Return all descriptors (h*w, D), those that are ignored too."""
        descriptors: Tensor = self._descriptor(self._levels)
        return descriptors.flatten(0, 2)

    def kept(self) -> Tensor:
        """Return those that there are, (n, D)."""
        return self.all() if self._places is None else self.all()[self._places]

    def __getitem__(self, positions: Tensor) -> Tensor:
        """Return the descriptors (n, D) at positions (n,) int64, counted among those that there are."""
        height, width = self._levels[0].shape[2:]
        positions = positions.to(self._levels[0].device)
        if self._places is not None:
            positions = self._places[positions]
        drawn = self._levels[0].new_empty(len(positions), len(self._descriptor.bias))
        for rows in row_bands(height, width):
            first, last = rows or (0, height)
            within = (positions >= first * width) & (positions < last * width)
            band = self._descriptor(self._levels, rows).flatten(0, 2)
            drawn[within] = band[positions[within] - first * width]
        return drawn


def score_positions(
    store: FeatureStore,
    images: Sequence[int],
    descriptor: Descriptor,
    bank: Tensor,
    config: FitConfig,
    progress: ProgressCallback,
) -> Tensor:
    """Score the positions of stored images by a trained descriptor and the bank (M, D): (n, h, w) float32, on the CPU.

    images: numbers of n images in the store.
    """
    _, height, width = store.shapes[0]
    search = NeighbourSearch(bank)
    described = descriptor.moved_to(search.frame)

    def score(image: int) -> Tensor:
        with torch.no_grad():
            levels = store.levels([image], bank.device)
            bands = []
            for rows in row_bands(height, width):
                queries = described(levels, rows).flatten(0, 2)
                bands.append(position_scores(search(queries, config.score_neighbours)[0]))
            return torch.cat(bands).view(height, width).cpu()

    scores: list[Tensor] = []
    batch_size = images_at_a_time(store.input_size, config.batch_size)
    with Workers(bank.device, batch_size) as workers:
        for start in range(0, len(images), batch_size):
            scores += workers.map(score, images[start : start + batch_size])
            progress(Progress("calibrating", len(scores), len(images)))
    return torch.stack(scores)


def leave_one_out_baselines(positions: Tensor, normalize: bool, kept: Tensor | None = None) -> Iterator[Tensor]:
    """Yield baselines (h, w) from held-out scores (n, h, w): of all images, then of all but the first, and so on.

    Good parts vary more at some positions than at others, so the same score means less there. A held-out image is
    judged by the baseline of the other images alone: only then does its score tell how a new image would score.
    Without `normalize` every baseline is 1. `kept` (n, h, w) bool tells what is not ignored; None: all.
    """
    if not normalize:
        yield from repeat(torch.ones_like(positions[0]), 1 + len(positions))
        return
    counted = torch.ones_like(positions, dtype=torch.float64) if kept is None else kept.double()
    scores = positions.double() * counted
    count, total = counted.sum(0), scores.sum(0)
    yield position_baseline(count, total)
    for one, own in zip(counted, scores, strict=True):
        yield position_baseline(count - one, total - own)
