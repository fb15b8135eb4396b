"""A Hugging Face Hub on loopback for tests: one dataset, and the four calls that reading it takes.

The Hub keeps a dataset as a git repository. What it says of one, of a folder and of a file is JSON; a file's
bytes are asked for by range.
"""

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

DATASET = "someone/photos"
COMMIT = "c" * 40


class Hub(ThreadingHTTPServer):
    """`files` by path; `asked`: the requests that were not about what is there, but for its bytes; `gone`:
    the dataset ("RepoNotFound"), or what was its only revision ("RevisionNotFound").
    """

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.asked: list[str] = []
        self.answers_with: int | None = None
        self.gone: str | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def hub(files: dict[str, bytes]):
    """A Hub with one dataset, `DATASET`, of these files."""
    server = Hub(files)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        path, api = unquote(urlsplit(self.path).path), f"/api/datasets/{DATASET}"
        if self.server.answers_with:
            self._say(self.server.answers_with, {"error": "Internal Error"})
        elif self.server.gone and path != (api if self.server.gone == "RevisionNotFound" else None):
            self._say(404, {"error": "Not found"}, self.server.gone)
        elif path == api or path.startswith(f"{api}/revision/"):
            self._say(200, {"_id": "1", "id": DATASET, "sha": COMMIT, "private": False, "siblings": []})
        elif path.startswith(f"{api}/tree/"):
            self._tree(path.removeprefix(f"{api}/tree/").partition("/")[2])
        elif path.startswith(f"/datasets/{DATASET}/resolve/"):
            self._bytes(path.removeprefix(f"/datasets/{DATASET}/resolve/").partition("/")[2])
        else:
            self._say(404, {"error": "Repository not found"}, "RepoNotFound")

    def do_POST(self):
        """What is known of some paths."""
        given = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        entries = {entry["path"]: entry for entry in self._entries("", recursive=True)}
        self._say(200, [entries[path] for path in given["paths"] if path in entries])

    def _tree(self, folder):
        recursive = parse_qs(urlsplit(self.path).query).get("recursive", [""])[0].lower() in ("true", "1")
        entries = list(self._entries(f"{folder}/" if folder else "", recursive))
        if entries:
            self._say(200, entries)
        else:
            self._say(404, {"error": "Entry not found"}, "EntryNotFound")

    def _entries(self, prefix, recursive):
        folders = set()
        for path, content in self.server.files.items():
            if not path.startswith(prefix):
                continue
            parts = path.removeprefix(prefix).split("/")
            for depth in range(1, len(parts) if recursive else min(2, len(parts))):
                folders.add(prefix + "/".join(parts[:depth]))
            if recursive or len(parts) == 1:
                yield {"type": "file", "path": path, "size": len(content), "oid": _oid(content)}
        yield from ({"type": "directory", "path": path, "size": 0, "oid": COMMIT} for path in sorted(folders))

    def _bytes(self, path):
        content, wanted = self.server.files.get(path), self.headers.get("Range")
        self.server.asked.append(f"{path} {wanted or 'all'}")
        if content is None:
            self._say(404, {"error": "Entry not found"}, "EntryNotFound")
        elif not wanted:
            self._send(200, content, {})
        else:
            start, end = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", wanted).groups())
            if start >= len(content):
                self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            else:
                self._send(206, content[start : end + 1], {})

    def _say(self, status, content, code=None):
        headers = {"X-Error-Code": code, "X-Error-Message": content["error"]} if code else {}
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json", **headers})

    def _send(self, status, content, headers):
        self.send_response_only(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_words):
        """Nothing."""


def _oid(content):
    """What git calls a file of this content."""
    return hashlib.sha1(b"blob %d\0%s" % (len(content), content)).hexdigest()
