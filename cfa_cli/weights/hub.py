"""ImageNet weights from the Hugging Face hub that timm names, kept in this tool's cache folder.

huggingface_hub says where the hub is and what its own cache holds, so HF_ENDPOINT, HF_HUB_OFFLINE, HF_HOME,
HF_HUB_CACHE and HF_TOKEN mean what they mean to timm. The transfer is made by `cfa_cli.download`: that library checks
a file's size only, starts again from nothing after a cut, and can ask a silent host for minutes.
"""

from __future__ import annotations

import contextlib
import re
import time
from email.message import Message
from http.client import HTTPResponse
from pathlib import Path
from typing import IO
from urllib.request import HTTPRedirectHandler, Request

from cfa_cli.download import DownloadError, Notify, Remote, fetch, one_at_a_time, sha256_of
from cfa_cli.errors import WeightsError

FILENAME = "model.safetensors"


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
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise WeightsError(
            f"HF_HUB_OFFLINE is set, and there is no copy of {name} in the cache.",
            "Unset HF_HUB_OFFLINE, or give a file with --weights FILE.",
        )
    folder.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(folder / f".{name}.lock", name, notify):
        return _own_copy(name, folder) or _download(name, repo, folder, notify)


def _own_copy(name: str, folder: Path) -> Path | None:
    """The copy in `folder`, if its bytes still have the digest that its name tells."""
    for path in sorted(folder.glob(f"{name}-*.safetensors")):
        with contextlib.suppress(OSError):  # one that cannot be read is as good as none
            if path.is_file() and path.stem == f"{name}-{sha256_of(path)[:16]}":
                return path
    return None


def _download(name: str, repo: str, folder: Path, notify: Notify) -> Path:
    """`download`, with the lock held."""
    remote, hint = _hub_file(name, repo)
    began = time.monotonic()
    try:
        stream, sha256, size = _ask(remote, hint)
        final = folder / f"{name}-{sha256[:16]}.safetensors"
        if final.exists():
            notify(f"The copy of {name} in {folder} is damaged: replacing it.")
            final.unlink()
        partial = folder / f".{final.name}.partial"
        fetch(remote, stream, size, sha256, partial, notify)
    except DownloadError as error:
        token = "Check HF_TOKEN. " if error.status in (401, 403) else ""
        raise WeightsError(error.message, token + hint) from error
    partial.replace(final)
    notify(f"Downloaded {name} in {time.monotonic() - began:.0f} s to {final}.")
    return final


def _hub_file(name: str, repo: str) -> tuple[Remote, str]:
    """Return the repository's weights file on the hub, and what to do where it cannot be had."""
    from huggingface_hub import constants, get_token

    url = f"{constants.ENDPOINT}/{repo}/resolve/main/{FILENAME}"
    hint = f"Download {url} by hand and give the file with --weights FILE, or set HF_ENDPOINT to a mirror."
    return Remote(name, f"{repo}/{FILENAME}", url, get_token() or None), hint


def _ask(remote: Remote, hint: str) -> tuple[HTTPResponse, str, int]:
    """Ask the hub for a file: the open answer, the file's SHA-256, its size in bytes."""
    redirects = _HubRedirects()
    stream = remote.open(redirects=redirects)
    said = redirects.said or stream.headers
    sha256 = (said["X-Linked-Etag"] or said["ETag"] or "").removeprefix("W/").strip('"')
    size = said["X-Linked-Size"] or said["Content-Length"] or ""
    if not re.fullmatch("[0-9a-f]{64}", sha256) or not size.isdecimal():
        stream.close()
        raise WeightsError(f"{remote.host} does not answer like a Hugging Face hub: no checksum.", hint)
    return stream, sha256, int(size)


class _HubRedirects(HTTPRedirectHandler):
    """Follows redirects and keeps what the hub said about the file: the CDN that it points to does not know."""

    said: Message | None = None

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> Request | None:
        if "X-Linked-Etag" in headers:
            self.said = headers
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]
