"""A loopback server that behaves like the Hugging Face hub, and misbehaves on demand."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class HubServer(ThreadingHTTPServer):
    """Serves `content` as `model.safetensors` of every repository in `repos`.

    Like the real one, `/REPO/resolve/main/FILE` answers 302 with the file's SHA-256 and size in X-Linked-* headers, and
    points to a CDN under another host name, which takes ranges and knows nothing of the hub's headers.
    """

    daemon_threads = True

    def __init__(self, content: bytes, repos: set[str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content = content
        self.repos = repos
        self.requests: list[tuple[str, dict[str, str]]] = []  # (path, headers in lower case) as they came
        self.status: int | None = None  # answer everything with this error
        self.announced = hashlib.sha256(content).hexdigest()
        self.cuts: list[int] = []  # the CDN's next answers end after so many bytes
        self.silent_after_cut = False  # ... or stay open without a further byte
        self.silent = False  # take connections and never answer
        self.released = threading.Event()  # lets the silent answers end

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def cdn_ranges(self) -> list[str | None]:
        """The Range header of each request to the CDN."""
        return [headers.get("range") for path, headers in self.requests if path.startswith("/cdn/")]


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = self.server
        server.requests.append((self.path, {key.lower(): value for key, value in self.headers.items()}))
        self.close_connection = True
        if server.silent:
            server.released.wait(60)
        elif server.status:
            self._answer(server.status, {}, b"refused")
        elif self.path.startswith("/cdn/"):
            self._cdn()
        elif self.path in {f"/{repo}/resolve/main/model.safetensors" for repo in server.repos}:
            headers = {
                "X-Repo-Commit": "0" * 40,
                "X-Linked-Etag": f'"{server.announced}"',
                "X-Linked-Size": str(len(server.content)),
                "ETag": f'"{"1" * 40}"',
                "Location": f"http://localhost:{server.server_address[1]}/cdn/file?signature=secret",
            }
            self._answer(302, headers, b"Found. Redirecting")
        else:
            self._answer(404, {"X-Error-Code": "EntryNotFound"}, b"Entry not found")

    def _cdn(self) -> None:
        content, headers, status = self.server.content, {"ETag": '"md5-of-the-cdn"', "Accept-Ranges": "bytes"}, 200
        if wanted := self.headers["Range"]:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            content, status = content[start:], 206
        cut = self.server.cuts.pop(0) if self.server.cuts else len(content)
        self._answer(status, headers, content, cut)
        if cut < len(content) and self.server.silent_after_cut:
            self.server.released.wait(60)

    def _answer(self, status: int, headers: dict[str, str], body: bytes, cut: int | None = None) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:cut])

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def hub_server(content: bytes, *repos: str) -> Iterator[HubServer]:
    """A running `HubServer`."""
    server = HubServer(content, set(repos))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def packet_dropper() -> Iterator[str]:
    """The endpoint of a listening socket whose queue is full: the kernel drops whoever tries to connect."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        fillers = []
        try:
            for _ in range(4):
                filler = socket.socket()
                filler.settimeout(0.2)
                fillers.append(filler)
                try:
                    filler.connect(("127.0.0.1", port))
                except TimeoutError:
                    break
            yield f"http://127.0.0.1:{port}"
        finally:
            for filler in fillers:
                filler.close()
