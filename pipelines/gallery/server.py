"""The gallery of a whole corpus, served on loopback: what the page asks for is made when it asks.

A page of a server on one's own machine can be reached by every other page in the browser and by everyone on
the machine. So the address has a secret in it; a request that names another host than this one is refused,
which ends DNS rebinding; so is one that comes from another page; and the answers may be embedded nowhere.
No path of a request becomes a path on the disk: a name is one of the gallery's files or it is nothing.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ..corpus.reader import Corpus
from ..errors import CorpusError, UsageError
from ..text import visible
from .files import GalleryFiles
from .page import gallery_page

LOOPBACK = "127.0.0.1"
HTTP = 80
_FILES = "files"


class GalleryServer(ThreadingHTTPServer):
    """A corpus on a port of loopback, 0 for any that is free; `serve_forever` answers. `moved` is as `Corpus`
    has it.

    Raises CorpusError where the corpus cannot be read, UsageError where the port is taken.

    Attributes:
        address: where a browser finds it, the secret included.

    """

    daemon_threads = True
    block_on_close = False

    def __init__(
        self, corpus_path: str | Path, port: int = 0, moved: Mapping[str, str] | None = None
    ) -> None:
        corpus = Corpus(corpus_path, moved)
        self.files = GalleryFiles(corpus)
        self.page = gallery_page(corpus, self.files, _FILES, "'self'").encode("utf-8", "backslashreplace")
        self.root = f"/{secrets.token_urlsafe(16)}/"
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except OSError as error:
            raise UsageError(
                f"--port {port}: cannot be used: {error.strerror}; leave it out for a free one"
            ) from None
        names = (LOOPBACK, "localhost")
        self.hosts = {f"{name}:{self.server_port}" for name in names}
        if self.server_port == HTTP:  # which a browser leaves out
            self.hosts |= set(names)
        self.address = f"http://{LOOPBACK}:{self.server_port}{self.root}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that hangs up is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: GalleryServer
    server_version = "maskmill"
    sys_version = ""
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        """Answer with a file, or say why not."""
        if (refusal := self._refusal()) is not None:
            self._send(HTTPStatus.FORBIDDEN, refusal.encode(), "text/plain; charset=utf-8")
            return
        path = self.path.partition("?")[0]
        if path == self.server.root:
            self._send(HTTPStatus.OK, self.server.page, "text/html; charset=utf-8")
            return
        folder = f"{self.server.root}{_FILES}/"
        name = path.removeprefix(folder)
        try:
            content = self.server.files.content(name) if path.startswith(folder) else None
        except CorpusError as error:
            said = visible(str(error)).encode(errors="backslashreplace")
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, said, "text/plain; charset=utf-8")
            return
        if content is None:
            self._send(HTTPStatus.NOT_FOUND, b"there is no such file", "text/plain; charset=utf-8")
            return
        self._send(HTTPStatus.OK, content, "image/jpeg" if name.endswith(".jpg") else "text/javascript")

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the library's name)
        """Say nothing of each request."""

    def _refusal(self) -> str | None:
        """Why this request is not answered, by its headers."""
        host = self.headers.get("Host", "")
        if host not in self.server.hosts:
            return "this server answers to the address that it printed, and to no other name"
        origin = self.headers.get("Origin")
        if origin is not None and origin != f"http://{host}":
            return "this server does not answer the pages of others"
        site, mode = self.headers.get("Sec-Fetch-Site"), self.headers.get("Sec-Fetch-Mode")
        link = mode == "navigate" and self.headers.get("Sec-Fetch-Dest") == "document"
        if site not in (None, "same-origin", "none") and not (link and self.path == self.server.root):
            return "this server does not answer the pages of others"
        return None

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "private, max-age=600" if status == HTTPStatus.OK else "no-store",
            "Content-Security-Policy": "frame-ancestors 'none'",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
