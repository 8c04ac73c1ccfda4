"""From distances to anomaly scores: per position, as a map, and for the image."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

BASELINE_SIGMA = 2.0  # positions: neighbours' statistics are pooled, as held-out images are few
BASELINE_PRIOR = 8  # images' worth of the assumption that all positions are alike
BASELINE_FLOOR = 0.05  # of the average: where good images do not differ at all, rounding is no defect


def position_scores(squared: Tensor) -> Tensor:
    """Score positions by softmin over their K nearest distances: the first weight times the first distance.

    squared (..., K): squared distances, ascending. Returns (...): scores >= 0 (paper, equation 6).
    """
    distances = squared.clamp_min(0).sqrt()
    return torch.softmax(-distances, dim=-1)[..., 0] * distances[..., 0]


def position_baseline(count: int, total: Tensor) -> Tensor:
    """Return the baseline of each position: how much higher or lower good images score there than elsewhere.

    `total` (h, w) is the sum of `count` good images' position scores. Their mean is smoothed over neighbouring
    positions and brought to an average of 1; the fewer images, the closer to 1 everywhere. The baseline is its square
    root: halfway, as a factor, between a score as it is and one as a multiple of what is normal at its position. The
    whole way would hide defects where good parts differ much (examples/benchmarks/baseline.md).
    Returns (h, w) float32 > 0.
    """
    if count == 0 or not float(total.sum()) > 0:
        return torch.ones_like(total, dtype=torch.float32)
    rows, columns = (_gaussian_matrix(side, BASELINE_SIGMA) for side in total.shape)
    smooth = torch.from_numpy(rows @ total.double().cpu().numpy() @ columns.T).to(total.device)
    level = (count * smooth / smooth.mean() + BASELINE_PRIOR) / (count + BASELINE_PRIOR)
    return level.clamp_min(BASELINE_FLOOR).sqrt().float()


class ScoreMap(nn.Module):
    """Position scores (B, h, w) to score maps (B, H, W): bilinear upsampling, then a Gaussian.

    Both steps are linear and separable, so together they are one matrix for the rows and one for the columns:
    map = R S Cᵀ. Even at 8192 px that takes less memory than a convolution of the map, and far less time than the
    backbone. The Gaussian is cut off at 4 sigma and mirrors at the border with the edge pixel repeated, as
    scipy.ndimage's default does. `sigma` is in pixels of the network's input.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, grid: tuple[int, int], size: tuple[int, int], sigma: float) -> None:
        super().__init__()
        self.register_buffer("rows", _upsample_and_smooth(grid[0], size[0], sigma), persistent=False)
        self.register_buffer("columns", _upsample_and_smooth(grid[1], size[1], sigma), persistent=False)

    def forward(self, scores: Tensor) -> Tensor:
        """Map position scores (B, h, w) to score maps (B, H, W), float32."""
        return self.rows @ scores @ self.columns.T


def image_scores(maps: Tensor) -> Tensor:
    """Score images by their maps' maxima: (B, H, W) to (B,)."""
    return maps.amax(dim=(-2, -1))


def _upsample_and_smooth(source: int, target: int, sigma: float) -> Tensor:
    """Return (target, source) float32: bilinear upsampling, then the Gaussian. Both have few weights a row."""
    return torch.from_numpy((_gaussian_matrix(target, sigma) @ _bilinear_matrix(source, target)).toarray()).float()


def _bilinear_matrix(source: int, target: int) -> sparse.csr_array:
    """Return (target, source): half-pixel centres (align_corners false), clamped at the border."""
    centres = ((np.arange(target) + 0.5) * source / target - 0.5).clip(0, source - 1)
    below = np.floor(centres).astype(np.int64)
    weights = np.stack([1 - (centres - below), centres - below], axis=1)
    columns = np.stack([below, np.minimum(below + 1, source - 1)], axis=1)
    return _by_rows(weights, columns, source)


def _gaussian_matrix(size: int, sigma: float) -> sparse.csr_array:
    """Return (size, size): each row the Gaussian's weights around its pixel, mirrored into the image."""
    radius = int(4 * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2) if sigma > 0 else np.ones(1)
    position = (np.arange(size)[:, None] + offsets) % (2 * size)
    mirrored = np.where(position < size, position, 2 * size - 1 - position)
    return _by_rows(np.broadcast_to(kernel / kernel.sum(), mirrored.shape), mirrored, size)


def _by_rows(weights: np.ndarray, columns: np.ndarray, width: int) -> sparse.csr_array:
    """Return a matrix (n, width) float64 of weights (n, m) in columns (n, m); weights in one place are added."""
    rows = np.repeat(np.arange(len(weights)), weights.shape[1])
    entries = (weights.ravel(), (rows, columns.ravel()))
    return sparse.coo_array(entries, shape=(len(weights), width)).tocsr()
