"""Bytes of an address from a position on: web servers, the hub, object stores and folders."""

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit, urlunsplit

import fsspec

from nanochat_core.artifacts.outages import reason_of
from nanochat_core.data.hub_address import SCHEME, HubAddress

if TYPE_CHECKING:
    import ssl

    import httpx

CHUNK_BYTES = 1 << 20
OBJECT_STORE_BLOCK = 8 * 2**20
"""Read ahead of an object store: its answers take tens of milliseconds."""

WhyNot = Literal["missing", "refused", "wrong", "busy"]
_MISSING, _REFUSED, _BAD_RANGE = (404, 410), (401, 403, 407, 451), 416
_BUSY = (408, 425, 429)
_SECONDS_TO_RESET = re.compile(r";\s*t=(\d+)")


class Problem(Exception):
    """Why an address did not give the bytes; only when `busy` is it any use to ask again later."""

    def __init__(self, why: WhyNot, reason: str, wait_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.why, self.reason, self.wait_seconds = why, reason, wait_seconds


@dataclass(frozen=True)
class Stream:
    """Bytes from `start` on; `total` is the size of the whole file where that is told."""

    start: int
    total: int | None
    chunks: Iterator[bytes]
    next_url: str = ""
    """Where a listing goes on."""


def shown_url(url: str) -> str:
    """An address as messages may show it: no user, no password, no signature in a query."""
    if "://" not in url:
        return url
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, place, parts.path, "", "")).removeprefix("file://")


def is_local(url: str) -> bool:
    """Whether an address needs no network."""
    return "://" not in url or url.startswith(("file://", "local://", "memory://"))


def is_web(url: str) -> bool:
    """Whether an address is asked by HTTP, as those of the hub are."""
    return url.startswith(("http://", "https://", SCHEME))


class Remote:
    """Opens addresses; one may be shared by threads. `headers` are for the hub's endpoint only."""

    def __init__(
        self, endpoint: str, headers: Mapping[str, str], *, connect: float, read: float
    ) -> None:
        self.endpoint, self._headers = endpoint, dict(headers)
        self._connect, self._read = connect, read
        self._client: httpx.Client | None = None
        self._making = threading.Lock()
        self._receiving: set[socket.socket | None] = set()

    def __enter__(self) -> "Remote":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._client is not None:
            self._client.close()

    def open(self, url: str, start: int = 0) -> AbstractContextManager[Stream]:
        """The bytes of `url` from `start` on, or from 0 where it cannot do that; else Problem."""
        if url.startswith(SCHEME):
            url = HubAddress.parse(url).file_url(self.endpoint)
        return self._open_web(url, start) if is_web(url) else _open_file(url, start)

    def size(self, url: str) -> int:
        """How many bytes `url` has; Problem when that is not told."""
        if url.startswith(SCHEME):
            url = HubAddress.parse(url).file_url(self.endpoint)
        if not is_web(url):
            return _file_size(url)
        with _as_problems(), self._request("HEAD", url, {}) as response:
            _check_status(response, 0)
            size = _number(response.headers.get("content-length"))
        if size is None:
            raise Problem("wrong", "the server does not tell the size (no Content-Length)")
        return size

    @contextmanager
    def _open_web(self, url: str, start: int) -> Iterator[Stream]:
        headers = {"range": f"bytes={start}-"} if start else {}
        with _as_problems(), self._request("GET", url, headers) as response:
            stream = response.extensions.get("network_stream")
            connection = stream.get_extra_info("socket") if stream is not None else None
            self._receiving.add(connection)
            try:
                yield _stream_of(response, start)
            finally:
                self._receiving.discard(connection)

    def hang_up(self) -> None:
        """End what other threads are receiving, who would else wait for a server that hangs."""
        for connection in list(self._receiving):
            if connection is not None:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _connected(self) -> "httpx.Client":
        """Made when first needed: folders and object stores need none."""
        import httpx

        with self._making:
            if self._client is None:
                timeout = httpx.Timeout(self._read, connect=self._connect)
                self._client = httpx.Client(
                    verify=_certificates(), timeout=timeout, follow_redirects=True
                )
            return self._client

    def _request(
        self, method: str, url: str, headers: Mapping[str, str]
    ) -> "AbstractContextManager[httpx.Response]":
        own = self._headers if _origin(url) == _origin(self.endpoint) else {}
        # What is compressed on the way can neither be continued nor compared in size.
        sent = {**own, **headers, "accept-encoding": "identity"}
        return self._connected().stream(method, url, headers=sent)


