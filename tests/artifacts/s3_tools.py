"""What the tests of stores elsewhere share: another host, a proxy that does harm, many racers."""

import http.client
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

from s3_server import S3Server

from nanochat_core.artifacts.store import ArtifactStore

Rule = Callable[[str, str], str]
"""From method and path of a request to what becomes of it: one of the words below."""

FORWARD, LOSE_ANSWER, REFUSE, FLIP_REQUEST, FLIP_ANSWER = "forward", "lose", "503", "in", "out"
_buckets: dict[Path, str] = {}
_bucket_lock = threading.Lock()
_KEPT_BACK = ("connection", "keep-alive", "transfer-encoding", "expect", "content-length")


def other_host(url: str, folder: Path, **options: int) -> ArtifactStore:
    """The same store as a machine sees it that has never been here."""
    return ArtifactStore(url, cache_folder=folder / f"host-{uuid4().hex}", **options)


def place_on(server: S3Server) -> str:
    """A new store URL in one bucket: the server sets aside much for each bucket."""
    with _bucket_lock:
        if server.folder not in _buckets:
            _buckets[server.folder] = server.new_bucket().removesuffix("/store")
    return f"{_buckets[server.folder]}/{uuid4().hex}/store"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Proxy"

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fate = self.server.rule(self.command, self.path)
        self.server.seen.append((self.command, self.path, fate))
        if fate == REFUSE:
            self._answer(503, {}, b"<Error><Code>ServiceUnavailable</Code></Error>")
            return
        status, headers, data = self._forward(_flipped(body) if fate == FLIP_REQUEST else body)
        if fate == LOSE_ANSWER:
            self.close_connection = True
            self.connection.close()
            return
        self._answer(status, headers, _flipped(data) if fate == FLIP_ANSWER else data)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve

    def _forward(self, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        server = http.client.HTTPConnection(self.server.target, timeout=30)
        try:
            server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _KEPT_BACK:
                    server.putheader(name, value)
            server.putheader("Content-Length", str(len(body)))
            server.endheaders(body)
            answer = server.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            server.close()

    def _answer(self, status: int, headers: Mapping[str, str], data: bytes) -> None:
        self.send_response_only(status)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(data))
        for name, value in headers.items():
            if name.lower() not in _KEPT_BACK:
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Be quiet."""


class Proxy(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, endpoint: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = urlsplit(endpoint).netloc
        self.rule: Rule = lambda method, path: FORWARD
        self.seen: list[tuple[str, str, str]] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has gone is none of our business."""


@contextmanager
def proxy_to(endpoint: str) -> Iterator[Proxy]:
    """A proxy before an S3 server; set its `rule` to do harm, read from `seen` what was asked."""
    proxy = Proxy(endpoint)
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()


def once(word: str, method: str, part: str) -> Rule:
    """That word for the first request of `method` whose path holds `part`."""
    left = [word]

    def rule(asked: str, path: str) -> str:
        is_meant = asked == method and part in path
        return left.pop() if is_meant and left else FORWARD

    return rule


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :] if data else data


def start_racers(url: str, folder: Path, *, num_racers: int, num_rounds: int) -> list[str]:
    """Lines `round manifest attempt-of-winner` of processes that publish at the same moments."""
    root, here = Path(__file__).parents[2], Path(__file__).parent
    done = subprocess.run(
        [
            sys.executable,
            str(here / "racers.py"),
            url,
            str(folder),
            str(num_racers),
            str(num_rounds),
        ],
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(here)])},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()
