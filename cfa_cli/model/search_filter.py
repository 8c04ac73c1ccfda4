"""The filter of the nearest-centroid search: short vectors, and one product that gives all their distances.

A vector x (D coordinates) is shortened to s(x) = (its leading coordinates, the norm of its trailing ones).

Lemma. |s(q) - s(b)| <= |q - b|. The leading coordinates are the same in both, and for the trailing ones the triangle
inequality says | |q_trail| - |b_trail| | <= |q_trail - b_trail|.

Rounding. Let S(x) be the short vector as computed and rounded to the filter's number type, and r(x) >= |S(x) - s(x)|.
The product computes P(q, b), which differs from |S(q) - S(b)|^2 by at most F(q, b). Together, for every q and b,

    P(q, b)  <=  (|q - b| + r(q) + r(b))^2 + F(q, b).

What r and F are. A float32 sum of n products, in any order, is within gamma_n * (sum of their absolute values) of the
true one, with gamma_n = n u / (1 - n u) (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1). u is
2^-24 where sums are rounded to the nearest; 2^-23 is used here, because some processors truncate in bfloat16 products
(Arm's BFMMLA). In the inequalities below a few terms more than n are counted (`SPARE_TERMS`): they cover the bounds'
own roundings, the difference between computed and true lengths, and squares that vanish (the search scales banks so
that these are far smaller than the rounding of the longest centroid).

* r(x) = |s - S| (1 + gamma_n) + gamma_n |x_trail|: what the rounding to the filter's type removed, measured, and the
  error of the norm, which is a sum of up to D squares. It is relative to the trailing coordinates, however small.
* F(q, b) = 3 gamma_n (|S(q)|^2 + |S(b)|^2), n = the product's columns. Its terms are -2 S_i(q) S_i(b) and the
  parts of both squared lengths; their absolute values sum to 2 (|S(q)|^2 + |S(b)|^2) at most, and the computed
  squared lengths are within gamma_n of the true ones.

P may be rounded once more when it is stored in the filter's type. Limits are rounded in the same way, which keeps the
order, so this adds nothing to F. Products of bfloat16 numbers are summed in float32 and rounded once: oneDNN and
PyTorch's own kernels do so.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

FILTER_TYPES = (torch.bfloat16, torch.float32)
LENGTH_COLUMNS = 6  # both squared lengths, in three parts each
EXTRA_COLUMNS = 1 + LENGTH_COLUMNS  # the norm of the trailing coordinates is one more
FEWEST_COLUMNS = 64  # of the product: products run best at multiples of 64
GROUP = 16  # values whose minimum stands for them
PADDING = 1e38  # a squared length that no query within the search's range comes near
SPARE_TERMS = 8
UNIT = 2.0**-23

_thread = threading.local()


def gamma(terms: int) -> float:
    """Return gamma_n, the relative error bound of a float32 sum of n = terms + SPARE_TERMS products."""
    rounding = (terms + SPARE_TERMS) * UNIT
    return rounding / (1 - rounding)


def filter_sizes(channels: int, dtype: torch.dtype) -> list[tuple[int, torch.dtype]]:
    """Return (leading coordinates, type) of the filters for vectors of D = `channels`, shortest first.

    Each has twice the columns of the one before. The last has all coordinates in float32.
    """
    columns, sizes = FEWEST_COLUMNS, []
    while columns < channels + EXTRA_COLUMNS:
        sizes.append((columns - EXTRA_COLUMNS, dtype))
        columns *= 2
    return [*sizes, *((channels, each) for each in dict.fromkeys([dtype, torch.float32]))]


class ShortVectors(NamedTuple):
    """Shortened vectors.

    values: (N, A + 1) of the filter's type: A leading coordinates and the norm of the others.
    squared: (N,) float32, their squared lengths.
    rounding: (N,) float32, r of the module's docstring.
    """

    values: Tensor
    squared: Tensor
    rounding: Tensor


def shorten(vectors: Tensor, leading: int, dtype: torch.dtype) -> ShortVectors:
    """Shorten vectors (N, D) float32 to `leading` coordinates and the norm of the others, rounded to `dtype`."""
    trailing = torch.linalg.vector_norm(vectors[:, leading:], dim=1)
    short = torch.cat([vectors[:, :leading], trailing[:, None]], dim=1)
    rounded = short.to(dtype)
    exact = rounded.float()
    error = gamma(vectors.shape[1])
    removed = torch.linalg.vector_norm(short - exact, dim=1)
    return ShortVectors(rounded, exact.square().sum(1), removed + error * (removed + trailing))


class Filter:
    """A bank's short vectors, ready for the product with those of queries.

    bank: (M, D) float32, finite.
    leading: coordinates that are kept.
    dtype: number type of the product.

    `columns` is (A + 7, M'), M' being M rounded up to a multiple of `GROUP`.
    """

    def __init__(self, bank: Tensor, leading: int, dtype: torch.dtype) -> None:
        self.leading, self.dtype = leading, dtype
        short = shorten(bank, leading, dtype)
        lengths = _split(short.squared, dtype)
        rows = torch.cat([-2 * short.values, lengths, torch.ones_like(lengths)], dim=1)
        padding = rows.new_zeros(-len(rows) % GROUP, rows.shape[1])
        padding[:, short.values.shape[1]] = PADDING
        self.columns = torch.cat([rows, padding]).T.contiguous()
        self.rounding, self.longest = float(short.rounding.max()), float(short.squared.max())

    def distances(self, queries: Tensor) -> tuple[ShortDistances, Tensor, Tensor]:
        """Compare queries (n, D) with the bank: P, the rounding r(q) + max r(b) (n,), and the largest F (n,).

        P is good until the thread's next call.
        """
        short = shorten(queries, self.leading, self.dtype)
        # The squared lengths are part of the product: near centroids' distances come out small, and well rounded.
        lengths = _split(short.squared, self.dtype)
        row = torch.cat([short.values, torch.ones_like(lengths), lengths], dim=1)
        error = 3 * gamma(len(self.columns)) * (short.squared + self.longest)
        return ShortDistances(_multiply(row, self.columns)), short.rounding + self.rounding, error


class ShortDistances:
    """Squared short distances (n, M') of queries and centroids, compared as integers: these sort alike, and quicker.

    Rounding may leave a distance just below 0; as an integer it is below all others as well.
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values
        # Of columns that are M' / 16 apart: minima of whole rows are quicker than those of neighbouring columns.
        self.groups = values.view(_integers(values.dtype)).view(len(values), GROUP, -1).amin(1)

    def smallest(self, count: int) -> Tensor:
        """Return a float32 value for each row (n,) that at least `count` of its own, up to M' / 16, are not above."""
        minima = self.groups.numpy()
        found = minima.min(1) if count == 1 else np.partition(minima, count - 1, axis=1)[:, count - 1]
        return torch.from_numpy(found).view(self.values.dtype).float()

    def up_to(self, limits: Tensor, most: float, chosen: Tensor | None = None) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the columns whose values are not above their row's limit, row after row, and each row's number.

        limits: (m,) float32 >= 0. They are rounded as the values are, which keeps the order.
        most: None is returned if the columns would surely be more.
        chosen: (m,) int64, the rows to look at; None: all.
        """
        integers = _integers(self.values.dtype)
        bound = limits.to(self.values.dtype).view(integers).numpy()
        minima, values = self.groups.numpy(), self.values.view(integers).numpy()
        if chosen is not None:
            minima = minima[chosen.numpy()]
        hits = np.flatnonzero(minima <= bound[:, None])
        if len(hits) > most:
            return None
        rows, groups = np.divmod(hits, minima.shape[1])
        places = rows if chosen is None else chosen.numpy()[rows]
        members = values.reshape(len(values), GROUP, -1)[places, :, groups]
        near, place = np.divmod(np.flatnonzero(members <= bound[rows, None]), GROUP)
        return groups[near] + place * minima.shape[1], np.bincount(rows[near], minlength=len(bound))


def _multiply(left: Tensor, right: Tensor) -> Tensor:
    """Return the product in memory that this thread uses again: fresh memory would cost as much as the product."""
    count = len(left) * right.shape[1]
    memory: Tensor | None = getattr(_thread, "memory", None)
    if memory is None or memory.nbytes < count * left.itemsize:
        with torch.inference_mode(False):  # it is written to outside of that mode as well
            memory = _thread.memory = torch.empty(count * left.itemsize, dtype=torch.uint8)
    return torch.mm(left, right, out=memory.view(left.dtype)[:count].view(len(left), -1))


def _integers(dtype: torch.dtype) -> torch.dtype:
    return torch.int16 if dtype == torch.bfloat16 else torch.int32


def _split(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Write float32 values (N,) as the sum of three columns (N, 3) of a shorter type: 3 times 8 bits are all 24."""
    columns = []
    for _ in range(LENGTH_COLUMNS // 2):
        columns.append(values.to(dtype))
        values = values - columns[-1].float()
    return torch.stack(columns, dim=1)
