"""The one decorator of stations: look it up, else make it in progress, publish, forget the rest.

The store is the only cache; Prefect shows what it answered. A stage is called directly, in the
main thread of its flow, so that a cancel, SIGTERM or Ctrl-C reaches the process that it owns.
"""

import errno
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from uuid import uuid4

from prefect import Task, get_run_logger
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed

from nanochat_core.artifacts.leases import Lease
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import ArtifactRef, Manifest, Request
from nanochat_core.config.base import Recipe
from nanochat_core.config.execution import Execution
from nanochat_core.config.job import JobSpec, StageOutput
from nanochat_core.errors import JobLostError, StoreUnavailableError
from nanochat_core.logs import Progress
from tasks.cancelling import CancelWatch
from tasks.checkpoint_sync import CheckpointSync
from tasks.listening import Listener, StageRecord, StageState, describe_metrics
from tasks.reporting import ProgressBar, publish_report, stage_markdown
from tasks.stored_work import WORK, StoredWork
from tasks.torchrun import run_job

LOST_JOB_RETRIES = 2
_OUTPUT = "output-"
_DISK_ERRORS = {
    errno.ENOSPC: "is full; free some space",
    errno.EDQUOT: "is over its quota; free some space",
    errno.EROFS: "is read-only; choose another store",
    errno.EACCES: "cannot be written by this user; change its owner or choose another store",
}


