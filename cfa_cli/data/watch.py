"""A folder that images arrive in: which of them are there, and written to their end."""

from __future__ import annotations

import os
import stat
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from watchfiles import Change, watch

from cfa_cli.data.own_output import is_result
from cfa_cli.data.walk import count_other_format
from cfa_cli.errors import InputError
from cfa_cli.notes import LeftOut
from cfa_cli.records import IMAGE_SUFFIXES, Prediction, Source

SETTLED = 5.0  # s without a change after which a file counts as written, whatever it looks like
RESCAN = 5.0  # s; folders on a network tell nothing of what other machines do
_STEP, _TIMEOUT = 5, 100  # ms: how often the watcher looks, and how often it lets go without a change
_TAIL = 1024  # bytes
TOGETHER = 8  # images that are handed out before their results are waited for


@dataclass
class _Waiting:
    """A file that is not known to be whole yet."""

    state: tuple[int, int]  # size in bytes, modification time in ns
    since: float  # time.monotonic() at which it was first seen so
    refused: bool = False  # whether it turned out not to be whole in this state


def check_folder(folder: Path, ignore: Path | None = None) -> None:
    """Raise InputError if `folder` is no folder, lies in `ignore`, or is one that cfa writes results to."""
    if not folder.exists():
        raise InputError(f"There is no folder {folder} to watch.", f"Make it first: mkdir -p {folder}")
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder.", "Give --watch the folder that images arrive in.")
    if is_result(folder):
        raise InputError(
            f"{folder} holds what cfa wrote, which it never scores.", "Give the folder that images arrive in."
        )
    if ignore is not None and folder.resolve().is_relative_to(ignore.resolve()):
        raise InputError(
            f"The results' folder {ignore} holds the watched folder.",
            "Choose another one with --out, or one within it.",
        )


