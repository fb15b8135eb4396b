"""Downloads against a real HTTP server on this machine that misbehaves on request."""

from __future__ import annotations

import hashlib
import logging
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from maskmill.model.checkpoints.errors import CheckpointError
from maskmill.model.checkpoints.zoo import (
    CHECKPOINTS,
    PublicCheckpoint,
    cache_folder,
    cached,
    download,
    fetch,
    how_to_get,
)
from maskmill.model.config import MODELS

CONTENT = bytes(range(256)) * 12_000  # three megabytes: several chunks
ENTRY = PublicCheckpoint("tiny", "nano", "", "tiny.pth", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


@dataclass
class Server:
    """What the server does, and what it was asked."""

    content: bytes = CONTENT
    status: int = 200
    etag: str | None = '"v1"'
    ranges: bool = True
    cut_after: list[int] = field(default_factory=list)  # bytes sent in each of the next answers
    asked: list[str | None] = field(default_factory=list)  # the Range header of each request
    url: str = ""

    @property
    def entry(self) -> PublicCheckpoint:
        return replace(ENTRY, url=self.url)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    plan = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers["Range"]
            plan.asked.append(wanted)
            start = 0
            if wanted and plan.ranges and self.headers["If-Range"] == plan.etag:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(plan.content) and start:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(plan.content)}")
                self.end_headers()
                return
            body = plan.content[start:]
            self.send_response(206 if start else plan.status)
            if start:
                self.send_header(
                    "Content-Range", f"bytes {start}-{len(plan.content) - 1}/{len(plan.content)}"
                )
            if plan.etag:
                self.send_header("ETag", plan.etag)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: plan.cut_after.pop(0)] if plan.cut_after else body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 — the base class's name
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        Thread(target=listener.serve_forever, args=(0.02,), daemon=True).start()
        plan.url = f"http://127.0.0.1:{listener.server_address[1]}/tiny.pth"
        yield plan
        listener.shutdown()


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(
        CheckpointError, match=r"unknown checkpoint 'sam_vit_x'; known: sam_vit_b, .*did you mean"
    ):
        download("sam_vit_x")


