"""From distances to anomaly scores: per position, as a map, and for the image."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

BASELINE_SIGMA = 2.0  # positions: neighbours' statistics are pooled, as held-out images are few
BASELINE_PRIOR = 8  # images' worth of the assumption that all positions are alike
BASELINE_FLOOR = 0.05  # of the average: where good images do not differ at all, rounding is no defect
SMALLEST_SHARE = 1e-3  # of the Gaussian's weight: a pixel with less of it has no position near it, and fades out
BLOCK = 512  # px of a map's side that are made at a time
KEPT_SHARE = 0.5  # of a position's pixels: fewer, and the position is ignored


def position_scores(squared: Tensor) -> Tensor:
    """Score positions by softmin over their K nearest distances: the first weight times the first distance.

    squared (..., K): squared distances, ascending. Returns (...): scores >= 0 (paper, equation 6).
    """
    distances = squared.clamp_min(0).sqrt()
    return torch.softmax(-distances, dim=-1)[..., 0] * distances[..., 0]


def position_baseline(count: int | Tensor, total: Tensor) -> Tensor:
    """Return the baseline of each position: how much higher or lower good images score there than elsewhere.

    `total` (h, w) is the sum of `count` good images' position scores; `count` is (h, w) where images ignore different
    positions. Their mean is smoothed over neighbouring positions and brought to an average of 1; the fewer images, the
    closer to 1. The baseline is its square root: halfway, as a factor, between a score as it is and one as a multiple
    of what is normal at its position. The whole way would hide defects where good parts differ much
    (examples/benchmarks/baseline.md). What all images ignore is in no average. Returns (h, w) float32 > 0.
    """
    if not float(total.sum()) > 0:
        return torch.ones_like(total, dtype=torch.float32)
    counts = torch.as_tensor(count).expand(total.shape).double().cpu().numpy()
    rows, columns = (_upsample_and_smooth(side, side, BASELINE_SIGMA) for side in total.shape)
    weights = np.maximum(rows @ counts @ columns.T, np.finfo(float).tiny)
    mean = rows @ total.double().cpu().numpy() @ columns.T / weights
    level = (counts * mean / mean[counts > 0].mean() + BASELINE_PRIOR) / (counts + BASELINE_PRIOR)
    return torch.from_numpy(np.sqrt(np.maximum(level, BASELINE_FLOOR))).float().to(total.device)


def kept_positions(keep: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tell which positions are kept: those at least half of whose pixels are.

    keep: (B, H, W) float32, 1 on pixels that are kept, 0 on ignored ones.
    grid: (h, w) positions.

    Returns (B, h, w) bool.
    """
    shares = F.adaptive_avg_pool2d(keep.cpu()[:, None], grid)[:, 0]  # not every device divides so
    return (shares >= KEPT_SHARE).to(keep.device)


