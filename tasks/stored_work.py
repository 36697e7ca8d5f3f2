"""The copy in the store of one work folder, below its generation, from which another host goes on.

    work/checkpoints/step-00000250-1f3a5b7c/...   bytes first, manifest.json last
    work/checkpoints/best.json, work/metrics.jsonl, ...   small files beside them

The layout is that of `nanochat_core.training.checkpoint_files`, read here without torch: a step
counts when its manifest is sound, and each file has the sha256 that stands in it.
"""

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from pydantic import TypeAdapter, ValidationError

from nanochat_core.artifacts.filesystems import FileInfo, Files
from nanochat_core.artifacts.generations import remove_whole
from nanochat_core.artifacts.leases import Lease
from nanochat_core.artifacts.sealed import unseal
from nanochat_core.artifacts.threads import in_threads
from nanochat_core.artifacts.translate import reading, writing
from nanochat_core.artifacts.types import RelativePath, Sha256, check_relative_path
from nanochat_core.config.base import Config
from nanochat_core.config.job import ERROR_FILE, PROGRESS_FILE
from nanochat_core.errors import DamagedFileError
from nanochat_core.training.durable_files import sync_folder, write_durably
from tasks.launches import JOB_FILE, LAUNCH_FILE

log = logging.getLogger(__name__)

WORK, CHECKPOINTS = "work", "checkpoints"
MANIFEST, BEST = "manifest.json", "best.json"
STEP_FOLDER = re.compile(r"^step-(\d{8,})-([0-9a-f]{8})$")
SMALL_BYTES = 64 * 2**20
"""Larger files beside the checkpoints are no notes of a run; nothing resumes from them."""
FILES_AT_ONCE = 4
_OF_ONE_START = {JOB_FILE, LAUNCH_FILE, PROGRESS_FILE, ERROR_FILE}
_SENDING = ".sending-"


class StepFile(Config):
    """One file of a step checkpoint, as its manifest lists it."""

    path: RelativePath
    bytes: int
    sha256: Sha256


_STEP_FILES = TypeAdapter(list[StepFile])


@dataclass
class StoredWork:
    """One work folder and its copy below `place` in the store.

    The lease is confirmed before a step becomes whole there: a host that has lost it adds nothing.
    """

    files: Files
    place: str
    work: Path
    lease: Lease

    def __post_init__(self) -> None:
        self.whole: set[str] = set()
        """Steps that are known to be whole in the store."""
        self._small: dict[str, tuple[int, int]] = {}
        self._parts: set[str] = set()

    @property
    def checkpoints(self) -> Path:
        """The local folder of step checkpoints."""
        return self.work / CHECKPOINTS

    def missing(self) -> list[Path]:
        """Local steps that the store should have and has not: the newest, then the best."""
        steps = whole_steps(self.checkpoints)
        best = _best_folder(self.checkpoints / BEST)
        wanted = [*steps[:1], *(step for step in steps[1:] if step.name == best)]
        return [step for step in wanted if step.name not in self.whole]

    def upload(self, step: Path, check: Callable[[], None]) -> None:
        """Make `step` whole in the store, then remove what the local folder has no more.

        `check` is called before each file and may raise to end the upload. Raises
        FileNotFoundError when it has been pruned meanwhile, DamagedFileError when its bytes are
        not what its manifest says.
        """
        manifest = (step / MANIFEST).read_bytes()
        records = step_files(manifest, step.name)
        there = f"{self.place}/{CHECKPOINTS}/{step.name}"
        with _pinned(step, records, self.work.parent) as folder, writing(f"the step {step.name}"):
            for record in records:
                check()
                self._upload_part(folder / record.path, f"{there}/{record.path}", record)
            check()
            self._upload_small()
            self.lease.confirm()
            self.files.write(f"{there}/{MANIFEST}", manifest)
            self.whole.add(step.name)
            self._prune()

    def _upload_part(self, source: Path, target: str, record: StepFile) -> None:
        if target in self._parts:
            return  # by an upload that was cut off
        if self.files.put(source, target, share=True) != record.sha256:
            raise DamagedFileError(f"{source} does not match the sha256 in its manifest.")
        self._parts.add(target)

    def _upload_small(self) -> None:
        for path in sorted(self.work.rglob("*")):
            name = path.relative_to(self.work).as_posix()
            # Nobody fetches it: it tells `artifacts gc` which inputs are still needed.
            if not _is_small(name) and name != JOB_FILE:
                continue
            try:
                state = path.stat()
                seen = (state.st_size, state.st_mtime_ns)
                if not path.is_file() or state.st_size > SMALL_BYTES:
                    continue
                if self._small.get(name) != seen:
                    self.files.put(path, f"{self.place}/{name}", share=False)
            except FileNotFoundError:
                continue  # a job is at work here
            self._small[name] = seen

    def _prune(self) -> None:
        """Remove the steps that are not here any more; what this host never had is older."""
        kept = {step.name for step in whole_steps(self.checkpoints)} | set(self._newest_whole())
        place = f"{self.place}/{CHECKPOINTS}"
        there = {path.split("/")[0] for path in self.files.infos(place)}
        for name in sorted(there - kept):
            if STEP_FOLDER.match(name):
                self.whole.discard(name)
                remove_whole(self.files, f"{place}/{name}")

    def _newest_whole(self) -> list[str]:
        return sorted(self.whole, key=_step)[-1:]

    def fetch(self) -> int | None:
        """Bring the newest whole step here, if it is newer than any here; returns its number.

        A step that did not arrive as its manifest says is passed over with a log line.
        """
        self._remove_links()
        with reading("the checkpoints in the store"):
            infos = self.files.infos(self.place)
        steps = _steps_of(infos)
        self.whole = set(steps)
        here = max((_step(step.name) for step in whole_steps(self.checkpoints)), default=-1)
        for name in sorted((name for name in steps if _step(name) > here), key=_step, reverse=True):
            if self._fetched(name):
                self._fetch_small(infos)
                best = _best_folder(self.checkpoints / BEST)
                if best in steps and not (self.checkpoints / best / MANIFEST).exists():
                    self._fetched(best)
                return _step(name)
        return None

    def _fetched(self, name: str) -> bool:
        """Whether a step has arrived, whole; its manifest appears here last, too."""
        there, folder = f"{self.place}/{CHECKPOINTS}/{name}", self.checkpoints / name
        try:
            with reading(f"the step {name}"):
                manifest = self.files.read(f"{there}/{MANIFEST}")
            records = step_files(manifest, name)
            folder.mkdir(parents=True, exist_ok=True)

            def fetch(record: StepFile) -> None:
                self._fetch_part(f"{there}/{record.path}", folder / record.path, record)

            in_threads(fetch, records, FILES_AT_ONCE)
        except DamagedFileError as error:
            log.warning("step %d in the store cannot be resumed: %s", _step(name), error)
            shutil.rmtree(folder, ignore_errors=True)
            self.whole.discard(name)
            return False
        write_durably(folder / MANIFEST, [manifest])
        sync_folder(self.checkpoints)
        return True

    def _fetch_part(self, source: str, target: Path, record: StepFile) -> None:
        with _arriving(target) as temporary:
            with reading(f"the file {source}"):
                actual = self.files.fetch(source, temporary)
            if actual != record.sha256 or temporary.stat().st_size != record.bytes:
                raise DamagedFileError(
                    f"the file {source} is damaged: its sha256 is {actual[:12]}…, its manifest "
                    f"says {record.sha256[:12]}…."
                )

    def _fetch_small(self, infos: dict[str, FileInfo]) -> None:
        for name, info in infos.items():
            if not _is_small(name) or info.size > SMALL_BYTES:
                continue
            source = f"{self.place}/{name}"
            try:
                target = self.work / check_relative_path(name)
                with _arriving(target) as temporary, reading(f"the file {source}"):
                    self.files.fetch(source, temporary)
            except (ValueError, DamagedFileError) as error:
                log.warning("%s is left where it is: %s", source, error)

    def _remove_links(self) -> None:
        for left in self.work.parent.glob(f"{_SENDING}*"):
            shutil.rmtree(left, ignore_errors=True)