class WatchedFolder:
    """A folder, and all below it, watched for images. Hidden files and what lies in `ignore` are left out.

    Images that are there at the start count as well, so that none is lost while nobody watches. An image that is
    overwritten is another one: its size or modification time differs. `is_done` says which images need no further look.
    """

    def __init__(
        self,
        folder: Path,
        is_done: Callable[[Source], bool],
        stop: Event,
        ignore: Path | None = None,
        left_out: LeftOut | None = None,
    ) -> None:
        """Raises what `check_folder` raises. `left_out` gets, at the end, what is there and is not read."""
        check_folder(folder, ignore)
        self._folder, self._is_done, self._stop = folder, is_done, stop
        self._ignored = None if ignore is None else ignore.resolve()
        self._left_out = left_out
        self._waiting: dict[Path, _Waiting] = {}
        self._handed_out: dict[Path, _Waiting] = {}
        self._scored: dict[Path, tuple[int, int]] = {}  # in which state
        self._next_scan = 0.0

    @property
    def unfinished(self) -> list[Path]:
        """The images that are not known to be whole, or have not been scored, in the order in which they were seen."""
        return [*self._handed_out, *self._waiting]

    def __iter__(self) -> Iterator[Source | None]:
        """The images that have become whole, as soon as they are, until `stop` is set; a None after each few of them.

        The None says that those before it are to be scored without waiting for more.
        """
        while not self._stop.is_set():
            identity = _identity(self._folder)
            if identity is None:  # removed; it may be made again
                self._stop.wait(_TIMEOUT / 1000)
                continue
            self._next_scan = 0.0  # as soon as the watcher is at work, so that nothing slips through between
            for changed in self._changes():
                for path in changed:
                    self._notice(path)
                self._scan()
                yield from self._ready()
                if self._stop.is_set() or _identity(self._folder) != identity:
                    break
        # What is there by now is not scored any more: `unfinished` names it.
        self._notice(self._folder, self._left_out)

    def is_final(self, prediction: Prediction) -> bool:
        """Whether what was read of an image that was handed out was all of it. If not, it is handed out again later.

        A file that has gone since was whole if it was readable, and is forgotten otherwise.
        """
        source, readable = prediction.source, prediction.error is None
        seen = self._handed_out.pop(source.path)
        state = _state(source.path)
        if readable:
            final = state in (None, seen.state)
        else:
            final = state == seen.state and time.monotonic() - seen.since >= SETTLED
        if final:
            self._scored[source.path] = seen.state
        elif state is not None:
            seen.refused = True
            self._waiting[source.path] = seen
        return final

    def _changes(self) -> Iterator[set[Path]]:
        """What has changed in the folder; an empty set now and then."""
        real = self._folder.resolve()  # some systems tell of real paths alone
        try:
            for changes in watch(
                real,
                watch_filter=None,
                stop_event=self._stop,
                step=_STEP,
                debounce=10 * _STEP,
                rust_timeout=_TIMEOUT,
                yield_on_timeout=True,
                ignore_permission_denied=True,
            ):
                yield {self._folder / Path(path).relative_to(real) for _, path in changes}
                if (Change.deleted, str(real)) in changes:
                    return
        except OSError:  # the folder has gone, or the system has no watches left: then looking now and then must do
            while not self._stop.wait(_TIMEOUT / 1000):
                yield set()

    def _scan(self) -> None:
        """Look through the whole folder, where it is time to."""
        start = time.monotonic()
        if start < self._next_scan:
            return
        self._notice(self._folder)
        end = time.monotonic()
        self._next_scan = end + max(RESCAN, 20 * (end - start))

    def _notice(self, path: Path, left_out: LeftOut | None = None) -> None:
        """Remember an image that may be new; of a folder, those in it. What is no image is added to `left_out`."""
        if path.is_dir():
            if is_result(path):
                if left_out is not None and not self._is_hidden(path):
                    left_out.results.append(str(path))
                return
            with suppress(OSError):  # gone again, or not ours to read
                for entry in sorted(path.iterdir()):
                    if not entry.name.startswith(".") and not (entry.is_dir() and entry.is_symlink()):
                        self._notice(entry, left_out)
            return
        if path in self._waiting or self._is_hidden(path):
            return
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            if left_out is not None:
                count_other_format(path.name, left_out)
            return
        if is_result(path):
            return
        state = _state(path)
        if state is not None and self._scored.get(path) != state and not self._is_done(self._source(path, state)):
            self._waiting[path] = _Waiting(state, time.monotonic())

    def _is_hidden(self, path: Path) -> bool:
        if self._ignored is not None and path.resolve().is_relative_to(self._ignored):
            return True
        return any(part.startswith(".") for part in path.relative_to(self._folder).parts)

    def _source(self, path: Path, state: tuple[int, int]) -> Source:
        name = path.relative_to(self._folder).as_posix()
        return Source(path, os.fsencode(name).decode("utf-8", "replace"), state=state)

    def _ready(self) -> Iterator[Source | None]:
        """The images that are whole, in the order in which they were seen; a None after each few."""
        count = 0
        for path in list(self._waiting):
            if self._is_whole(path):
                waiting = self._handed_out[path] = self._waiting.pop(path)
                yield self._source(path, waiting.state)
                count += 1
                if count % TOGETHER == 0:
                    yield None
                if self._stop.is_set():
                    break
        if count % TOGETHER:
            yield None

    def _is_whole(self, path: Path) -> bool:
        """Look at a waiting file again; one that has gone is forgotten."""
        waiting, state, now = self._waiting[path], _state(path), time.monotonic()
        if state is None:
            del self._waiting[path]
            return False
        if state != waiting.state:
            waiting = self._waiting[path] = _Waiting(state, now)
        if now - waiting.since >= SETTLED or (not waiting.refused and ends(path)):
            return True
        waiting.refused = True
        return False


def ends(path: Path) -> bool:
    """Whether an image file has its end. TIFF and PGM have none: they are tried, and half of one cannot be decoded."""
    try:
        with path.open("rb") as file:
            head = file.read(12)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            tail = file.read()
    except OSError:
        return False
    if head.startswith(b"\x89PNG"):
        return b"IEND\xaeB`\x82" in tail
    if head.startswith(b"\xff\xd8"):
        return b"\xff\xd9" in tail
    if head.startswith(b"RIFF"):
        return len(head) >= 8 and size >= struct.unpack("<I", head[4:8])[0] + 8
    if head.startswith(b"BM"):
        return len(head) >= 6 and size >= struct.unpack("<I", head[2:6])[0]
    return head.startswith((b"II", b"MM", b"P5", b"P6"))


def _state(path: Path) -> tuple[int, int] | None:
    """Size in bytes and modification time in ns; None of what is no regular file, like a pipe, which is not opened."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
