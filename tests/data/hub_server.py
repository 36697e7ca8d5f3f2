"""A loopback imitation of the hub: lists datasets, serves files with Range, and can misbehave."""

import hashlib
import io
import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat_core.data.recipes import FileDigest

REPO = "some/climbmix"
ALWAYS = 1_000_000
TOKEN = "hf_a-token-that-nobody-may-see"


def make_shard(number: int, documents: int = 60, row_group: int = 20) -> bytes:
    """A parquet file in the shape of a published shard: a column `text`, several row groups."""
    texts = [
        f"Document {number}.{i}: {hashlib.shake_256(f'{number} {i}'.encode()).hexdigest(200)}"
        for i in range(documents)
    ]
    file = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), file, row_group_size=row_group)
    return file.getvalue()


def make_shards(count: int) -> dict[str, bytes]:
    """Shards by name, as ClimbMix names them."""
    return {f"shard_{number:05d}.parquet": make_shard(number) for number in range(count)}


def digest_of(name: str, data: bytes) -> FileDigest:
    """What a publisher tells of a file."""
    return FileDigest(name=name, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))


def sums_of(files: Mapping[str, bytes]) -> bytes:
    """As sha256sum writes them."""
    lines = (f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items())
    return "".join(lines).encode()


@dataclass
class Fault:
    """What goes wrong with the next `times` requests for the bytes of a file."""

    kind: str
    times: int = 1
    after: int = 0
    status: int = 503
    headers: Mapping[str, str] | None = None
    pause: float = 0.0


def cut(after: int, times: int = 1, *, ranges: bool = True) -> Fault:
    """The connection ends after so many bytes of the body, be it a part of the file or not."""
    return Fault("cut" if ranges else "cut without ranges", times, after=after)


