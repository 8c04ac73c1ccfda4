"""The nearest centroids of every descriptor: exact, in float32, at a fraction of the full product's cost.

The float32 product of all descriptors with all centroids is most of the work that CFA does. `NeighbourSearch` filters,
refines and proves instead:

1. Filter. Vectors are written by their coordinates along the bank's principal axes and the length of what is left, as
   one coordinate more. The distance of two such short vectors is never more than that of the whole ones (the triangle
   inequality on what is left). They are rounded to bfloat16 where the processor multiplies it natively; by how much is
   known for each. One product gives all short distances, and the smallest of a row name its candidates.
2. Refine. The candidates' distances are computed in float32 from the whole vectors.
3. Prove. What is no candidate is at least as far away as the last candidate's short distance less both roundings.
   Where the k-th refined distance is not more than that, the result is the plain search's; the few rows left over are
   searched plainly.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from cfa_cli.model.device import native_bfloat16, quick_bfloat16

MIN_CENTROIDS = 512  # below, the plain search is as quick
EXTRA_COLUMNS = 7  # the length of the rest, and both squared lengths in three parts each
FIRST_AXES = 128 - EXTRA_COLUMNS  # products run best at multiples of 64 columns
ENOUGH_PROVEN = 0.88  # of the rows; below, twice as many columns cost less than searching the rest plainly
GROUP = 4  # values whose minimum stands for them
SPARE = 18  # candidates beyond k
CHUNK_ELEMENTS = 1_600_000  # of a distance matrix: stays in the processor's cache and bounds the memory
PRODUCT_ERROR = 1e-5  # of float32 sums, relative to the squared lengths that go into them


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
    """Exact nearest centroids in a fixed bank (M, D), float32. Off the CPU and for small banks the search is plain."""

    def __init__(self, bank: Tensor) -> None:
        # Distances do not change under a shift, and products lose less to rounding around the centre.
        self.centre = bank.mean(0)
        self.bank = (bank - self.centre).contiguous()
        self.lengths = self.bank.square().sum(1)
        self.filtered = bank.device.type == "cpu" and len(bank) >= MIN_CENTROIDS
        if self.filtered:
            self.dtype = torch.bfloat16 if native_bfloat16(bank.device) else torch.float32
            self._prepare_filter(None if quick_bfloat16(bank.device) else FIRST_AXES)

    def __call__(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return squared distances (N, k) float32, ascending, and indices (N, k) int64, for queries (N, D) float32.

        k is cut to M.
        """
        k = min(k, len(self.bank))
        queries = queries - self.centre
        if not self.filtered:
            return nearest_plain(queries, self.bank, k)
        parts = [self._filter_and_refine(chunk, k) for chunk in torch.split(queries, _chunk_rows(self.bank))]
        squared, indices, proven = (torch.cat(columns) for columns in zip(*parts, strict=True))
        rest = proven.logical_not().nonzero().squeeze(1)
        if len(rest):
            squared[rest], indices[rest] = nearest_plain(queries[rest], self.bank, k)
        if self.axes is not None and len(rest) > (1 - ENOUGH_PROVEN) * len(queries):
            self._prepare_filter(2 * (self.axes.shape[1] + EXTRA_COLUMNS) - EXTRA_COLUMNS)
        return squared, indices

    def _prepare_filter(self, axes: int | None) -> None:
        """Filter along this many axes, or, for None or where that is no saving, along all of the vectors' own."""
        saves = axes is not None and 1.5 * axes < self.bank.shape[1] and axes <= len(self.bank)
        self.axes = _principal_axes(self.bank, axes) if axes is not None and saves else None
        short = _shorten(self.bank, self.lengths, self.axes)
        rounded = short.to(self.dtype)
        self.rounding = (short - rounded.float()).norm(dim=1).max()
        squared = rounded.float().square().sum(1)
        columns = torch.cat([-2 * rounded, _split(squared, self.dtype), rounded.new_ones(len(rounded), 3)], dim=1)
        padding = columns.new_zeros(-len(columns) % GROUP**4, columns.shape[1])
        padding[:, short.shape[1]] = 1e30  # as a squared length: never a candidate
        self.columns = torch.cat([columns, padding]).T.contiguous()

    def _filter_and_refine(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return squared distances (n, k), indices (n, k), and which rows are proven (n,)."""
        lengths = queries.square().sum(1)
        short = _shorten(queries, lengths, self.axes)
        rounded = short.to(self.dtype)
        rounding = (short - rounded.float()).norm(dim=1) + self.rounding
        squared = rounded.float().square().sum(1)
        # Both squared lengths are columns of the product: near centroids' distances come out small, and well rounded.
        row = torch.cat([rounded, rounded.new_ones(len(rounded), 3), _split(squared, self.dtype)], dim=1)
        distances, candidates = _smallest(row @ self.columns, min(k + SPARE, len(self.bank)))

        refined = torch.add(self.lengths[candidates], _sampled_products(queries, self.bank, candidates), alpha=-2)
        refined += lengths[:, None]
        best = refined.topk(k, dim=1, largest=False)
        # The product's own result is rounded as well, by half a unit in the last place.
        furthest = distances.amax(1).float() * (1 - torch.finfo(self.dtype).eps / 2) - PRODUCT_ERROR * lengths
        proven = best.values[:, -1].clamp_min(0).sqrt() <= furthest.clamp_min(0).sqrt() - rounding
        return best.values.clamp_min(0), candidates.gather(1, best.indices), proven


def _chunk_rows(bank: Tensor) -> int:
    return max(1, CHUNK_ELEMENTS // len(bank))


def _smallest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` smallest values of each row (n, M), unsorted, and their columns.

    They are all members of the `count` groups with the smallest minima: so the groups are ranked first, by the same
    means, and few values are left. Groups are columns that are M / GROUP apart: their minima are one vectorised pass.
    """
    width = values.shape[1]
    if width % GROUP or width <= 2 * GROUP * count:
        return values.topk(count, dim=1, largest=False, sorted=False)
    step = width // GROUP
    _, groups = _smallest(values.view(-1, GROUP, step).amin(1), count)
    members = (groups[:, None, :] + torch.arange(0, width, step)[:, None]).flatten(1)
    smallest = values.gather(1, members).topk(count, dim=1, largest=False, sorted=False)
    return smallest.values, members.gather(1, smallest.indices)


def _principal_axes(bank: Tensor, count: int) -> Tensor:
    """Return a centred bank's first principal axes (D, count).

    Any orthonormal axes give an exact result, so a sample of the bank and a randomised decomposition will do.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sample = bank[torch.randperm(len(bank))[:8192]]
        return torch.svd_lowrank(sample, q=count, niter=2)[2].contiguous()


def _shorten(vectors: Tensor, squared_lengths: Tensor, axes: Tensor | None) -> Tensor:
    """Write vectors (N, D) by their coordinates along the axes (D, p) and the length of the rest: (N, p + 1)."""
    if axes is None:
        return torch.cat([vectors, vectors.new_zeros(len(vectors), 1)], dim=1)
    short = vectors @ axes
    rest = (squared_lengths - short.square().sum(1)).clamp_min(0).sqrt()
    return torch.cat([short, rest[:, None]], dim=1)


def _split(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Write float32 values (N,) as the sum of three columns (N, 3) of a shorter type."""
    columns = []
    for _ in range(3):
        columns.append(values.to(dtype))
        values = values - columns[-1].float()
    return torch.stack(columns, dim=1)


def _sampled_products(queries: Tensor, bank: Tensor, candidates: Tensor) -> Tensor:
    """Return queries[n] · bank[candidates[n, i]]: (N, m), without gathering the centroids."""
    count, m = candidates.shape
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        wanted = torch.sparse_csr_tensor(
            torch.arange(0, count * m + 1, m),
            candidates.flatten(),
            queries.new_zeros(count * m),
            size=(count, len(bank)),
            check_invariants=False,
        )
    products: Tensor = torch.sparse.sampled_addmm(wanted, queries, bank.T, beta=0.0)
    return products.values().view(count, m)
