"""Writing so that a file is either whole or not there."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cfa_cli.errors import InputError

# mkstemp makes private files; results get the usual permissions. Read once: setting it is not safe beside threads.
_UMASK = os.umask(0)
os.umask(_UMASK)


@contextmanager
def atomic_path(final: Path) -> Iterator[Path]:
    """Yield a temporary path beside `final`; on success it is flushed to disk and renamed to `final`.

    The temporary name keeps `final`'s suffix (image encoders choose the format by it) and starts with a dot.
    On any exception, Ctrl-C too, the temporary file is removed and `final` is as it was.
    Raises InputError where the folder cannot be written or the disk is full.
    """
    temporary: Path | None = None
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{final.stem[:40]}-", suffix=final.suffix, dir=final.parent)
        os.close(descriptor)
        temporary = Path(name)
        yield temporary
        with temporary.open("r+b") as file:  # Windows flushes no file that is open for reading alone
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_UMASK)
        _rename(temporary, final)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"Cannot write {final}: {reason}.", "Choose another place with --out.") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _rename(temporary: Path, final: Path) -> None:
    """Rename, in place of what is there. On Windows a virus scanner may hold a new file open, for a moment mostly."""
    for pause in (0.05, 0.1, 0.2, 0.4):  # s
        try:
            temporary.replace(final)
            return
        except PermissionError:
            time.sleep(pause)
    temporary.replace(final)