class Run:
    """What the stages of one run share. Not a dataclass: Prefect would walk through it."""

    def __init__(
        self,
        store: ArtifactStore,
        listener: Listener,
        *,
        wait: bool = False,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        self.store, self.listener, self.wait = store, listener, wait
        self.provenance = dict(provenance or {})
        self.records: dict[str, StageRecord] = {}


Slot = Callable[[Execution], AbstractContextManager[None]]
"""Around the work of a stage: what it has to wait for, as for a GPU that others use, too."""


def _no_slot(_execution: Execution) -> AbstractContextManager[None]:
    return nullcontext()


class StageCall:
    """One stage of one run: what is asked for, and how it went so far."""

    def __init__(
        self, run: Run, recipe: Recipe, execution: Execution, *, force: bool = False
    ) -> None:
        self.run, self.recipe, self.execution, self.force = run, recipe, execution, force
        self.attempts = 0
        self.state: StageState = "made"
        self.source_paths: tuple[str, ...] = ()
        self.slot: Slot = _no_slot


class StageWork:
    """What the function of a station gets: its recipe, its inputs and the folders to write to."""

    def __init__(
        self,
        station: str,
        call: StageCall,
        folder: Path,
        input_refs: Mapping[str, ArtifactRef],
        lease: Lease,
    ) -> None:
        self.station, self.call, self.input_refs = station, call, dict(input_refs)
        self.inputs: Mapping[str, Path] = InputFolders(call.run.store, self.input_refs)
        self.recipe, self.execution = call.recipe, call.execution
        self.source_paths = call.source_paths
        self.work = folder / WORK
        # A name of its own: processes of a killed run may still be writing into the last one.
        self.output = folder / f"{_OUTPUT}{uuid4().hex[:8]}"
        self.lease = lease
        self.report = StageReport(station, call.run.listener, lease)

    @property
    def progress(self) -> Progress:
        """For the functions of `nanochat_core.data`: passes updates on to whoever watches."""
        return _PassedOnProgress(self.report)

    def job_spec(self, more_inputs: Mapping[str, Path] | None = None) -> JobSpec:
        """What a torchrun job is told; `more_inputs` are folders that decide nothing it makes."""
        return JobSpec(
            station=self.station,
            recipe=self.recipe.model_dump(mode="json"),
            execution=self.execution,
            inputs={
                name: str(path) for name, path in {**self.inputs, **(more_inputs or {})}.items()
            },
            work_folder=str(self.work),
            output_folder=str(self.output),
        )

    def run_job(self, module: str, more_inputs: Mapping[str, Path] | None = None) -> StageOutput:
        """Run a torchrun job; it saves and ends on a cancel, or when another host took over."""
        spec = self.job_spec(more_inputs)
        with CancelWatch():
            return run_job(module, spec, report=self.report, watch=self.lease.check)


class InputFolders(Mapping[str, Path]):
    """Folders of the inputs by name; one is fetched and verified when it is first asked for."""

    def __init__(self, store: ArtifactStore, refs: Mapping[str, ArtifactRef]) -> None:
        self._store, self._refs = store, refs
        self._folders: dict[str, Path] = {}

    def __getitem__(self, name: str) -> Path:
        if name not in self._folders:
            self._folders[name] = self._store.materialize(self._refs[name])
        return self._folders[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._refs)

    def __len__(self) -> int:
        return len(self._refs)


class StageReport:
    """Tells the listener and Prefect about the progress of one stage."""

    def __init__(self, station: str, listener: Listener, lease: Lease) -> None:
        self.station, self.listener, self.lease = station, listener, lease
        self._bar = ProgressBar(station)
        self._logger = get_run_logger()

    def progress(self, done: int, total: int, unit: str, message: str) -> None:
        """Pass on that `done` of `total` units are done; ends work that lost its lease."""
        self.lease.check()
        self.listener.progressed(self.station, done, total, unit, message)
        self._bar.update(done, total, unit, message)

    def log(self, level: int, line: str) -> None:
        """Pass on one line of output."""
        self.listener.logged(self.station, level, line)
        self._logger.log(level, line)


class _PassedOnProgress(Progress):
    def __init__(self, report: StageReport) -> None:
        super().__init__(None, 0, "")
        self._report = report

    def update(self, done: int, message: str = "") -> None:
        now = time.monotonic()
        if now - self._last_write >= self.min_seconds or done >= self.total:
            self._last_write = now
            self._report.progress(done, self.total, self.unit, message)


def checkpoint_sync(work: StageWork, request: Request, folder: Path) -> CheckpointSync | None:
    """Keeps the checkpoints in a store elsewhere; None for a folder, in which they are made."""
    store = work.call.run.store
    if not store.is_elsewhere:
        return None
    place = f"{store.stored_generation(request, folder)}/{work.work.name}"
    return CheckpointSync(StoredWork(store.files, place, work.work, work.lease), work.report.log)


MakeFunction = Callable[[StageWork], StageOutput]
PageFunction = Callable[[StageCall, StageRecord, Manifest], str]
"""The Markdown that Prefect shows of a finished stage, made, resumed or cached."""


def stage_page(_call: StageCall, record: StageRecord, manifest: Manifest) -> str:
    """What is shown of a stage that has no page of its own."""
    return stage_markdown(record, manifest)


class Stage:
    """A station as a Prefect task; calling it gives a reference to its artifact."""

    def __init__(
        self,
        station: str,
        code_version: int,
        make: MakeFunction,
        *,
        retries: int = 0,
        page: PageFunction = stage_page,
    ) -> None:
        self.station, self.code_version = station, code_version
        self._make, self._page = make, page
        self._task: Task[..., Any] = Task(
            self._body,
            name=station,
            description=make.__doc__,
            cache_policy=NO_CACHE,
            persist_result=False,
            retries=retries,
            retry_delay_seconds=1,
            retry_condition_fn=is_worth_another_try,
            task_run_name=station,
        )

    def __call__(self, call: StageCall, inputs: Mapping[str, ArtifactRef]) -> ArtifactRef:
        """Run the task in this thread; its record is added to the run, however it ends."""
        call.run.listener.started(self.station)
        start = time.monotonic()
        try:
            # A task that returns a state hands out that state, unless asked for it explicitly.
            state_of: Any = self._task
            ref: ArtifactRef = state_of(call, dict(inputs), return_state=True).result()
        except BaseException as error:
            is_error = isinstance(error, Exception)
            state: StageState = "failed" if is_error else "stopped"
            message = str(error) or type(error).__name__
            self._tell(call.run, state, time.monotonic() - start, message=message)
            raise
        metrics = call.run.store.manifest(ref).metrics
        self._tell(call.run, call.state, time.monotonic() - start, ref=ref, metrics=metrics)
        return ref

    def _tell(self, run: Run, state: StageState, seconds: float, **more: Any) -> None:
        record = StageRecord(station=self.station, state=state, seconds=round(seconds, 3), **more)
        run.records[self.station] = record
        run.listener.ended(record)

    def request(self, call: StageCall, inputs: Mapping[str, ArtifactRef]) -> Request:
        """What is asked for: the recipe and the content of the inputs, nothing about the place."""
        return Request(
            station=self.station,
            code_version=self.code_version,
            recipe=call.recipe.model_dump(mode="json"),
            inputs={name: ref.digest for name, ref in inputs.items()},
        )

    def _body(self, call: StageCall, inputs: dict[str, ArtifactRef]) -> State[Any]:
        call.attempts += 1
        if call.attempts > 1:
            again = f"was lost; attempt {call.attempts} goes on from what it had saved"
            call.run.listener.logged(self.station, logging.WARNING, again)
        request = self.request(call, inputs)
        store = call.run.store
        start = time.monotonic()
        if not call.force and (hit := store.lookup(request)):
            store.clear_leftovers(request)
            return self._cached(call, hit, start)
        with store.lock(self.station, request.fingerprint, wait=call.run.wait) as lease:
            # Whoever held the lock may have made it meanwhile.
            if not call.force and (hit := store.lookup_here(request)):
                return self._cached(call, hit, start)
            with disk_errors_told(store):
                ref = self._made(call, request, inputs, lease)
        store.clear_leftovers(request)
        self._report(call, ref, start)
        numbers = describe_metrics(store.manifest(ref).metrics)
        return Completed(message=f"{call.state} {ref.short}: {numbers}".rstrip(": "), data=ref)

    def _cached(self, call: StageCall, ref: ArtifactRef, start: float) -> State[Any]:
        call.state = "cached"
        message = f"cache hit {ref.station}/{ref.fingerprint}"
        get_run_logger().info(message)
        self._report(call, ref, start)
        return Completed(name="Cached", message=message, data=ref)

    def _made(
        self,
        call: StageCall,
        request: Request,
        inputs: Mapping[str, ArtifactRef],
        lease: Lease,
    ) -> ArtifactRef:
        start = time.monotonic()
        store = call.run.store
        folder = store.generation(request, fresh=self._starts_afresh(call, request))
        work = StageWork(self.station, call, folder, inputs, lease)
        sync = checkpoint_sync(work, request, folder)
        if sync is not None:
            sync.fetch()
        if work.work.exists() and any(work.work.iterdir()):
            call.state = "resumed"
        work.work.mkdir(parents=True, exist_ok=True)
        # Outputs of an attempt that failed half-way prove nothing; checkpoints live in `work`.
        for left in folder.glob(f"{_OUTPUT}*"):
            shutil.rmtree(left, ignore_errors=True)
        work.output.mkdir()
        with call.slot(call.execution), nullcontext() if sync is None else sync.running():
            output = self._make(work)
        lease.confirm()
        provenance = {
            **call.run.provenance,
            "execution": call.execution.model_dump(mode="json"),
            "seconds": round(time.monotonic() - start, 3),
            "resumed": call.state == "resumed",
            **output.provenance,
        }
        ref = store.publish(
            request,
            work.output,
            output,
            input_refs=dict(inputs),
            provenance=provenance,
            replace=call.force,
        )
        store.discard_generations(request)
        return ref

    def _starts_afresh(self, call: StageCall, request: Request) -> bool:
        """Whether a forced stage leaves alone what is in progress.

        A retry resumes its own work. So does another run after an interrupted one: beside a sound
        artifact only a forced run has anything in progress.
        """
        is_first = call.force and call.attempts == 1
        return is_first and call.run.store.lookup_here(request) is None

    def _report(self, call: StageCall, ref: ArtifactRef, start: float) -> None:
        record = StageRecord(
            station=self.station, state=call.state, seconds=time.monotonic() - start, ref=ref
        )
        publish_report(record, self._page(call, record, call.run.store.manifest(ref)))


def stage(
    station: str, *, code_version: int, retries: int = 0, page: PageFunction = stage_page
) -> Callable[[MakeFunction], Stage]:
    """Make a station of a function that writes `work.output` and says what it wrote.

    `code_version` is part of the fingerprint: raise it when the function computes something else.
    `page` makes what Prefect shows of it; the default lists numbers, inputs and files.
    """

    def decorate(make: MakeFunction) -> Stage:
        return Stage(station, code_version, make, retries=retries, page=page)

    return decorate


def is_worth_another_try(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether a failure was the machine's, not the user's: only then Prefect tries again."""
    try:
        state.result()
    except (JobLostError, BrokenProcessPool, ConnectionError, TimeoutError):
        return True
    except StoreUnavailableError as error:
        # An outage passes; a full or read-only disk does not, and carries one of these numbers.
        cause = error.__cause__
        return cause is not None and getattr(cause, "errno", None) not in _DISK_ERRORS
    except BaseException:  # noqa: BLE001  asked only for its class; Prefect holds the error
        return False
    return False


@contextmanager
def disk_errors_told(store: ArtifactStore) -> Iterator[None]:
    """Turn what a full or read-only disk raises, anywhere inside, into one clear error."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        place = error.filename or store.url
        raise StoreUnavailableError(
            f"{place} {_DISK_ERRORS[error.errno]} and run again: finished stages are kept "
            f"({error.strerror})"
        ) from error
