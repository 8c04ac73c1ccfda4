"""The pooled feature maps of all training images: computed once, kept in half precision.

The backbone is frozen and its input is the same in every epoch, so each would compute the same maps again.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from math import log2, prod
from pathlib import Path
from types import TracebackType
from typing import IO

import platformdirs
import torch
from torch import Tensor

from cfa_cli.data.depth import widen
from cfa_cli.engine.ignore import Ignore
from cfa_cli.engine.memory import available_memory
from cfa_cli.engine.reading import Decoded, read_ahead
from cfa_cli.engine.workers import Workers, images_at_a_time, in_batch
from cfa_cli.errors import InputError
from cfa_cli.geometry import to_input
from cfa_cli.model.joined import AnyBackbone
from cfa_cli.model.scoremap import kept_positions
from cfa_cli.model.tiles import extract_levels
from cfa_cli.model.views import AS_IT_IS, View
from cfa_cli.records import MAX_PIXELS, Geometry, ImageStatistics, Progress, ProgressCallback, Source

BATCH_SIZE = 8  # images whose maps are computed at a time

BALANCE_IMAGES = 16  # that tell how far maps spread
MEMORY_SHARE = 0.4  # of the memory that is free: past it, the feature maps go to a file
MOST_MEMORY = 1_000_000_000  # bytes: 1,400 images at 224 x 224 px; a file's pages are as quick while memory is free


class FeatureStore:
    """Pooled feature maps of up to `capacity` images: in memory while they fit, else in a memory-mapped file.

    shapes: (C_l, h_l, w_l) of each map.
    capacity: images.
    budget: bytes of memory that may be used; None: 40 % of what is free, but at most 1 GB.

    The file lies in the cache folder and has no name there (or is deleted by the system when it closes), so nothing of
    it stays behind, not even after a crash. Raises InputError if the disk cannot hold it.
    """

    def __init__(self, shapes: Sequence[tuple[int, int, int]], capacity: int, budget: int | None = None) -> None:
        self.shapes = list(shapes)  # (C_l, h_l, w_l) of each level
        self.count = 0
        self._means: list[Tensor] = []  # of each batch (B, C): its channels' means
        self._kept: list[Tensor | None] = []  # of each image (h, w) bool: its positions that are not ignored
        self._sizes = [prod(shape) for shape in shapes]
        row = sum(self._sizes)
        self._file: IO[bytes] | None = None
        self._mapped: mmap.mmap | None = None
        if budget is None:
            budget = min(MOST_MEMORY, int(available_memory() * MEMORY_SHARE))
        if capacity * row * 2 <= budget:
            self._rows = torch.empty(capacity, row, dtype=torch.float16)
        else:
            self._rows = self._map_file(capacity, row)

    @property
    def input_size(self) -> tuple[int, int]:
        """About the network's input (height, width) px: the finest map has stride 4, or a little more."""
        return 4 * self.shapes[0][1], 4 * self.shapes[0][2]

    def clear(self) -> None:
        """Let go of all images."""
        self.count = 0
        self._means, self._kept = [], []

    def append(self, levels: Sequence[Tensor], kept: Sequence[Tensor | None] | None = None) -> None:
        """Add a batch of feature maps [(B, C_l, h_l, w_l)]; values past half precision's range are cut to it.

        kept: of each image (h, w) bool, the positions that are not ignored; None for all of them.
        """
        batch = len(levels[0])
        self._kept += [None] * batch if kept is None else kept
        limit = torch.finfo(torch.float16).max
        places = self._split(self._rows[self.count : self.count + batch])
        for place, level in zip(places, levels, strict=True):
            place.copy_(level)
            place.clamp_(-limit, limit)
            self._let_go()
        self._means.append(torch.cat([level.mean((2, 3), dtype=torch.float32) for level in levels], dim=1).cpu())
        self.count += batch

    def balance(self, images: Sequence[int]) -> Tensor:
        """Scale all maps so that each spreads over the images about as far as the first, and return the scales (L,).

        A map's spread is the root of its channels' total variance over the positions of at most `BALANCE_IMAGES` of the
        images. Scales are powers of two: exact, also in half precision.
        """
        sample = images[:: -(-len(images) // BALANCE_IMAGES)]
        spreads = []
        for place, (channels, height, width) in enumerate(self.shapes):
            total, squared = torch.zeros(channels, dtype=torch.float64), 0.0
            for image in sample:
                values = self.levels([image], torch.device("cpu"))[place].double()
                total += values.sum((0, 2, 3))
                squared += float(values.square().sum())
            count = len(sample) * height * width
            spreads.append(max(squared / count - float((total / count).square().sum()), 1e-12) ** 0.5)
        scales = torch.tensor([2.0 ** round(log2(spreads[0] / spread)) for spread in spreads])
        for image in range(self.count):
            for level, scale in zip(self._split(self._rows[image : image + 1]), scales, strict=True):
                level.mul_(scale)
            self._let_go()
        return scales

    def means(self) -> Tensor:
        """Return each image's mean features (n, C) float32, over its whole frame."""
        return torch.cat(self._means)

    def levels(self, indices: Sequence[int] | Tensor, device: torch.device) -> list[Tensor]:
        """Return the feature maps [(B, C_l, h_l, w_l)] of the images at `indices`, in half precision, as they are kept.

        Those of a single image are not copied.
        """
        self._let_go()
        first = int(indices[0])
        rows = self._rows[first : first + 1] if len(indices) == 1 else self._rows[torch.as_tensor(indices)]
        return self._split(rows.to(device))

    def _split(self, rows: Tensor) -> list[Tensor]:
        """Return the feature maps [(B, C_l, h_l, w_l)] in rows (B, n): channels last, as the projection reads them."""
        parts = torch.split(rows, self._sizes, dim=1)
        return [
            part.view(-1, height, width, channels).permute(0, 3, 1, 2)
            for part, (channels, height, width) in zip(parts, self.shapes, strict=True)
        ]

    def _let_go(self) -> None:
        """Take the file's pages out of the process: the system keeps them as long as there is memory for them."""
        if self._mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._mapped.madvise(mmap.MADV_DONTNEED)

    def kept(self, indices: Sequence[int] | Tensor) -> Tensor | None:
        """Return which positions of the images at `indices` are not ignored: (B, h, w) bool; None if all are kept."""
        kept = [self._kept[int(index)] for index in indices]
        if all(each is None for each in kept):
            return None
        whole = torch.ones(self.shapes[0][1:], dtype=torch.bool)
        return torch.stack([whole if each is None else each for each in kept])

    def __enter__(self) -> FeatureStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._rows, self._mapped
        if self._file is not None:
            self._file.close()

    def _map_file(self, capacity: int, row: int) -> Tensor:
        folder = Path(platformdirs.user_cache_dir("cfa")) / "features"
        size = capacity * row * 2
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  closed with the store
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._file.fileno(), 0, size)  # a full disk is said now, not by a bus error
            self._file.truncate(size)
            self._mapped = mmap.mmap(self._file.fileno(), size)
        except OSError as error:
            raise InputError(
                f"The features of {capacity} images need {size / 1e9:.1f} GB, more than memory or {folder} have room "
                f"for: {error.strerror or error}.",
                "Choose a smaller --max-images or --size, or set XDG_CACHE_HOME to a larger disk.",
            ) from error
        return torch.frombuffer(self._mapped, dtype=torch.float16).view(capacity, row)


def read_good(
    sources: Sequence[Source],
    geometry: Geometry,
    bit_depth: int,
    batch_size: int,
    max_pixels: float,
    ignore: Ignore | None,
) -> Iterator[Decoded]:
    """Decode good images, whose 16-bit files hold `bit_depth` bits, ahead of a network that takes `batch_size`."""
    return read_ahead(
        sources,
        lambda image: to_input(image, geometry),
        full_scale=lambda image: (widen(image, bit_depth), None),
        keep_images=False,
        ahead=2 * batch_size,
        max_pixels=max_pixels,
        ignore=ignore,
    )


def store_features(
    store: FeatureStore,
    backbone: AnyBackbone,
    sources: Sequence[Source],
    geometry: Geometry,
    device: torch.device,
    bit_depth: int,
    progress: ProgressCallback,
    max_pixels: float = MAX_PIXELS,
    ignore: Ignore | None = None,
    views: Sequence[View] = (AS_IT_IS,),
) -> tuple[list[Source], list[tuple[str, str]], list[ImageStatistics]]:
    """Fill the store from images whose 16-bit files hold `bit_depth` bits: with all views of the first, and so on.

    What is ignored of all images the backbone does not see: it is the mean colour there.
    Returns the sources that are in it, in its order; the others: (path, reason); and what the images in it are like.
    """
    statistics: list[ImageStatistics] = []
    usable: list[Source] = []
    skipped: list[tuple[str, str]] = []
    waiting: list[Tensor] = []
    kept: list[Tensor | None] = []
    common = None if ignore is None else ignore.common
    seen = None if common is None else common.to(device)
    grid = store.shapes[0][1], store.shapes[0][2]

    batch_size = images_at_a_time(geometry.input_size, BATCH_SIZE)

    def extract(images: Tensor) -> list[Tensor]:
        with torch.inference_mode():
            images = images.to(device).contiguous(memory_format=torch.channels_last)
            return extract_levels(backbone, images if seen is None else images * seen, torch.float16)

    def flush() -> None:
        if waiting:
            for levels in workers.map(extract, workers.split(in_batch(waiting))):
                store.append(levels, kept[: len(levels[0])])
                del kept[: len(levels[0])]
            waiting.clear()

    stream = read_good(sources, geometry, bit_depth, batch_size, max_pixels, ignore)
    with Workers(device, batch_size) as workers:
        for number, decoded in enumerate(stream, start=1):
            if decoded.input is None or decoded.statistics is None:
                skipped.append((str(decoded.source.path), decoded.error or ""))
            else:
                usable.append(decoded.source)
                statistics.append(decoded.statistics)
                shown = decoded.input if common is None else decoded.input * common
                for view in views:
                    waiting.append(view.of(shown))
                    kept.append(None if decoded.keep is None else _positions(view.of_kept(decoded.keep, common), grid))
                    if len(waiting) == batch_size:
                        flush()
            progress(Progress("reading", number, len(sources)))
        flush()
    return usable, skipped, statistics


def _positions(keep: Tensor, grid: tuple[int, int]) -> Tensor | None:
    """Return the positions (h, w) bool that are kept where the pixels `keep` (H, W) are; None if all are."""
    kept = kept_positions(keep[None], grid)[0]
    return None if bool(kept.all()) else kept
