"""The ranges that an int8 backbone is quantised by, measured on good images."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from cfa_cli.engine.features import BATCH_SIZE, read_good
from cfa_cli.engine.ignore import Ignore
from cfa_cli.engine.workers import Workers, images_at_a_time, in_batch
from cfa_cli.model.backbone import Backbone
from cfa_cli.model.quantised import recorded_ranges
from cfa_cli.model.tiles import extract_levels
from cfa_cli.records import Geometry, Source

RANGE_IMAGES = 32  # that are measured, evenly spread over those that there are


def quantise(
    backbone: Backbone,
    sources: Sequence[Source],
    geometry: Geometry,
    device: torch.device,
    bit_depth: int,
    max_pixels: float,
    ignore: Ignore | None,
) -> np.ndarray:
    """Make a backbone, in float32, compute in int8; return each convolution's range: (n,) float32 > 0.

    It is the convolution's largest input over some of the images. Those that cannot be read are passed over:
    `store_features` tells of them.
    """
    backbone.quantised = None  # ranges are those of floating point
    batch_size = images_at_a_time(geometry.input_size, BATCH_SIZE)
    seen = None if ignore is None or ignore.common is None else ignore.common.to(device)
    sample = sources[:: -(-len(sources) // RANGE_IMAGES)]
    stream = read_good(sample, geometry, bit_depth, batch_size, max_pixels, ignore)
    inputs = (decoded.input for decoded in stream if decoded.input is not None)

    def observe(images: Tensor) -> None:
        with torch.inference_mode():
            images = images.to(device).contiguous(memory_format=torch.channels_last)
            extract_levels(backbone, images if seen is None else images * seen)

    with Workers(device, batch_size) as workers, recorded_ranges(backbone.model) as ranges:
        while batch := list(islice(inputs, batch_size)):
            workers.map(observe, workers.split(in_batch(batch)))
    # A convolution whose input was always 0 takes any range.
    ranges = torch.where(ranges > 0, ranges, torch.ones_like(ranges)).cpu()
    backbone.quantise(ranges)
    return ranges.numpy()
