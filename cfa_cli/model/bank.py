"""The memory bank: (h*w) / gamma_c centroids, however many images there are (paper, section III-C)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from typing import Protocol

import torch
from torch import Tensor

from cfa_cli.model.search import NeighbourSearch

EMA_RATE = 0.1
KMEANS_ITERATIONS = 3
KMEANS_POINTS = 32  # descriptors for each cluster and iteration: more move the centroids very little
WHITENING_SHRINKAGE = 1.0  # in mean variances: the more, the less is changed
WHITENING_BLOCK = 256  # descriptors of a product; with it and rounding, the number of threads makes no difference
WHITENING_ROUNDING = 2.0**-12


class Drawable(Protocol):
    """An image's descriptors (h*w, D), or what gives those at positions (n,) as (n, D)."""

    def __len__(self) -> int: ...

    def __getitem__(self, positions: Tensor, /) -> Tensor: ...


def mean_bank(descriptors: Iterable[Tensor], kept: Iterable[Tensor | None] = repeat(None)) -> Tensor:
    """Average the images' descriptors position by position, as the authors' code does.

    descriptors: (h*w, D) float32 for each image.
    kept: (h*w,) bool for each image, the positions that are not ignored; None keeps all.

    Returns (h*w, D) float32, without positions that all images ignore. Raises ValueError if there are no images.
    """
    total, count = None, torch.zeros(())
    for image, own in zip(descriptors, kept, strict=False):
        # Summed on the CPU: not every device has double precision.
        weight = torch.ones(len(image), 1) if own is None else own.cpu()[:, None].float()
        weighted = image.cpu().double() * weight
        total, count = weighted if total is None else total + weighted, count + weight
    if total is None:
        raise ValueError("no descriptors")
    known = count[:, 0] > 0
    return (total[known] / count[known]).to(image)


def ema_bank(bank: Tensor, images: Iterable[Iterable[Tensor]], rate: float = EMA_RATE) -> Tensor:
    """Move centroids by an exponential moving average (paper, section III-C).

    Each image moves every centroid c towards its nearest descriptor n there: c <- (1 - rate) c + rate n.

    bank: (M, D) float32, the clusters of the first image's descriptors: these themselves where M is their number.
    images: further images, each as parts (n, D) float32 of its descriptors; n is at least 1.
    rate: of the moving average, 0 to 1.

    Returns (M, D) float32.
    """
    for parts in images:
        closest, nearest = bank.new_full((len(bank), 1), torch.inf), bank.clone()
        for part in parts:
            search = NeighbourSearch(part)
            squared, indices = search(search.project(bank), 1)
            nearest = torch.where(squared < closest, part[indices[:, 0]], nearest)
            closest = torch.minimum(squared, closest)
        bank = bank.lerp(nearest, rate)
    return bank


def kmeans_bank(descriptors: Callable[[], Iterable[Drawable]], images: int, clusters: int, seed: int) -> Tensor:
    """Cluster all images' descriptors by K-means, image by image, so that memory does not grow with their number.

    The first centroids are descriptors drawn evenly from the images. Each of a few iterations draws others; a centroid
    that is nearest to none of them keeps its place.

    descriptors: called for each pass; gives each image's descriptors (h*w, D), the same on each call.
    images: how many images that are.
    clusters: M.
    seed: of the drawing.

    Returns (M, D) float32.
    """
    generator = torch.Generator().manual_seed(seed)
    bank = torch.cat(list(draw(descriptors(), images, clusters, generator)))
    for _ in range(KMEANS_ITERATIONS):
        search = NeighbourSearch(bank)
        sums, counts = torch.zeros_like(bank), bank.new_zeros(len(bank))
        for image in draw(descriptors(), images, KMEANS_POINTS * clusters, generator):
            nearest = search(search.project(image), 1)[1][:, 0]
            sums.index_add_(0, nearest, image)
            counts.index_add_(0, nearest, counts.new_ones(len(nearest)))
        bank = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp_min(1), bank)
    return bank


def draw(descriptors: Iterable[Drawable], images: int, total: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Draw `total` descriptors evenly from the images, or all that they have: yield each image's, (n, D)."""
    for number, image in enumerate(descriptors):
        share = total // images + (number < total % images)
        yield image[torch.randperm(len(image), generator=generator)[:share]]


def whitening(descriptors: Iterable[Tensor], bank: Tensor) -> Tensor:
    """Return the linear map after which good descriptors lie (nearly) as far from their centroids in all directions.

    Distances after it are Mahalanobis distances by the covariance S of descriptors around their nearest centroids,
    shrunk towards its mean variance v: the map is  (1 + s)^(1/2) (S / v + s 1)^(-1/2),  s = WHITENING_SHRINKAGE.
    What varies among good patches counts less, and what does not, more. (The whitening step of linear discriminant
    analysis, with centroids as classes.)

    descriptors: (n, D) float32 of each image.
    bank: (M, D) float32.

    Returns (D, D) float32, symmetric; the identity where descriptors are their centroids, or not finite.
    """
    search, total = NeighbourSearch(bank), torch.zeros(bank.shape[1], bank.shape[1], dtype=torch.float64)
    for image in descriptors:
        nearest = search(search.project(image), 1)[1][:, 0]
        rest = (image - bank[nearest]).cpu().double()  # not every device has double precision
        for block in torch.split(rest, WHITENING_BLOCK):
            total += block.T @ block
    variance = total.trace() / len(total)
    if not (total.isfinite().all() and variance > 0):
        return torch.eye(len(total)).to(bank)
    variances, axes = torch.linalg.eigh(total / variance)
    gains = ((1 + WHITENING_SHRINKAGE) / (variances.clamp_min(0) + WHITENING_SHRINKAGE)).sqrt()
    scaled: Tensor = (axes * gains) @ axes.T
    return (scaled / WHITENING_ROUNDING).round().mul(WHITENING_ROUNDING).to(bank)


def compress(bank: Tensor, clusters: int, seed: int) -> Tensor:
    """Reduce a memory bank to fewer centroids by scikit-learn's K-means (paper, section III-C).

    bank: (N, D) float32.
    clusters: M, 1 to N; N leaves the bank as it is.
    seed: of the first centroids.

    Returns (M, D) float32.
    """
    if clusters == len(bank):
        return bank
    from sklearn.cluster import KMeans  # 80 MB and half a second, not needed above

    # Seeding by distance costs as much as many iterations where there are many clusters, and matters less there.
    init = "k-means++" if len(bank) <= 4096 else "random"
    kmeans = KMeans(clusters, init=init, n_init=1, random_state=seed, max_iter=30)
    found = kmeans.fit(bank.cpu().numpy())
    return torch.from_numpy(found.cluster_centers_).to(bank)
