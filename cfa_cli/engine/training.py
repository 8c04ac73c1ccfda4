"""Adapting the descriptor to the good images (paper, section III-B, algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from cfa_cli.config import FitConfig
from cfa_cli.engine.features import FeatureStore
from cfa_cli.engine.workers import Workers, images_at_a_time
from cfa_cli.model.descriptor import Descriptor, describe
from cfa_cli.model.loss import INITIAL_RADIUS, coupled_hypersphere_loss
from cfa_cli.model.search import NeighbourSearch
from cfa_cli.model.tiles import row_bands

EpochCallback = Callable[[int, int, float], None]  # epoch from 1, images done in it, mean loss so far


def train_descriptor(
    store: FeatureStore,
    images: Sequence[int],
    descriptor: Descriptor,
    bank: Tensor,
    config: FitConfig,
    on_batch: EpochCallback,
) -> tuple[list[float], Tensor]:
    """Train a descriptor in place (paper, algorithm 1).

    store: the images' feature maps.
    images: numbers of the training images in it.
    descriptor: is changed.
    bank: (M, D) float32, stays as it is.
    on_batch: called after each batch.

    Returns each epoch's mean loss, and the learned radius ().
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
    with Workers(device, images_at_a_time(store.input_size, config.batch_size)) as workers:
        for epoch in range(1, config.epochs + 1):
            total, done = 0.0, 0
            for batch in torch.split(members[torch.randperm(len(members), generator=order)], config.batch_size):
                # In the search's coordinates; the loss is the same in all.
                weight, bias = descriptor.in_frame(search.frame)
                step = partial(
                    _loss_and_gradients,
                    store,
                    search,
                    weight.detach(),
                    bias.detach(),
                    radius.detach(),
                    config.neighbours,
                )
                _, (loss, by_weight, by_bias, by_radius) = _average(workers.map(step, workers.split(batch)))
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward([weight, bias], [by_weight, by_bias])
                radius.grad = by_radius
                optimizer.step()
                total, done = total + float(loss) * len(batch), done + len(batch)
                on_batch(epoch, done, total / done)
            losses.append(total / done)
    return losses, radius.detach()


def _loss_and_gradients(
    store: FeatureStore,
    search: NeighbourSearch,
    weight: Tensor,
    bias: Tensor,
    radius: Tensor,
    neighbours: int,
    images: Tensor,
) -> tuple[int, tuple[Tensor, ...]]:
    """Return how many positions of some images are not ignored, and over these the mean loss () and its gradients.

    These are by weight (D, C + 2), bias (D,) and radius ().
    """
    levels = store.levels(images, weight.device)
    kept = store.kept(images)
    _, _, height, width = levels[0].shape
    parameters = weight.requires_grad_(), bias.requires_grad_()
    bands = []
    for rows in row_bands(height, width):
        descriptors = describe(levels, *parameters, rows).flatten(0, 2)
        if kept is not None:
            descriptors = descriptors[kept[:, slice(*rows or (None,))].flatten().to(descriptors.device)]
            if not len(descriptors):
                continue
        points = descriptors.detach()
        squared, indices = search(points, 2 * neighbours)
        loss, by_descriptor, by_radius = coupled_hypersphere_loss(points, search.bank, squared, indices, radius)
        by_weight, by_bias = torch.autograd.grad(descriptors, parameters, by_descriptor)
        bands.append((len(points), (loss, by_weight, by_bias, by_radius)))
    return _average(bands)


def _average(parts: Sequence[tuple[int, tuple[Tensor, ...]]]) -> tuple[int, tuple[Tensor, ...]]:
    """Return the number of positions of all parts, and means over them of each part's loss and gradients."""
    count = sum(size for size, _ in parts)
    means = (
        torch.stack([value * (size / count) for (size, _), value in zip(parts, values, strict=True)]).sum(0)
        for values in zip(*(each for _, each in parts), strict=True)
    )
    return count, tuple(means)
