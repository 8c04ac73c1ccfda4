"""Reading a file that somebody else made: nothing is opened for good before it is known to be a regular file."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cfa_cli.errors import ImageError


def read_file(path: Path, limit: int, size: int | None = None) -> bytes:
    """Return a regular file's bytes.

    A pipe without a writer would block for ever, and a device might never end: the file is opened without waiting, and
    asked what it is before a byte is read.

    limit: bytes; a larger file is refused unread.
    size: read this many bytes, or all if None.
    Raises ImageError for what is missing, no regular file, unreadable, or too large.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening some devices does something already
            raise _not_regular(path, path.stat().st_mode)
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        with open(os.open(path, flags), "rb") as file:  # noqa: PTH123  (a descriptor)
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):  # exchanged since
                raise _not_regular(path, status.st_mode)
            if status.st_size > limit:
                raise ImageError(
                    f"{path} is {status.st_size / 1e9:,.1f} GB, more than an image of the size that is allowed takes.",
                    "If it really is an image, raise the limit with --max-pixels.",
                )
            return file.read(status.st_size if size is None else size)
    except FileNotFoundError as error:
        raise ImageError(f"There is no file {path}.", "Check the path.") from error
    except MemoryError as error:
        raise ImageError(f"{path} does not fit into memory.", "Cut it into tiles or scale it down.") from error
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(f"Cannot read {path}: {reason}.", "Check the file's permissions.") from error


def file_limit(max_pixels: float) -> int:
    """Return how many bytes an image of so many megapixels may take."""
    # No format takes more than 8 bytes a pixel; twice that, and a little, is for further pages and previews.
    return int(max_pixels * 16e6) + 2**26


def _not_regular(path: Path, mode: int) -> ImageError:
    kind = "a folder" if stat.S_ISDIR(mode) else "no regular file"
    return ImageError(f"{path} is {kind}, not an image.")
