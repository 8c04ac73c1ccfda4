"""The memory bank, which training starts from, and the baseline of each position, which scores are divided by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
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

MOST_COMPRESSED = 20_000  # descriptors that scikit-learn's K-means takes in seconds; more are clustered by drawn ones
FEW = 4  # a share of the positions below 1 / FEW is described one by one


def resolve_gamma_c(config: FitConfig, grid: tuple[int, int]) -> float:
    """Return the configuration's gamma_c; for None (auto) the smallest that keeps M within `MAX_AUTO_CENTROIDS`.

    It is at least 1/2, and 1 for banks that have no more centroids than an image has patches.
    grid: (h, w) positions.
    """
    return config.gamma_c or max(0.5 if config.bank == "kmeans" else 1.0, grid[0] * grid[1] / MAX_AUTO_CENTROIDS)


def count_centroids(config: FitConfig, grid: tuple[int, int], positions: int | None = None) -> int:
    """Return M = h*w / gamma_c, rounded down, of a grid (h, w).

    positions: how many of the grid's are not ignored; None: all.
    """
    count = grid[0] * grid[1] if positions is None else positions
    return int(count / resolve_gamma_c(config, grid) + 1e-6)  # 3136 may come out as 3135.9999999999995


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
    bank, (_, height, width) = config.bank, store.shapes[0]
    thinned = bank == "kmeans" or (bank == "mean" and height * width > MOST_COMPRESSED and config.gamma_c != 1)
    steps, passes = count(1), 1 + KMEANS_ITERATIONS if thinned else 1

    def drawable() -> Iterator[DrawnDescriptors]:
        for index in images:
            yield DrawnDescriptors.of(store, index, descriptor)
            image, rest = divmod(next(steps), passes)
            if not rest:
                progress(Progress("building the bank", image, len(images)))

    known = _known(store, images)
    with torch.no_grad():
        if bank == "ema":
            each = drawable()
            first = next(each)
            start = _cluster(first, count_centroids(config, (height, width), len(first)), config.seed)
            return ema_bank(start, (image.parts() for image in each))
        clusters = count_centroids(config, (height, width), None if known is None else int(known.sum()))
        if bank == "mean":
            kept = [store.kept([index]) for index in images]
            return _cluster(MeanDescriptors(drawable, kept, known, (height, width)), clusters, config.seed)
        return kmeans_bank(drawable, len(images), clusters, config.seed)


def _cluster(descriptors: DrawnDescriptors | MeanDescriptors, clusters: int, seed: int) -> Tensor:
    """Cluster an image's descriptors, or the images' mean ones: (M, D)."""
    if len(descriptors) <= MOST_COMPRESSED or clusters == len(descriptors):
        return compress(descriptors[torch.arange(len(descriptors))], clusters, seed)
    return kmeans_bank(lambda: [descriptors], 1, clusters, seed)


def _known(store: FeatureStore, images: Sequence[int]) -> Tensor | None:
    """Return which positions (h, w) bool some image does not ignore; None: all."""
    _, height, width = store.shapes[0]
    known = torch.zeros(1, height, width, dtype=torch.bool)
    for image in images:
        own = store.kept([image])
        if own is None:
            return None
        known = known | own
    return known[0]


class DrawnDescriptors:
    """An image's descriptors (h*w, D), of which few are looked at: computed where they are, and not kept.

    kept: (h*w,) bool, those that there are; None: all.
    """

    def __init__(self, levels: Sequence[Tensor], descriptor: Descriptor, kept: Tensor | None = None) -> None:
        self._levels, self._descriptor, self._kept = levels, descriptor, kept
        self._places = None if kept is None else torch.nonzero(kept)[:, 0]

    @classmethod
    def of(cls, store: FeatureStore, index: int, descriptor: Descriptor) -> DrawnDescriptors:
        """Return a stored image's descriptors, at the positions that it does not ignore."""
        device, kept = descriptor.weight.device, store.kept([index])
        return cls(store.levels([index], device), descriptor, None if kept is None else kept.flatten().to(device))

    def __len__(self) -> int:
        if self._places is not None:
            return len(self._places)
        return self._levels[0].shape[2] * self._levels[0].shape[3]

    def __getitem__(self, positions: Tensor) -> Tensor:
        """Return the descriptors (n, D) at positions (n,) int64, counted among those that there are."""
        positions = positions.to(self._levels[0].device)
        return self.at(positions if self._places is None else self._places[positions])

    def at(self, positions: Tensor) -> Tensor:
        """Return the descriptors (n, D) at positions (n,) int64 of the whole grid."""
        height, width = self._levels[0].shape[2:]
        positions = positions.to(self._levels[0].device)
        if len(positions) * FEW < height * width:
            return self._descriptor.at(self._levels, positions)
        whole: Tensor = self._descriptor(self._levels)
        return whole.flatten(0, 2)[positions]

    def parts(self) -> Iterator[Tensor]:
        """Yield those that there are, (n, D), n > 0, by bands of rows."""
        height, width = self._levels[0].shape[2:]
        for rows in row_bands(height, width):
            band: Tensor = self._descriptor(self._levels, rows).flatten(0, 2)
            if self._kept is not None:
                first, last = rows or (0, height)
                band = band[self._kept[first * width : last * width]]
            if len(band):
                yield band


class MeanDescriptors:
    """The mean of images' descriptors at each position, over the images that do not ignore it.

    images: called for each pass; gives the images' descriptors.
    kept: of each image (1, h, w) bool, or None: all.
    known: (h, w) bool, the positions that there are; None: all.
    grid: (h, w).
    """

    def __init__(
        self,
        images: Callable[[], Iterable[DrawnDescriptors]],
        kept: Sequence[Tensor | None],
        known: Tensor | None,
        grid: tuple[int, int],
    ) -> None:
        self._images, self._kept = images, kept
        self._places = torch.arange(grid[0] * grid[1]) if known is None else torch.nonzero(known.flatten())[:, 0]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, positions: Tensor) -> Tensor:
        """Return the means (n, D) at positions (n,) int64, counted among those that there are."""
        places = self._places[positions]
        kept = (None if own is None else own.flatten()[places] for own in self._kept)
        return mean_bank((image.at(places) for image in self._images()), kept)


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


def leave_one_out_baselines(
    positions: Tensor, normalize: bool, kept: Tensor | None = None, views: int = 1
) -> Iterator[Tensor]:
    """Yield baselines (h, w) from held-out scores (n * views, h, w): of all images, of all but the first, and so on.

    Good parts vary more at some positions than at others, so the same score means less there. A held-out image is
    judged by the baseline of the other images alone: only then does its score tell how a new image would score.
    Without `normalize` every baseline is 1. `kept` (n * views, h, w) bool tells what is not ignored; None: all.
    """
    if not normalize:
        yield from repeat(torch.ones_like(positions[0]), 1 + len(positions) // views)
        return
    counted = torch.ones_like(positions, dtype=torch.float64) if kept is None else kept.double()
    scores = positions.double() * counted
    count, total = counted.sum(0), scores.sum(0)
    yield position_baseline(count, total)
    for one, own in zip(torch.split(counted, views), torch.split(scores, views), strict=True):
        yield position_baseline(count - one.sum(0), total - own.sum(0))
