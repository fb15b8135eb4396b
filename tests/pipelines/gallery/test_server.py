"""The gallery over HTTP: to its own page, under its own address, from its own machine, and nothing else."""

import http.client
import signal
import threading
import urllib.request

import pytest

from maskmill.pipelines.errors import CorpusError, UsageError
from maskmill.pipelines.gallery.server import GalleryServer
from tests.support.commands import start
from tests.support.corpora import make_corpus, make_photos


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("view")
    return make_corpus(make_photos(folder / "photos"), folder / "corpus")


@pytest.fixture(scope="module")
def server(corpus):
    with GalleryServer(corpus) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server, path, method="GET", **headers):
    """Status, headers and body; the path goes out as it is, and so do the headers that are given."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    sent = {"Host": f"127.0.0.1:{server.server_port}"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    for name, value in sent.items():
        if value is not None:
            connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), body


def test_what_is_no_corpus_and_a_port_that_is_taken(tmp_path, corpus, server):
    with pytest.raises(CorpusError, match="no such folder"):
        GalleryServer(tmp_path / "missing")
    with pytest.raises(UsageError, match="Address already in use"):
        GalleryServer(corpus, server.server_port)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/files/masks-000000.js",
        "{root}../",
        "{root}files/../../etc/passwd",
        "{root}files/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "{root}files/..%5c..%5crun.json",
        "{root}files//etc/passwd",
        "{root}files/masks-000000.js%00.jpg",
        "{root}files/run.json",
        "{root}files/",
        "{root}files/masks-999999.js",
        "{root}files/thumb-000006.jpg",
        "{root}files/photographs-000001.js",
        "file:///etc/passwd",
        "{root}" + "a" * 5000,
    ],
)
def test_no_path_leads_out(server, path):
    status, headers, body = ask(server, path.format(root=server.root))
    assert (status, body) == (404, b"there is no such file")
    assert headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "0.0.0.0:{port}", "", None]
)
def test_another_name_for_this_host_is_refused(server, host):
    host = host and host.format(port=server.server_port)
    status, _, body = ask(server, server.root, Host=host)
    assert status in (400, 403)
    assert b"maskmill gallery" not in body


def test_a_port_that_browsers_leave_out(corpus, monkeypatch):
    """Which is 80; another one stands for it, since not everybody may listen there."""
    with GalleryServer(corpus) as other:
        port = other.server_port
    monkeypatch.setattr("maskmill.pipelines.gallery.server.HTTP", port)
    with GalleryServer(corpus, port) as server:
        assert server.hosts == {"127.0.0.1", "localhost", f"127.0.0.1:{port}", f"localhost:{port}"}


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors", "Sec_Fetch_Dest": "script"},
        {"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "cors"},
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "iframe"},
    ],
)
@pytest.mark.parametrize("path", ["", "files/photographs-000000.js", "files/thumb-000000.jpg"])
def test_the_page_of_another_is_refused(server, headers, path):
    assert ask(server, server.root + path, **headers)[0] == 403


def test_only_reading_is_known(server):
    assert ask(server, server.root, method="POST")[0] == 501


def test_its_own_page_gets_everything(server):
    own = {"Sec_Fetch_Site": "same-origin", "Origin": f"http://127.0.0.1:{server.server_port}"}
    status, headers, page = ask(server, server.root, Sec_Fetch_Site="none")
    assert status == 200
    assert b"maskmill gallery" in page
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    for name, kind in (("photographs-000000.js", "text/javascript"), ("thumb-000000.jpg", "image/jpeg")):
        status, headers, body = ask(server, f"{server.root}files/{name}", **own)
        assert (status, headers["Content-Type"], headers["X-Content-Type-Options"]) == (200, kind, "nosniff")
        assert int(headers["Content-Length"]) == len(body)
    head = ask(server, server.root, method="HEAD")
    assert (head[0], head[2]) == (200, b"")
    assert int(head[1]["Content-Length"]) == len(page)


def test_a_link_may_lead_to_the_page(server):
    link = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
    assert ask(server, server.root, **link)[0] == 200


def test_ctrl_c_ends_the_command_and_is_no_failure(corpus):
    process = start(["view", str(corpus)])
    try:
        address, hint = (process.stdout.readline().strip() for _ in range(2))
        with urllib.request.urlopen(address, timeout=20) as answer:
            assert b"maskmill gallery" in answer.read()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (0, "ended\n", "")
    assert hint == "Press Ctrl-C to stop."
