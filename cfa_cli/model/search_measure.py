"""The float32 distances of chosen pairs of queries and centroids, and how far they may be from the true ones."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cfa_cli.model.search_filter import gamma

SMALL = 2.0**-6  # of the query's squared length: the rounding of longer distances is below 1e-5 of them


class Bank(NamedTuple):
    """Centroids (M, D) float32, their squared lengths (M,), and the largest of these."""

    vectors: Tensor
    lengths: Tensor
    longest: float

    @classmethod
    def of(cls, vectors: Tensor) -> Bank:
        """Take a bank (M, D)."""
        lengths = vectors.square().sum(1)
        return cls(vectors, lengths, float(lengths.max()))


def measuring_error(channels: int) -> float:
    """Return e such that |m - |q - b|^2| <= e (|q|^2 + |b|^2) for the squared distance m that `measure` computes.

    m = |b|^2 - 2 q.b + |q|^2, each a float32 sum of D = `channels` products. The lengths are within
    gamma_D (|q|^2 + |b|^2) of the true ones, and 2 q.b is within 2 gamma_D |q| |b| <= gamma_D (|q|^2 + |b|^2).
    The two additions round values of at most 2 (|q|^2 + |b|^2): `SPARE_TERMS` covers that. So e = 2 gamma_D.
    """
    return 2 * gamma(channels)


def measure(
    queries: Tensor, lengths: Tensor, bank: Bank, candidates: np.ndarray, counts: np.ndarray, k: int
) -> tuple[Tensor, Tensor]:
    """Return the k nearest of each query's candidates: squared distances (n, k), ascending, and indices (n, k).

    queries: (n, D) float32, n > 0.
    lengths: (n,) float32, their squared lengths.
    candidates: (sum of counts,) int64, all queries' centroids, query after query.
    counts: (n,) int64, how many belong to each query; at least k.

    A pair's distance does not depend on what else is measured. Of equal distances the lower index comes first. What
    comes out small beside the query's length, where rounding would show, is measured again by the difference.
    """
    starts = np.concatenate([[0], np.cumsum(counts)])
    chosen = torch.from_numpy(candidates)
    products = _sampled_products(queries, bank.vectors, torch.from_numpy(starts), chosen)
    squared = bank.lengths[chosen].sub_(products, alpha=2).numpy()
    squared += np.repeat(lengths.numpy(), counts)
    # A distance's bits and, below them, its index: one integer that sorts by both, as bits of a float32 >= 0 do.
    keys = np.maximum(squared, 0).view(np.int32).astype(np.int64) << 32 | candidates
    best = np.empty((len(counts), k), np.int64)
    for column in range(k):
        best[:, column] = np.minimum.reduceat(keys, starts[:-1])
        keys[keys == np.repeat(best[:, column], counts)] = np.iinfo(np.int64).max
    nearest = torch.from_numpy((best >> 32).astype(np.int32).view(np.float32))
    indices = torch.from_numpy(best & 0xFFFFFFFF)
    rows, columns = torch.nonzero(nearest < SMALL * lengths[:, None], as_tuple=True)
    if len(rows):
        nearest[rows, columns] = (queries[rows] - bank.vectors[indices[rows, columns]]).square().sum(1)
        nearest, order = nearest.sort(dim=1, stable=True)
        indices = indices.gather(1, order)
    return nearest, indices


def _sampled_products(queries: Tensor, bank: Tensor, starts: Tensor, columns: Tensor) -> Tensor:
    """Return the product of each query and each of its candidates, without gathering the centroids."""
    wanted = _sparse(starts, columns, queries.new_zeros(len(columns)), (len(queries), len(bank)))
    products: Tensor = torch.sparse.sampled_addmm(wanted, queries, bank.T, beta=0.0)
    return products.values()


def _sparse(starts: Tensor, columns: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    return torch.sparse_csr_tensor(starts, columns, values, size=size, check_invariants=False)


# torch says once a process that its sparse tensors are in beta. It says so here, because filters of warnings belong to
# the whole process and must not be changed later, in threads.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    _sparse(torch.tensor([0, 0]), torch.empty(0, dtype=torch.int64), torch.empty(0), (1, 1))
