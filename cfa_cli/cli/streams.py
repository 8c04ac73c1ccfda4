"""Standard streams that outlive their readers: a command finishes its work whatever becomes of its messages."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


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
