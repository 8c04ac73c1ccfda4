"""Looking through a folder and what is below it: each image once, whatever links point to, and what is passed over."""

from __future__ import annotations

import os
import stat
from collections import deque
from pathlib import Path, PurePath

from cfa_cli.data.own_output import holds_results
from cfa_cli.errors import InputError
from cfa_cli.notes import LeftOut
from cfa_cli.records import IMAGE_SUFFIXES, MODEL_SUFFIXES, RESULT_FOLDERS

# What Windows leaves in any folder, and the tables and pages that cfa writes.
_UNSAID = {"Thumbs.db", "desktop.ini", "scores.csv", "regions.csv", "run.jsonl", "report.html"}
_UNSAID |= {"results.json", "results.csv", "results.md", "results.html"}


def walk(folder: Path, left_out: LeftOut) -> list[Path]:
    """The images below `folder`, sorted; what is passed over is added to `left_out`."""
    images: list[Path] = []
    visited: set[tuple[int, int] | str] = set()
    pending = deque([folder])  # links wait until the real tree is done, so that none hides the folder it points to
    while pending:
        for here, folders, files in os.walk(pending.popleft(), onerror=cannot_list):
            if (identity := _identity(here)) is None or identity in visited:
                folders.clear()
                continue
            visited.add(identity)
            written = set(folders).intersection(RESULT_FOLDERS) if holds_results(Path(here)) else set()
            left_out.results += [str(Path(here, name)) for name in sorted(written)]
            folders[:] = sorted(name for name in folders if name not in written and not is_hidden(Path(here, name)))
            pending += [link for name in folders if _is_link(link := Path(here, name))]
            shown = [name for name in files if not name.startswith(".")]
            images += [Path(here, name) for name in shown if is_image_name(name)]
            for name in shown:
                count_other_format(name, left_out)
    return sorted(images, key=lambda path: path.as_posix())


def count_other_format(name: str, left_out: LeftOut) -> None:
    """Count a file among those that are left out, unless it is an image or of cfa's own or the system's."""
    suffix = PurePath(name).suffix.lower()
    if suffix not in (*IMAGE_SUFFIXES, *MODEL_SUFFIXES) and name not in _UNSAID:
        left_out.formats[suffix or "no suffix"] += 1


def _identity(folder: str) -> tuple[int, int] | str | None:
    """What tells a folder apart; None if it has vanished. Some network drives of Windows number no files."""
    try:
        status = Path(folder).stat()
    except FileNotFoundError:
        return None
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(folder)


def is_hidden(folder: Path) -> bool:
    """By its name; on Windows by an attribute too: a drive's `System Volume Information`, which none may list."""
    if folder.name.startswith("."):
        return True
    try:
        return bool(getattr(folder.lstat(), "st_file_attributes", 0) & stat.FILE_ATTRIBUTE_HIDDEN)
    except FileNotFoundError:  # it has vanished
        return True


def _is_link(folder: Path) -> bool:
    """Whether `os.walk` passes it by: a link, or a junction of Windows (since Python 3.12)."""
    return folder.is_symlink() or getattr(os.path, "isjunction", lambda _: False)(folder)


def cannot_list(error: OSError) -> None:
    """Raise InputError for a folder that is there."""
    if isinstance(error, FileNotFoundError):  # it has vanished, with what was in it, since its folder was listed
        return
    raise InputError(f"Cannot list {error.filename}: {error.strerror}.", "Check the folder's permissions.") from error


def is_image_name(name: str) -> bool:
    """Whether a file is an image by its suffix."""
    return name.lower().endswith(IMAGE_SUFFIXES)
