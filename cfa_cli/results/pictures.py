"""The pictures of an image's result: drawn and encoded on a few threads, each file written whole or not at all."""

from __future__ import annotations

import errno
import math
import os
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from cfa_cli.atomic import write_files
from cfa_cli.bands import swap_red_and_blue
from cfa_cli.errors import InputError
from cfa_cli.geometry import resize_map
from cfa_cli.records import Bundle, Prediction, Region
from cfa_cli.results.overlays import (
    blend,
    draw_hatching,
    draw_heatmap,
    draw_legend,
    draw_overlay,
    draw_thumbnail,
    find_ignored,
    scale_map,
)
from cfa_cli.results.png import encode_png
from cfa_cli.results.regions import find_regions, mark, mark_reduced

KINDS = {  # of --save: folder and suffix
    "overlay": ("overlays", ".png"),
    "map": ("maps", ".tiff"),
    "mask": ("masks", ".png"),
    "heatmap": ("heatmaps", ".png"),
}
REPORT_FOLDER = "report"
THUMBNAIL, REPORT_MAP, REPORT_MASK, REPORT_IMAGE = ".jpg", ".png", ".mask.png", ".full.jpg"
REPORT_IGNORED = ".ignored.png"
REPORT_SUFFIXES = (THUMBNAIL, REPORT_MAP, REPORT_MASK, REPORT_IMAGE, REPORT_IGNORED)  # in the report's folder
JPEG_SIDE = 65_500  # px, the most that the format holds
SHOWN_BY_BROWSERS = (".bmp", ".jfif", ".jpeg", ".jpg", ".png", ".webp")  # others get a REPORT_IMAGE
MAX_BYTES_PENDING = 100_000_000  # of images under way: one of 33 megapixels, whose drawing takes some times as much
_OPTIONS = {
    # Uncompressed: evaluation code reads with tifffile, which needs a further package for most compressions.
    ".tiff": (cv2.IMWRITE_TIFF_COMPRESSION, 1),
    ".jpg": (cv2.IMWRITE_JPEG_QUALITY, 80),
}
_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)


