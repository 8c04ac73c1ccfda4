"""Unpacking an archive that somebody else made: files and folders alone, all inside, no more than is likely."""

from __future__ import annotations

import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from cfa_cli.errors import InputError
from cfa_cli.records import Progress, ProgressCallback

GROWTH = 20  # how much larger than the archive its files may be: images are compressed already, masks are not
ALLOWANCE = 100_000_000  # bytes that are allowed besides
MAX_FILES = 1_000_000
_CHUNK = 1 << 20  # bytes
_HINT = "Delete it, and obtain the data set again."


@dataclass(frozen=True)
class _Member:
    """A file or folder of an archive."""

    name: str
    size: int  # bytes, unpacked
    kind: str  # "file", "folder", or what it is instead
    open: Callable[[], IO[bytes] | None]


def unpack(archive: Path, folder: Path, progress: ProgressCallback = lambda step: None) -> None:
    """Unpack a tar (compressed or not) or zip file into a new folder.

    Raises InputError for what is neither, damaged or encrypted; for members that would lie outside the folder, or are
    links, devices or anything else than files and folders; and for an archive that unpacks to more than 20 times its
    size. OSError where the folder cannot be written. What was written before is left for the caller to remove.
    """
    limit = ALLOWANCE + GROWTH * archive.stat().st_size
    total = 0
    try:
        with archive.open("rb") as file:
            megabytes = archive.stat().st_size // 1_000_000
            for count, member in enumerate(_members(file), start=1):
                target = _target(archive, folder, member.name)
                if member.kind not in ("file", "folder"):
                    raise InputError(f"{archive.name} holds {member.kind}: {member.name}.", _HINT)
                total += member.size
                if total > limit or count > MAX_FILES:
                    raise InputError(
                        f"{archive.name} unpacks to more than {limit / 1e6:,.0f} MB or {MAX_FILES:,} files.", _HINT
                    )
                if member.kind == "folder":
                    target.mkdir(parents=True, exist_ok=True)
                else:
                    _write(member, target)
                progress(Progress("unpacking", file.tell() // 1_000_000, megabytes, unit="MB"))
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{archive.name} holds a name twice: {error.filename}.", _HINT) from error
    except (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError) as error:
        raise InputError(f"{archive.name} is damaged, or neither a tar nor a zip file.", _HINT) from error
    except (RuntimeError, NotImplementedError) as error:  # zipfile's, for encryption and unknown compression
        raise InputError(f"{archive.name} cannot be unpacked: {error}.", _HINT) from error


def _members(file: IO[bytes]) -> Iterator[_Member]:
    """What an archive holds, in its order. The members' names and sizes are its own claims."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as packed:
            for info in packed.infolist():
                kind = "folder" if info.is_dir() else _zip_kind(info.external_attr >> 16)
                yield _Member(info.filename, info.file_size, kind, lambda info=info: packed.open(info))  # type: ignore[misc]
        return
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:*") as tar:
        for entry in tar:
            kind = "file" if entry.isreg() else "folder" if entry.isdir() else "a link or a device"
            yield _Member(entry.name, entry.size, kind, lambda entry=entry: tar.extractfile(entry))  # type: ignore[misc]


def _zip_kind(mode: int) -> str:
    """What the Unix mode in a zip file says; writers on other systems leave it 0."""
    return "file" if stat.S_IFMT(mode) in (0, stat.S_IFREG) else "a link or a device"


def _target(archive: Path, folder: Path, name: str) -> Path:
    """Where a member is written: in the folder, whatever its name says. Raises InputError."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in name or not name.isprintable():
        raise InputError(f"{archive.name} holds a path that leaves its folder: {name}.", _HINT)
    return folder.joinpath(*path.parts)


def _write(member: _Member, target: Path) -> None:
    """Write a file's bytes, no more than it claims to have; one that is there is not replaced."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source = member.open()
    if source is None:
        raise tarfile.TarError(member.name)
    left = member.size
    with source, target.open("xb") as file:
        while left and (chunk := source.read(min(left, _CHUNK))):
            file.write(chunk)
            left -= len(chunk)
    if left:
        raise EOFError(member.name)
