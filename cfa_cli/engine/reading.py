"""Decoding ahead of the network: a few threads read while it computes, and no more images wait than it needs next."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from cfa_cli.data.arrays import check_array
from cfa_cli.data.images import read_image
from cfa_cli.data.statistics import measure
from cfa_cli.engine.ignore import Ignore
from cfa_cli.errors import ImageError, UsageError, is_out_of_memory
from cfa_cli.notes import Misfit
from cfa_cli.records import MAX_PIXELS, ImageStatistics, Source

MAX_BYTES_AHEAD = 100_000_000  # of images that are decoded before they are asked for
SIZE_SAMPLE = 32  # images whose size is looked at


@dataclass(frozen=True)
class Decoded:
    """One source as it was read: `error`, or `input`, ready for the network, and, where it is asked for, `image`."""

    source: Source
    input: Tensor | None
    image: np.ndarray | None  # (h, w, 3) RGB, uint8 or uint16, source size
    error: str | None
    seconds: float
    misfit: Misfit | None = None  # in what its values do not fit the model
    bytes: int = 0  # of the image while it was read, whether or not it is kept, and of the input
    statistics: ImageStatistics | None = None
    keep: Tensor | None = None  # (H, W) float32, 1 on what is kept, 0 on what is ignored; None: as the model says


def read_ahead(
    sources: Iterable[Source],
    prepare: Callable[[np.ndarray], Tensor],
    *,
    keep_images: bool,
    ahead: int,
    full_scale: Callable[[np.ndarray], tuple[np.ndarray, Misfit | None]],
    max_pixels: float = MAX_PIXELS,
    ignore: Ignore | None = None,
) -> Iterator[Decoded]:
    """Decode sources in order, at most `ahead` of them before they are asked for. An unreadable one has its error.

    `prepare` turns an image (h, w, 3), RGB, uint8 or uint16, into the network's input; it may raise ImageError.
    `full_scale` comes before it: it brings an image to the full scale of its type, and says whether it fits the model.
    An image of more than `max_pixels` megapixels is not decoded. `ignore` says what is ignored of each.
    """
    stream = read_as_they_come(
        sources,
        prepare,
        keep_images=keep_images,
        ahead=ahead,
        full_scale=full_scale,
        max_pixels=max_pixels,
        ignore=ignore,
    )
    return (decoded for decoded in stream if decoded is not None)


def read_as_they_come(
    sources: Iterable[Source | None],
    prepare: Callable[[np.ndarray], Tensor],
    *,
    keep_images: bool,
    ahead: int,
    full_scale: Callable[[np.ndarray], tuple[np.ndarray, Misfit | None]],
    max_pixels: float = MAX_PIXELS,
    ignore: Ignore | None = None,
) -> Iterator[Decoded | None]:
    """Do what `read_ahead` does with sources that may not be there yet.

    A None among the sources says that no more is there for now: all that came before is handed out, then the None.
    """

    def read(source: Source) -> Decoded:
        start = time.perf_counter()
        plain = replace(source, array=None)
        try:
            if source.array is None:
                image = read_image(source.path, max_pixels)
            else:
                image = check_array(source.array, source.name)
            image, misfit = full_scale(image)
            statistics, tensor = measure(image), prepare(image)
            keep = None if ignore is None else ignore.keep(source.path, (image.shape[0], image.shape[1]))
        except ImageError as error:
            return Decoded(plain, None, None, error.message, time.perf_counter() - start)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return Decoded(plain, None, None, does_not_fit(source), time.perf_counter() - start)
        kept, seconds = image if keep_images else None, time.perf_counter() - start
        return Decoded(plain, tensor, kept, None, seconds, misfit, image.nbytes + tensor.nbytes, statistics, keep)

    with ThreadPoolExecutor(max(1, min(8, os.cpu_count() or 1)), thread_name_prefix="cfa-read") as pool:
        waiting: deque[Future[Decoded]] = deque()
        try:
            largest = math.inf  # bytes of an image so far: until the first has been read, none waits
            for source in itertools.chain(sources, [None]):
                if source is not None:
                    waiting.append(pool.submit(read, source))
                while waiting and (source is None or len(waiting) > min(ahead, MAX_BYTES_AHEAD // largest)):
                    decoded = waiting.popleft().result()
                    largest = max(decoded.bytes, 1 if largest == math.inf else largest)
                    yield decoded
                    del decoded  # it is the caller's: not to be held while the next is waited for
                if source is None:
                    yield None
        finally:
            for future in waiting:
                future.cancel()


def does_not_fit(source: Source) -> str:
    """Return the error of an image for which memory is not enough."""
    return f"{source.path} does not fit into memory: cut it into tiles or scale it down."


def sample_sizes(paths: Sequence[Path], max_pixels: float = MAX_PIXELS) -> list[tuple[int, int]]:
    """Return (height, width) of at most 32 images, spread evenly over `paths`; unreadable ones are left out."""
    sizes = []
    for path in paths[:: -(-len(paths) // SIZE_SAMPLE)]:
        try:
            height, width = read_image(path, max_pixels).shape[:2]
        except ImageError:
            continue  # reported when all images are read
        sizes.append((height, width))
    return sizes


def check_min_area(min_area: int, paths: Sequence[Path], max_pixels: float) -> None:
    """Raise UsageError if a region must be as large as the images are, or larger."""
    sizes = sample_sizes(paths, max_pixels) if min_area > 1 else []
    if sizes and min_area >= (pixels := min(height * width for height, width in sizes)):
        raise UsageError(
            f"min_area {min_area} px is not less than the images have: {pixels} px.",
            "Give the area of the smallest defect that counts, for example --min-area 50.",
        )
