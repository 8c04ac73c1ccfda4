"""The nearest centroids of every descriptor: exact, in float32, at a fraction of the full product's cost.

The float32 product of all descriptors with all centroids is most of the work that CFA does. `NeighbourSearch` filters
and refines instead:

1. Coordinates. Vectors are written along orthonormal axes, the bank's principal ones first. Distances do not change,
   and a linear layer that makes the queries can write them so at no cost (`Descriptor.forward`).
2. Filter. The leading coordinates and the length of what is left, as one coordinate more, make a short vector. The
   distance of two short vectors is never more than that of the whole ones (the triangle inequality on what is left).
   They are rounded to bfloat16 where the processor multiplies it natively; by how much is known for each. One product
   gives all short distances.
3. Refine. Centroids whose short distances are up to a little above the k-th smallest are measured in float32, whole.
   The k-th distance found bounds the result: where that little was too little, every centroid whose short distance,
   less both roundings, is not above the bound is measured as well. So none that belongs to the result is ever missed.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cfa_cli.model.device import native_bfloat16

MIN_CENTROIDS = 128  # below, the plain search is as quick
EXTRA_COLUMNS = 7  # the length of the rest, and both squared lengths in three parts each
COLUMNS = 64  # of a short vector, or this times a power of two: products run best at multiples of 64
MEASURING = 15_000  # multiplications of the product in the time that a candidate takes
RETRY = 32  # chunks of queries after which fewer columns are tried again
GROUP = 4  # values whose minimum stands for them
SAMPLE = 8192  # centroids that the axes come from, at most
ENOUGH = 0.95  # of the rows are to be settled by the first measurement
SPARE = 2  # centroids beyond k that the plain search gives to be measured
CHUNK_ELEMENTS = 5_000_000  # of a distance matrix: bounds the memory; smaller ones leave the shared cache unused
PRODUCT_ERROR = 1e-5  # of float32 sums, relative to the squared lengths that go into them


class Frame(NamedTuple):
    """Coordinates: x becomes (x - origin) @ axes; origin (D,), orthonormal axes (D, D)."""

    origin: Tensor
    axes: Tensor


class Filter(NamedTuple):
    """The bank's short vectors, ready for the product."""

    axes: int  # leading coordinates in use
    columns: Tensor  # (axes + 7, M)
    rounding: float  # the largest length that rounding took from one


