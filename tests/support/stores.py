"""Servers of S3 and of Google's store on loopback for tests, a proxy before them that fails requests as a
store does, and what is typed for a run from a store into a store.
"""

import json
import logging
import socket
import struct
import tarfile
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from maskmill.pipelines.inputs import parquet
from maskmill.pipelines.storage import paths
from maskmill.pipelines.workers import shard as worker

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "AKIDTESTING",
    "AWS_SECRET_ACCESS_KEY": "tell-nobody-of-this",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "2",  # the library's own; what fails more often is for us
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "127.0.0.1",
}


WHOLE = ["corpus.json", "plan/part-000000.parquet", "run.json"]
WHOLE += [f"shards/shard-00000{shard}.parquet" for shard in range(2)]
"""The files of a corpus of four photographs under `tiny_settings`."""


def packed(photos, folder):
    """Three photographs as `a.tar` and, each in a row group of its own, as `a.parquet`; one as `a.png`."""
    files = sorted((photos / "coffee").iterdir())
    with tarfile.open(folder / "a.tar", "w") as tar:
        for path in files:
            tar.add(path, path.name)
    table = pa.table({"image": [path.read_bytes() for path in files]})
    pq.write_table(table, folder / "a.parquet", row_group_size=1)
    content = {name: (folder / name).read_bytes() for name in ("a.tar", "a.parquet")}
    return {**content, "a.png": files[0].read_bytes()}


@contextmanager
def at_the_first_image(monkeypatch, name, call):
    """Call when the first bytes of an image are about to be asked for; a table is open by then."""
    module, attribute = (parquet, "_unpacked") if name.endswith(".parquet") else (worker, "read_input")
    really = getattr(module, attribute)

    with monkeypatch.context() as patched:

        def first(*arguments):
            patched.setattr(module, attribute, really)
            call()
            return really(*arguments)

        patched.setattr(module, attribute, first)
        yield


def words(source, out, settings):
    """What is typed to make a corpus in this process."""
    typed = ["generate", str(source), "--out", str(out), "--workers", "0"]
    return [*typed, *(word for setting in settings for word in ("--set", setting))]


@contextmanager
def s3_server(buckets=("photos", "corpora")):
    """The address of a moto server with these buckets."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    try:
        for bucket in buckets:
            client_of(address, boto3).create_bucket(Bucket=bucket)
        yield address
    finally:
        server.stop()


def client_of(address, boto3=None):
    """A plain boto3 client: another way to the same server than the one that is tested."""
    if boto3 is None:
        import boto3
    return boto3.client(
        "s3",
        endpoint_url=address,
        region_name="us-east-1",
        aws_access_key_id="x",
        aws_secret_access_key="x",
    )


@contextmanager
def gs_server(buckets=("photos", "corpora")):
    """An emulator of Google's store with these buckets: the `GsProxy` before it."""
    from gcp_storage_emulator.server import create_server

    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    server = create_server("127.0.0.1", 0, in_memory=True)
    server.start()
    try:
        host, port = server._api._httpd.server_address
        with GsProxy(f"http://{host}:{port}") as proxy:
            for bucket in buckets:
                gs_client_of(proxy.address).create_bucket(bucket)
            yield proxy
    finally:
        server.stop()


def gs_client_of(address):
    """Google's own client: another way to the same server than the one that is tested."""
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    options = {"api_endpoint": address}
    return storage.Client(project="test", credentials=AnonymousCredentials(), client_options=options)


Fault = Callable[[int, str, str], str | None]
"""Told the request's number, method and path; says what is done to it: a fault, or nothing (None)."""


class Proxy(ThreadingHTTPServer):
    """Passes requests on to a server, but for those that `fault` picks out: one of `FAULTS`, `slow`, `reset`
    (before the server sees it) or `lost` (the server does it, the answer never comes).
    """

    daemon_threads = True

    def __init__(self, behind: str, fault: Fault) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind = behind.removeprefix("http://")
        self.fault = fault
        self.lock = threading.Lock()
        self.seen = 0
        self.faults: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_error):
        self.shutdown()
        self.server_close()

    def pass_on(self, method, path, headers, body):
        """What the server behind says: status, headers, content."""
        server = HTTPConnection(self.behind, timeout=60)
        try:
            server.request(method, path, body, headers)
            answer = server.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            server.close()

    def chosen(self, method, path):
        with self.lock:
            self.seen += 1
            fault = self.fault(self.seen, method, path)
            if fault:
                self.faults.append(f"{fault} {method} {path.partition('?')[0]}")
            return fault

    def handle_error(self, request, client_address):
        """A client that hangs up is no error here."""


