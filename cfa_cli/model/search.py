"""The nearest centroids of every descriptor: exact, in float32, at a fraction of the full product's cost.

The float32 product of all descriptors with all centroids is most of the work that CFA does. `NeighbourSearch` filters
and measures instead:

1. Coordinates. Vectors are written along orthonormal axes, the bank's principal ones first. Distances do not change,
   and a linear layer that makes the queries can write them so at no cost (`Descriptor.forward`).
2. Filter (`search_filter`). A short product gives a lower bound of every distance, up to a known rounding error.
3. Measure (`search_measure`). Centroids whose lower bound is small are measured in float32, by all coordinates.

What is claimed. Let m(q, b) be the measured squared distance. For every query within the search's range the result is
the k smallest pairs (m(q, b), index of b) over the whole bank, whatever was searched before. As m differs from the
true squared distance by rounding alone, the result is that of the float32 search by the full product.

Why it holds. Let m_k be the k-th smallest distance measured so far, E the error of measuring, r the error of shortening
both vectors and F the error of the short product P (each is derived where it is computed). What is returned for m_k may
be measured again (`search_measure`), and be smaller by E: call it n_k. If m(q, b) <= m_k, then

    |q - b|^2  <=  m_k + E  <=  n_k + 2 E               by `measuring_error`
    P(q, b)    <=  (sqrt(n_k + 2 E) + r)^2 + F          by the lemma in `search_filter`.

Every centroid that satisfies the last line is measured, so none that belongs to the result is missed.
How many columns the short product has and how many centroids are measured first (`search_tuning`) affect time alone.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from cfa_cli.model.device import native_bfloat16
from cfa_cli.model.search_filter import GROUP, Filter, filter_sizes
from cfa_cli.model.search_measure import Bank, measure, measuring_error
from cfa_cli.model.search_tuning import Tuning

MIN_CENTROIDS = 128  # below, the plain search is as quick
AXES_SAMPLE = 8192  # centroids that the axes are computed from, at most
CHUNK_BYTES = 20_000_000  # of a distance matrix: bounds the memory; smaller ones leave the shared cache unused
RANGE = 2.0**30  # bank lengths from 1 / RANGE to RANGE are searched as they are; so are queries up to RANGE times those
ROUNDING_ROOM = 1 + 2.0**-20  # computing a bound takes a few float32 operations itself


class Frame(NamedTuple):
    """Coordinates: x becomes (x - origin) @ axes; origin (D,), orthonormal axes (D, D)."""

    origin: Tensor
    axes: Tensor


def nearest_plain(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Search by the full distance matrix, in chunks of rows.

    queries: (N, D) float32.
    bank: (M, D) float32.
    k: number of neighbours; cut to M.

    Returns squared distances (N, k) float32, ascending, and indices (N, k) int64.
    """
    k = min(k, len(bank))
    lengths = bank.square().sum(1)
    parts = [
        torch.topk(torch.addmm(lengths, chunk, bank.T, alpha=-2), k, dim=1, largest=False)
        for chunk in torch.split(queries, _chunk_rows(bank, bank.dtype))
    ]
    squared = torch.cat([part.values for part in parts]) + queries.square().sum(1, keepdim=True)
    return squared.clamp_min(0), torch.cat([part.indices for part in parts])


