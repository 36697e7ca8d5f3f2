"""Bytes of a known file onto disk: whole and right, or not at all."""

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from nanochat_core.artifacts.locks import locked
from nanochat_core.artifacts.translate import writing
from nanochat_core.data.hub_address import ENDPOINT
from nanochat_core.data.part_file import PartFile, holds
from nanochat_core.data.recipes import FileDigest
from nanochat_core.data.remote_bytes import Problem, Remote, Stream, is_local, shown_url
from nanochat_core.errors import DataError, JobStoppedError, StationBusyError
from nanochat_core.logs import Progress

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

NO_HEADERS: Mapping[str, str] = {}
LOOK_UP_SECONDS = 0.1
"""How often one who waits looks whether it still has to."""
MAX_LISTING_BYTES = 64 * 2**20
WRONG_TWICE = 2
"""A wrong body may have been damaged on the way; a second one is what the address has."""
MIN_BYTES_PER_SECOND = 1024
"""A server that sends less is taken for one that hangs."""
PROGRESS_SHARE = 0.01
"""A try that came further by this share of a file was of use: the tries are counted anew."""

_REMEDIES = {
    "missing": "check the address and its revision, or name another place that has it (a mirror)",
    "refused": "give a token or credentials that may read it, or a mirror",
    "wrong": "nothing of it was kept; whoever publishes it must set it right, or give a mirror",
    "busy": "check the network and run again: what was fetched is kept, and continued",
}


@dataclass(frozen=True)
class FetchPolicy:
    """How patiently files are fetched, and from which hub; nothing of it changes a result."""

    attempts: int = 10
    """Failures in a row after which an address is given up: by then minutes have passed."""
    connect_seconds: float = 10
    read_seconds: float = 30
    first_wait_seconds: float = 0.5
    """After the first failure; doubled with each further one."""
    max_wait_seconds: float = 120
    """No wait is longer, whatever a server asks for."""
    parallel: int = 4
    offline: bool = False
    endpoint: str = ENDPOINT
    """Of hf:// addresses; `headers` (a token) go nowhere else."""

    def wait_seconds(self, failures: int, wanted: float | None) -> float:
        """How long to leave an address alone after so many failures in a row."""
        if wanted is not None:
            return min(wanted, self.max_wait_seconds)
        # All who were cut off would else come back at the same moment.
        longest = min(self.first_wait_seconds * 2.0 ** (failures - 1), self.max_wait_seconds)
        return longest * random.uniform(0.5, 1.0)


def never() -> bool:
    """Goes on for ever: the default of `stop`."""
    return False


def no_bytes(_count: int) -> None:
    """The default of `on_bytes`."""


class _Address:
    """One place that may have the file, and how it went there."""

    def __init__(self, url: str, policy: FetchPolicy) -> None:
        self.url, self._policy = url, policy
        self.tries, self.failures, self.num_wrong, self.ready_at = 0, 0, 0, 0.0
        self.problem: Problem | None = None
        self.is_given_up = False

    def failed(self, problem: Problem, *, was_of_use: bool = False) -> None:
        """Note a failure, which decides whether and when this address is asked again."""
        self.tries += 1
        self.failures = 1 if was_of_use else self.failures + 1
        self.problem = problem
        if problem.why == "wrong":
            self.num_wrong += 1
            self.is_given_up = self.num_wrong >= WRONG_TWICE
        elif problem.why == "busy":
            self.is_given_up = self.failures >= self._policy.attempts
            seconds = self._policy.wait_seconds(self.failures, problem.wait_seconds)
            self.ready_at = time.monotonic() + seconds
        else:
            self.is_given_up = True

    def outcome(self) -> str:
        """The last failure, and what comes of it."""
        seconds = max(0.0, self.ready_at - time.monotonic())
        then = "given up" if self.is_given_up else f"again in {seconds:.1f} s"
        return f"{self}: {then}"

    def __str__(self) -> str:
        reason = self.problem.reason if self.problem else "not asked"
        count = f", {self.tries} tries" if self.tries > 1 else ""
        return f"{shown_url(self.url)} ({reason}{count})"


