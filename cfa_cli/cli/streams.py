"""Standard streams that outlive their readers: a command finishes its work whatever becomes of its messages."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TextIO

MAX_LOG_BYTES = 10_000_000  # of a log file that is gone on with


class LastingStream:
    """A text stream whose writing never fails.

    Where a pipe's reader has gone away or a disk is full, what is written from then on is lost, and nothing else
    happens. Characters that the encoding lacks, and bytes in file names that are no text, are written as escapes.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Write `text`, or lose it; return its length."""
        with self._losing():
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write all of `lines`, or lose them."""
        self.write("".join(lines))

    def flush(self) -> None:
        """Write what waits, or lose it."""
        with self._losing():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _losing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError):  # ValueError: it was closed
            # What waits in the buffer is written once more when Python ends: it needs a place that takes it.
            with contextlib.suppress(OSError, ValueError):
                descriptor = os.open(os.devnull, os.O_WRONLY)
                os.dup2(descriptor, self._stream.fileno())
                os.close(descriptor)


def log_file() -> Path:
    """Where bugs, and what libraries print, are logged; its folder is made. Raises OSError."""
    import platformdirs

    return Path(platformdirs.user_log_dir("cfa", ensure_exists=True)) / "cfa.log"


@contextlib.contextmanager
def libraries_to_the_log() -> Iterator[None]:
    """Keep what is written to file descriptor 2 within the block for the log; sys.stderr goes on as before.

    What C libraries print goes to descriptor 2 whatever Python does: libjpeg's lines about damaged files would stand
    in progress bars. Only for a process that is `cfa` itself. Where nothing was printed the log is not touched; where
    it cannot be done, nothing is changed.
    """
    stream = sys.stderr
    try:
        if stream is None or stream.fileno() != 2:
            raise OSError("it does not lead to descriptor 2")
        printed = tempfile.TemporaryFile()  # noqa: SIM115  (closed below)
        own = os.dup(2)
    except Exception:  # a closed stream, no place for temporary files: a command runs all the same
        yield
        return
    stream.flush()
    os.dup2(printed.fileno(), 2)
    sys.stderr = open(  # noqa: PTH123, SIM115  (a descriptor; closed below)
        own, "w", buffering=1, encoding=stream.encoding, errors=stream.errors
    )
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        os.dup2(own, 2)
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.close()
        sys.stderr = stream
        with contextlib.suppress(OSError), printed:
            _append_to_log(printed)


def _append_to_log(printed: IO[bytes]) -> None:
    """Append what was printed, at most `MAX_LOG_BYTES` of it, to the log file; to stderr where there can be none."""
    printed.seek(0)
    if not (text := printed.read(MAX_LOG_BYTES)):
        return
    try:
        path = log_file()
        long = path.exists() and path.stat().st_size > MAX_LOG_BYTES
        with path.open("wb" if long else "ab") as log:
            log.write(text)
    except Exception:  # a home folder that cannot be written
        os.write(2, text)


@contextlib.contextmanager
def lasting_streams() -> Iterator[None]:
    """Make stdout and stderr last within the block; those that were closed before the start lose all."""
    # A closed stream's number would be the next opened file's: what a library prints would be written into it.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nowhere:  # noqa: PTH123  (os.devnull is no path)
        sys.stdout = LastingStream(before[0] or nowhere)
        sys.stderr = LastingStream(before[1] or nowhere)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            sys.stdout, sys.stderr = before