def test_without_network_the_error_says_which_file_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/tiny.pth"
    with pytest.raises(CheckpointError, match="refused") as caught:
        fetch(replace(ENTRY, url=url), tmp_path)
    assert url in str(caught.value)
    assert str(tmp_path / "tiny.pth") in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_reported_with_the_servers_answer(server: Server, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(CheckpointError, match="the server answered 404"):
        fetch(server.entry, tmp_path)
    assert server.asked == [None]


def test_a_folder_that_cannot_be_made(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot create the folder"):
        fetch(server.entry, tmp_path / "file" / "cache")


def test_the_file_arrives_whole_with_progress(server: Server, tmp_path: Path) -> None:
    calls: list[tuple[int, int | None]] = []
    path = fetch(server.entry, tmp_path / "new", lambda done, total: calls.append((done, total)))
    assert path == tmp_path / "new" / "tiny.pth"
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["tiny.pth"]
    assert calls[-1] == (len(CONTENT), len(CONTENT))
    assert calls == sorted(calls)
    assert len(calls) > 1


def test_a_file_that_is_there_is_checked_and_not_asked_for(server: Server, tmp_path: Path) -> None:
    path = fetch(server.entry, tmp_path)
    assert fetch(server.entry, tmp_path) == path
    assert len(server.asked) == 1

    path.write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(CheckpointError, match=r"tiny\.pth has sha256 .* move it away"):
        fetch(server.entry, tmp_path)
    assert path.exists()


def test_a_cut_connection_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.cut_after = [1_000_000, 500_000]
    assert fetch(server.entry, tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000000-", "bytes=1500000-"]


def test_a_later_run_goes_on_where_an_earlier_one_stopped(server: Server, tmp_path: Path) -> None:
    server.cut_after = [1_000_000, 0]
    with pytest.raises(CheckpointError, match=r"cut off after 1000000 of 3072000 .*1000000 bytes are kept"):
        fetch(server.entry, tmp_path)
    assert fetch(server.entry, tmp_path).read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=1000000-"


def test_a_part_that_lacks_nothing_is_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "tiny.pth.part").write_bytes(CONTENT)
    assert fetch(server.entry, tmp_path).read_bytes() == CONTENT
    assert server.asked == []


def test_a_part_that_lacks_nothing_where_the_size_is_unknown(server: Server, tmp_path: Path) -> None:
    (tmp_path / "tiny.pth.part").write_bytes(CONTENT)
    (tmp_path / "tiny.pth.part.validator").write_text('"v1"')
    assert fetch(replace(server.entry, size=None), tmp_path).read_bytes() == CONTENT
    assert server.asked == ["bytes=3072000-"]


@pytest.mark.parametrize("change", [{"ranges": False}, {"etag": '"v2"'}, {"etag": None}])
def test_the_download_starts_over_when_it_cannot_go_on(
    server: Server, tmp_path: Path, change: dict[str, object]
) -> None:
    # Half of an older version lies there; the server ignores Range, has another version, or gives no version.
    (tmp_path / "tiny.pth.part").write_bytes(b"old" * 1000)
    (tmp_path / "tiny.pth.part.validator").write_text('"v1"')
    for name, value in change.items():
        setattr(server, name, value)
    assert fetch(server.entry, tmp_path).read_bytes() == CONTENT
    assert len(server.asked) == 1


def test_a_part_longer_than_the_file_is_thrown_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / "tiny.pth.part").write_bytes(CONTENT + b"more")
    (tmp_path / "tiny.pth.part.validator").write_text('"v1"')
    assert fetch(server.entry, tmp_path).read_bytes() == CONTENT
    assert server.asked == ["bytes=3072004-", None]


def test_a_server_that_always_cuts_at_the_same_place_is_given_up(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.cut_after = [1000] * 100
    with pytest.raises(CheckpointError, match="cut off after 1000"):
        fetch(server.entry, tmp_path)
    assert len(server.asked) == 2


def test_wrong_bytes_of_the_right_size_are_removed(server: Server, tmp_path: Path) -> None:
    server.content = bytes(len(CONTENT))
    with pytest.raises(CheckpointError, match=rf"has sha256 .*{ENTRY.sha256}: it was removed"):
        fetch(server.entry, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_size_is_not_even_downloaded(server: Server, tmp_path: Path) -> None:
    server.content = b"<html>sign in</html>"
    with pytest.raises(CheckpointError, match="the file there has 20 bytes, not 3072000"):
        fetch(server.entry, tmp_path)
    assert not (tmp_path / "tiny.pth.part").exists()


def test_without_a_published_digest_the_one_that_arrived_is_logged(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        fetch(replace(server.entry, sha256=None, size=None), tmp_path)
    assert ENTRY.sha256 in caplog.text


def test_the_cache_folder_is_the_users_unless_the_environment_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MASKMILL_CACHE", raising=False)
    assert cache_folder().name == "maskmill"
    monkeypatch.setenv("MASKMILL_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    assert cached("vit_b") is None

    (tmp_path / "sam-vit-base.safetensors").touch()
    assert cached("vit_b") == tmp_path / "sam-vit-base.safetensors"
    (tmp_path / "sam_vit_b_01ec64.pth").touch()
    assert cached("vit_b") == tmp_path / "sam_vit_b_01ec64.pth"

    assert "`maskmill models get sam_vit_h`" in how_to_get("vit_h")
    assert str(tmp_path) in how_to_get("vit_h")
    assert "no public one" in how_to_get("nano")


@pytest.mark.parametrize("checkpoint", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_the_table_is_well_formed(checkpoint: PublicCheckpoint) -> None:
    assert checkpoint.model in MODELS
    assert checkpoint.url.startswith("https://")
    assert Path(checkpoint.file_name).suffix in {".pth", ".pt", ".safetensors"}
    assert checkpoint.size is None or checkpoint.size > 10_000_000
    assert checkpoint.sha256 is None or len(bytes.fromhex(checkpoint.sha256)) == 32
    assert checkpoint.licence == "Apache-2.0"
    assert sum(other.file_name == checkpoint.file_name for other in CHECKPOINTS.values()) == 1