def nearest_plain(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Search by the whole distance matrix, in chunks of rows.

    queries (N, D), bank (M, D). Returns squared distances (N, k), ascending, and indices (N, k) int64. k is cut to M.
    """
    k = min(k, len(bank))
    lengths = bank.square().sum(1)
    parts = [
        torch.topk(torch.addmm(lengths, chunk, bank.T, alpha=-2), k, dim=1, largest=False)
        for chunk in torch.split(queries, _chunk_rows(bank))
    ]
    squared = torch.cat([part.values for part in parts]) + queries.square().sum(1, keepdim=True)
    return squared.clamp_min(0), torch.cat([part.indices for part in parts])


class NeighbourSearch:
    """Exact nearest centroids in a fixed bank (M, D), float32. Off the CPU and for small banks the search is plain.

    Queries are given in the search's own coordinates, `frame`; `bank` is the bank in them. Threads may share a search.
    """

    def __init__(self, bank: Tensor) -> None:
        self.filtered = bank.device.type == "cpu" and len(bank) >= MIN_CENTROIDS
        self.frame = principal_frame(bank) if self.filtered else Frame(bank.mean(0), torch.eye(bank.shape[1]).to(bank))
        self.bank = self.project(bank)
        if self.filtered:
            self.dtype = torch.bfloat16 if native_bfloat16(bank.device) else torch.float32
            self.lengths = self.bank.square().sum(1)
            self._filters: dict[int, Filter] = {}  # by their columns
            # What served the last queries: the filter's columns, and for each number of columns the distance beyond
            # the k-th smallest short one up to which to measure. Only the time depends on them.
            self._width, self._chunks = COLUMNS, 0
            self._margins = defaultdict[int, float](float)

    def project(self, vectors: Tensor) -> Tensor:
        """Write vectors (N, D) in the search's coordinates: (N, D)."""
        return (vectors - self.frame.origin) @ self.frame.axes

    def __call__(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return squared distances (N, k) float32, ascending, and indices (N, k) int64, for queries (N, D) float32.

        The queries are written in `frame`. k is cut to M.
        """
        k = min(k, len(self.bank))
        if not self.filtered or k * GROUP**2 > len(self.bank):
            return nearest_plain(queries, self.bank, k)
        parts = [self._search_chunk(chunk, k) for chunk in torch.split(queries, _chunk_rows(self.bank))]
        squared, indices = (torch.cat(columns) for columns in zip(*parts, strict=True))
        return squared, indices

    def _filter(self, width: int) -> Filter:
        if width in self._filters:
            return self._filters[width]
        axes = min(width - EXTRA_COLUMNS, self.bank.shape[1])
        short, squared, rounding = _shorten(self.bank, self.lengths, axes, self.dtype)
        rows = torch.cat([-2 * short, squared, torch.ones_like(squared)], dim=1)
        padding = rows.new_zeros(-len(rows) % GROUP**2, rows.shape[1])
        padding[:, short.shape[1]] = 1e30  # as a squared length: never a candidate
        made = Filter(axes, torch.cat([rows, padding]).T.contiguous(), float(rounding.max()))
        self._filters[width] = made
        return made

    def _search_chunk(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return squared distances (n, k) and indices (n, k)."""
        lengths = queries.square().sum(1)
        self._chunks += 1
        width = self._width if self._chunks % RETRY else max(COLUMNS, self._width // 2)
        while (found := self._search_by(width, queries, lengths, k)) is None:
            if width >= self.bank.shape[1] + EXTRA_COLUMNS:
                # Rounding hides what is nearest to vectors so far away, even by all their coordinates.
                indices = nearest_plain(queries, self.bank, k + SPARE)[1].sort(dim=1).values
                return self._measure(queries, lengths, indices.flatten().numpy(), np.full(*indices.shape), k)
            width *= 2
        self._width = width
        return found

    def _search_by(self, width: int, queries: Tensor, lengths: Tensor, k: int) -> tuple[Tensor, Tensor] | None:
        """Search by one filter; None if it leaves so many candidates that twice as many columns take less time."""
        chosen = self._filter(width)
        short, squared_short, rounding = _shorten(queries, lengths, chosen.axes, self.dtype)
        rounding = rounding + chosen.rounding
        # Both squared lengths are columns of the product: near centroids' distances come out small, and well rounded.
        row = torch.cat([short, torch.ones_like(squared_short), squared_short], dim=1)
        distances = ShortDistances(row @ chosen.columns)

        # Twice the columns leave half of the candidates that are measured in vain, or fewer.
        columns, count = chosen.columns.shape
        in_vain = 2 * columns * count / MEASURING
        most = int((k + in_vain) * len(queries))
        least = distances.smallest(k)
        start, margin = least.clamp_min(0).sqrt(), self._margins[width]
        limits = torch.maximum(least, (start + margin).square())
        candidates = distances.up_to(limits, most)
        if candidates is None:
            self._margins[width] = 0.0  # other queries need less
            return None
        squared, indices = self._measure(queries, lengths, *candidates, k)
        bounds = (squared[:, -1].sqrt() + rounding).square() + PRODUCT_ERROR * (lengths + self.lengths.max())
        missed = torch.nonzero(bounds > limits)[:, 0]
        if len(missed):
            more = ShortDistances(distances.values[missed]).up_to(bounds[missed], most)
            if more is None:
                return None
            squared[missed], indices[missed] = self._measure(queries[missed], lengths[missed], *more, k)
        self._margins[width] = float(torch.quantile(bounds.sqrt() - start, ENOUGH))
        return squared, indices

    def _measure(
        self, queries: Tensor, lengths: Tensor, candidates: np.ndarray, counts: np.ndarray, k: int
    ) -> tuple[Tensor, Tensor]:
        """Return the k smallest squared distances (n, k), ascending, to each query's candidates, and their indices.

        candidates: all queries' centroids, query after query; counts (n,): how many belong to each, at least k.
        """
        starts = np.concatenate([[0], np.cumsum(counts)])
        products = _sampled_products(queries, self.bank, torch.from_numpy(starts), torch.from_numpy(candidates))
        squared = self.lengths[torch.from_numpy(candidates)].sub_(products, alpha=2).numpy()
        squared += np.repeat(lengths.numpy(), counts)
        # A distance's bits and, below them, its index: one integer that sorts by both, as bits of a float32 >= 0 do.
        keys = np.maximum(squared, 0).view(np.int32).astype(np.int64) << 32 | candidates
        table = np.full((len(counts), counts.max()), np.iinfo(np.int64).max)
        table[np.arange(counts.max()) < counts[:, None]] = keys
        table.partition(k - 1, axis=1)
        best = np.sort(table[:, :k], axis=1)
        nearest = (best >> 32).astype(np.int32).view(np.float32)
        return torch.from_numpy(nearest), torch.from_numpy(best & 0xFFFFFFFF)


class ShortDistances:
    """Squared short distances (n, M) of queries and centroids, compared as integers: these sort alike, and quicker.

    Rounding may leave a distance just below 0; as an integer it is below all others as well.
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self.groups = _group_minima(values.view(_integers(values.dtype)))  # of columns that are a quarter of M apart

    def smallest(self, count: int) -> Tensor:
        """Return a float32 value for each row (n,) that at least `count` of its own, up to M / 16, are not above."""
        minima = _group_minima(self.groups).numpy()
        found = np.partition(minima, count - 1, axis=1)[:, count - 1]
        return torch.from_numpy(found).view(self.values.dtype).float()

    def up_to(self, limits: Tensor, most: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the columns whose values are not above their row's limit (n,), row after row, and each row's number.

        The limits are rounded as the values are, which keeps the order: what was not above one before is not after.
        None if the columns would surely be more than `most`.
        """
        integers = _integers(self.values.dtype)
        values, bound = self.values.view(integers).numpy(), limits.to(self.values.dtype).view(integers).numpy()
        width = self.groups.shape[1]
        near = self.groups.numpy() <= bound[:, None]
        if np.count_nonzero(near) > most:
            return None
        hits = np.flatnonzero(near)
        rows = hits // width
        members = np.arange(0, GROUP * width, width)
        places = (hits + (GROUP - 1) * width * rows)[:, None] + members
        found = places[values.ravel().take(places) <= bound[rows, None]]
        rows = found // values.shape[1]
        return found - rows * values.shape[1], np.bincount(rows, minlength=len(limits))


def principal_frame(bank: Tensor) -> Frame:
    """Return a frame around the bank's centre whose leading axes hold most of its variance.

    Any orthonormal axes give an exact result, so a sample of the bank will do.
    """
    origin = bank.mean(0)
    sample = bank[:: -(-len(bank) // SAMPLE)] - origin
    return Frame(origin, torch.linalg.eigh(sample.T @ sample).eigenvectors.flip(1).contiguous())


def _chunk_rows(bank: Tensor) -> int:
    return max(1, CHUNK_ELEMENTS // len(bank))


def _integers(dtype: torch.dtype) -> torch.dtype:
    return torch.int16 if dtype == torch.bfloat16 else torch.int32


def _group_minima(values: Tensor) -> Tensor:
    """Return the minima (n, M / 4) of columns that are M / 4 apart."""
    return values.view(len(values), GROUP, -1).amin(1)


def _shorten(vectors: Tensor, lengths: Tensor, axes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Write vectors (N, D) of squared lengths (N,) by their leading coordinates and the length of the rest, rounded.

    Returns these (N, axes + 1), their squared lengths (N, 3) as `_split` writes them, and what rounding took (N,).
    """
    leading = vectors[:, :axes]
    rest = (lengths - leading.square().sum(1)).clamp_min(0).sqrt()
    short = torch.cat([leading, rest[:, None]], dim=1)
    rounded = short.to(dtype)
    exact = rounded.float()
    return rounded, _split(exact.square().sum(1), dtype), (short - exact).norm(dim=1)


def _split(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Write float32 values (N,) as the sum of three columns (N, 3) of a shorter type."""
    columns = []
    for _ in range(3):
        columns.append(values.to(dtype))
        values = values - columns[-1].float()
    return torch.stack(columns, dim=1)


def _sampled_products(queries: Tensor, bank: Tensor, starts: Tensor, columns: Tensor) -> Tensor:
    """Return the product of each query and each of its candidates, without gathering the centroids."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        wanted = torch.sparse_csr_tensor(
            starts,
            columns,
            queries.new_zeros(len(columns)),
            size=(len(queries), len(bank)),
            check_invariants=False,
        )
    products: Tensor = torch.sparse.sampled_addmm(wanted, queries, bank.T, beta=0.0)
    return products.values()