class Pictures:
    """Draws and writes the pictures of one image after the other, and hands the images back in order.

    Few images are under way at a time, so that memory stays flat.
    """

    def __init__(
        self, out: Path, bundles: Mapping[str, Bundle], save: Collection[str], workers: int | None = None
    ) -> None:
        """Start the threads.

        out: the folder of results. bundles: the models, by `Prediction.model`. save: which of `KINDS` to write; those
        of the report are written too, unless it is empty. workers: threads; None: one a processor, at most 4.
        """
        self._out, self._bundles, self._save = out, bundles, sorted(save)
        self._workers = workers or min(4, os.cpu_count() or 1)
        # Twice as many: while one image's files are on their way to the disk, another's are drawn.
        self._pool = ThreadPoolExecutor(2 * self._workers, thread_name_prefix="cfa-write")
        # OpenCV 5 loads its font once a thread, in 20 ms of its time: more than all the rest of a small image takes.
        self._letters = ThreadPoolExecutor(1, thread_name_prefix="cfa-letter")
        self._pending: deque[tuple[Prediction, str, Future[tuple[Region, ...]]]] = deque()

    def put(self, prediction: Prediction, name: str) -> Iterator[tuple[Prediction, str]]:
        """Take one image, whose files get `name`; yield those whose files are written, with their regions and names.

        `score_map` is at the network's input size, `image` at the source's. Blocks while enough images are under way.
        An image whose files cannot be written has the `error`. Raises InputError where the disk is full.
        """
        size = _bytes(prediction)
        while self._pending and self._is_full(size):
            yield from self._finish_next()
        self._pending.append((prediction, name, self._start(prediction, name)))
        # An image that is too large by itself is waited for: the next is not read while it is drawn.
        while self._pending and (self._pending[0][2].done() or size > MAX_BYTES_PENDING):
            yield from self._finish_next()

    def flush(self) -> Iterator[tuple[Prediction, str]]:
        """Yield all that are under way, each once its files are written."""
        while self._pending:
            yield from self._finish_next()

    def drop(self) -> None:
        """Forget the images that are under way."""
        self._pending.clear()

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)
        self._letters.shutdown()

    def _start(self, prediction: Prediction, name: str) -> Future[tuple[Region, ...]]:
        if prediction.score_map is not None:
            return self._pool.submit(self._write_files, prediction, name)
        nothing: Future[tuple[Region, ...]] = Future()  # is to be drawn: a thread's turn would cost more than the row
        nothing.set_result(prediction.regions)
        return nothing

    def _is_full(self, following: int) -> bool:
        """Whether an image under way is to be finished before one of so many bytes is taken."""
        under_way = sum(_bytes(prediction) for prediction, _, _ in self._pending)
        return len(self._pending) >= 2 * self._workers or under_way + following > MAX_BYTES_PENDING

    def _finish_next(self) -> Iterator[tuple[Prediction, str]]:
        """Yield the oldest. It stays under way until the caller asks for more: Ctrl-C may end the wait for it."""
        prediction, name, future = self._pending[0]
        try:
            prediction = replace(prediction, regions=future.result())
        except (InputError, MemoryError, cv2.error) as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in _DISK_IS_FULL:
                raise
            reason = (
                error.message
                if isinstance(error, InputError)
                else f"{prediction.source.path} cannot be drawn: {str(error) or 'not enough memory'}."
            )
            prediction = replace(prediction, error=reason)
        yield prediction, name
        self._pending.popleft()

    def _write_files(self, prediction: Prediction, name: str) -> tuple[Region, ...]:
        """Draw and write all files of one image, and return its regions. Runs on a thread of the pool."""
        image, bundle, size = prediction.image, self._bundles.get(prediction.model or ""), _size(prediction)
        if prediction.score_map is None or bundle is None or size is None:
            return prediction.regions
        calibration, geometry = bundle.calibration, bundle.geometry
        if image is None and prediction.score_map.max() <= calibration.pixel_threshold:  # nor does it at another size
            return ()
        score_map = resize_map(prediction.score_map, geometry, size)
        if not self._save or image is None:
            return find_regions(score_map, calibration)
        marked = mark(score_map, calibration)
        pictures = self._draw(prediction, bundle, image, score_map, marked)
        paths = (((self._out / folder / f"{name}{suffix}"), pixels) for folder, suffix, pixels in pictures)
        write_files((path, _encode(path, pixels)) for path, pixels in paths)
        return find_regions(score_map, calibration, marked)

    def _draw(
        self, prediction: Prediction, bundle: Bundle, image: np.ndarray, score_map: np.ndarray, marked: np.ndarray
    ) -> Iterator[tuple[str, str, np.ndarray]]:
        """Draw one picture of an image after the other: folder, suffix and pixels."""
        assert prediction.score_map is not None
        calibration, geometry, size = bundle.calibration, bundle.geometry, (image.shape[0], image.shape[1])
        draw: dict[str, Callable[[], np.ndarray]] = {
            "overlay": lambda: draw_overlay(
                *(image, score_map, prediction, calibration),
                *(find_ignored(prediction, bundle, size), marked),
                self._letters.submit(draw_legend, prediction, calibration, size).result(),
            ),
            "map": lambda: score_map,
            "mask": lambda: marked,
            "heatmap": lambda: draw_heatmap(score_map, calibration),
        }
        for kind in self._save:
            yield *KINDS[kind], draw[kind]()
        small = draw_thumbnail(image, None, bundle)
        reduced = small.shape[0], small.shape[1]
        small_map = resize_map(prediction.score_map, geometry, reduced)
        mask = mark_reduced(small_map, calibration, lambda: marked)
        ignored = find_ignored(prediction, bundle, reduced)
        if ignored is not None:
            yield REPORT_FOLDER, REPORT_IGNORED, draw_hatching(ignored)
        yield REPORT_FOLDER, THUMBNAIL, blend(small, small_map, calibration, mask, ignored)
        yield REPORT_FOLDER, REPORT_MAP, scale_map(small_map, calibration)
        yield REPORT_FOLDER, REPORT_MASK, mask
        if prediction.source.path.suffix.lower() not in SHOWN_BY_BROWSERS:
            yield REPORT_FOLDER, REPORT_IMAGE, draw_thumbnail(image, None, bundle, JPEG_SIDE)


def _bytes(prediction: Prediction) -> int:
    size = _size(prediction)
    return prediction.image.nbytes if prediction.image is not None else 3 * math.prod(size) if size else 0


def _size(prediction: Prediction) -> tuple[int, int] | None:
    """Return an image's (height, width) in px, source size, if it is known."""
    if prediction.image is not None:
        return prediction.image.shape[0], prediction.image.shape[1]
    seen = prediction.statistics
    return None if seen is None else (seen.height, seen.width)


def write_picture(path: Path, pixels: np.ndarray) -> None:
    """Write pixels, whole or not at all, as the suffix says: .png and .jpg RGB or grey uint8, .tiff grey float32.

    Four channels are grey as RGB, with alpha: .png alone.

    For a .jpg RGB is turned into BGR in place, as another copy of a large image would need much memory.
    Raises InputError where they cannot be written.
    """
    write_files([(path, _encode(path, pixels))])


def _encode(path: Path, pixels: np.ndarray) -> bytes | memoryview:
    if path.suffix == ".png":
        return encode_png(pixels)
    if pixels.ndim == 3:
        swap_red_and_blue(pixels)
    done, encoded = cv2.imencode(path.suffix, pixels, _OPTIONS[path.suffix])  # imwrite takes not every file name
    if not done:
        raise InputError(f"Cannot write {path}: {pixels.shape[1]} x {pixels.shape[0]} px are too many for its format.")
    return encoded.data
