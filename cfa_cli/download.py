"""Fetching a file from the network: resumed, checked, given up in time. Weights and data sets come by it."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from threading import Thread
from typing import TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

import cfa_cli
from cfa_cli.records import Progress, ProgressCallback

TIMEOUT = 5.0  # seconds: for an answer, redirects and all, and then for each further byte
TRIES = 5  # of one run, each going on where the last was cut
_CHUNK = 1 << 20  # bytes

Notify = Callable[[str], None]
T = TypeVar("T")


class DownloadError(Exception):
    """A file that cannot be had, in one sentence; `status` is the server's HTTP code, if that is why."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


@dataclass(frozen=True)
class Remote:
    """A file on a server."""

    name: str  # what messages call it
    file: str  # what the server calls it
    url: str
    token: str | None = None  # for that server alone, not for those that it points to

    @property
    def host(self) -> str:
        """The server's name, and its port where the address has one."""
        return urlsplit(self.url).netloc or self.url

    def open(self, start: int = 0, redirects: HTTPRedirectHandler | None = None) -> HTTPResponse:
        """Ask for the file from byte `start` on. Raises DownloadError, after TIMEOUT seconds at the latest."""
        try:
            request = Request(self.url, headers={"User-Agent": f"cfa/{cfa_cli.__version__}"})
            if start:
                request.add_header("Range", f"bytes={start}-")
            if self.token:
                request.add_unredirected_header("Authorization", f"Bearer {self.token}")
            opener = build_opener(*([redirects] if redirects else []))
            stream: HTTPResponse = _within(TIMEOUT, lambda: opener.open(request, timeout=TIMEOUT))
        except (OSError, HTTPException, ValueError) as error:
            raise self._refusal(error) from error
        return stream

    def _refusal(self, error: Exception) -> DownloadError:
        """Why the server gave no file, in one sentence."""
        if isinstance(error, HTTPError):
            with error:
                said = {404: f"has no {self.file}", 401: f"refuses {self.file}", 403: f"refuses {self.file}"}
                what = said.get(error.code, "answered with an error")
                return DownloadError(f"{self.host} {what} (HTTP {error.code}).", error.code)
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(reason, TimeoutError):
            return DownloadError(f"No answer from {self.host} within {TIMEOUT:g} s.")
        return DownloadError(f"{self.host} cannot be reached: {getattr(reason, 'strerror', None) or reason}.")


def fetch(
    remote: Remote,
    stream: HTTPResponse,
    size: int,
    sha256: str,
    partial: Path,
    notify: Notify,
    progress: ProgressCallback = lambda step: None,
) -> None:
    """Write a file of `size` bytes to `partial`, and check its SHA-256 (hex).

    `stream` is the remote's open answer. What `partial` holds already is gone on with, and a cut download stays there
    for the next run; one with another checksum is deleted.
    Raises DownloadError if the server does not deliver, OSError if `partial` cannot be written.
    """
    start = partial.stat().st_size if partial.exists() else 0
    if start == 0:
        notify(f"Downloading {remote.name} from {remote.host}, {megabytes(size)}.")
    for _ in range(TRIES):
        if 0 < start < size:
            notify(f"Going on with {remote.name} from {remote.host} at {megabytes(start)} of {megabytes(size)}.")
            stream.close()
            stream = remote.open(start)
        with stream:
            received = start if start >= size else _receive(stream, partial, size, progress)
        if received >= size:
            break
        if received <= start:
            raise DownloadError(
                f"{remote.host} stopped sending {remote.name} at {megabytes(received)} of {megabytes(size)}."
            )
        start = received
    else:
        raise DownloadError(f"The connection to {remote.host} was cut {TRIES} times; run it again to go on.")
    if sha256_of(partial) != sha256:
        partial.unlink()
        raise DownloadError(f"The download of {remote.name} does not have the expected checksum, and was deleted.")


@contextlib.contextmanager
def one_at_a_time(lock: Path, name: str, notify: Notify) -> Iterator[None]:
    """Hold `lock`, a file, so that processes which want the same file wait for the first. Raises OSError."""
    from filelock import FileLock, Timeout

    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        notify(f"Another process is downloading {name}: waiting for it.")
        held.acquire()
    try:
        yield
    finally:
        held.release()


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def megabytes(size: int) -> str:
    """Return a size in bytes as text: "44.7 MB"."""
    return f"{size / 1e6:.1f} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"


def _receive(stream: HTTPResponse, partial: Path, size: int, progress: ProgressCallback) -> int:
    """Write the body to `partial`, behind what it holds if the answer begins there; return its new size in bytes.

    A connection that ends or falls silent ends the file early, and so does a body that is longer than `size`; a disk
    that cannot take it raises OSError.
    """
    try:
        shown = -1
        with partial.open("ab" if stream.status == 206 else "wb") as file:
            for chunk in _chunks(stream):
                file.write(chunk)
                if (done := file.tell() // 1_000_000) != shown:
                    shown = done
                    progress(Progress("downloading", done, size // 1_000_000, unit="MB"))
                if file.tell() > size:
                    break
        return partial.stat().st_size
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()  # what a full disk needs most
        raise


def _chunks(stream: HTTPResponse) -> Iterator[bytes]:
    """What arrives, as it arrives, until the body's end or the connection's."""
    with contextlib.suppress(OSError, HTTPException):
        while chunk := stream.read1(_CHUNK):
            yield chunk


def _within(seconds: float, call: Callable[[], T]) -> T:
    """`call()`'s result, or TimeoutError after `seconds`.

    A socket's timeout counts for each address of a host anew, and not for the look-up of its name.
    """
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except Exception as error:
            future.set_exception(error)

    Thread(target=work, daemon=True).start()  # a pool's thread would keep the program from ending
    return future.result(timeout=seconds)
