"""What `predict` writes: scores.csv, and the pictures and maps of each image, in folders that mirror the input.

OUT/scores.csv             a row an image, in input order, as they are computed
OUT/regions.csv            a row a region, at the end; not where nothing but scores.csv is asked for
OUT/overlays/NAME.png      OUT/maps/NAME.tiff      OUT/masks/NAME.png      OUT/heatmaps/NAME.png
OUT/report/NAME.jpg, .png  the report's small overlay, and the map on the colour scale as grey values
OUT/report/NAME.mask.png   the report's small mask
OUT/run.jsonl              what --resume and the report need, see `results.scores`
"""

from __future__ import annotations

import errno
import math
import os
import re
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

from cfa_cli.atomic import atomic_path
from cfa_cli.bands import swap_red_and_blue
from cfa_cli.errors import InputError
from cfa_cli.geometry import resize_map
from cfa_cli.records import Bundle, Prediction, Region, Source
from cfa_cli.results.digest import digests_of
from cfa_cli.results.folder import locked
from cfa_cli.results.names import FileNames
from cfa_cli.results.overlays import draw_heatmap, draw_overlay, draw_thumbnail, find_ignored, scale_map
from cfa_cli.results.regions import find_regions, mark
from cfa_cli.results.rows import Row
from cfa_cli.results.scores import ScoreTable, absolute, holds_run, read_run

KINDS = {  # of --save: folder and suffix
    "overlay": ("overlays", ".png"),
    "map": ("maps", ".tiff"),
    "mask": ("masks", ".png"),
    "heatmap": ("heatmaps", ".png"),
}
REPORT_FOLDER = "report"
THUMBNAIL, REPORT_MAP, REPORT_MASK, REPORT_IMAGE = (
    ".jpg",
    ".png",
    ".mask.png",
    ".full.jpg",
)  # suffixes in the report's folder
JPEG_SIDE = 65_500  # px, the most that the format holds
SHOWN_BY_BROWSERS = (".bmp", ".jfif", ".jpeg", ".jpg", ".png", ".webp")  # others get a REPORT_IMAGE

