"""One maker of an artifact among all hosts: a lease in the store, renewed, fenced, taken over.

The lease is one small sealed file that is only ever written by conditional writes, so there is one
holder at a time, whatever anybody's clock says. It is taken over when it was released, when the OS
lock of the holder's host has passed to us, or when *this* host has seen it unchanged for the time
to live; nobody compares clocks. A holder that cannot reach the store works on: while nobody has
taken the lease its next renewal succeeds, and when somebody has, nothing that it writes counts.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from nanochat_core.artifacts.canonical import sha256_hex
from nanochat_core.artifacts.filesystems import Files
from nanochat_core.artifacts.sealed import seal, unseal
from nanochat_core.artifacts.threads import without_patience
from nanochat_core.artifacts.translate import reading, writing
from nanochat_core.errors import DamagedFileError, LeaseLostError, StationBusyError, StoreError

log = logging.getLogger(__name__)

TTL_SECONDS = 60.0
"""A lease that nobody has renewed for this long is free; its holder renews it three times as often.

Longer than a pause of a machine, shorter than anybody likes to wait after a kill."""
RENEWALS_PER_TTL = 3
PATIENCE_TTLS = 10
"""After so many times to live without the store the holder gives up: it may be cut off alone."""
LOOKS_PER_TTL = 30
RELEASE_SECONDS = 5.0
"""What the end of a stage may wait for a store that does not answer; else the lease runs out."""
SAY_AGAIN_SECONDS = 60.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PLACE = "place"


class Lease:
    """The right to make an artifact. That of an OS lock, which this is, lasts as long as held."""

    def check(self) -> None:
        """Raise LeaseLostError once the right is known to be lost; asks nobody, so ask often."""

    def confirm(self) -> None:
        """Ask the store, before anything that others will see is written.

        Raises LeaseLostError, or StoreUnavailableError when the store cannot tell.
        """


@dataclass(frozen=True)
class Seen:
    """What the lease file held; `version` is that of the content or of an earlier one.

    So a replacement that names it either replaces just this content, or fails.
    """

    version: str | None
    body: dict[str, Any]

    @property
    def epoch(self) -> int:
        """How often the lease has changed hands."""
        return int(self.body.get("epoch", 0))

    @property
    def owner(self) -> str:
        """Who holds it, in words."""
        if not self.body:
            return "another process (whose lease cannot be read)"
        process = f"process {self.body.get('pid')} on {self.body.get('host')}"
        return f"{process} since {self.body.get('since')}"


class LeaseFile:
    """One lease in the store."""

    def __init__(self, files: Files, path: str) -> None:
        self.files, self.path = files, path

    def look(self) -> Seen | None:
        """What is there; a damaged lease has an empty body and runs out like any other."""
        with reading(f"the lease {self.path}"):
            try:
                version = self.files.info(self.path).version
                data = self.files.read(self.path)
            except FileNotFoundError:
                return None
        try:
            return Seen(version, unseal(data, self.path))
        except DamagedFileError as error:
            log.warning("%s", error)
            return Seen(version, {})

    def put(self, body: Mapping[str, Any], version: str | None) -> str | None:
        """Write `body` over `version` (None: where nothing is); None when somebody was first."""
        data = seal(body)
        with writing(f"the lease {self.path}"):
            if version is None:
                self.files.create(self.path, data)
            elif written := self.files.replace_if(self.path, data, version):
                return written
        # The answer to a first try may have been lost on its way: what is there decides.
        seen = self.look()
        return seen.version if seen and seen.body.get("token") == body["token"] else None


class StoreLease(Lease):
    """A lease that this process holds and a thread of it renews."""

    def __init__(
        self, file: LeaseFile, body: Mapping[str, Any], version: str, asked: float, ttl: float
    ) -> None:
        self.file, self.ttl_seconds = file, ttl
        self._body, self._version, self._renewed = dict(body), version, asked
        self._lost = ""
        self._mutex = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """As in `Lease`; a store out of reach is no loss until patience ends."""
        silent_seconds = time.monotonic() - self._renewed
        if not self._lost and silent_seconds > PATIENCE_TTLS * self.ttl_seconds:
            self._lost = f"could not be renewed for {silent_seconds:.0f} s"
        lost = self._lost or ("was released" if self._ended.is_set() else "")
        if lost:
            raise LeaseLostError(
                f"The lease {self.file.path} {lost}, so this process stops making the "
                "artifact; what it has saved stays here. Run again to go on from there, or wait "
                "for the other process with --wait."
            )

    def confirm(self) -> None:
        """As in `Lease`, by a renewal."""
        self.check()
        self._renew()
        self.check()

    def release(self) -> None:
        """Let others take it at once; one that cannot be released runs out."""
        self._ended.set()
        self._thread.join(RELEASE_SECONDS)

    def _keep(self) -> None:
        # It tries again by itself, and sooner than whoever waits for an answer.
        with without_patience():
            self._renew_until_ended()
            with self._mutex, suppress(StoreError):
                if not self._lost:
                    self.file.put({**self._body, "released": True}, self._version)

    def _renew_until_ended(self) -> None:
        pause, is_said = self.ttl_seconds / RENEWALS_PER_TTL, False
        while not self._ended.wait(pause) and not self._lost:
            try:
                self._renew()
            except StoreError as error:
                pause = self.ttl_seconds / LOOKS_PER_TTL
                if not is_said:
                    log.warning("%s The work goes on meanwhile.", error)
                is_said = True
            else:
                pause, is_said = self.ttl_seconds / RENEWALS_PER_TTL, False

    def _renew(self) -> None:
        with self._mutex:
            if self._lost or self._ended.is_set():
                return
            asked = time.monotonic()
            body = {**self._body, "renewals": self._body["renewals"] + 1}
            version = self.file.put(body, self._version)
            if version is None and (seen := self.file.look()) is not None:
                self._lost = f"was taken over by {seen.owner}"
            elif version is None and (version := self.file.put(body, None)) is None:
                self._lost = "was removed and taken by another process"
            if version is not None:
                self._body, self._version, self._renewed = body, version, asked


@contextmanager
def leased(
    file: LeaseFile, what: str, *, place: str, wait: bool, watch: bool, ttl_seconds: float
) -> Iterator[StoreLease]:
    """Hold the lease `file` for the making of `what`; the OS lock of this `place` must be held.

    When another host holds it: StationBusyError naming it, or patience with `wait`. A lease that
    may be a dead holder's is watched for up to its time to live first, unless `watch` is off.
    """
    lease = _acquired(file, what, place=place, wait=wait, watch=watch, ttl=ttl_seconds)
    try:
        yield lease
    finally:
        lease.release()


def _acquired(
    file: LeaseFile, what: str, *, place: str, wait: bool, watch: bool, ttl: float
) -> StoreLease:
    body = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "place": place,
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "token": uuid4().hex,
        "renewals": 0,
        "released": False,
    }
    watching = _Watch()
    while True:
        asked = time.monotonic()
        seen = file.look()
        if seen is None or _is_free(seen, place) or watching.seconds(seen, asked) >= ttl:
            taken = {**body, "epoch": 1 if seen is None else seen.epoch + 1}
            if version := file.put(taken, None if seen is None else seen.version):
                if seen is not None and not _is_free(seen, place):
                    log.warning("%s was given up by %s; it is taken over", what, seen.owner)
                return StoreLease(file, taken, version, asked, ttl)
            continue
        if not wait and (watching.has_changed or not watch):
            raise StationBusyError(
                f"{what} is being made right now by {seen.owner}. "
                "Wait for it with --wait, or stop that run first."
            )
        watching.say(what, seen, wait, ttl)
        time.sleep(ttl / LOOKS_PER_TTL)


class _Watch:
    """How long this host has seen the same version of a lease, and whether it was ever renewed."""

    def __init__(self) -> None:
        self.has_changed = False
        self._seen: Seen | None = None
        self._since = 0.0
        self._next_word = 0.0

    def seconds(self, seen: Seen, now: float) -> float:
        """Since when `seen` is what it is, as far as this host knows."""
        if self._seen is None or self._seen.version != seen.version:
            self.has_changed = self._seen is not None
            self._seen, self._since = seen, now
        return now - self._since

    def say(self, what: str, seen: Seen, wait: bool, ttl: float) -> None:
        """A line now and then."""
        now = time.monotonic()
        if now < self._next_word:
            return
        self._next_word = now + SAY_AGAIN_SECONDS
        if wait:
            log.warning("waiting for %s, which is being made by %s", what, seen.owner)
        else:
            log.warning(
                "looking for up to %.0f s whether %s is still being made by %s",
                *(ttl, what, seen.owner),
            )


def _is_free(seen: Seen, place: str) -> bool:
    # Who holds the OS lock of a place knows that its last holder there has ended.
    return seen.body.get("released") is True or seen.body.get("place") == place


def place_of(folder: Path) -> str:
    """What the holders of OS locks in `folder` have in common, and no other host has."""
    path = folder / _PLACE
    with writing(f"the file {path}"):
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            temporary = path.with_name(f".{_PLACE}-{uuid4().hex}")
            temporary.write_text(uuid4().hex, encoding="utf-8")
            os.replace(temporary, path)
        # A folder may be copied, or shared by hosts between which OS locks do not work.
        boot = _BOOT_ID.read_text(encoding="utf-8") if _BOOT_ID.exists() else ""
        own = path.read_text(encoding="utf-8")
    return sha256_hex(f"{socket.gethostname()} {boot} {own}".encode())[:16]