class NeighbourSearch:
    """Exact nearest centroids in a fixed bank. Off the CPU and for small banks the search is plain.

    bank: (M, D) float32.
    filter_type: number type of the short product (`search_filter.FILTER_TYPES`); None takes bfloat16 where the
        processor multiplies it natively, else float32.

    Queries are given in the search's own coordinates, `frame`; the attribute `bank` is the bank in them. Threads may
    share a search.

    >>> search = NeighbourSearch(bank)
    >>> squared, indices = search(search.project(queries), k=3)
    """

    def __init__(self, bank: Tensor, filter_type: torch.dtype | None = None) -> None:
        quick = bank.device.type == "cpu" and len(bank) >= MIN_CENTROIDS and bool(bank.isfinite().all())
        self.frame = principal_frame(bank) if quick else Frame(bank.mean(0), torch.eye(bank.shape[1]).to(bank))
        self.bank = self.project(bank)
        # Multiplying by a power of two is exact; without it, squares of very large or very small banks leave float32.
        self._scale = _scale_into_range(self.bank)
        self._scaled = Bank.of(self.bank * self._scale if self._scale != 1 else self.bank)
        self._filtered = quick and math.isfinite(self._scaled.longest)
        filter_type = filter_type or (torch.bfloat16 if native_bfloat16(bank.device) else torch.float32)
        self._chunk_rows = _chunk_rows(bank, filter_type)
        if self._filtered:
            self._sizes = filter_sizes(bank.shape[1], filter_type)
            self._filters: dict[int, Filter] = {}  # by their place in _sizes
            self._tuning = Tuning(len(self._sizes))

    def project(self, vectors: Tensor) -> Tensor:
        """Write vectors (N, D) in the search's coordinates: (N, D)."""
        return (vectors - self.frame.origin) @ self.frame.axes

    def __call__(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Find the k nearest centroids of every query.

        queries: (N, D) float32, in `frame`. N may be 0.
        k: number of neighbours; cut to M.

        Returns squared distances (N, k) float32, ascending, and indices (N, k) int64. Never raises for any values:
        a query with a NaN or an infinite coordinate has distances that are not finite. So has one whose squared
        distance is past float32's range.
        """
        k = min(k, len(self.bank))
        if not self._filtered and self._scale == 1:
            return nearest_plain(queries, self.bank, k)
        parts = [self._search_chunk(chunk, k) for chunk in torch.split(queries, self._chunk_rows)]
        squared, indices = (torch.cat(columns) for columns in zip(*parts, strict=True))
        return squared, indices

    def _search_chunk(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return squared distances (n, k) and indices (n, k) of any queries (n, D)."""
        scaled = queries * self._scale if self._scale != 1 else queries
        lengths = torch.linalg.vector_norm(scaled, dim=1).square()
        # Seen from further away, all centroids lie at the query's own length from it, up to float32 rounding:
        # | |q - b|^2 - |q|^2 |  <=  3 |q| |b|  <=  3 |q|^2 / RANGE. NaN and infinity are never within.
        within = lengths < self._scaled.longest * RANGE**2
        if len(queries) and bool(within.all()):
            squared, indices = self._search_within(scaled, lengths, k)
            return (squared / self._scale / self._scale if self._scale != 1 else squared), indices
        squared = queries.square().sum(1, keepdim=True).repeat(1, k)
        indices = torch.arange(k, device=queries.device).repeat(len(queries), 1)
        if bool(within.any()):
            squared[within], indices[within] = self._search_chunk(queries[within], k)
        return squared, indices

    def _search_within(self, queries: Tensor, lengths: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return squared distances (n, k) and indices (n, k) of scaled queries within the search's range, n > 0."""
        if not self._filtered or k * GROUP > len(self.bank):
            return nearest_plain(queries, self._scaled.vectors, k)
        for size in self._tuning.sizes_to_try():
            found = self._search_by(size, queries, lengths, k)
            if found is not None:
                self._tuning.worked(size)
                return found
        raise AssertionError("the last filter takes any number of candidates")

    def _search_by(self, size: int, queries: Tensor, lengths: Tensor, k: int) -> tuple[Tensor, Tensor] | None:
        """Search by one filter; None if it leaves so many candidates that a longer one takes less time."""
        if size not in self._filters:
            self._filters[size] = Filter(self._scaled.vectors, *self._sizes[size])
        chosen = self._filters[size]
        distances, rounding, error = chosen.distances(queries)
        most = self._tuning.most_candidates(size, chosen, len(queries), k)

        smallest = distances.smallest(k)
        start = smallest.clamp_min(0).sqrt()
        limits = torch.maximum(smallest, (start + self._tuning.margins[size]).square())
        candidates = distances.up_to(limits, most)
        if candidates is None:
            self._tuning.margins[size] = 0.0  # other queries need less
            return None
        squared, indices = measure(queries, lengths, self._scaled, *candidates, k)

        furthest = squared[:, -1] + 2 * measuring_error(queries.shape[1]) * (lengths + self._scaled.longest)
        bounds = ((furthest.sqrt() + rounding).square() + error) * ROUNDING_ROOM
        missed = torch.nonzero(bounds > limits)[:, 0]
        if len(missed):
            more = distances.up_to(bounds[missed], most, missed)
            if more is None:
                return None
            squared[missed], indices[missed] = measure(queries[missed], lengths[missed], self._scaled, *more, k)
        self._tuning.settled(size, bounds.sqrt() - start)
        return squared, indices


def principal_frame(bank: Tensor) -> Frame:
    """Return a frame around the bank's centre whose leading axes hold most of its variance; bank (M, D), finite.

    Any origin and any orthonormal axes give an exact result, so a sample of the bank will do, and the median, which a
    few far centroids do not move.
    """
    sample = bank[:: -(-len(bank) // AXES_SAMPLE)]
    origin = sample.median(0).values
    centred = sample - origin
    limits = torch.finfo(bank.dtype)
    # Of at most 1, so that squares neither overflow nor vanish.
    unit = (centred / centred.abs().max().clamp(limits.tiny, limits.max)).clamp(-1, 1)
    return Frame(origin, torch.linalg.eigh(unit.T @ unit).eigenvectors.flip(1).contiguous())


def _scale_into_range(bank: Tensor) -> float:
    """Return the power of two that brings the bank's largest coordinate to about 1; 1.0 where that is not needed."""
    largest = float(bank.abs().max())
    if not math.isfinite(largest) or largest == 0 or 1 / RANGE <= largest <= RANGE / bank.shape[1]:
        return 1.0
    return 2.0 ** -math.frexp(largest)[1]


def _chunk_rows(bank: Tensor, dtype: torch.dtype) -> int:
    return max(1, CHUNK_BYTES // (len(bank) * dtype.itemsize))