class _Addresses:
    """The places that may have a file, in the order of preference."""

    def __init__(
        self, name: str, urls: Sequence[str], policy: FetchPolicy, stop: Callable[[], bool]
    ) -> None:
        usable = [url for url in dict.fromkeys(urls) if is_local(url) or not policy.offline]
        if not usable:
            raise DataError(_no_address(name, urls))
        self.name, self.policy, self._stop = name, policy, stop
        self._all = [_Address(url, policy) for url in usable]

    def next(self, to_do: str, bound_to: str = "") -> _Address:
        """The first that may be asked, after waiting for it; DataError when all are given up.

        One that is named is asked before others as long as it is not given up.
        """
        self.check_stop()
        left = [address for address in self._all if not address.is_given_up]
        if not left:
            raise DataError(self._given_up(to_do))
        named = [address for address in left if address.url == bound_to]
        now = time.monotonic()
        first = min(named or left, key=lambda address: max(address.ready_at, now))
        while (seconds := first.ready_at - time.monotonic()) > 0:
            self.check_stop()
            time.sleep(min(seconds, LOOK_UP_SECONDS))
        return first

    def failed(self, address: _Address, problem: Problem, *, was_of_use: bool = False) -> None:
        """Note a failure, and tell it unless it is the last, which an error tells."""
        address.failed(problem, was_of_use=was_of_use)
        if not all(other.is_given_up for other in self._all):
            log.warning("%s from %s", self.name, address.outcome())

    def check_stop(self) -> None:
        """End here when somebody has asked for it."""
        if self._stop():
            raise JobStoppedError(f"fetching {self.name} was stopped; what was fetched is kept")

    def _given_up(self, to_do: str) -> str:
        problems = [address.problem for address in self._all if address.problem]
        tried = "; ".join(map(str, self._all))
        remedy = _REMEDIES[problems[-1].why] if problems else ""
        return f"{self.name} could not be {to_do}: tried {tried}. To go on, {remedy}"


def _no_address(name: str, urls: Sequence[str]) -> str:
    if not urls:
        return f"no address is known for {name}; expected a URL or a folder that has it"
    return (
        f"offline, and {name} is not at hand: it is at {', '.join(map(shown_url, urls))}; allow "
        "the network, or give a folder that has it as a mirror"
    )


@contextmanager
def open_remote(policy: FetchPolicy, headers: Mapping[str, str] = NO_HEADERS) -> Iterator[Remote]:
    """Connections for several files, which threads may share."""
    remote = Remote(
        policy.endpoint, headers, connect=policy.connect_seconds, read=policy.read_seconds
    )
    with remote:
        yield remote


def fetch(
    urls: Sequence[str],
    target: Path,
    expected: FileDigest,
    policy: FetchPolicy,
    *,
    headers: Mapping[str, str] = NO_HEADERS,
    on_bytes: Callable[[int], None] = no_bytes,
    stop: Callable[[], bool] = never,
) -> None:
    """Make `target` the file that `expected` describes, from the first of `urls` that has it.

    The addresses are http(s), hf://datasets/…, s3, file, a path, or anything else that fsspec
    opens. What arrives is kept in `TARGET.part` and continued after a cut connection and by a
    later process; the target appears once size and sha256 are right, and is left alone if it has
    them already. `headers` are for the hub's endpoint only. `on_bytes` is told how many bytes are
    there more, or less (below zero) when they are thrown away.

    Raises DataError naming the file and every address that was tried, StoreUnavailableError when
    the disk cannot take it, JobStoppedError once `stop` says so.
    """
    with open_remote(policy, headers) as remote:
        _fetch(remote, urls, target, expected, policy, on_bytes=on_bytes, stop=stop)


def _fetch(
    remote: Remote,
    urls: Sequence[str],
    target: Path,
    expected: FileDigest,
    policy: FetchPolicy,
    *,
    on_bytes: Callable[[int], None],
    stop: Callable[[], bool],
) -> None:
    addresses = _Addresses(expected.name, urls, policy, stop)
    with _alone(target, addresses.check_stop):
        if holds(target, expected):
            on_bytes(expected.bytes)
            return
        with writing(str(target)), PartFile(target, expected, on_bytes) as part:
            while not part.is_right():
                _receive(remote, addresses, part)
            part.publish()


@contextmanager
def _alone(target: Path, check_stop: Callable[[], None]) -> Iterator[None]:
    """One process at a time: two that write one file swap bytes behind the back of a digest."""
    lock = target.with_name(f".{target.name}.lock")
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked(lock, target.name, wait=False))
                break
            except StationBusyError:
                check_stop()
                time.sleep(LOOK_UP_SECONDS)
        yield


def _receive(remote: Remote, addresses: _Addresses, part: PartFile) -> None:
    """One try at the rest of a file."""
    # Two that are cut again and again would else throw away what the other one brought, for ever.
    address = addresses.next("fetched", part.bound_to)
    part.prepare_for(address.url)
    before = part.furthest
    try:
        with remote.open(address.url, part.size) as stream:
            _pour(stream, part, addresses)
        part.check()
    except Problem as problem:
        was_of_use = part.furthest - before >= PROGRESS_SHARE * part.expected.bytes
        addresses.failed(address, problem, was_of_use=was_of_use and problem.why == "busy")


