"""The coupled-hypersphere loss (paper, equations 1 to 4) with its gradients written down."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

NU = 1e-3
ALPHA = 0.1
INITIAL_RADIUS = 1e-5


class LossGradients(NamedTuple):
    """The loss and its gradients: loss (), descriptors (N, D), radius ()."""

    loss: Tensor
    descriptors: Tensor
    radius: Tensor


def coupled_hypersphere_loss(
    descriptors: Tensor, bank: Tensor, squared: Tensor, indices: Tensor, radius: Tensor
) -> LossGradients:
    """Attract descriptors to their K nearest centroids, and repel them from the next J = K (paper, equations 1 to 4).

    With d_k the squared distance to the k-th nearest centroid:
    attraction = mean over k <= K of max(0, d_k - r²) / nu, repulsion = mean over K < j <= 2K of
    max(0, r² - d_j - alpha) / nu. Each hinge's gradient is a sum of a few centroids, so autograd needs to see neither
    the distance matrix nor the search.

    descriptors: (N, D) float32.
    bank: (M, D) float32.
    squared: (N, 2K) float32, squared distances to the nearest centroids, ascending.
    indices: (N, 2K) int64, these centroids.
    radius: () float32, r.
    """
    count, doubled = squared.shape
    k = doubled // 2
    r2 = radius * radius
    attraction, repulsion = squared[:, :k] - r2, r2 - squared[:, k:] - ALPHA
    scale = 1.0 / (NU * count * k)
    pull, push = (attraction > 0).to(squared.dtype), (repulsion > 0).to(squared.dtype)
    loss = (attraction.clamp_min(0).sum() + repulsion.clamp_min(0).sum()) * scale
    # Twice the derivative of the loss by each squared distance: that of |x - c|² by x is 2 (x - c).
    twice = torch.cat([pull, -push], dim=1) * (2 * scale)
    by_descriptor = F.embedding_bag(indices, bank, mode="sum", per_sample_weights=-twice)
    by_descriptor.addcmul_(descriptors, twice.sum(1, keepdim=True))
    by_radius = 2 * radius * (push.sum() - pull.sum()) * scale
    return LossGradients(loss, by_descriptor, by_radius)