def busy(status: int = 503, times: int = 1, **headers: str) -> Fault:
    """An answer without bytes; Retry_After="1" becomes the header Retry-After."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Fault("busy", times, status=status, headers=named)


def corrupt(times: int = ALWAYS) -> Fault:
    """A body of the right length with one bit changed."""
    return Fault("corrupt", times)


def missing() -> Fault:
    """Listed, but not there."""
    return Fault("busy", ALWAYS, status=404)


def slow(chunk: int, pause: float, times: int = ALWAYS) -> Fault:
    """So many bytes at a time, with a pause after each."""
    return Fault("slow", times, after=chunk, pause=pause)


def without_ranges() -> Fault:
    """Always the whole file."""
    return Fault("without ranges", ALWAYS)


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    method: str
    path: str
    range: str
    authorization: str


class HubServer:
    """Datasets at `/datasets`, plain files at `/files`, both in memory; counts its requests."""

    def __init__(self, page_size: int = 1000, *, redirects: bool = False) -> None:
        self.page_size, self.redirects = page_size, redirects
        self.files: dict[str, bytes] = {}
        self.without_lfs: set[str] = set()
        self.wants_token = ""
        self.asked: list[Asked] = []
        self._faults: dict[str, list[Fault]] = {}
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> "HubServer":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add(
        self, files: Mapping[str, bytes], repo: str = REPO, revision: str = "main", folder: str = ""
    ) -> list[FileDigest]:
        """Publish files in a dataset."""
        inside = f"{folder}/" if folder else ""
        for name, data in files.items():
            self.files[f"datasets/{repo}/resolve/{revision}/{inside}{name}"] = data
        return [digest_of(name, data) for name, data in files.items()]

    def put(self, files: Mapping[str, bytes], folder: str = "mirror") -> str:
        """Publish plain files; the URL of their folder."""
        for name, data in files.items():
            self.files[f"files/{folder}/{name}"] = data
        return f"{self.endpoint}/files/{folder}"

    def url_of(self, name: str, repo: str = REPO) -> str:
        """Where the bytes of a file in a dataset are."""
        return f"{self.endpoint}/datasets/{repo}/resolve/main/{name}"

    def fault(self, name: str, *faults: Fault) -> None:
        """From now on, one fault after the other for the paths that end so."""
        self._faults[name] = list(faults)

    def next_fault(self, path: str) -> Fault | None:
        """The one that this request meets, if any."""
        with self._lock:
            for name, faults in self._faults.items():
                if path.endswith(name) and faults:
                    faults[0].times -= 1
                    return faults.pop(0) if faults[0].times <= 0 else faults[0]
        return None

    def requests(self, name: str, method: str = "GET") -> list[Asked]:
        """What was asked of the paths that end so."""
        return [
            asked for asked in self.asked if asked.path.endswith(name) and asked.method == method
        ]

    def ranges(self, name: str) -> list[str]:
        """The Range headers of the requests for a file, "" for none."""
        return [asked.range for asked in self.requests(name)]

    def listing(self, repo: str, revision: str, folder: str) -> list[dict[str, Any]] | None:
        """Entries of a folder as the hub tells them; None when it is not there."""
        start = f"datasets/{repo}/resolve/{revision}/"
        inside = {
            path[len(start) :]: data for path, data in self.files.items() if path.startswith(start)
        }
        prefix = f"{folder}/" if folder else ""
        under = {path: data for path, data in inside.items() if path.startswith(prefix)}
        if not under:
            return None
        folders = sorted(
            {
                prefix + path[len(prefix) :].split("/")[0]
                for path in under
                if "/" in path[len(prefix) :]
            }
        )
        entries: list[dict[str, Any]] = [
            {"type": "directory", "oid": "0" * 40, "size": 0, "path": path} for path in folders
        ]
        for path in sorted(path for path in under if "/" not in path[len(prefix) :]):
            entries.append(self._entry(path, under[path]))
        return entries

    def _entry(self, path: str, data: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "oid": "1" * 40, "size": len(data), "path": path}
        if path not in self.without_lfs:
            sha256 = hashlib.sha256(data).hexdigest()
            entry["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 134}
            entry["xetHash"] = "2" * 64
        return entry


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: HubServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves in the middle is what is tested."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        hub, url = self.server.hub, urlsplit(self.path)
        path = unquote(url.path).strip("/")
        told = self.headers
        asked = Asked(self.command, path, told.get("Range", ""), told.get("Authorization", ""))
        hub.asked.append(asked)
        fault = hub.next_fault(path)
        if fault is not None and fault.kind == "busy":
            self._send(fault.status, b"", fault.headers or {})
        elif (
            hub.wants_token
            and path.startswith(("api/", "datasets/"))
            and (asked.authorization != f"Bearer {hub.wants_token}")
        ):
            self._send(401, b"", {})
        elif path.startswith("api/datasets/"):
            self._list(path, parse_qs(url.query))
        elif hub.redirects and path.startswith("datasets/") and path in hub.files:
            # Another origin, as the hub's own place for big files is.
            self._send(302, b"", {"Location": f"http://localhost:{hub.port}/cdn/{path}"})
        elif (data := hub.files.get(path.removeprefix("cdn/"))) is not None:
            self._send_file(data, asked.range, fault, with_body=with_body)
        else:
            self._send(404, b"Entry not found", {"X-Error-Code": "EntryNotFound"})

    def _list(self, path: str, query: Mapping[str, Sequence[str]]) -> None:
        _, _, owner, name, _, rest = path.split("/", 5)
        # Tests use revisions without a slash, but for those of pull requests and conversions.
        parts = rest.split("/")
        count = 3 if parts[0] == "refs" else 1
        revision, folder = "/".join(parts[:count]), "/".join(parts[count:])
        entries = self.server.hub.listing(f"{owner}/{name}", revision, folder)
        if entries is None:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            return
        start, size = int(query.get("cursor", ["0"])[0]), self.server.hub.page_size
        headers = {"Content-Type": "application/json"}
        if start + size < len(entries):
            next_url = f"{self.server.hub.endpoint}{urlsplit(self.path).path}?cursor={start + size}"
            headers["Link"] = f'<{next_url}>; rel="next"'
        self._send(200, json.dumps(entries[start : start + size]).encode(), headers)

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_file(self, data: bytes, asked: str, fault: Fault | None, *, with_body: bool) -> None:
        kind = fault.kind if fault else ""
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        if start and start >= len(data):
            self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        if kind == "corrupt":
            middle = (start + len(data)) // 2
            data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        is_part = bool(asked) and not kind.endswith("without ranges")
        body = data[start:] if is_part else data
        self.send_response(206 if is_part else 200)
        if is_part:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self._pour(body, fault)

    def _pour(self, body: bytes, fault: Fault | None) -> None:
        if fault is not None and fault.kind.startswith("cut"):
            self.wfile.write(body[: fault.after])
            self.close_connection = True
        elif fault is not None and fault.kind == "slow":
            for start in range(0, len(body), fault.after):
                self.wfile.write(body[start : start + fault.after])
                self.wfile.flush()
                time.sleep(fault.pause)
        else:
            self.wfile.write(body)
