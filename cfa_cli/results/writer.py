"""What `predict` writes: scores.csv, and the pictures and maps of each image, in folders that mirror the input.

OUT/scores.csv             a row an image, in input order, as they are computed
OUT/regions.csv            a row a region, likewise
OUT/overlays/NAME.png      OUT/maps/NAME.tiff      OUT/masks/NAME.png      OUT/heatmaps/NAME.png
OUT/report/NAME.jpg, .png  the report's small overlay, and the map on the colour scale as grey values
OUT/report/NAME.mask.png   the report's small mask, and NAME.ignored.png its hatching of what is ignored
OUT/run.jsonl              what --resume and the report need, see `results.scores`
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from cfa_cli.errors import InputError
from cfa_cli.records import Bundle, Prediction, Source
from cfa_cli.results.digest import digests_of
from cfa_cli.results.folder import locked
from cfa_cli.results.names import FileNames
from cfa_cli.results.pictures import KINDS, REPORT_FOLDER, REPORT_SUFFIXES, Pictures
from cfa_cli.results.rows import Row
from cfa_cli.results.scores import ScoreTable, absolute, holds_run, read_run

_FILES = (*KINDS.values(), *((REPORT_FOLDER, suffix) for suffix in REPORT_SUFFIXES))
_TEMPORARY = re.compile(r"\..*-[a-z0-9_]{8}\.(png|tiff|jpg|csv|jsonl|html)", re.DOTALL)  # see cfa_cli.atomic


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
        self._claimed: dict[str, str] = {}  # absolute path: name of its files
        self._done: dict[str, tuple[int, int] | None] = {}  # absolute path: state of the file
        for row in self._table.rows:
            self._names.add(row.name)
            self._claimed[absolute(row.path)] = row.name
            self._done[absolute(row.path)] = row.state
        self._pictures = Pictures(self._out, self._bundles, self._save, workers)

    @property
    def earlier(self) -> Sequence[Row]:
        """The rows of the run that was taken up; without those of images that failed."""
        return self._table.rows

    def is_done(self, source: Source) -> bool:
        """Whether the image, as its file is now, has its row: from the run that was taken up, or handed in since."""
        if (path := absolute(source.path)) not in self._done:
            return False
        state = self._done[path]
        return state is None or source.state is None or state == source.state

    def name_of(self, source: Source) -> str:
        """The name of an image's files: given out at the first call, so calls must come in input order."""
        path = absolute(source.path)
        if path not in self._claimed:
            self._claimed[path] = self._names.claim(source.name)
        return self._claimed[path]

    def write(self, prediction: Prediction) -> list[Prediction]:
        """Write one image's results; `score_map` is at the network's input size, `image` at the source's.

        Returns those whose rows are in scores.csv since the last call, without their arrays. Blocks while enough images
        are under way. A score that is no finite number becomes an error. An image that is written again, as its file
        was overwritten, gets a further row; its files are replaced. Of a prediction without `image`, whose files are
        written elsewhere, the row is written.
        Raises InputError where nothing more can be written: scores.csv is locked, or the disk is full.
        """
        if prediction.score is not None and not math.isfinite(prediction.score):
            error = f"The score of {prediction.source.path} is {prediction.score}, not a finite number."
            prediction = replace(prediction, score=None, normalized=None, label=None, error=error, score_map=None)
        name = self.name_of(prediction.source)
        self._done[absolute(prediction.source.path)] = prediction.source.state
        return self._append(self._pictures.put(prediction, name))

    def flush(self) -> list[Prediction]:
        """Wait until all rows handed in so far are in scores.csv; return those that `write` has not returned."""
        return self._append(self._pictures.flush())

    def __enter__(self) -> ResultWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.flush()  # on Ctrl-C too: what has been computed is kept
        finally:
            self._pictures.close()
            self._held.close()
        if kind is None and self._save:
            from cfa_cli.results.report import write_report  # which needs the names of files from here

            write_report(self._out, self._bundles, command=self._command, notes=self._notes)

    def _append(self, finished: Iterator[tuple[Prediction, str]]) -> list[Prediction]:
        written: list[Prediction] = []
        try:
            for prediction, name in finished:
                if prediction.score is not None and prediction.error is not None:
                    self.unwritten.append((prediction.source.path, prediction.error))
                self._table.append(prediction, name)
                written.append(replace(prediction, score_map=None, map=None, image=None))
        except Exception:
            self._pictures.drop()  # rows are in input order: none is written after one that cannot be
            raise
        return written


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