class GsProxy(Proxy):
    """Adds to an emulator what Google's store does and the emulator does not: an upload on the condition
    `ifGenerationMatch=0` is answered 412 where the name is taken, a range behind an object's end 416, and an
    upload in parts that is cancelled 499.
    """

    def __init__(self, behind: str) -> None:
        super().__init__(behind, lambda *_request: None)
        self.one_at_a_time = threading.Lock()

    def pass_on(self, method, path, headers, body):
        parts = urlsplit(path)
        query = parse_qs(parts.query)
        if method == "DELETE" and "upload_id" in query:
            return 499, {}, b""
        with self.one_at_a_time:
            if query.get("ifGenerationMatch") == ["0"]:
                bucket = parts.path.removeprefix("/upload").removesuffix("/o")
                name = query["name"][0] if "name" in query else _name_in(body)
                if super().pass_on("GET", f"{bucket}/o/{quote(name, safe='')}", {}, None)[0] == 200:
                    return 412, {}, b'{"error": {"code": 412, "message": "conditionNotMet"}}'
            status, headers, content = super().pass_on(method, path, headers, body)
        if status == 206 and not content:
            return 416, {}, b'{"error": {"code": 416, "message": "Requested range not satisfiable"}}'
        return status, headers, content


def _name_in(body):
    """An object's name, in the first part of an upload in two parts."""
    return json.loads(body.split(b"\n\n", 2)[1].partition(b"\n--")[0])["name"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    SLOW_SECONDS = 1.0

    def _pass_on(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.chosen(self.command, self.path)
        if fault == "reset":
            self._reset()
            return
        if fault in FAULTS:
            self._answer(int(fault), {}, b"" if self.command == "HEAD" else FAULTS[fault])
            return
        if fault == "slow":
            time.sleep(self.SLOW_SECONDS)
        answer = self.server.pass_on(self.command, self.path, dict(self.headers), body)
        if fault == "lost":
            self._reset()
        else:
            self._answer(*answer)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _pass_on

    def _answer(self, status, headers, content):
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        length = headers.get("Content-Length", headers.get("content-length"))
        self.send_header("Content-Length", length if self.command == "HEAD" and length else str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _reset(self):
        """End the connection with RST, as a machine does that went away."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.rfile.close()
        self.connection.close()

    def log_message(self, *_words):
        """Nothing."""


FAULTS = {
    "400": b"<Error><Code>ExpiredToken</Code><Message>The token is invalid.</Message></Error>",
    "401": b"<Error><Code>Unauthorized</Code><Message>Who is this?</Message></Error>",
    "403": b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>",
    "409": b"<Error><Code>ConditionalRequestConflict</Code><Message>Try again.</Message></Error>",
    "500": b"<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>",
    "501": b"<Error><Code>NotImplemented</Code><Message>A header that is not implemented.</Message></Error>",
    "503": b"<Error><Code>ServiceUnavailable</Code><Message>Please try again.</Message></Error>",
}


def use(monkeypatch, address):
    """Let this process, and those it starts, find the server by its environment."""
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": address}.items():
        monkeypatch.setenv(name, value)
    for name in ("http_proxy", "HTTP_PROXY", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    forget_connections()


def use_gs(monkeypatch, address):
    """The same for the emulator, whose library looks for credentials in many places."""
    settings = {"STORAGE_EMULATOR_HOST": address, "NO_GCE_CHECK": "true", "CLOUDSDK_CONFIG": "/nowhere"}
    for name, value in {**settings, "NO_PROXY": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    forget_connections("gs")


def forget_connections(scheme="s3"):
    """fsspec keeps a file system for each set of options; the environment is none of them."""
    paths._library_of(scheme).clear_instance_cache()
