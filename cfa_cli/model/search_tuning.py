"""Which filter the search tries first, and how many centroids it measures before it knows the bound.

All of this follows the queries that were searched last, and affects time alone, never a result.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cfa_cli.model.search_filter import Filter

CANDIDATE_COST = 15_000  # multiplications of the short product in the time that measuring one centroid takes
RETRY_CHUNKS = 32  # chunks of queries after which a shorter filter is tried again
SETTLED_SHARE = 0.95  # of the queries are to need no second measurement


class Tuning:
    """The state of a search's tuning, for `sizes` filters, shortest first. Threads may share it.

    `margins` holds, for each filter, the distance beyond the k-th smallest short one up to which centroids are
    measured first.
    """

    def __init__(self, sizes: int) -> None:
        self.sizes = sizes
        self.margins = [0.0] * sizes
        self._size, self._chunks = 0, 0

    def sizes_to_try(self) -> range:
        """Return the filters to try for the next chunk, in order; the last is the longest there is."""
        self._chunks += 1
        shorter = self._chunks % RETRY_CHUNKS == 0
        return range(max(0, self._size - shorter), self.sizes)

    def most_candidates(self, size: int, chosen: Filter, queries: int, k: int) -> float:
        """Return the number of candidates past which the next longer filter takes less time.

        It doubles the product and leaves half of the candidates that are measured in vain, or fewer.
        """
        if size == self.sizes - 1:
            return math.inf
        columns, count = chosen.columns.shape
        return (k + 2 * columns * count / CANDIDATE_COST) * queries

    def worked(self, size: int) -> None:
        """Start from this filter from now on, unless it is the last resort."""
        self._size = min(size, max(0, self.sizes - 2))

    def settled(self, size: int, needed: Tensor) -> None:
        """Take the margin that would have settled most queries; needed (n,): what each would have needed."""
        self.margins[size] = float(torch.kthvalue(needed, math.ceil(SETTLED_SHARE * len(needed))).values)
