"""The models that a server can answer with, by the names that clients use for them.

A client names models that are listed here, and nothing else: no folder of this machine.
"""

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from nanochat_core.artifacts.newest import newest_manifests
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import ArtifactRef, Manifest
from nanochat_core.errors import (
    ArtifactNotFoundError,
    ConfigError,
    DamagedFileError,
    StoreError,
)
from nanochat_core.inference.by_hand import list_by_hand
from nanochat_core.inference.finding import CHAT_STATIONS, FoundModel, ModelFinder
from nanochat_core.serving.problems import UnknownModelError
from nanochat_core.serving.settings import ServerSettings

MAX_LISTED = 1_000
"""Models of one station, the newest; any older one can be served by an alias."""
FRESH_SECONDS = 2.0
MISSED_SECONDS = 0.5
"""A name that is not there may have been made since the list was, but is not looked for more often
than this."""
PATIENCE_SECONDS = 1.0
"""How long a request waits for a store; it rides out its own outages for minutes."""
REST, LONGEST_REST_SECONDS = 20, 30.0
"""A list that takes long to make is made again after this many times as long, up to a limit: what
took longest may have been a store that did not answer."""
_FINGERPRINT_LETTERS, _SHOWN = 12, 12
BASE_STATION = "pretrain"
"""Its models continue texts; the others converse."""
_NO_STORE = "memory://no-store"
_ARTIFACT = re.compile(r"[a-z]+/[0-9a-f]{6,64}")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CatalogEntry:
    """One name. `target` is the name of what it stands for: for what is no alias, its own.

    `is_chat`: it was taught to converse; the others only continue texts. `key` is equal for equal
    weights, and for them alone.
    """

    id: str
    created: int
    station: str
    target: str
    is_alias: bool = False
    is_chat: bool = True
    key: str = field(default="", repr=False)
    folders: FoundModel | None = field(default=None, repr=False)


