"""An S3 API server on this machine (moto's, over HTTP), and a door before it that refuses, is slow, or damages bytes.

moto keeps objects in memory: what is tried is the way to S3, not how durable S3 is.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from support.chaos_second import free_target

BUCKET = "films"
_ROOT = Path(__file__).resolve().parent.parent.parent
_READY_SECONDS = 30.0
_POLL_SECONDS = 0.05
_HOP_HEADERS = {"connection", "transfer-encoding", "content-length", "keep-alive", "server", "date"}
_BROKEN = b'<?xml version="1.0"?><Error><Code>%s</Code><Message>told to</Message></Error>'
_CODES = {403: b"AccessDenied", 503: b"SlowDown"}


@contextlib.contextmanager
def s3_at(endpoint: str) -> Iterator[None]:
    """Lets every S3 client of this process, and of those that it starts, find a server."""
    import fsspec

    kind = fsspec.get_filesystem_class("s3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "films")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "no secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        kind.clear_instance_cache()  # it remembers the server that it found before
        yield
    kind.clear_instance_cache()


@contextlib.contextmanager
def serving_s3() -> Iterator[str]:
    """Starts the server with one bucket, and gives its endpoint; skips the test where it is not installed."""
    pytest.importorskip("s3fs", reason="`make test-s3` installs it")
    places = [str(Path(sys.executable).parent), str(_ROOT / ".deployment" / "bin"), os.environ.get("PATH", "")]
    program = shutil.which("moto_server", path=os.pathsep.join(places))
    if program is None:
        pytest.skip("moto's server: `make test-s3` installs it")
    target = free_target()
    host, _, port = target.rpartition(":")
    process = subprocess.Popen([program, "-H", host, "-p", port], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(host, int(port))
        made = http.client.HTTPConnection(host, int(port), timeout=10)
        made.request("PUT", f"/{BUCKET}")
        assert made.getresponse().status == http.HTTPStatus.OK
        made.close()
        yield f"http://{target}"
    finally:
        process.terminate()
        process.wait()


def _wait_for(host: str, port: int) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while True:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
            return
        assert time.monotonic() < deadline, "the S3 server is not ready"
        time.sleep(_POLL_SECONDS)


@dataclass(slots=True)
class Door:
    """What stands between a client and S3.

    Attributes:
        endpoint: Where it answers.
        status: With which everything is refused; 0: nothing is.
        delay_seconds: What every answer waits.
        is_flipping: Whether a bit of every object that is read is flipped.
        seen: Requests so far, by method.
    """

    endpoint: str = ""
    status: int = 0
    delay_seconds: float = 0.0
    is_flipping: bool = False
    seen: dict[str, int] = field(default_factory=dict)


class _Passing(BaseHTTPRequestHandler):
    """Passes requests on as its door says."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def do_request(self) -> None:
        door, body = self.server.door, self._body()
        door.seen[self.command] = door.seen.get(self.command, 0) + 1
        time.sleep(door.delay_seconds)
        if door.status:
            self._answer(door.status, {"Content-Type": "application/xml"}, _BROKEN % _CODES[door.status])
            return
        line = http.client.HTTPConnection(self.server.upstream, timeout=30)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_HEADERS}
        line.request(self.command, self.path, body, headers)
        answer = line.getresponse()
        content = answer.read()
        if door.is_flipping and content and self.command == "GET" and "?" not in self.path:
            content = bytes([content[0] ^ 1]) + content[1:]
        kept = {name: value for name, value in answer.getheaders() if name.lower() not in _HOP_HEADERS}
        length = answer.getheader("Content-Length") if self.command == "HEAD" else None
        self._answer(answer.status, kept, content, length)
        line.close()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_request  # noqa: N815 - names of http.server

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, status: int, headers: Mapping[str, str], content: bytes, length: str | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Stays silent."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, door: Door, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.door = door
        self.upstream = upstream

    def handle_error(self, *_: object) -> None:
        """Stays silent: a client went away, or the server behind did."""


@contextlib.contextmanager
def door_before(endpoint: str) -> Iterator[Door]:
    """Opens a door before an S3 server."""
    door = Door()
    server = _Server(door, endpoint.removeprefix("http://"))
    door.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield door
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