def whole_steps(checkpoints: Path) -> list[Path]:
    """Local step folders that have a manifest, newest first."""
    if not checkpoints.is_dir():
        return []
    found = [path for path in checkpoints.iterdir() if STEP_FOLDER.match(path.name)]
    whole = [path for path in found if (path / MANIFEST).exists()]
    return sorted(whole, key=lambda path: (_step(path.name), path.name), reverse=True)


def step_files(manifest: bytes, name: str) -> list[StepFile]:
    """What the manifest of a step lists; DamagedFileError if it is none."""
    body = unseal(manifest, f"{name}/{MANIFEST}")
    try:
        return _STEP_FILES.validate_python(body.get("files"))
    except ValidationError as error:
        raise DamagedFileError(f"{name}/{MANIFEST} lists no files: {error}") from error


def _steps_of(paths: dict[str, FileInfo]) -> list[str]:
    """Names of the steps that have a manifest."""
    found = (path.split("/") for path in paths)
    return [
        parts[1]
        for parts in found
        if len(parts) == 3
        and (parts[0], parts[2]) == (CHECKPOINTS, MANIFEST)
        and STEP_FOLDER.match(parts[1])
    ]


def _step(name: str) -> int:
    match = STEP_FOLDER.match(name)
    return -1 if match is None else int(match[1])


def _best_folder(path: Path) -> str:
    """The folder that best.json names; empty when it names none."""
    try:
        name = unseal(path.read_bytes(), BEST).get("folder")
    except (FileNotFoundError, DamagedFileError):
        return ""
    return name if isinstance(name, str) and STEP_FOLDER.match(name) else ""


def _is_small(name: str) -> bool:
    """Whether a path below the work folder may be one of the files beside the checkpoints."""
    parts = name.split("/")
    is_of_step = len(parts) > 2 and parts[0] == CHECKPOINTS
    is_passing = parts[-1].startswith(".") or parts[-1].endswith(".tmp") or name in _OF_ONE_START
    return not is_of_step and not is_passing


@contextmanager
def _pinned(step: Path, records: list[StepFile], beside: Path) -> Iterator[Path]:
    """The files of a step under names of their own, so that pruning does not end a slow upload."""
    folder = beside / f"{_SENDING}{uuid4().hex[:8]}"
    try:
        for record in records:
            target = folder / record.path
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(step / record.path, target)
    except FileNotFoundError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except OSError as error:
        # A file system without hard links: then pruning may be faster.
        log.debug("%s cannot be linked: %s", step, error)
        shutil.rmtree(folder, ignore_errors=True)
        folder = step
    try:
        yield folder
    finally:
        if folder != step:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _arriving(target: Path) -> Iterator[Path]:
    """A temporary name for what arrives; it takes the place of `target` once it is on disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
        sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)
