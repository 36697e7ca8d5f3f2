"""The models that are in memory, and how others get there."""

import asyncio
import concurrent.futures
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from nanochat_core.errors import NanochatError
from nanochat_core.inference.finding import FoundModel
from nanochat_core.serving.catalog import Catalog, CatalogEntry
from nanochat_core.serving.link import WorkerLink
from nanochat_core.serving.loaded import STOPPING, LoadedModel
from nanochat_core.serving.problems import BusyError, ModelError, StoppingError
from nanochat_core.serving.settings import ServerSettings
from nanochat_core.tokenizer.tokenizer import Tokenizer

IDLE_SECONDS = 1.0
"""A model that was asked for just now is in use: its request is still being made into tokens."""
LONGEST_PAUSE_SECONDS = 30.0
"""Between attempts to load a model that cannot be loaded."""
LOOK_SECONDS = 0.02

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


@dataclass(eq=False)
class _Slot:
    """A model that was asked for: in memory, on its way there, or not to be had.

    `has_room`: it counts among those in memory. `num_devices`: what its first process saw.
    """

    entry: CatalogEntry
    model: LoadedModel | None = None
    loading: "asyncio.Task[LoadedModel] | None" = None
    has_room: bool = False
    num_devices: int = 1
    used_at: float = 0.0
    num_failures: int = 0
    retry_at: float = 0.0

    @property
    def is_whole(self) -> bool:
        """Whether every replica runs."""
        return self.model is not None and all(link.is_alive for link in self.model.links)

    @property
    def is_idle(self) -> bool:
        """Whether nobody would miss the model."""
        return self.loading is None and (self.model is None or self.model.num_open == 0)

    def fail(self) -> None:
        """Note a failure: after the first, each makes the next attempt wait twice as long."""
        self.num_failures += 1
        if self.num_failures > 1:
            pause = 2.0 ** min(self.num_failures - 2, 10)
            self.retry_at = time.monotonic() + min(LONGEST_PAUSE_SECONDS, pause)

    def lose(self, link: WorkerLink) -> None:
        """Note that a process has died; one that had answered did not die of its start."""
        if link.num_finished:
            self.num_failures = 0
        self.fail()


