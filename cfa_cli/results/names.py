"""The names of an image's result files: each its own, on every file system, and never outside the folder of results."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import PurePosixPath

SUFFIXES = (".png", ".tiff", ".jpg", ".full.jpg", ".mask.png")  # of result files, by which names must not meet

MAX_BYTES = 180  # of a part of a name: file systems take 255, and suffixes and temporary names need some
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])( *\..*)?", re.IGNORECASE)
_NOT_ON_WINDOWS = re.compile(r'[<>:"|?*\\\x00-\x1f]')
_DRIVE = re.compile(r"[A-Za-z]:")


class FileNames:
    """Names given out so far: each is a relative POSIX path without suffix, to which `SUFFIXES` are appended.

    No file gets another one's name or that of a folder, and none is told apart by case or Unicode form alone.
    """

    def __init__(self, windows: bool = os.name == "nt") -> None:
        self._windows = windows
        self._names: set[str] = set()
        self._folders: set[str] = set()

    def add(self, name: str) -> None:
        """Take a name as given out."""
        key = _fold(name)
        self._names.add(key)
        self._folders.update(map(str, PurePosixPath(key).parents))

    def claim(self, source_name: str) -> str:
        """Give out a name for an image: its own without its suffix, as evaluation code expects, where that is free."""
        parts = [part for part in source_name.split("/") if part not in ("", ".", "..")] or ["image"]
        *folders, last = [self._possible(part) for part in parts]
        place = PurePosixPath()
        for folder in folders:
            place = next(path for path in _numbered(place, folder) if not self._is_file(_fold(str(path))))
        stem = str(PurePosixPath(last).with_suffix(""))
        name = next(
            str(path)
            for path in itertools.chain([place / stem, place / last], _numbered(place, stem))
            if self._is_free(_fold(str(path)))
        )
        self.add(name)
        return name

    def _is_free(self, key: str) -> bool:
        """Whether no file of this name is one of another name, or a folder."""
        return not (
            key in self._names
            or any(key + suffix in self._folders for suffix in SUFFIXES)
            or any(key + inner in self._names for inner in _INNER)
            or any(key.endswith(inner) and key.removesuffix(inner) in self._names for inner in _INNER)
        )

    def _is_file(self, key: str) -> bool:
        return any(key.endswith(suffix) and key.removesuffix(suffix) in self._names for suffix in SUFFIXES)

    def _possible(self, part: str) -> str:
        """`part`, or what a file system can hold in its place."""
        if self._windows:
            part = _NOT_ON_WINDOWS.sub("_", part)
            part = part.rstrip(". ") or "_"
            if _RESERVED.fullmatch(part):
                part = f"_{part}"
        else:
            part = part.replace("\0", "_")
        data = os.fsencode(part)
        if len(data) <= MAX_BYTES:
            return part
        suffix = PurePosixPath(part).suffix if len(PurePosixPath(part).suffix) <= 10 else ""
        digest = hashlib.sha256(data).hexdigest()[:8]
        return f"{data[: MAX_BYTES - 30].decode('utf-8', 'ignore')}~{digest}{suffix}"


_INNER = tuple(str(PurePosixPath(suffix).with_suffix("")) for suffix in SUFFIXES if suffix.count(".") > 1)


def is_safe(name: object) -> bool:
    """Whether `name`, from a file that anybody may have written, is a relative path without "..", on any system."""
    return (
        isinstance(name, str)
        and name != ""
        and "\0" not in name
        and not name.startswith(("/", "\\"))
        and not _DRIVE.match(name)
        and ".." not in re.split(r"[/\\]", name)
    )


def _fold(name: str) -> str:
    """Equal for names that some file system takes for one file."""
    return unicodedata.normalize("NFC", name).casefold()


def _numbered(place: PurePosixPath, part: str) -> Iterator[PurePosixPath]:
    """`part` in `place`, then `part~2`, `part~3`, ..."""
    yield place / part
    number = 2
    while True:
        yield place / f"{part}~{number}"
        number += 1
