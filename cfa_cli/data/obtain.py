"""Getting a public data set: fetched from its public address, checked by its public digest, unpacked safely."""

from __future__ import annotations

import shutil
from pathlib import Path

from cfa_cli.atomic import scratch_folder
from cfa_cli.data.archives import unpack
from cfa_cli.data.known import KNOWN, Download
from cfa_cli.download import DownloadError, Notify, Remote, fetch, megabytes, one_at_a_time, sha256_of
from cfa_cli.errors import InputError
from cfa_cli.records import ProgressCallback

_ELSEWHERE = "Choose another place with --data-root."


def download_dataset(
    name: str, root: Path, notify: Notify = lambda note: None, progress: ProgressCallback = lambda step: None
) -> Path:
    """Fetch and unpack a data set that is offered, into a folder of `root`, and return that folder.

    name: a key of KNOWN whose `download` is not None.
    root: made if it is not there. An archive that lies there already, by its own name, is used; one that is fetched
        is removed once it is unpacked. A cut download is gone on with by the next run.
    Raises InputError where the server does not deliver, the bytes are not those that are known, the archive is unsafe
    to unpack, or `root` cannot be written or has no room.
    """
    known = KNOWN[name]
    assert known.download is not None
    folder = root / known.archive[0]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(root / f".{known.download.file}.lock", known.title, notify):
            if known.is_in(folder):  # another process was quicker
                return folder
            if folder.exists() and not _remove_empty(folder):
                raise InputError(f"{folder} is there, and holds something else than {known.title}.", _ELSEWHERE)
            own = root / known.download.file
            if own.is_file() and sha256_of(own) == known.download.sha256:
                notify(f"Unpacking {own}.")
                _unpack(own, folder, progress)
                return folder
            partial = root / f".{known.download.file}.partial"
            _fetch(known.title, known.where, known.download, partial, notify, progress)
            notify(f"Unpacking to {folder}.")
            _unpack(partial, folder, progress)
            partial.unlink()
    except OSError as error:
        raise InputError(f"Cannot write to {root}: {error.strerror or error}.", _ELSEWHERE) from error
    return folder


def _fetch(
    title: str, where: str, download: Download, partial: Path, notify: Notify, progress: ProgressCallback
) -> None:
    remote = Remote(title, download.file, download.url)
    hint = f"Obtain it from {where}, and name its folder with --data-root."
    try:
        stream = remote.open()
        length = stream.headers["Content-Length"] or ""
        if not length.isdecimal():
            raise DownloadError(f"{remote.host} does not say how large {download.file} is.")
        size = int(length)
        there = partial.stat().st_size if partial.exists() else 0
        needed = 2 * size - there  # the archive, and its images, which are compressed already
        if (free := shutil.disk_usage(partial.parent).free) < needed:
            raise InputError(
                f"{title} takes {megabytes(needed)} while it is unpacked; {partial.parent} has {megabytes(free)} left.",
                _ELSEWHERE,
            )
        fetch(remote, stream, size, download.sha256, partial, notify, progress)
    except DownloadError as error:
        raise InputError(error.message, hint) from error


def _unpack(archive: Path, folder: Path, progress: ProgressCallback) -> None:
    """Unpack an archive so that the folder is whole or not there."""
    with scratch_folder(folder) as scratch:
        try:
            unpack(archive, scratch / folder.name, progress)
            (scratch / folder.name).replace(folder)
        except OSError as error:
            raise InputError(f"Cannot unpack to {folder}: {error.strerror or error}.", _ELSEWHERE) from error


def _remove_empty(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True