@cache
def _certificates() -> "ssl.SSLContext":
    """Whom to trust; reading that takes longer than a small file does."""
    import httpx

    return httpx.create_ssl_context()


@contextmanager
def _as_problems() -> Iterator[None]:
    import httpx

    try:
        yield
    except (httpx.UnsupportedProtocol, httpx.InvalidURL, httpx.TooManyRedirects) as error:
        raise Problem("refused", reason_of(error)) from error
    except httpx.LocalProtocolError as error:
        # Its text holds the header, which may be a token.
        raise Problem("refused", "the request or a header of it is malformed") from error
    except httpx.TimeoutException as error:
        raise Problem("busy", f"no answer in time ({type(error).__name__})") from error
    except (httpx.RemoteProtocolError, httpx.ReadError) as error:
        raise Problem("busy", "the connection was cut") from error
    except httpx.HTTPError as error:
        raise Problem("busy", reason_of(error)) from error


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def _stream_of(response: "httpx.Response", start: int) -> Stream:
    _check_status(response, start)
    told = response.headers
    next_url = response.links.get("next", {}).get("url", "")
    if response.status_code == 206:
        begin, total = _content_range(told.get("content-range", ""))
        if begin != start:
            raise Problem("wrong", f"asked for bytes from {start:,}, it sent those from {begin:,}")
        return Stream(start, total, response.iter_raw(), next_url)
    return Stream(0, _number(told.get("content-length")), response.iter_raw(), next_url)


def _check_status(response: "httpx.Response", start: int) -> None:
    status, wait = response.status_code, wanted_wait(response.headers)
    if response.is_success:
        return
    if status in _MISSING:
        raise Problem("missing", f"not there (HTTP {status})")
    if status in _REFUSED:
        raise Problem("refused", f"refused (HTTP {status}); does it want a token?")
    if status == _BAD_RANGE:
        raise Problem("wrong", f"it has less than the {start:,} bytes fetched so far (HTTP 416)")
    if status in _BUSY or status >= 500:
        raise Problem("busy", f"HTTP {status} {response.reason_phrase}".rstrip(), wait)
    raise Problem("refused", f"HTTP {status} {response.reason_phrase}".rstrip())


def wanted_wait(headers: Mapping[str, str]) -> float | None:
    """For how long a server wants to be left alone.

    `Retry-After` has seconds or a date (RFC 9110, section 10.2.3); the hub tells it in `RateLimit`
    as t=SECONDS (https://huggingface.co/docs/hub/rate-limits).
    """
    told = headers.get("retry-after", "").strip()
    if told.isdigit():
        return float(told)
    if told:
        try:
            date = parsedate_to_datetime(told)
        except ValueError:
            return None
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        return max(0.0, date.timestamp() - time.time())
    reset = _SECONDS_TO_RESET.search(headers.get("ratelimit", ""))
    return float(reset[1]) if reset else None


def _content_range(told: str) -> tuple[int, int | None]:
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", told.strip())
    if found is None:
        raise Problem("wrong", f"a part of a file without saying which (Content-Range {told!r})")
    return int(found[1]), _number(found[2])


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None


def _fsspec_problem(error: Exception) -> Problem:
    if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return Problem("missing", "not there")
    no_credentials = type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError")
    if no_credentials or isinstance(error, PermissionError | ImportError | ValueError):
        return Problem("refused", f"refused ({reason_of(error)})")
    return Problem("busy", reason_of(error))


def _asked(action: Callable[[], Any]) -> Any:
    try:
        return action()
    except Exception as error:  # object stores raise classes of their own
        raise _fsspec_problem(error) from error


def _file_size(url: str) -> int:
    def ask() -> int:
        files, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
        return int(files.info(path)["size"])

    return int(_asked(ask))


@contextmanager
def _open_file(url: str, start: int) -> Iterator[Stream]:
    def begin() -> tuple[Any, int]:
        files, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
        size = int(files.info(path)["size"])
        opened = files.open(path, "rb", block_size=OBJECT_STORE_BLOCK)
        opened.seek(start)
        return opened, size

    file, size = _asked(begin)
    try:
        yield Stream(start, size, _chunks(file))
    finally:
        file.close()


def _chunks(file: Any) -> Iterator[bytes]:
    while chunk := _asked(lambda: file.read(CHUNK_BYTES)):
        yield chunk
