"""The memory bank: (h*w) / gamma_c centroids, however many images there are (paper, section III-C)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from cfa_cli.model.search import NeighbourSearch

EMA_RATE = 0.1
KMEANS_ITERATIONS = 10


def mean_bank(descriptors: Iterable[Tensor]) -> Tensor:
    """Average descriptors (h*w, D), one tensor an image, position by position: what the authors' code does.

    Returns (h*w, D).
    """
    total, count = None, 0
    for image in descriptors:
        total = image.double() if total is None else total + image
        count += 1
    if total is None:
        raise ValueError("no descriptors")
    return (total / count).float()


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
            _, nearest = NeighbourSearch(image)(bank, 1)
            bank = bank.lerp(image[nearest[:, 0]], rate)
    if bank is None:
        raise ValueError("no descriptors")
    return bank


def kmeans(points: Tensor, clusters: int, seed: int) -> Tensor:
    """Cluster points (N, D) by Lloyd's K-means with greedy k-means++ seeding (scikit-learn's): (clusters, D)."""
    from sklearn.cluster import KMeans

    if clusters >= len(points):
        return points.clone()
    found = KMeans(clusters, n_init=1, random_state=seed, max_iter=50).fit(points.numpy())
    return torch.from_numpy(found.cluster_centers_).float()


def compress(bank: Tensor, gamma_c: int, seed: int) -> Tensor:
    """Reduce a bank (M, D) to M / gamma_c centroids by K-means; gamma_c 1 leaves it as it is."""
    return bank if gamma_c == 1 else kmeans(bank, max(1, len(bank) // gamma_c), seed)
