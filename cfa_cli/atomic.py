"""Writing so that a file is either whole or not there."""

from __future__ import annotations

import functools
import os
import platform
import re
import secrets
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from cfa_cli.errors import InputError

# mkstemp makes private files; results get the usual permissions. Read once: setting it is not safe beside threads.
_UMASK = os.umask(0)
os.umask(_UMASK)
# Temporary names tell whose they are: .NAME-cfa-COMPUTER-PROCESS-RANDOM.SUFFIX
_COMPUTER = f"{zlib.crc32(platform.node().encode()):08x}"
_TEMPORARY = re.compile(r"\..*-cfa-(?P<computer>[0-9a-f]{8})-(?P<process>[0-9]{1,10})-[a-z0-9_]{8}(\..*)?", re.DOTALL)
_ABANDONED = 24 * 3600  # seconds without a change, after which a temporary file is nobody's


@contextmanager
def atomic_path(final: Path) -> Iterator[Path]:
    """Yield a temporary path beside `final`; on success it is flushed to disk and renamed to `final`.

    The temporary name keeps `final`'s suffix (image encoders choose the format by it) and starts with a dot.
    On any exception, Ctrl-C too, the temporary file is removed and `final` is as it was; what a killed process left in
    the folder is removed by the next one.
    Raises InputError where the folder cannot be written, the disk is full or another program has `final` open.
    """
    with atomic_paths(final) as (temporary,):
        yield temporary


@contextmanager
def atomic_paths(*finals: Path) -> Iterator[list[Path]]:
    """As `atomic_path`, for files that belong together: all are replaced, or where one cannot be, none is.

    A crash between two renames leaves some new and some old files: their reader has to notice that.
    """
    temporaries: list[Path] = []
    try:
        for final in finals:
            final.parent.mkdir(parents=True, exist_ok=True)
            temporaries.append(_make_temporary(final))
        yield temporaries
        for temporary in temporaries:
            with temporary.open("r+b") as file:  # Windows flushes no file that is open for reading alone
                os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_UMASK)
        _replace_all(temporaries, finals)
    except OSError as error:
        raise _cannot_write(finals, error) from error
    finally:
        for temporary in temporaries:
            with suppress(OSError):
                temporary.unlink()


def write_files(contents: Iterable[tuple[Path, bytes | memoryview]]) -> None:
    """Write files that belong together: each is whole and flushed to disk, or where one cannot be, none is there.

    contents: each file's path, and what it holds; the next is asked for when one is on disk. There are fewer system
    calls than with `atomic_path`, as a run writes several small files an image.
    Raises InputError as that does.
    """
    temporaries: dict[Path, Path] = {}
    final = Path()
    try:
        for final, content in contents:
            temporaries[final] = temporary = final.with_name(f"{_prefix(final)}{secrets.token_hex(4)}{final.suffix}")
            with _create(temporary) as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for final, temporary in temporaries.items():
            _rename(temporary, final)
    except BaseException as error:
        for path in (*temporaries, *temporaries.values()):
            with suppress(OSError):
                path.unlink()
        if isinstance(error, OSError):
            raise _cannot_write([final], error) from error
        raise


def _create(path: Path) -> BinaryIO:
    _remove_leftovers(path.parent)
    try:
        return path.open("xb")
    except FileNotFoundError:  # looked for only then: mostly the folder is there
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("xb")


def _cannot_write(finals: Sequence[Path], error: OSError) -> InputError:
    names = " and ".join(str(final) for final in finals)
    if isinstance(error, PermissionError) and error.filename2:  # of the renaming
        return InputError(
            f"Cannot replace {names}: another program has it open, or it may not be replaced.",
            "Close it there (a spreadsheet, perhaps) and run again, or choose another place with --out.",
        )
    return InputError(f"Cannot write {names}: {error.strerror or error}.", "Choose another place with --out.")


@contextmanager
def scratch_folder(final: Path) -> Iterator[Path]:
    """Yield a private folder beside `final`, removed at the end. Raises InputError if it cannot be written."""
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(final.parent)
        prefix = _prefix(final)
        with tempfile.TemporaryDirectory(prefix=prefix, dir=final.parent, ignore_cleanup_errors=True) as folder:
            yield Path(folder)
    except OSError as error:
        raise InputError(
            f"Cannot write {final}: {error.strerror or error}.", "Choose another place with --out."
        ) from error


def _make_temporary(final: Path) -> Path:
    _remove_leftovers(final.parent)
    descriptor, name = tempfile.mkstemp(prefix=_prefix(final), suffix=final.suffix, dir=final.parent)
    os.close(descriptor)
    return Path(name)


def _prefix(final: Path) -> str:
    return f".{final.stem[:40]}-cfa-{_COMPUTER}-{os.getpid()}-"


def _replace_all(temporaries: Sequence[Path], finals: Sequence[Path]) -> None:
    """Rename each temporary file; where one cannot be, the files that were replaced before it are put back."""
    copies: dict[Path, Path | None] = {}  # of what is replaced first; None: there was nothing
    try:
        for final in finals[:-1]:
            copies[final] = _make_temporary(final) if final.exists() else None
            if (copy := copies[final]) is not None:
                shutil.copy2(final, copy)
        replaced = []
        try:
            for temporary, final in zip(temporaries, finals, strict=True):
                _rename(temporary, final)
                replaced.append(final)
        except OSError:
            for final in replaced:
                if (copy := copies[final]) is not None:
                    copy.replace(final)
                else:
                    final.unlink()
            raise
    finally:
        for copy in filter(None, copies.values()):
            copy.unlink(missing_ok=True)


@functools.cache  # once a process: a run writes thousands of files into one folder
def _remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders that processes which are no more left in `folder`."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if (found := _TEMPORARY.fullmatch(entry.name)) and _is_left(entry, **found.groupdict()):
                with suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        shutil.rmtree(entry.path, ignore_errors=True)
                    else:
                        Path(entry.path).unlink()


def _is_left(entry: os.DirEntry[str], computer: str, process: str) -> bool:
    with suppress(OSError):
        if time.time() - entry.stat(follow_symlinks=False).st_mtime > _ABANDONED:
            return True
    # Another computer's processes cannot be seen from here, and Windows' not without ending them.
    if computer != _COMPUTER or os.name != "posix":
        return False
    try:
        os.kill(int(process), 0)  # signal 0 asks whether it is there
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:  # another user's
        pass
    return False


def _rename(temporary: Path, final: Path) -> None:
    """Rename, in place of what is there. On Windows a virus scanner may hold a new file open, for a moment mostly."""
    for pause in (0.05, 0.1, 0.2, 0.4):  # s
        try:
            temporary.replace(final)
            return
        except PermissionError:
            time.sleep(pause)
    temporary.replace(final)