_FILES = (*KINDS.values(), *((REPORT_FOLDER, suffix) for suffix in (THUMBNAIL, REPORT_MAP, REPORT_MASK, REPORT_IMAGE)))
_TEMPORARY = re.compile(r"\..*-[a-z0-9_]{8}\.(png|tiff|jpg|csv|jsonl|html)", re.DOTALL)  # see cfa_cli.atomic
_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)
MAX_BYTES_PENDING = 100_000_000  # of images under way: one of 33 megapixels, whose drawing takes some times as much
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
    Drawing and encoding run on a few threads; few images are under way at a time, so that memory stays flat. An image
    whose files cannot be written keeps its score, and its row has the error. One run at a time writes to a folder.

    >>> bundle = cfa_cli.load_bundle("cfa-model.safetensors")
    >>> with ResultWriter("maps", bundle, save=("overlay", "mask")) as writer:
    ...     for prediction in predictions:
    ...         writer.write(prediction)
    """

    def __init__(
        self,
        out: str | Path,
        bundle: Bundle | Mapping[str, Bundle],
        save: Collection[str] = ("overlay",),
        *,
        resume: bool = False,
        force: bool = False,
        workers: int | None = None,
        command: Sequence[str] = (),
        notes: Iterable[str] = (),
        ignore: str = "",
    ) -> None:
        """Prepare `out`, the folder of results.

        `bundle`: the model, whose thresholds and colour scale are drawn, or several by `Prediction.model`. `save`:
        which of `KINDS` to write beside scores.csv; the report is written too, at the end, unless it is empty.
        `resume`: go on after an earlier run's last whole row, if there is one, and try again what failed in it.
        `force`: remove an earlier run's files first. `workers`: threads; None: one a processor, at most 4. `command`:
        the words of the command that the report shows. `notes`: sentences that it shows, read when it is written.
        `ignore`: what tells runs apart that ignore different parts of the images; empty where it is the model that
        says.
        Raises InputError where another run is writing to `out`, where `out` holds a run (without `resume` and `force`,
        or one of another model, threshold or `save`), and where it cannot be written.
        """
        self._out, self._save = Path(out), sorted(save)
        self._bundles = {"": bundle} if isinstance(bundle, Bundle) else bundle
        self._command, self._notes = command, notes
        self.unwritten: list[tuple[Path, str]] = []  # images that have a score, and why their files are missing
        with ExitStack() as held:
            held.enter_context(locked(self._out))
            if force:
                _remove_run(self._out)
            models = digests_of(self._bundles)
            self._table = ScoreTable(self._out, self._save, models, ignore, resume=resume)
            held.callback(self._table.close)
            _remove_temporaries(self._out)
            self._held = held.pop_all()  # until the run ends
        self._names = FileNames()
        self._done: dict[str, tuple[str, tuple[int, int] | None]] = {}  # absolute path: name, and state of the file
        for row in self._table.rows:
            self._names.add(row.name)
            self._done[absolute(row.path)] = row.name, row.state
        self._workers = workers or min(4, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="cfa-write")
        self._pending: deque[tuple[Prediction, str, Future[tuple[Region, ...]]]] = deque()

    @property
    def earlier(self) -> Sequence[Row]:
        """The rows of the run that was taken up; without those of images that failed."""
        return self._table.rows

    def is_done(self, source: Source) -> bool:
        """Whether the image, as its file is now, has its row: from the run that was taken up, or handed in since."""
        if (path := absolute(source.path)) not in self._done:
            return False
        state = self._done[path][1]
        return state is None or source.state is None or state == source.state

    def write(self, prediction: Prediction) -> list[Prediction]:
        """Write one image's results; `score_map` is at the network's input size, `image` at the source's.

        Returns those whose rows are in scores.csv since the last call, without their arrays. Blocks while enough images
        are under way. A score that is no finite number becomes an error. An image that is written again, as its file
        was overwritten, gets a further row; its files are replaced.
        Raises InputError where nothing more can be written: scores.csv is locked, or the disk is full.
        """
        written: list[Prediction] = []
        if prediction.score is not None and not math.isfinite(prediction.score):
            error = f"The score of {prediction.source.path} is {prediction.score}, not a finite number."
            prediction = replace(prediction, score=None, normalized=None, label=None, error=error, score_map=None)
        size = _bytes(prediction)
        while self._pending and self._is_full(size):
            written.append(self._append_next())
        path, state = absolute(prediction.source.path), prediction.source.state
        name = self._done[path][0] if path in self._done else self._names.claim(prediction.source.name)
        self._done[path] = name, state
        self._pending.append((prediction, name, self._pool.submit(self._write_files, prediction, name)))
        # An image that is too large by itself is waited for: the next is not read while it is drawn.
        while self._pending and (self._pending[0][2].done() or size > MAX_BYTES_PENDING):
            written.append(self._append_next())
        return written

    def flush(self) -> list[Prediction]:
        """Wait until all rows handed in so far are in scores.csv; return those that `write` has not returned."""
        return [self._append_next() for _ in range(len(self._pending))]

    def __enter__(self) -> ResultWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.flush()  # on Ctrl-C too: what has been computed is kept
        finally:
            self._pool.shutdown(cancel_futures=True)
            self._held.close()
        if kind is None and self._save:
            from cfa_cli.results.report import write_report  # which needs the names of files from here

            write_report(self._out, self._bundles, command=self._command, notes=self._notes)

    def _is_full(self, following: int) -> bool:
        """Whether an image under way is to be finished before one of so many bytes is taken."""
        under_way = sum(_bytes(prediction) for prediction, _, _ in self._pending)
        return len(self._pending) >= 2 * self._workers or under_way + following > MAX_BYTES_PENDING

    def _append_next(self) -> Prediction:
        prediction, name, future = self._pending[0]
        try:
            try:
                # Ctrl-C may end this wait: the row is still pending then.
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
                self.unwritten.append((prediction.source.path, reason))
            self._table.append(prediction, name)
        except Exception:
            self._pending.clear()  # rows are in input order: none is written after one that cannot be
            raise
        self._pending.popleft()
        return replace(prediction, score_map=None, map=None, image=None)

    def _write_files(self, prediction: Prediction, name: str) -> tuple[Region, ...]:
        """Draw and write all files of one image, and return its regions. Runs on a thread of the pool."""
        image, bundle = prediction.image, self._bundles.get(prediction.model or "")
        if not self._save or image is None or prediction.score_map is None or bundle is None:
            return ()
        calibration, geometry = bundle.calibration, bundle.geometry
        size = image.shape[0], image.shape[1]
        score_map = resize_map(prediction.score_map, geometry, size)
        draw: dict[str, Callable[[], np.ndarray]] = {
            "overlay": lambda: draw_overlay(
                image, score_map, prediction, calibration, find_ignored(prediction, bundle, size)
            ),
            "map": lambda: score_map,
            "mask": lambda: mark(score_map, calibration),
            "heatmap": lambda: draw_heatmap(score_map, calibration),
        }
        for kind in self._save:
            folder, suffix = KINDS[kind]
            write_picture(self._out / folder / f"{name}{suffix}", draw[kind]())

        report = self._out / REPORT_FOLDER
        small = draw_thumbnail(image, prediction.score_map, bundle, prediction=prediction)
        write_picture(report / f"{name}{THUMBNAIL}", small)
        small_map = resize_map(prediction.score_map, geometry, (small.shape[0], small.shape[1]))
        write_picture(report / f"{name}{REPORT_MAP}", scale_map(small_map, calibration))
        write_picture(report / f"{name}{REPORT_MASK}", mark(small_map, calibration))
        if prediction.source.path.suffix.lower() not in SHOWN_BY_BROWSERS:
            shown = draw_thumbnail(image, None, bundle, JPEG_SIDE)
            write_picture(report / f"{name}{REPORT_IMAGE}", shown)
        return find_regions(score_map, calibration)


def _bytes(prediction: Prediction) -> int:
    return 0 if prediction.image is None else prediction.image.nbytes


def write_picture(path: Path, pixels: np.ndarray) -> None:
    """Write pixels, whole or not at all, as the suffix says: .png and .jpg RGB or grey uint8, .tiff grey float32.

    RGB is turned into BGR in place, as another copy of a large image would need much memory.
    Raises InputError where they cannot be written.
    """
    if pixels.ndim == 3:
        swap_red_and_blue(pixels)
    done, encoded = cv2.imencode(path.suffix, pixels, _OPTIONS[path.suffix])  # imwrite does not take every file name
    if not done:
        raise InputError(f"Cannot write {path}: {pixels.shape[1]} x {pixels.shape[0]} px are too many for its format.")
    with atomic_path(path) as temporary:
        temporary.write_bytes(encoded.data)


def _remove_run(out: Path) -> None:
    """Remove an earlier run's files and nothing else: `out` may hold files of the user's, and links to elsewhere."""
    if not holds_run(out):
        return
    try:
        names = [row.name for row in read_run(out)[1]]
    except InputError:  # damaged: only the table is known to be the run's
        names = []
    pictures = [out / folder / f"{name}{suffix}" for name in names for folder, suffix in _FILES]
    for path in (*pictures, *(out / name for name in ("scores.csv", "regions.csv", "run.jsonl", "report.html"))):
        _remove(path, out)


def _remove_temporaries(out: Path) -> None:
    """Remove what killed runs left."""
    found = [path for path in out.glob(".*") if _TEMPORARY.fullmatch(path.name)]
    for folder in {folder for folder, _ in _FILES}:
        found += [path for path in (out / folder).rglob(".*") if _TEMPORARY.fullmatch(path.name)]
    for path in found:
        _remove(path, out)


def _remove(path: Path, out: Path) -> None:
    """Remove a file, if it is there and, links followed, in a folder within `out`."""
    try:
        if path.parent.resolve().is_relative_to(out.resolve()):
            path.unlink(missing_ok=True)
    except NotADirectoryError:
        pass
    except OSError as error:
        raise InputError(
            f"Cannot remove {path}: {error.strerror or error}.",
            "Close it where it is open, remove it yourself, or choose another place with --out.",
        ) from error
