"""The ranges that an int8 backbone is quantised by, measured on good images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cfa_cli.data.depth import widen
from cfa_cli.engine.ignore import Ignore
from cfa_cli.engine.reading import read_ahead
from cfa_cli.geometry import to_input
from cfa_cli.model.backbone import Backbone
from cfa_cli.model.quantised import recorded_ranges
from cfa_cli.model.tiles import extract_levels
from cfa_cli.records import Geometry, Source

RANGE_IMAGES = 32  # that are measured, evenly spread over those that there are


def measure_ranges(
    backbone: Backbone,
    sources: Sequence[Source],
    geometry: Geometry,
    device: torch.device,
    bit_depth: int,
    max_pixels: float,
    ignore: Ignore | None,
) -> Tensor:
    """Return the largest input of each convolution over some of the images: (n,) float32 > 0, on the CPU.

    backbone: in float32. Images that cannot be read are passed over: `store_features` tells of them.
    """
    seen = None if ignore is None or ignore.common is None else ignore.common.to(device)
    stream = read_ahead(
        sources[:: -(-len(sources) // RANGE_IMAGES)],
        lambda image: to_input(image, geometry),
        full_scale=lambda image: (widen(image, bit_depth), None),
        keep_images=False,
        ahead=2,
        max_pixels=max_pixels,
        ignore=ignore,
    )
    with torch.inference_mode(), recorded_ranges(backbone.model) as ranges:
        for decoded in stream:
            if decoded.input is not None:
                images = decoded.input[None].to(device).contiguous(memory_format=torch.channels_last)
                extract_levels(backbone, images if seen is None else images * seen)
    # A convolution whose input was always 0 takes any range.
    return torch.where(ranges > 0, ranges, torch.ones_like(ranges)).cpu()
