"""Decoding ahead of the network: a few threads read while it computes, and no more images wait than it needs next."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from cfa_cli.data.images import read_image
from cfa_cli.errors import ImageError
from cfa_cli.records import Source

ASPECT_SAMPLE = 32  # images whose aspect is looked at


@dataclass(frozen=True)
class Decoded:
    """One source as it was read: `error`, or `input`, ready for the network, and, where it is asked for, `image`."""

    source: Source
    input: Tensor | None
    image: np.ndarray | None  # (h, w, 3) RGB, uint8 or uint16, source size
    error: str | None
    seconds: float
    misfit: str | None = None  # how the image does not fit the model


def read_ahead(
    sources: Iterable[Source],
    prepare: Callable[[np.ndarray], Tensor],
    *,
    keep_images: bool,
    ahead: int,
    full_scale: Callable[[np.ndarray], tuple[np.ndarray, str | None]],
) -> Iterator[Decoded]:
    """Decode sources in order, at most `ahead` of them before they are asked for. An unreadable one has its error.

    `prepare` turns an image (h, w, 3), RGB, uint8 or uint16, into the network's input; it may raise ImageError.
    `full_scale` comes before it: it brings an image to the full scale of its type, and says whether it fits the model.
    """

    def read(source: Source) -> Decoded:
        start = time.perf_counter()
        try:
            image, misfit = full_scale(read_image(source.path))
            tensor = prepare(image)
        except ImageError as error:
            return Decoded(source, None, None, error.message, time.perf_counter() - start)
        return Decoded(source, tensor, image if keep_images else None, None, time.perf_counter() - start, misfit)

    with ThreadPoolExecutor(max(1, min(8, os.cpu_count() or 1)), thread_name_prefix="cfa-read") as pool:
        waiting: deque[Future[Decoded]] = deque()
        try:
            for source in sources:
                waiting.append(pool.submit(read, source))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def sample_aspects(paths: Sequence[Path]) -> list[float]:
    """Return height / width of at most 32 images, spread evenly over `paths`; unreadable ones are left out."""
    aspects = []
    for path in paths[:: -(-len(paths) // ASPECT_SAMPLE)]:
        try:
            height, width = read_image(path).shape[:2]
        except ImageError:
            continue  # reported when all images are read
        aspects.append(height / width)
    return aspects