class ModelPool:
    """Loads models on demand, one process for each replica; belongs to the event loop."""

    def __init__(
        self, catalog: Catalog, settings: ServerSettings, *, idle_seconds: float = IDLE_SECONDS
    ) -> None:
        self.catalog, self.settings = catalog, settings
        self.is_draining = False
        self._idle_seconds = idle_seconds
        self._slots: dict[str, _Slot] = {}
        self._making_room = asyncio.Lock()
        self._is_started = False
        self._ends_at = float("inf")

    async def start(self) -> None:
        """Load the default model; raises what went wrong."""
        entry = await _aside(partial(self.catalog.entry, None))
        await self._opened(entry, entry.id)
        self._is_started = True

    @property
    def is_ready(self) -> bool:
        """Whether requests are answered, or at least tried."""
        default = self.catalog.known(None)
        slot = self._slots.get(default.key) if default else None
        is_failed = slot is not None and time.monotonic() < slot.retry_at
        return self._is_started and not self.is_draining and not is_failed

    def loaded(self) -> list[LoadedModel]:
        """The models in memory that can answer."""
        models = [slot.model for slot in self._slots.values()]
        return [model for model in models if model is not None and model.is_alive]

    async def open(self, name: str | None = None) -> LoadedModel:
        """The model of a name, loaded if need be; None or "" is the default one.

        Raises UnknownModelError, ModelError when it cannot be loaded, BusyError when all models in
        memory are in use, StoppingError.
        """
        entry = self.catalog.known(name)
        if entry is None:
            entry = await asyncio.to_thread(self.catalog.entry, name)
        try:
            return await self._opened(entry, name or entry.id)
        except (BusyError, ModelError, StoppingError):
            raise
        except NanochatError as error:
            # What a loader says is about files of this machine.
            raise ModelError(
                f"the model {entry.id!r} could not be loaded; the server's log says why"
            ) from error

    async def drain(self, grace_seconds: float) -> None:
        """Take no new requests, wait for those that run, and end them after the grace.

        Another call may shorten the grace.
        """
        self.is_draining = True
        self._ends_at = min(self._ends_at, time.monotonic() + grace_seconds)
        slots = list(self._slots.values())
        models = [slot.model for slot in slots if slot.model is not None]
        for model in models:
            model.refuse(StoppingError(STOPPING))
        loading = [slot.loading for slot in slots if slot.loading is not None]
        for task in loading:
            task.cancel()
        while any(model.num_open for model in models) and time.monotonic() < self._ends_at:
            await asyncio.sleep(LOOK_SECONDS)
        await asyncio.gather(*(model.close(StoppingError(STOPPING)) for model in models))
        await asyncio.gather(*loading, return_exceptions=True)

    async def _opened(self, entry: CatalogEntry, name: str) -> LoadedModel:
        if self.is_draining:
            raise StoppingError(STOPPING)
        slot = self._slots.setdefault(entry.key, _Slot(entry))
        slot.used_at = time.monotonic()
        if not slot.is_whole and slot.loading is None and slot.used_at >= slot.retry_at:
            slot.loading = asyncio.create_task(self._load(slot, name))
            slot.loading.add_done_callback(_look_at)
        if slot.model is not None and slot.model.is_alive:
            return slot.model
        if slot.loading is None:
            raise ModelError(
                f"the model {entry.id!r} failed {slot.num_failures} times; it is tried again in "
                f"{slot.retry_at - slot.used_at:.0f} s"
            )
        try:
            # Others may wait for it, too: who goes away does not end it.
            return await asyncio.shield(slot.loading)
        except asyncio.CancelledError:
            if self.is_draining:
                raise StoppingError(STOPPING) from None
            raise

    async def _load(self, slot: _Slot, name: str) -> LoadedModel:
        """Start what is missing of a model."""
        try:
            await self._make_room(slot)
            found = await _aside(partial(self.catalog.folders, slot.entry))
            model = slot.model
            if model is None:
                tokenizer = await asyncio.to_thread(Tokenizer.load, found.tokenizer)
                model = LoadedModel(name, slot.entry.target, tokenizer, self.settings.max_waiting)
            await self._start_links(slot, model, found)
        except BusyError:
            raise
        except NanochatError as error:
            logger.error("the model %s could not be loaded: %s", slot.entry.id, error)
            slot.fail()
            raise
        else:
            slot.model = model
            return model
        finally:
            slot.loading = None
            slot.has_room = slot.model is not None and slot.model.is_alive

    async def _make_room(self, slot: _Slot) -> None:
        """Count a model among those in memory, and unload the longest unused one if need be."""
        async with self._making_room:
            while not slot.has_room:
                taken = [other for other in self._slots.values() if other.has_room]
                if len(taken) < self.settings.max_loaded:
                    slot.has_room = True
                    return
                latest = time.monotonic() - self._idle_seconds
                idle = [other for other in taken if other.is_idle and other.used_at <= latest]
                if not idle:
                    names = ", ".join(repr(other.entry.id) for other in taken)
                    raise BusyError(
                        f"{slot.entry.id!r} is not in memory, and those that are ({names}) are in "
                        "use; ask one of them, or try again later"
                    )
                await self._unload(min(idle, key=lambda other: other.used_at))

    async def _unload(self, slot: _Slot) -> None:
        del self._slots[slot.entry.key]
        logger.info("unloading %s, which was not used for longest", slot.entry.id)
        if slot.model is not None:
            await slot.model.close(
                BusyError(f"the model {slot.entry.id!r} was just unloaded; ask again")
            )

    async def _start_links(self, slot: _Slot, model: LoadedModel, found: FoundModel) -> None:
        """Start the replicas that a model lacks, all or none."""
        links: dict[int, WorkerLink] = {}

        async def start(replica: int) -> None:
            is_told = bool(model.links or links) and slot.num_devices > 1
            gpu = replica % slot.num_devices if is_told else None
            arguments = worker_arguments(self.settings, found, gpu)
            links[replica] = await WorkerLink.start(arguments, slot.entry.id)

        try:
            if not model.links:
                await start(0)
                slot.num_devices = links[0].num_devices
            wanted = self.settings.replicas
            wanted = slot.num_devices if wanted == "auto" else wanted
            alive = {i for i, link in enumerate(model.links) if link.is_alive}
            missing = set(range(wanted)) - alive - links.keys()
            for outcome in await asyncio.gather(*map(start, missing), return_exceptions=True):
                if isinstance(outcome, BaseException):
                    raise outcome
        except BaseException as error:
            reason = error if isinstance(error, NanochatError) else StoppingError(STOPPING)
            await asyncio.gather(*(link.close(reason) for link in links.values()))
            raise
        for link in links.values():
            link.on_death = slot.lose
        whole = dict(enumerate(model.links)) | links
        model.links = [whole[replica] for replica in sorted(whole)]


def worker_arguments(settings: ServerSettings, found: FoundModel, gpu: int | None) -> list[str]:
    """The command line of one engine process; `gpu` is the index of the one that it may see."""
    arguments = ["--model", str(found.model), "--tokenizer", str(found.tokenizer)]
    arguments += ["--device", settings.device, "--rows", str(settings.num_rows)]
    if settings.is_exact:
        arguments.append("--exact")
    return arguments if gpu is None else [*arguments, "--gpu", str(gpu)]


def _look_at(task: "asyncio.Task[LoadedModel]") -> None:
    """Take notice of a task's error, which else is logged as nobody's when all have gone."""
    if not task.cancelled():
        task.exception()


async def _aside(action: Callable[[], Result]) -> Result:
    """Do something long in a thread for which the end of the server does not wait.

    A model may be on its way from a store for minutes, and asyncio's own threads are waited for.
    """
    outcome = concurrent.futures.Future[Result]()
    # Who waits may give up, but what is under way cannot be taken back.
    outcome.set_running_or_notify_cancel()

    def act() -> None:
        try:
            outcome.set_result(action())
        except BaseException as error:  # noqa: BLE001  it is raised where the result is awaited
            outcome.set_exception(error)

    threading.Thread(target=act, name="aside", daemon=True).start()
    return await asyncio.wrap_future(outcome)