class ScoreMap(nn.Module):
    """Position scores (B, h, w) to score maps (B, H, W): bilinear upsampling, then a Gaussian.

    Both steps are linear and separable, so together they are one matrix for the rows and one for the columns:
    map = R S Cᵀ. Both are banded: a pixel looks at the few positions near it. So large maps are made block by block, in
    time that grows with their pixels. The Gaussian is cut off at 4 sigma and mirrors at the border with the edge pixel
    repeated, as scipy.ndimage's default does. `sigma` is in pixels of the network's input.

    keep: (H, W) float32, 1 on pixels that are kept and 0 on those that are ignored; None keeps all. Ignored positions
    count for nothing, and the map is divided by what the others weigh (a normalised convolution), so that it does not
    fade towards them. Ignored pixels are 0.
    """

    rows: Tensor
    columns: Tensor
    kept: Tensor | None  # (1, h, w) float32: 1 or 0
    weights: Tensor | None  # (1, H, W) float32

    def __init__(self, grid: tuple[int, int], size: tuple[int, int], sigma: float, keep: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("rows", _matrix(grid[0], size[0], sigma), persistent=False)
        self.register_buffer("columns", _matrix(grid[1], size[1], sigma), persistent=False)
        self._row_blocks, self._column_blocks = _blocks(self.rows), _blocks(self.columns)
        kept, weights = (None, None) if keep is None else self._weigh(keep[None])
        self.register_buffer("kept", kept, persistent=False)
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, scores: Tensor, keep: Tensor | None = None) -> Tensor:
        """Map position scores (B, h, w) to score maps (B, H, W), float32.

        keep: (B, H, W) float32 in place of the module's own.
        """
        kept, weights = (self.kept, self.weights) if keep is None else self._weigh(keep)
        if kept is None or weights is None:
            return self._spread(scores)
        return self._spread(scores * kept) * weights

    def _spread(self, scores: Tensor) -> Tensor:
        """Return R S Cᵀ of scores (B, h, w): (B, H, W)."""
        tall = [self.rows[out, near] @ scores[..., near, :] for out, near in self._row_blocks]
        scores = tall[0] if len(tall) == 1 else torch.cat(tall, dim=-2)
        wide = [scores[..., near] @ self.columns[out, near].T for out, near in self._column_blocks]
        return wide[0] if len(wide) == 1 else torch.cat(wide, dim=-1)

    def _weigh(self, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Return which positions count, (B, h, w), and by what their map is multiplied, (B, H, W), both float32."""
        kept = kept_positions(keep, (self.rows.shape[1], self.columns.shape[1])).float()
        share = self._spread(kept)  # of the Gaussian's weight that lies on kept positions
        share = torch.where(share > 1 - 1e-5, 1.0, share)  # far from what is ignored the map is the same to the bit
        return kept, keep / share.clamp_min(SMALLEST_SHARE)


def image_scores(maps: Tensor) -> Tensor:
    """Score images by their maps' maxima: (B, H, W) to (B,)."""
    return maps.amax(dim=(-2, -1))


def _blocks(matrix: Tensor) -> list[tuple[slice, slice]]:
    """Cut a banded matrix (target, source) into blocks of rows, each with the columns that it has weights in."""
    blocks = []
    for start in range(0, len(matrix), BLOCK):
        out = slice(start, min(start + BLOCK, len(matrix)))
        used = torch.nonzero(matrix[out].any(dim=0))[:, 0]
        blocks.append((out, slice(int(used[0]), int(used[-1]) + 1)))
    return blocks


def _matrix(source: int, target: int, sigma: float) -> Tensor:
    return torch.from_numpy(_upsample_and_smooth(source, target, sigma).astype(np.float32))


def _upsample_and_smooth(source: int, target: int, sigma: float) -> np.ndarray:
    """Return (target, source) float64: bilinear upsampling, then the Gaussian. Both have few weights a row.

    Bilinear: half-pixel centres (align_corners false), clamped at the border; the identity where the sizes are equal.
    """
    centres = ((np.arange(target) + 0.5) * source / target - 0.5).clip(0, source - 1)
    below = np.floor(centres).astype(np.int64)
    weights = np.stack([1 - (centres - below), centres - below], axis=1)
    columns = np.stack([below, np.minimum(below + 1, source - 1)], axis=1)

    radius = int(4 * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2) if sigma > 0 else np.ones(1)
    kernel /= kernel.sum()

    result = np.empty((target, source))
    for top in range(0, target, BLOCK):  # a wide Gaussian's weights of all rows would not fit into memory
        rows = np.arange(top, min(top + BLOCK, target))
        position = (rows[:, None] + offsets) % (2 * target)
        near = np.where(position < target, position, 2 * target - 1 - position)  # mirrored into the image
        place = (rows - top)[:, None, None] * source + columns[near]
        summed = np.bincount(place.ravel(), (kernel[:, None] * weights[near]).ravel(), len(rows) * source)
        result[rows] = summed.reshape(len(rows), source)
    return result
