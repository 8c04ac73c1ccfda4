"""Images that come one by one: arrays and paths from an iterable, and paths from standard input."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from queue import Empty, Queue
from threading import Thread

import numpy as np

from cfa_cli.data.inputs import find_images
from cfa_cli.data.own_output import is_result
from cfa_cli.errors import InputError
from cfa_cli.notes import LeftOut
from cfa_cli.records import Source

_LINES_AHEAD = 1000


def stream_sources(
    items: Iterable[object], is_taken: Callable[[Source], bool], left_out: LeftOut | None = None
) -> Iterator[Source]:
    """Turn arrays and paths into sources, one by one as they come; folders among the paths are searched.

    An array is named frame-000001 and so on, by its position among the arrays; names for which `is_taken` is true are
    passed over. A path is named by itself, below the working folder where it lies there. What is neither, or does not
    exist, becomes a source as well, so that it gets its row, with the error. What folders hold beside images, and what
    cfa wrote itself, is added to `left_out`.
    """
    left_out = LeftOut() if left_out is None else left_out
    frames = 0
    for item in items:
        if isinstance(item, str | Path):
            yield from _from_path(item, left_out)
            continue
        array = np.empty(0, np.uint8) if item is None else item  # None: what a camera gives when it fails
        frames += 1
        while is_taken(source := Source(Path(f"frame-{frames:06}"), f"frame-{frames:06}", array)):
            frames += 1
        yield source


def stream_lines(lines: Iterable[str], left_out: LeftOut | None = None) -> Iterator[Source | None]:
    """Turn paths, one a line, into sources as they arrive, each once; None where none is waiting.

    What is left out is added to `left_out`, as `stream_sources` does.
    Raises InputError where there is none at all, and where they are separated by null characters.
    """
    left_out = LeftOut() if left_out is None else left_out
    seen: set[str] = set()
    for line in _as_they_arrive(lines):
        if line is None:
            yield None
            continue
        text = line.rstrip("\r\n")
        if "\0" in text:
            raise InputError("The paths on standard input are separated by null characters.", "Give one path a line.")
        for source in _from_path(text, left_out) if text else ():
            if source.name not in seen:
                seen.add(source.name)
                yield source
    if not seen and not left_out.results:
        raise InputError(
            "There are no paths on standard input.", "For example: find parts -name '*.png' | cfa predict -"
        )


def _as_they_arrive(lines: Iterable[str]) -> Iterator[str | None]:
    """Read lines on a thread of their own; None where the next has not come yet."""
    queue: Queue[str | BaseException | None] = Queue(_LINES_AHEAD)

    def read() -> None:
        try:
            for line in lines:
                queue.put(line)
            queue.put(None)
        except BaseException as error:  # raised where the lines are used
            queue.put(error)

    Thread(target=read, name="cfa-lines", daemon=True).start()  # daemon: it may wait for a line that never comes
    while True:
        try:
            line = queue.get_nowait()
        except Empty:
            yield None
            line = queue.get()
        if line is None:
            return
        if isinstance(line, BaseException):
            raise line
        yield line


def _from_path(item: str | Path, left_out: LeftOut) -> Iterator[Source]:
    path = Path(item)
    if os.path.isdir(path):  # noqa: PTH112  (raises nothing)
        for image in find_images(path, left_out):
            yield Source(image, _name(image))
    elif is_result(path):
        left_out.results.append(str(item))
    else:
        yield Source(path, _name(path))


def _name(path: Path) -> str:
    absolute, here = Path(os.path.abspath(path)), Path.cwd()  # noqa: PTH100  (links are not followed)
    below = absolute.relative_to(here if absolute.is_relative_to(here) else absolute.anchor)
    return os.fsencode(below.as_posix()).decode("utf-8", "replace")
