"""An S3 server on loopback for tests, and a proxy before it that fails requests as a store does."""

import logging
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "AKIDTESTING",
    "AWS_SECRET_ACCESS_KEY": "tell-nobody-of-this",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "2",  # the library's own; what fails more often is for us
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "127.0.0.1",
}


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


Fault = Callable[[int, str, str], str | None]
"""Told the request's number, method and path; says what is done to it: a fault, or nothing (None)."""


class Proxy(ThreadingHTTPServer):
    """Passes requests on to a server, but for those that `fault` picks out: `500`, `503`, `slow`, `reset`
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

    def chosen(self, method, path):
        with self.lock:
            self.seen += 1
            fault = self.fault(self.seen, method, path)
            if fault:
                self.faults.append(f"{fault} {method} {path.partition('?')[0]}")
            return fault

    def handle_error(self, request, client_address):
        """A client that hangs up is no error here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    SLOW_SECONDS = 1.0

    def _pass_on(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.chosen(self.command, self.path)
        if fault == "reset":
            self._reset()
            return
        if fault in ("500", "503"):
            self._answer(int(fault), {}, b"" if self.command == "HEAD" else _FAULTS[fault])
            return
        if fault == "slow":
            time.sleep(self.SLOW_SECONDS)
        server = HTTPConnection(self.server.behind, timeout=60)
        try:
            server.request(self.command, self.path, body, dict(self.headers))
            answer = server.getresponse()
            content = answer.read()
            if fault == "lost":
                self._reset()
                return
            self._answer(answer.status, dict(answer.getheaders()), content)
        finally:
            server.close()

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


_FAULTS = {
    "500": b"<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>",
    "503": b"<Error><Code>ServiceUnavailable</Code><Message>Please try again.</Message></Error>",
}


def use(monkeypatch, address):
    """Let this process, and those it starts, find the server by its environment."""
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": address}.items():
        monkeypatch.setenv(name, value)
    for name in ("http_proxy", "HTTP_PROXY", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    forget_connections()


def forget_connections():
    """fsspec keeps a file system for each set of options; the environment is none of them."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
