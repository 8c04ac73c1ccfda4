"""The folder of results: held by one run at a time, and why something in it cannot be read or written."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from cfa_cli.errors import InputError

ELSEWHERE = "or choose another place with --out."


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Make the folder of results where it is missing, and hold it: one run at a time. No file of the lock remains.

    Raises InputError where another run holds it, and where it cannot be made or is no folder.
    """
    lock = FileLock(out / ".lock", thread_local=False)
    with writing(out):
        if out.exists() and not out.is_dir():
            raise InputError(f"{out} is a file, not a folder.", "Choose another place with --out.")
        out.mkdir(parents=True, exist_ok=True)
    while not lock.is_locked:
        is_there(out / ".lock")
        try:
            with writing(out):
                lock.acquire(timeout=0)
        except Timeout as error:
            raise InputError(
                f"Another run is writing to {out}.", "Wait until it has ended, or choose another place with --out."
            ) from error
        if not (out / ".lock").exists():  # of a run that ended since the file was opened: it locks nobody out
            lock.release()
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file; filelock does so there
            (out / ".lock").unlink()
        lock.release()


def is_there(path: Path) -> bool:
    """Whether the file is there. Raises InputError where its name is a folder's, a link's or a pipe's."""
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise _cannot_write(path, error) from error
    if not stat.S_ISREG(mode):
        raise InputError(f"{path} is not a regular file.", f"Move it away, {ELSEWHERE}")
    return True


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in one sentence why a file of the run cannot be written."""
    try:
        yield
    except Timeout:
        raise
    except OSError as error:
        raise _cannot_write(path, error) from error
    except InputError as error:  # of atomic_path
        if isinstance(error.__cause__, OSError):
            raise _cannot_write(path, error.__cause__) from error
        raise


def _cannot_write(path: Path, error: OSError) -> InputError:
    hint = "Choose another place with --out."
    if isinstance(error, PermissionError):
        hint = f"If it is open in another program, close it there and go on with --resume, {ELSEWHERE}"
    return InputError(f"Cannot write {path}: {error.strerror or error}.", hint)