def _pour(stream: Stream, part: PartFile, addresses: _Addresses) -> None:
    part.begin(stream)
    since, arrived = time.monotonic(), 0
    for chunk in stream.chunks:
        addresses.check_stop()
        part.add(chunk)
        arrived += len(chunk)
        seconds = time.monotonic() - since
        if seconds > addresses.policy.read_seconds:
            if arrived < MIN_BYTES_PER_SECOND * seconds:
                raise Problem("busy", f"only {arrived:,} bytes in {seconds:.0f} s")
            since, arrived = time.monotonic(), 0


def patiently(
    action: Callable[[], Answer],
    url: str,
    what: str,
    policy: FetchPolicy,
    stop: Callable[[], bool] = never,
) -> Answer:
    """What `action`, which asks `url`, returns; tried again as by `fetch`.

    Raises DataError about `what`, or Problem when that is simply not there.
    """
    addresses = _Addresses(what, [url], policy, stop)
    while True:
        address = addresses.next("read")
        try:
            return action()
        except Problem as problem:
            if problem.why == "missing":
                raise
            addresses.failed(address, problem)


def read_whole(remote: Remote, url: str) -> tuple[bytes, str]:
    """All of a short answer, and the address at which it goes on ("" at its end)."""
    with remote.open(url) as stream:
        gathered = bytearray()
        for chunk in stream.chunks:
            gathered += chunk
            if len(gathered) > MAX_LISTING_BYTES:
                raise Problem("refused", f"over {MAX_LISTING_BYTES:,} bytes, which is no listing")
    if stream.total is not None and len(gathered) < stream.total:
        raise Problem("busy", f"the connection ended after {len(gathered):,} bytes")
    return bytes(gathered), stream.next_url


class _Meter:
    """Bytes that are there, counted by many threads and told by one."""

    def __init__(self, files: Sequence[FileDigest], progress: Progress) -> None:
        self._lock, self._bytes, self._progress = threading.Lock(), 0, progress
        self._num_files = len(files)
        progress.total, progress.unit = sum(file.bytes for file in files), "bytes"

    def add(self, count: int) -> None:
        with self._lock:
            self._bytes += count

    def tell(self, num_done: int) -> None:
        self._progress.update(self._bytes, f"{num_done} of {self._num_files} files")


def fetch_all(
    files: Sequence[FileDigest],
    urls_of: Callable[[FileDigest], Sequence[str]],
    folder: Path,
    policy: FetchPolicy,
    *,
    done: Callable[[Path, FileDigest], None],
    progress: Progress,
    headers: Mapping[str, str] = NO_HEADERS,
    stop: Callable[[], bool] = never,
) -> None:
    """`fetch` every file into `folder` under its name, `policy.parallel` at once, in order.

    `done` and `progress` are called in the thread of the caller only; `done` as soon as a file is
    verified. The first failure ends the others, whose bytes are kept for the next try.
    """
    folder.mkdir(parents=True, exist_ok=True)
    meter, failed = _Meter(files, progress), threading.Event()
    with (
        open_remote(policy, headers) as remote,
        ThreadPoolExecutor(policy.parallel, thread_name_prefix="fetch") as pool,
    ):

        def bring(file: FileDigest) -> None:
            _fetch(
                *(remote, urls_of(file), folder / file.name, file, policy),
                on_bytes=meter.add,
                stop=lambda: failed.is_set() or stop(),
            )

        futures = {pool.submit(bring, file): file for file in files}
        try:
            _take_as_they_come(futures, lambda file: done(folder / file.name, file), meter)
        finally:
            failed.set()
            remote.hang_up()
            pool.shutdown(wait=False, cancel_futures=True)


def _take_as_they_come(
    futures: Mapping[Future[None], FileDigest],
    done: Callable[[FileDigest], None],
    meter: _Meter,
) -> None:
    pending = list(futures)
    while pending:
        wait(pending, timeout=LOOK_UP_SECONDS, return_when=FIRST_COMPLETED)
        ended = [future for future in pending if future.done()]
        pending = [future for future in pending if future not in ended]
        # What is whole is handed over before a failure of another one ends it all.
        for future in ended:
            if future.exception() is None:
                done(futures[future])
        for future in ended:
            future.result()
        meter.tell(len(futures) - len(pending))