class Catalog:
    """Aliases, models of a store and those made by hand; any thread may ask.

    The list is made in a thread of its own, again when it is older than some seconds and somebody
    asks; as long as a store does not answer, the last one counts. `model` is the default one, by
    any name that `ModelFinder` knows, `tokenizer` only for it.
    """

    def __init__(
        self,
        model: str = "",
        *,
        store: ArtifactStore | None = None,
        by_hand: Path | None = None,
        tokenizer: Path | None = None,
        fresh_seconds: float = FRESH_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        store = ArtifactStore(_NO_STORE) if store is None else store
        self.model = model
        self._finder = ModelFinder(store, by_hand)
        self._own_finder = ModelFinder(store, by_hand, tokenizer)
        self._list = _Listing(self._finder, fresh_seconds, patience_seconds)
        self._default: CatalogEntry | None = None
        self._default_lock = threading.Lock()

    def models(self) -> list[CatalogEntry]:
        """Aliases first, then the newest first; may wait a second for a store."""
        entries = self._list.fresh()
        default = self._default
        if default is None or default.is_alias:
            return entries
        return [default, *(entry for entry in entries if entry.id != default.id)]

    def entry(self, name: str | None) -> CatalogEntry:
        """The entry of a name that clients use, or the default one; UnknownModelError.

        Known names cost no look into the store; call it for another from a thread that may wait.
        """
        if not name:
            return self._default_entry()
        entry = self.known(name)
        if entry is None:
            self._list.after_a_miss()
            entry = self.known(name)
        if entry is None:
            raise self._unknown(name)
        return entry

    def known(self, name: str | None) -> CatalogEntry | None:
        """The entry of a name as far as is known at this moment, which takes no time."""
        default, entries = self._default, self._list.at_once()
        if default is not None and (not name or name in (default.id, self.model)):
            # An alias moves; whatever else the default is, it stays what it was at the start.
            return entries.get(default.id, default) if default.is_alias else default
        if not name:
            return None
        if found := entries.get(name):
            return found
        if not _ARTIFACT.fullmatch(name):
            return None
        # Fingerprints may be cut, and those of people who copy them whole are longer than ours.
        matches = [e for e in entries.values() if not e.is_alias and _is_meant(name, e)]
        return matches[0] if len(matches) == 1 else None

    def find(self, name: str | None) -> FoundModel:
        """The folders of a model by a client's name, or the default one's; UnknownModelError."""
        return self.folders(self.entry(name))

    def folders(self, entry: CatalogEntry) -> FoundModel:
        """The folders of a model, copied to this machine if need be; StoreError."""
        return entry.folders or self._finder.find(entry.target)

    def _default_entry(self) -> CatalogEntry:
        with self._default_lock:
            if self._default is None:
                self._list.first()
                self._default = self._resolve_default()
        return self.known(None) or self._default

    def _resolve_default(self) -> CatalogEntry:
        entries = self._list.at_once()
        named = entries.get(self.model)
        if named is not None and named.is_alias:
            return named
        finder = self._own_finder
        found = finder.find(self.model) if self.model else finder.newest()
        same = [e for e in entries.values() if _is_same(e, found)]
        if same and finder.tokenizer is None:
            return same[0]
        name = same[0].id if same else Path(self.model or found.model).expanduser().absolute().name
        return CatalogEntry(
            id=name,
            created=int(time.time()),
            station=found.kind,
            target=name,
            is_chat=found.kind != BASE_STATION,
            key=_folder_key(found),
            folders=found,
        )

    def _unknown(self, name: str) -> UnknownModelError:
        ids = list(dict.fromkeys(entry.id for entry in self.models()))
        shown = ", ".join(ids[:_SHOWN]) + (", … (GET /v1/models)" if len(ids) > _SHOWN else "")
        return UnknownModelError(
            f"the model {name[:100]!r} is not served here; there is {shown or 'none'}",
            param="model",
        )


class _Listing:
    """A list that is made by one thread at a time, and looked at by any."""

    def __init__(self, finder: ModelFinder, fresh_seconds: float, patience_seconds: float) -> None:
        self._finder = finder
        self._fresh_seconds, self._patience_seconds = fresh_seconds, patience_seconds
        self._entries: dict[str, CatalogEntry] = {}
        self._made_at, self._took = float("-inf"), 0.0
        self._running: _Making | None = None
        self._lock = threading.Lock()

    def first(self) -> None:
        """Make the list, however long that takes."""
        if making := self._renewed(self._fresh_seconds):
            making.wait(None)

    def fresh(self) -> list[CatalogEntry]:
        """The list, at most a few seconds old if the store answers."""
        if making := self._renewed(self._fresh_seconds):
            making.wait(self._patience_seconds)
        return list(self._entries.values())

    def at_once(self) -> dict[str, CatalogEntry]:
        """The list as it is; a new one is made meanwhile if it is old."""
        self._renewed(self._fresh_seconds)
        return self._entries

    def after_a_miss(self) -> None:
        """Make the list anew unless that was done just now."""
        if making := self._renewed(min(MISSED_SECONDS, self._fresh_seconds)):
            making.wait(self._patience_seconds)

    def _renewed(self, seconds: float) -> "_Making | None":
        """The list on its way, if there is none that is younger than that."""
        with self._lock:
            age = time.monotonic() - self._made_at
            rest = min(REST * self._took, LONGEST_REST_SECONDS)
            if self._running is None and age >= max(seconds, rest):
                self._running = _Making(self._make)
            return self._running

    def _make(self) -> None:
        started = time.monotonic()
        try:
            self._entries = {entry.id: entry for entry in _listed(self._finder)}
        except StoreError as error:
            logger.warning("the list of models stays as it is: %s", error)
        finally:
            with self._lock:
                self._made_at = time.monotonic()
                self._took, self._running = self._made_at - started, None


class _Making:
    """One list on its way; who comes late waits for less of it."""

    def __init__(self, make: Callable[[], None]) -> None:
        self._started_at = time.monotonic()
        self._thread = threading.Thread(target=make, name="catalog", daemon=True)
        self._thread.start()

    def wait(self, patience_seconds: float | None) -> None:
        """Wait for the list, but no longer than so long after its start."""
        if patience_seconds is None:
            self._thread.join()
        else:
            ends_at = self._started_at + patience_seconds
            self._thread.join(max(0.0, ends_at - time.monotonic()))


def open_catalog(settings: ServerSettings) -> Catalog:
    """The catalog of a server; without a store there is the default model's folder alone."""
    if not (settings.store or settings.by_hand or settings.model):
        raise ConfigError("there is no model to serve; give --model FOLDER, or --store URL")
    return Catalog(
        settings.model,
        store=ArtifactStore(settings.store) if settings.store else None,
        by_hand=settings.by_hand,
        tokenizer=settings.tokenizer,
    )


def _listed(finder: ModelFinder) -> list[CatalogEntry]:
    stored: dict[tuple[str, str], CatalogEntry] = {}
    for station in CHAT_STATIONS:
        for manifest in newest_manifests(finder.store, station, MAX_LISTED):
            stored[station, manifest.fingerprint] = _of_manifest(manifest)
    entries = [*stored.values(), *_by_hand(finder.by_hand)]
    entries.sort(key=lambda entry: entry.created, reverse=True)
    return [*_aliases(finder.store, stored), *entries]


def _aliases(
    store: ArtifactStore, stored: Mapping[tuple[str, str], CatalogEntry]
) -> Iterator[CatalogEntry]:
    for name, ref in store.aliases().items():
        if ref.station not in CHAT_STATIONS:
            continue
        entry = stored.get((ref.station, ref.fingerprint))
        try:
            entry = entry or _of_manifest(store.manifest(ref))
        except (ArtifactNotFoundError, DamagedFileError) as error:
            logger.warning("the alias %s is left out: %s", name, error)
        else:
            yield replace(entry, id=name, is_alias=True)


def _of_manifest(manifest: Manifest) -> CatalogEntry:
    name = f"{manifest.station}/{manifest.fingerprint[:_FINGERPRINT_LETTERS]}"
    return CatalogEntry(
        id=name,
        created=_seconds(manifest.created),
        station=manifest.station,
        target=name,
        is_chat=manifest.station != BASE_STATION,
        key=_ref_key(manifest.ref),
    )


def _by_hand(folder: Path | None) -> Iterator[CatalogEntry]:
    for kind in CHAT_STATIONS if folder is not None else ():
        assert folder is not None, "the loop is empty without it"
        for made in list_by_hand(folder, kind):
            found = FoundModel(kind, made.folder, made.tokenizer)
            name = f"{kind}/{made.folder.parent.name}"
            yield CatalogEntry(
                id=name,
                created=_seconds(made.created),
                station=kind,
                target=name,
                is_chat=kind != BASE_STATION,
                key=_folder_key(found),
                folders=found,
            )


def _seconds(created: str) -> int:
    return int(datetime.fromisoformat(created).timestamp())


def _ref_key(ref: ArtifactRef) -> str:
    return f"{ref.station}/{ref.fingerprint}/{ref.manifest}"


def _folder_key(found: FoundModel) -> str:
    return f"{found.model.absolute()} {found.tokenizer.absolute()}"


def _is_same(entry: CatalogEntry, found: FoundModel) -> bool:
    key = _folder_key(found) if found.ref is None else _ref_key(found.ref)
    return not entry.is_alias and entry.key == key


def _is_meant(name: str, entry: CatalogEntry) -> bool:
    """Whether a name is a longer or shorter way to write that of a model of the store."""
    return entry.folders is None and entry.key.startswith(name)
