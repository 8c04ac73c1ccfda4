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
                parts = workers.split(batch)
                results = workers.map(step, parts)
                loss, by_weight, by_bias, by_radius = _average(
                    [(len(part), result) for part, result in zip(parts, results, strict=True)]
                )
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return some images' mean loss () and its gradients by weight (D, C + 2), bias (D,) and radius ()."""
    levels = store.levels(images, weight.device)
    _, _, height, width = levels[0].shape
    parameters = weight.requires_grad_(), bias.requires_grad_()
    bands = []
    for rows in row_bands(height, width):
        descriptors = describe(levels, *parameters, rows).flatten(0, 2)
        points = descriptors.detach()
        squared, indices = search(points, 2 * neighbours)
        loss, by_descriptor, by_radius = coupled_hypersphere_loss(points, search.bank, squared, indices, radius)
        by_weight, by_bias = torch.autograd.grad(descriptors, parameters, by_descriptor)
        bands.append((len(points), (loss, by_weight, by_bias, by_radius)))
    return _average(bands)


def _average(parts: Sequence[tuple[int, tuple[Tensor, ...]]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the means of tensors over parts: (positions or images in it, its loss and gradients)."""
    count = sum(size for size, _ in parts)
    loss, by_weight, by_bias, by_radius = (
        torch.stack([value * (size / count) for (size, _), value in zip(parts, values, strict=True)]).sum(0)
        for values in zip(*(each for _, each in parts), strict=True)
    )
    return loss, by_weight, by_bias, by_radius
