"""The memory bank: (h*w) / gamma_c centroids, however many images there are (paper, section III-C)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from cfa_cli.model.search import NeighbourSearch

EMA_RATE = 0.1
KMEANS_ITERATIONS = 3
KMEANS_POINTS = 32  # a cluster and iteration: more move the centroids very little


class Drawable(Protocol):
    """An image's descriptors (h*w, D), or what gives those at positions (n,) as (n, D)."""

    def __len__(self) -> int: ...

    def __getitem__(self, positions: Tensor, /) -> Tensor: ...


def mean_bank(descriptors: Iterable[Tensor]) -> Tensor:
    """Average descriptors (h*w, D), one tensor an image, position by position: what the authors' code does.

    Returns (h*w, D).
    """
    total, count = None, 0
    for image in descriptors:
        # Summed on the CPU: not every device has double precision.
        total = image.cpu().double() if total is None else total + image.cpu()
        count += 1
    if total is None:
        raise ValueError("no descriptors")
    return (total / count).to(image)


def ema_bank(descriptors: Iterable[Tensor], rate: float = EMA_RATE) -> Tensor:
    """Start from the first image's descriptors; each further image pulls every centroid to its nearest one there.

    The paper's text: K-means of the first image's h*w features into h*w clusters is the features themselves, then
    c <- (1 - rate) c + rate * nearest(c). Takes (h*w, D) an image; returns (h*w, D).
    """
    bank: Tensor | None = None
    for image in descriptors:
        if bank is None:
            bank = image.clone()
        else:
            search = NeighbourSearch(image)
            _, nearest = search(search.project(bank), 1)
            bank = bank.lerp(image[nearest[:, 0]], rate)
    if bank is None:
        raise ValueError("no descriptors")
    return bank


def kmeans_bank(descriptors: Callable[[], Iterable[Drawable]], images: int, clusters: int, seed: int) -> Tensor:
    """Cluster all images' descriptors by K-means, image by image, so that memory does not grow with them.

    `descriptors()` gives (h*w, D) an image, the same on each call. Starts from descriptors drawn evenly over the
    `images`; each of a few iterations draws others, and a cluster that none of them is nearest to stays where it is.
    Returns (clusters, D).
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn(total: int) -> Iterator[Tensor]:
        for number, image in enumerate(descriptors()):
            share = total // images + (number < total % images)
            yield image[torch.randperm(len(image), generator=generator)[:share]]

    bank = torch.cat(list(drawn(clusters)))
    for _ in range(KMEANS_ITERATIONS):
        search = NeighbourSearch(bank)
        sums, counts = torch.zeros_like(bank), bank.new_zeros(len(bank))
        for image in drawn(KMEANS_POINTS * clusters):
            nearest = search(search.project(image), 1)[1][:, 0]
            sums.index_add_(0, nearest, image)
            counts.index_add_(0, nearest, counts.new_ones(len(nearest)))
        bank = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp_min(1), bank)
    return bank


def compress(bank: Tensor, gamma_c: int, seed: int) -> Tensor:
    """Reduce a bank (M, D) to M / gamma_c centroids by K-means (scikit-learn's); gamma_c 1 leaves it as it is."""
    if gamma_c == 1:
        return bank
    from sklearn.cluster import KMeans  # 80 MB and half a second, not needed above

    # Seeding by distance costs as much as many iterations where there are many clusters, and matters less there.
    init = "k-means++" if len(bank) <= 4096 else "random"
    kmeans = KMeans(max(1, len(bank) // gamma_c), init=init, n_init=1, random_state=seed, max_iter=30)
    found = kmeans.fit(bank.cpu().numpy())
    return torch.from_numpy(found.cluster_centers_).to(bank)
