"""Compiled code of torch.compile, kept on this machine and shared through the artifact store.

A first step that compiles takes a minute; one that finds the code of an earlier run takes seconds.
So code lies in one folder for each `KernelKey`, and an artifact of station `kernels` holds what
the runs of any machine with that key have compiled. Nothing depends on it: whatever goes wrong
with it is a warning, and costs the time to compile.

Who can write to a store can run code on the machines that read it: these files are machine code,
and torch's own cache entries are pickles. `share_kernels=false` takes none and gives none.
"""

import logging
import os
import shutil
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from pydantic import ValidationError

from nanochat_core.artifacts.location import user_cache_folder
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import Request
from nanochat_core.config.base import Config
from nanochat_core.config.execution import Execution
from nanochat_core.config.job import StageOutput
from nanochat_core.errors import JobLostError, NanochatError, StationBusyError
from tasks.kernel_archive import MAX_BYTES, kernel_files, pack, unpack_missing
from tasks.kernel_key import KernelKey, kernel_key

STATION = "kernels"
CODE_VERSION = 1
ARCHIVE = "kernels.tar.gz"
FOLDER_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
KEPT_FOLDERS = 3
IN_USE_SECONDS = 3600.0
"""A folder used within this time may belong to a job that still compiles, so it stays."""
_TAKEN_FILE = ".taken.json"  # hidden names are no kernels
_TROUBLE = (NanochatError, OSError, tarfile.TarError, EOFError, zlib.error)

Log = Callable[[int, str], None]


class Taken(Config):
    """What a folder has of the artifact: its digest, its files, whether a job ran on them."""

    digest: str
    files: tuple[str, ...]
    is_proven: bool


def kernel_folder(execution: Execution, root: Path | None = None) -> Path:
    """The folder for what a job compiles: made, marked as used; of others the newest few stay."""
    root = root or user_cache_folder() / "inductor"
    folder = root / kernel_key(execution.device).short
    # A job that compiles nothing runs where no folder can be made.
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
        _prune(root)
    return folder


def kernel_request(key: KernelKey) -> Request:
    """What the store is asked for."""
    return Request(station=STATION, code_version=CODE_VERSION, recipe=key.model_dump(mode="json"))


@contextmanager
def shared_kernels(
    store: ArtifactStore, execution: Execution, log: Log, *, root: Path | None = None
) -> Iterator[None]:
    """Around a job: before it, take what the store has; after it, give what it has not.

    Where the environment names a folder for compiled code, nothing is shared: that folder is
    somebody else's business.
    """
    environ = os.environ  # noqa: TID251  which `job_environment` hands to the job as it is
    if not (execution.compile and execution.share_kernels) or environ.get(FOLDER_VARIABLE):
        yield
        return
    key = kernel_key(execution.device)
    sharing = KernelSharing(store, key, kernel_folder(execution, root), log)
    sharing.take()
    try:
        yield
    except JobLostError as error:
        # Its subclasses have reasons of their own.
        if type(error) is JobLostError:
            sharing.doubt()
        raise
    sharing.give()


class KernelSharing:
    """One kernel folder of this machine, and the artifact of its key."""

    def __init__(self, store: ArtifactStore, key: KernelKey, folder: Path, log: Log) -> None:
        self.store, self.folder, self.log = store, folder, log
        self.request = kernel_request(key)

    def take(self) -> None:
        """Add what the store has and this machine has not; nothing if it was taken before."""
        with self._only_warns("compiled code was not taken from the store"):
            self._take()

    def give(self) -> None:
        """After a job that went well: publish everything, if the store lacks some of it."""
        with (
            self._only_warns("compiled code was not put into the store"),
            suppress(StationBusyError),  # whoever holds the lock gives the same
            self.store.lock(STATION, self.request.fingerprint),
        ):
            is_sound = self._take()
            here, taken = kernel_files(self.folder), self._taken()
            if is_sound and taken is not None and set(here) <= set(taken.files):
                self._remember(taken.model_copy(update={"is_proven": True}))
            elif here:
                self._publish(here)
        with self._only_warns("what a killed run left of compiled code stays"):
            self.store.clear_leftovers(self.request)

    def doubt(self) -> None:
        """After a job that was lost: drop what came from the store, unless a job ran on it before.

        What does not run here would be lost again and again; torch's own keys cannot know that.
        """
        with self._only_warns("compiled code from the store was not dropped"):
            taken = self._taken()
            if taken is None or taken.is_proven or not taken.files:
                return
            dropped = self.folder.with_name(f"dropped-{uuid4().hex}")
            os.replace(self.folder, dropped)
            shutil.rmtree(dropped, ignore_errors=True)
            self._remember(Taken(digest=taken.digest, files=(), is_proven=False))
            reason = "the job was lost on compiled code from the store; it is compiled anew"
            self.log(logging.WARNING, reason)

    def _take(self) -> bool:
        """Whether the store has a sound artifact, all of which was taken, now or before."""
        ref, taken = self.store.lookup(self.request), self._taken()
        if ref is None:
            return False
        if taken is not None and taken.digest == ref.digest:
            return True
        if (num_bytes := self.store.manifest(ref).bytes) > MAX_BYTES:
            self.log(logging.WARNING, f"{ref.short} is not taken: {num_bytes / 1e6:,.0f} MB")
            return False
        started = time.monotonic()
        names = unpack_missing(self.store.materialize(ref) / ARCHIVE, self.folder)
        self._remember(Taken(digest=ref.digest, files=tuple(names), is_proven=False))
        seconds = time.monotonic() - started
        self.log(logging.INFO, f"compiled code: {len(names)} files of {ref.short}, {seconds:.1f} s")
        return True

    def _publish(self, here: Mapping[str, int]) -> None:
        num_bytes = sum(here.values())
        if num_bytes > MAX_BYTES:
            said = f"{num_bytes / 1e6:,.0f} MB of compiled code are too much to share; remove"
            self.log(logging.WARNING, f"{said} {self.folder} to start afresh")
            return
        with tempfile.TemporaryDirectory(dir=self.folder.parent) as made:
            pack(self.folder, here, Path(made, ARCHIVE))
            output = StageOutput(
                files={ARCHIVE: "result"},
                metrics={"files": len(here), "megabytes": round(num_bytes / 1e6, 1)},
            )
            ref = self.store.publish(self.request, Path(made), output, replace=True)
        self._remember(Taken(digest=ref.digest, files=tuple(here), is_proven=True))
        self.log(logging.INFO, f"compiled code: {len(here)} files are now {ref.short}")

    def _taken(self) -> Taken | None:
        try:
            return Taken.model_validate_json((self.folder / _TAKEN_FILE).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def _remember(self, taken: Taken) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".tmp-{uuid4().hex}"
        temporary.write_text(taken.model_dump_json(), encoding="utf-8")
        os.replace(temporary, self.folder / _TAKEN_FILE)

    @contextmanager
    def _only_warns(self, what: str) -> Iterator[None]:
        try:
            yield
        except _TROUBLE as error:
            self.log(logging.WARNING, f"{what}, which costs only time: {error}")


def _prune(root: Path) -> None:
    """Remove folders that were not used for long, all but the newest few."""
    used = {path: _last_use(path) for path in root.iterdir() if path.is_dir()}
    for old in sorted(used, key=lambda path: -used[path])[KEPT_FOLDERS:]:
        if time.time() - used[old] > IN_USE_SECONDS:
            shutil.rmtree(old, ignore_errors=True)


def _last_use(path: Path) -> float:
    with suppress(FileNotFoundError):  # another process prunes, too
        return path.stat().st_mtime
    return 0.0
