"""The last step of learning: distances are made to count by how far good patches lie from their centroids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from cfa_cli.engine.bank import DrawnDescriptors
from cfa_cli.engine.features import FeatureStore
from cfa_cli.model.bank import KMEANS_POINTS, draw, whitening
from cfa_cli.model.descriptor import Descriptor
from cfa_cli.records import Progress, ProgressCallback


def whiten(
    store: FeatureStore,
    images: Sequence[int],
    descriptor: Descriptor,
    bank: Tensor,
    seed: int,
    progress: ProgressCallback,
) -> Tensor:
    """Change the descriptor, in place, and the memory bank so that distances count by good patches' own spread.

    The descriptor is linear, so that `whitening` becomes a part of it.

    store: the images' feature maps.
    images: numbers of the training images in it.
    descriptor: as it would score.
    bank: (M, D) float32, its centroids.
    seed: of the drawing.
    progress: counts images.

    Returns the bank that goes with the changed descriptor, (M, D) float32.
    """

    def drawable() -> Iterator[DrawnDescriptors]:
        for done, index in enumerate(images, 1):
            yield DrawnDescriptors.of(store, index, descriptor)
            progress(Progress("whitening", done, len(images)))

    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        change = whitening(draw(drawable(), len(images), KMEANS_POINTS * len(bank), generator), bank)
        descriptor.weight.copy_((change @ descriptor.weight.flatten(1))[..., None, None])
        descriptor.bias.copy_(change @ descriptor.bias)
        return bank @ change.T
