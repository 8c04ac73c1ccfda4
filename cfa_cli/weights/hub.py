"""ImageNet weights from the Hugging Face hub that timm names, kept in this tool's cache folder.

huggingface_hub says where the hub is and what its own cache holds, so HF_ENDPOINT, HF_HUB_OFFLINE, HF_HOME,
HF_HUB_CACHE and HF_TOKEN mean what they mean to timm. The transfer is made here: that library checks a file's
size only, starts again from nothing after a cut, and can ask a silent host for minutes.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from email.message import Message
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from threading import Thread
from typing import IO, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

import cfa_cli
from cfa_cli.errors import WeightsError

FILENAME = "model.safetensors"
TIMEOUT = 5.0  # seconds: for an answer, redirects and all, and then for each further byte
TRIES = 5  # of one run, each going on where the last was cut
_CHUNK = 1 << 20  # bytes

Notify = Callable[[str], None]
T = TypeVar("T")


def cache_folder() -> Path:
    """Where downloaded weights are kept."""
    from platformdirs import user_cache_path

    return user_cache_path("cfa") / "weights"


def find_cached(name: str, repo: str) -> Path | None:
    """A copy of `name` (`resnet18.tv_in1k`) in this tool's cache, or of `repo`'s file in the Hugging Face cache."""
    from huggingface_hub import try_to_load_from_cache

    if own := _own_copy(name, cache_folder()):
        return own
    shared = try_to_load_from_cache(repo, FILENAME)
    return Path(shared) if isinstance(shared, str) else None


def download(name: str, repo: str, folder: Path, notify: Notify) -> Path:
    """Fetch `repo`'s weights into `folder` as `NAME-DIGEST.safetensors` and return that path.

    The file gets this name once it is whole and its SHA-256 is what the hub announced; a cut download stays as a
    hidden `.partial` file and is continued by the next try or run. Processes that want the same file wait for the
    first one and share its copy. Raises WeightsError if the hub does not deliver, OSError if `folder` cannot be
    written.
    """
    from filelock import FileLock, Timeout
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise WeightsError(
            f"HF_HUB_OFFLINE is set, and there is no copy of {name} in the cache.",
            "Unset HF_HUB_OFFLINE, or give a file with --weights FILE.",
        )
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f".{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        notify(f"Another process is downloading {name}: waiting for it.")
        lock.acquire()
    try:
        return _own_copy(name, folder) or _download(name, repo, folder, notify)
    finally:
        lock.release()


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _own_copy(name: str, folder: Path) -> Path | None:
    """The copy in `folder`, if its bytes still have the digest that its name tells."""
    for path in sorted(folder.glob(f"{name}-*.safetensors")):
        with contextlib.suppress(OSError):  # one that cannot be read is as good as none
            if path.is_file() and path.stem == f"{name}-{sha256_of(path)[:16]}":
                return path
    return None


def _download(name: str, repo: str, folder: Path, notify: Notify) -> Path:
    """`download`, with the lock held."""
    hub = _Hub(repo)
    began = time.monotonic()
    stream, sha256, size = hub.ask()
    final = folder / f"{name}-{sha256[:16]}.safetensors"
    if final.exists():
        notify(f"The copy of {name} in {folder} is damaged: replacing it.")
        final.unlink()
    partial = folder / f".{final.name}.partial"
    start = partial.stat().st_size if partial.exists() else 0
    if start == 0:
        notify(f"Downloading {name} from {hub.host}, {_mb(size)}.")
    for _ in range(TRIES):
        if 0 < start < size:
            notify(f"Going on with {name} from {hub.host} at {_mb(start)} of {_mb(size)}.")
            stream.close()
            stream, _, _ = hub.ask(start)
        with stream:
            received = start if start >= size else _receive(stream, partial)
        if received >= size:
            break
        if received <= start:
            raise WeightsError(f"{hub.host} stopped sending {name} at {_mb(received)} of {_mb(size)}.", hub.hint)
        start = received
    else:
        raise WeightsError(f"The connection to {hub.host} was cut {TRIES} times.", f"Run it again to go on. {hub.hint}")
    if sha256_of(partial) != sha256:
        partial.unlink()
        raise WeightsError(
            f"The download of {name} does not have the checksum that {hub.host} announced, and was deleted.", hub.hint
        )
    partial.replace(final)
    notify(f"Downloaded {name} in {time.monotonic() - began:.0f} s to {final}.")
    return final


def _receive(stream: HTTPResponse, partial: Path) -> int:
    """Write the body to `partial`, behind what it holds if the answer begins there; return its new size in bytes.

    A connection that ends or falls silent ends the file early; a disk that cannot take it raises OSError.
    """
    try:
        with partial.open("ab" if stream.status == 206 else "wb") as file:
            for chunk in _chunks(stream):
                file.write(chunk)
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


class _Hub:
    """One repository's weights file on the hub."""

    def __init__(self, repo: str) -> None:
        from huggingface_hub import constants

        self.repo = repo
        self.url = f"{constants.ENDPOINT}/{repo}/resolve/main/{FILENAME}"
        self.host = urlsplit(self.url).netloc or constants.ENDPOINT
        self.hint = (
            f"Download {self.url} by hand and give the file with --weights FILE, or set HF_ENDPOINT to a mirror."
        )

    def ask(self, start: int = 0) -> tuple[HTTPResponse, str, int]:
        """Ask for the file from byte `start` on: the open answer, the whole file's SHA-256, its size in bytes.

        Raises WeightsError after TIMEOUT seconds at the latest.
        """
        from huggingface_hub import get_token

        redirects = _HubRedirects()
        request = Request(self.url, headers={"User-Agent": f"cfa/{cfa_cli.__version__}"})
        if start:
            request.add_header("Range", f"bytes={start}-")
        if token := get_token():
            request.add_unredirected_header("Authorization", f"Bearer {token}")  # for the hub, not for its CDN
        opener = build_opener(redirects)
        try:
            stream: HTTPResponse = _within(TIMEOUT, lambda: opener.open(request, timeout=TIMEOUT))
        except (OSError, HTTPException, ValueError) as error:
            raise self._refusal(error) from error
        said = redirects.said or stream.headers
        sha256 = (said["X-Linked-Etag"] or said["ETag"] or "").removeprefix("W/").strip('"')
        size = said["X-Linked-Size"] or said["Content-Length"] or ""
        if not re.fullmatch("[0-9a-f]{64}", sha256) or not size.isdecimal():
            stream.close()
            raise WeightsError(f"{self.host} does not answer like a Hugging Face hub: no checksum.", self.hint)
        return stream, sha256, int(size)

    def _refusal(self, error: Exception) -> WeightsError:
        """Why the hub gave no file, in one sentence."""
        if isinstance(error, HTTPError):
            with error:
                if error.code == 404:
                    return WeightsError(f"{self.host} has no {self.repo}/{FILENAME} (HTTP 404).", self.hint)
                if error.code in (401, 403):
                    return WeightsError(
                        f"{self.host} refuses {self.repo} (HTTP {error.code}).", f"Check HF_TOKEN. {self.hint}"
                    )
                return WeightsError(f"{self.host} answered with an error (HTTP {error.code}).", self.hint)
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(reason, TimeoutError):
            return WeightsError(f"No answer from {self.host} within {TIMEOUT:g} s.", self.hint)
        return WeightsError(f"{self.host} cannot be reached: {getattr(reason, 'strerror', None) or reason}.", self.hint)


class _HubRedirects(HTTPRedirectHandler):
    """Follows redirects and keeps what the hub said about the file: the CDN that it points to does not know."""

    said: Message | None = None

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> Request | None:
        if "X-Linked-Etag" in headers:
            self.said = headers
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


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


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
