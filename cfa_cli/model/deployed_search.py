"""The nearest centroids of every descriptor as one loop of tensor operations that every runtime has.

Vectors are written along the bank's principal axes. One is cut into its leading coordinates and a few blocks of
trailing ones. With |q - b|^2 = |q|^2 + |b|^2 - 2 q.b, and |q_i|, |b_i| the norms of the blocks,

    |b|^2 - 2 q.b  =  short(q, b) + rest(q, b)
    short(q, b)    =  |b|^2 - 2 (product of the leading coordinates) - 2 (sum of |q_i| |b_i|)
    rest(q, b)     =  2 (sum of |q_i| |b_i|) - 2 (product of the trailing coordinates)  >=  0   (Cauchy-Schwarz).

`short` is a product of few columns with the whole bank. The centroids that it puts nearest, a fixed number, are
measured by adding `rest`. As `rest` is never negative, no other centroid is nearer than the largest `short` among the
measured: a query whose K-th measured distance is not above it has its K nearest. For the few queries where it is,
both products are made with the whole bank. So the result is always that of the whole product, up to float32 rounding,
whatever the images are; how many centroids are measured affects time alone.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._higher_order_ops.while_loop import while_loop  # exporters know no public loop

LEADING = 124  # coordinates; with the norms of the blocks 128 columns. Fewer prove little where a bank is whitened
BLOCKS = 4  # of trailing coordinates, the first ones shorter: they hold more of the bank's variance
GROUP = 32  # centroids whose minimum stands for them while the nearest are looked for
CHUNK_ELEMENTS = 700_000  # of the matrix that a turn of the loop makes: it stays in the processor's cache
PADDING = 1e37  # squared length of the rows that fill the last group up
NORM_ROOM = 1 + 2.0**-13  # the bank's norms are stored as slightly more, so that no rounding makes `rest` negative
HALF_NORM_ROOM = 1 + 2.0**-9  # the same for norms that are then stored as float16


class DeployedSearch(nn.Module):
    """The squared distances to the K nearest centroids of a fixed bank.

    bank: (M, D) float64, along its principal axes (`search.principal_frame`).
    neighbours: K, at most M.
    half: the bank is going to be stored as float16, and has been rounded to it.
    """

    short: Tensor
    rest: Tensor | None  # None: too few centroids or coordinates for the short product to pay
    lengths: Tensor

    def __init__(self, bank: Tensor, neighbours: int, *, half: bool = False) -> None:
        super().__init__()
        self.neighbours, self.measured = neighbours, 4 * (neighbours + 1)
        count, channels = bank.shape
        self.filtered = channels >= 3 * LEADING // 2 and count >= GROUP * self.measured
        lengths, rest = bank.square().sum(1), None
        short = bank
        if self.filtered:
            bank, lengths = F.pad(bank, (0, 0, 0, -count % GROUP)), F.pad(lengths, (0, -count % GROUP), value=PADDING)
            leading, blocks = bank[:, :LEADING], _split_trailing(bank)
            norms = _norms(blocks) * (HALF_NORM_ROOM if half else NORM_ROOM)
            short = torch.cat([leading, norms], dim=1)
            rest = torch.cat([*blocks, -norms], dim=1)
        self.register_buffer("short", (-2 * short).float())  # (M', D or 128), M' >= M
        self.register_buffer("rest", None if rest is None else (-2 * rest).float())  # (M', D - 120)
        self.register_buffer("lengths", lengths.float())  # (M',)

    def forward(self, queries: Tensor, together: int) -> Tensor:
        """Return the squared distances (N, K), ascending, of queries (N, D) along the same axes.

        together: at most N; how many queries a turn of the loop may take.
        """
        rows = min(together, max(1, CHUNK_ELEMENTS // len(self.short)))
        bank = self.short, self.rest, self.lengths  # read once, not in each turn

        def unfinished(start: Tensor, found: Tensor) -> Tensor:
            return start < found.shape[0]

        def turn(start: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
            # The last turn repeats some of the one before it, so that all are of one size.
            places = start.clamp(max=found.shape[0] - rows) + torch.arange(rows)
            return start + rows, found.index_copy(0, places, self._nearest(queries.index_select(0, places), *bank))

        empty = queries.new_zeros(queries.shape[0], self.neighbours)
        begin = torch.zeros((), dtype=torch.int64)
        found: Tensor = while_loop(unfinished, turn, (begin, empty))[1]  # type: ignore[no-untyped-call]
        return found

    def _nearest(self, queries: Tensor, short: Tensor, rest: Tensor | None, lengths: Tensor) -> Tensor:
        """Return the squared distances (n, K) of the K nearest, ascending.

        They are measured by the differences: as sums of products, those of near centroids would be rounding alone.
        """
        if rest is None:
            nearest = _smallest(F.linear(queries, short, lengths), self.neighbours)[1]
            return _squared_distances(queries, _rows(short, nearest))
        blocks = _split_trailing(queries)
        norms = _norms(blocks)
        leading, trailing = torch.cat([queries[:, :LEADING], norms], dim=1), torch.cat([*blocks, norms], dim=1)
        bounds, nearest = _smallest_grouped(F.linear(leading, short, lengths), self.measured)
        distances = bounds + torch.bmm(_rows(rest, nearest), trailing[:, :, None])[:, :, 0]
        found, places = _smallest(distances, self.neighbours)
        proved = found[:, -1] <= bounds[:, -1]
        others = torch.nonzero(~proved)[:, 0]  # NaN is never proved, and stays NaN
        whole = F.linear(leading.index_select(0, others), short, lengths)
        whole = whole + F.linear(trailing.index_select(0, others), rest)
        nearest = nearest.gather(1, places).index_copy(0, others, _smallest(whole, self.neighbours)[1])
        centroids = torch.cat([_rows(short, nearest)[..., :LEADING], _rows(rest, nearest)[..., :-BLOCKS]], dim=2)
        return _squared_distances(queries, centroids)


def _rows(table: Tensor, indices: Tensor) -> Tensor:
    """Return the rows of a table (M, C) at indices (n, K): (n, K, C)."""
    return table.index_select(0, indices.flatten()).view(*indices.shape, table.shape[1])


def _squared_distances(queries: Tensor, centroids: Tensor) -> Tensor:
    """Return those (n, K), ascending, of queries q (n, D) and centroids b, each its own, given as -2 b (n, K, D)."""
    return _smallest((queries[:, None] + centroids / 2).square().sum(2), centroids.shape[1])[0]


def _smallest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    found = torch.topk(values, count, dim=1, largest=False)
    return found.values, found.indices


def _smallest_grouped(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` smallest of each row, ascending, and their columns: they lie in as many groups at most.

    Runtimes are slow at finding the smallest of many, and quick at minima.
    """
    rows, columns = values.shape
    groups = columns // GROUP
    grouped = values.view(rows * groups, GROUP)
    _, near = _smallest(grouped.amin(1).view(rows, groups), count)
    members = grouped.index_select(0, (near + groups * torch.arange(rows)[:, None]).flatten())
    found, places = _smallest(members.view(rows, count * GROUP), count)
    return found, near.gather(1, places // GROUP) * GROUP + places % GROUP


def _split_trailing(vectors: Tensor) -> list[Tensor]:
    """Cut the trailing coordinates of vectors (N, D) into blocks whose lengths grow evenly."""
    trailing = vectors.shape[1] - LEADING
    ends = [LEADING + trailing * (i * (i + 1)) // (BLOCKS * (BLOCKS + 1)) for i in range(BLOCKS + 1)]
    return [vectors[:, start:end] for start, end in pairwise(ends)]


def _norms(blocks: list[Tensor]) -> Tensor:
    return torch.cat([block.square().sum(1, keepdim=True) for block in blocks], dim=1).sqrt()
