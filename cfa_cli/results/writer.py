"""What `predict` writes: scores.csv, and the pictures and maps of each image, in folders that mirror the input.

OUT/scores.csv             a row an image, in input order, as they are computed
OUT/overlays/NAME.png      OUT/maps/NAME.tiff      OUT/masks/NAME.png      OUT/heatmaps/NAME.png
OUT/report/NAME.jpg, .png  the report's small overlay, and the map on the colour scale as grey values
OUT/run.jsonl              what --resume and the report need, see `results.scores`
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import unicodedata
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from types import TracebackType

import cv2
import numpy as np

from cfa_cli.atomic import atomic_path
from cfa_cli.errors import InputError
from cfa_cli.geometry import resize_map
from cfa_cli.records import Bundle, Prediction, Source
from cfa_cli.results.overlays import (
    draw_heatmap,
    draw_mask,
    draw_overlay,
    draw_thumbnail,
    scale_map,
    to_8_bit,
)
from cfa_cli.results.scores import Row, ScoreTable, holds_run, read_run

KINDS = {  # of --save: folder and suffix
    "overlay": ("overlays", ".png"),
    "map": ("maps", ".tiff"),
    "mask": ("masks", ".png"),
    "heatmap": ("heatmaps", ".png"),
}
REPORT_FOLDER = "report"
THUMBNAIL, REPORT_MAP, REPORT_IMAGE = ".jpg", ".png", ".full.jpg"  # suffixes in the report's folder
SHOWN_BY_BROWSERS = (".bmp", ".jfif", ".jpeg", ".jpg", ".png", ".webp")  # others get a REPORT_IMAGE

_FILES = (*KINDS.values(), *((REPORT_FOLDER, suffix) for suffix in (THUMBNAIL, REPORT_MAP, REPORT_IMAGE)))
_TEMPORARY = re.compile(r"\..*-[a-z0-9_]{8}\.(png|tiff|jpg)")  # what a killed run leaves: see cfa_cli.atomic
_OPTIONS = {
    # Speed counts more than the last tenth of the size: level 3, or libpng's own choice of filters, takes 1.6 times as
    # long.
    ".png": (cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_SUB),
    # Uncompressed: evaluation code reads with tifffile, which needs a further package for most compressions.
    ".tiff": (cv2.IMWRITE_TIFF_COMPRESSION, 1),
    ".jpg": (cv2.IMWRITE_JPEG_QUALITY, 80),
}


class ResultWriter:
    """Writes the results of a run; a context manager.

    A row is appended after its files are in place, so that after a crash at any time each row's files are whole.
    Drawing and encoding run on a few threads, with at most `2 * workers` images under way: memory stays flat.
    """

    def __init__(
        self,
        out: Path,
        save: frozenset[str],
        bundle: Bundle,
        *,
        resume: bool = False,
        force: bool = False,
        workers: int | None = None,
    ) -> None:
        """Prepare `out`. `save` is a subset of `KINDS`; the report's pictures are written unless it is empty.

        `resume` goes on after an earlier run's last whole row, if there is one; `force` removes that run's files first.
        Raises InputError where `out` holds a run (without `resume` and `force`, or one of another model, threshold or
        `save`), and where it cannot be written.
        """
        if force:
            _remove_run(out)
        self._out, self._save, self._bundle = out, save, bundle
        self._table = ScoreTable(out, {"save": sorted(save), "model": _digest(bundle)}, resume=resume)
        if resume:
            _remove_temporaries(out)
        self._done = {_absolute(row.path) for row in self._table.rows}
        self._names = {_fold(row.name) for row in self._table.rows}
        self._workers = workers or min(4, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="cfa-write")
        self._pending: deque[tuple[Prediction, str, Future[None]]] = deque()

    @property
    def earlier(self) -> Sequence[Row]:
        """The rows of the run that was taken up."""
        return self._table.rows

    def is_done(self, source: Source) -> bool:
        """Whether the image has its row: from the run that was taken up, or handed in since."""
        return _absolute(source.path) in self._done

    def write(self, prediction: Prediction) -> None:
        """Write one image's results; `map` is at the network's input size, `image` at the source's.

        Blocks while enough images are under way. Raises InputError where a file cannot be written.
        """
        self._done.add(_absolute(prediction.source.path))
        name = self._claim(prediction.source.name)
        self._pending.append((prediction, name, self._pool.submit(self._write_files, prediction, name)))
        while self._pending and (len(self._pending) >= 2 * self._workers or self._pending[0][2].done()):
            self._append_next()

    def flush(self) -> None:
        """Wait until all rows handed in so far are in scores.csv."""
        while self._pending:
            self._append_next()

    def __enter__(self) -> ResultWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.flush()  # on Ctrl-C too: what has been computed is kept
        finally:
            self._pool.shutdown(cancel_futures=True)
            self._table.close()

    def _append_next(self) -> None:
        prediction, name, future = self._pending[0]
        try:
            future.result()  # Ctrl-C may end this wait: the row is still pending then
            self._table.append(prediction, name)
        except Exception:
            self._pending.clear()  # rows are in input order: none is written after one that cannot be
            raise
        self._pending.popleft()

    def _claim(self, source_name: str) -> str:
        """The name of an image's files: without the image's suffix, as evaluation code expects, where that is free."""
        name = str(PurePosixPath(source_name).with_suffix(""))
        while _fold(name) in self._names:
            name = source_name
            source_name += "~"
        self._names.add(_fold(name))
        return name

    def _write_files(self, prediction: Prediction, name: str) -> None:
        """Draw and write all files of one image. Runs on a thread of the pool."""
        image, calibration, geometry = prediction.image, self._bundle.calibration, self._bundle.geometry
        if not self._save or image is None or prediction.map is None:
            return
        size = image.shape[0], image.shape[1]
        score_map = resize_map(prediction.map, geometry, size)
        draw: dict[str, Callable[[], np.ndarray]] = {
            "overlay": lambda: draw_overlay(image, score_map, prediction, calibration),
            "map": lambda: score_map,
            "mask": lambda: draw_mask(score_map, calibration.pixel_threshold),
            "heatmap": lambda: draw_heatmap(score_map, calibration),
        }
        for kind in self._save:
            folder, suffix = KINDS[kind]
            write_picture(self._out / folder / f"{name}{suffix}", draw[kind]())

        report = self._out / REPORT_FOLDER
        small = draw_thumbnail(image, prediction.map, self._bundle)
        write_picture(report / f"{name}{THUMBNAIL}", small)
        small_map = resize_map(prediction.map, geometry, (small.shape[0], small.shape[1]))
        write_picture(report / f"{name}{REPORT_MAP}", scale_map(small_map, calibration))
        if prediction.source.path.suffix.lower() not in SHOWN_BY_BROWSERS:
            write_picture(report / f"{name}{REPORT_IMAGE}", to_8_bit(image))


def write_picture(path: Path, pixels: np.ndarray) -> None:
    """Write pixels, whole or not at all, as the suffix says: .png and .jpg RGB or grey uint8, .tiff grey float32."""
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.ndim == 3 else pixels
    encoded = cv2.imencode(path.suffix, bgr, _OPTIONS[path.suffix])[1]  # imwrite does not take every file name
    with atomic_path(path) as temporary:
        temporary.write_bytes(encoded.data)


def _digest(bundle: Bundle) -> str:
    """Tell models, and one model's thresholds, apart."""
    records = (bundle.config, bundle.geometry, bundle.backbone, bundle.calibration, bundle.provenance)
    digest = hashlib.sha256(json.dumps([dataclasses.asdict(record) for record in records]).encode())
    for name in sorted({"bank", "descriptor.weight"} & set(bundle.tensors)):  # an exported model shows no tensors
        digest.update(np.ascontiguousarray(bundle.tensors[name]).tobytes())
    return digest.hexdigest()


def _remove_run(out: Path) -> None:
    """Remove an earlier run's files and nothing else: `out` may hold files of the user's."""
    if not holds_run(out):
        return
    try:
        names = [row.name for row in read_run(out)[1]]
    except InputError:  # damaged: only the table is known to be the run's
        names = []
    for name in names:
        for folder, suffix in _FILES:
            (out / folder / f"{name}{suffix}").unlink(missing_ok=True)
    _remove_temporaries(out)
    for name in ("scores.csv", "run.jsonl", "report.html"):
        (out / name).unlink(missing_ok=True)


def _remove_temporaries(out: Path) -> None:
    for folder in {folder for folder, _ in _FILES}:
        for path in (out / folder).rglob(".*"):
            if _TEMPORARY.fullmatch(path.name):
                path.unlink(missing_ok=True)


def _fold(name: str) -> str:
    """Equal for names that some file system takes for one file."""
    return unicodedata.normalize("NFC", name).casefold()


def _absolute(path: Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100  links are not followed: that would read the disk
