"""Adapting the descriptor to the good images (paper, section III-B, algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from cfa_cli.engine.features import FeatureStore
from cfa_cli.model.descriptor import Descriptor
from cfa_cli.model.loss import INITIAL_RADIUS, coupled_hypersphere_loss
from cfa_cli.model.search import NeighbourSearch
from cfa_cli.records import FitConfig

EpochCallback = Callable[[int, int, float], None]  # epoch from 1, images done in it, mean loss so far


def train_descriptor(
    store: FeatureStore,
    images: Sequence[int],
    descriptor: Descriptor,
    bank: Tensor,
    config: FitConfig,
    on_batch: EpochCallback,
) -> tuple[list[float], Tensor]:
    """Train `descriptor` in place on the stored images; the bank (M, D) stays as it is.

    Returns each epoch's mean loss, and the radius () that was learned with the descriptor.
    """
    device = bank.device
    radius = nn.Parameter(torch.tensor(INITIAL_RADIUS, device=device))
    optimizer = torch.optim.AdamW(
        [*descriptor.parameters(), radius], lr=config.lr, weight_decay=config.weight_decay, amsgrad=True
    )
    search = NeighbourSearch(bank)
    order = torch.Generator().manual_seed(config.seed)
    members = torch.as_tensor(images)
    losses = []
    for epoch in range(1, config.epochs + 1):
        total, done = 0.0, 0
        for batch in torch.split(members[torch.randperm(len(members), generator=order)], config.batch_size):
            descriptors = descriptor(store.levels(batch, device)).flatten(0, 2)
            points = descriptors.detach()
            squared, indices = search(points, 2 * config.neighbours)
            loss, by_descriptor, by_radius = coupled_hypersphere_loss(points, bank, squared, indices, radius.detach())
            optimizer.zero_grad(set_to_none=True)
            descriptors.backward(by_descriptor)
            radius.grad = by_radius
            optimizer.step()
            total, done = total + float(loss) * len(batch), done + len(batch)
            on_batch(epoch, done, total / done)
        losses.append(total / done)
    return losses, radius.detach()
