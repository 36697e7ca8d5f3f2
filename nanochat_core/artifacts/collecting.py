"""What nobody needs any more: found here, removed by `sweeping`.

Kept are the artifacts that aliases, the newest runs, given names and unfinished work refer to,
those that are young, all that any of them was made from, and the scores of these. While a damaged
record may have named something, that stays, too.
"""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from nanochat_core.artifacts.ancestry import Ancestry, Place
from nanochat_core.artifacts.leftovers import attempts_in, is_attempt, is_temporary
from nanochat_core.artifacts.listing import Listed, listed
from nanochat_core.artifacts.newest import newest_runs
from nanochat_core.artifacts.records import (
    Aliases,
    Manifests,
    Runs,
    is_fingerprint,
    is_station,
    manifest_number,
)
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import SCORE_STATION, ArtifactRef, Manifest
from nanochat_core.artifacts.unfinished import Unfinished, local_folder, unfinished_work

log = logging.getLogger(__name__)

DAY_SECONDS = 24 * 3600
LEFT_SECONDS = DAY_SECONDS
"""What no manifest names may be on its way into the store for this long."""

Kind = Literal["artifact", "manifest", "leftover", "in progress", "local copy"]


@dataclass(frozen=True)
class Keeping:
    """What is kept besides what aliases name."""

    runs: int = 10
    young_seconds: float = 7 * DAY_SECONDS
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Removal:
    """One thing to remove: first its manifests, then the paths, both relative to the store.

    `place` is the artifact whose locks it takes; `numbers` are all manifests that were there when
    it was found. `folder` lies on this host instead of in the store.
    """

    kind: Kind
    name: str
    bytes: int
    reason: str
    place: Place
    numbers: tuple[int, ...] = ()
    manifests: tuple[int, ...] = ()
    paths: tuple[str, ...] = ()
    folder: Path | None = None
    modified: float = 0.0
    """Of unfinished work, when it was worked on last."""


@dataclass(frozen=True)
class Collection:
    """What is to be removed, in this order, and what its finding rests on."""

    removals: tuple[Removal, ...]
    num_kept: int
    roots: "Roots"
    notes: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Size of what is to be removed."""
        return sum(removal.bytes for removal in self.removals)


@dataclass(frozen=True)
class Roots:
    """What names artifacts from outside and may do so while a collection is under way."""

    aliases: dict[str, ArtifactRef]
    runs: tuple[str, ...]
    """Ids of all runs that have ended."""

    @classmethod
    def of(cls, store: ArtifactStore) -> "Roots":
        """Raises DamagedFileError for a damaged alias: it may have named anything."""
        aliases = Aliases(store.files)
        found = {name: aliases.read(name) for name in aliases.names()}
        named = {name: ref for name, ref in found.items() if ref is not None}
        return cls(named, Runs(store.files).names())


@dataclass
class Folder:
    """What lies in the folder of one artifact."""

    place: Place
    entries: dict[str, list[Listed]] = field(default_factory=dict)
    """First name below the folder -> every file there."""
    manifests: dict[int, Manifest] = field(default_factory=dict)
    """The undamaged ones."""

    @property
    def short(self) -> str:
        """As in `ArtifactRef`."""
        return f"{self.place[0]}/{self.place[1][:8]}"

    @property
    def names(self) -> dict[int, str]:
        """Number -> file name of every manifest, damaged ones too."""
        numbers = {manifest_number(name): name for name in self.entries}
        return {number: name for number, name in numbers.items() if number is not None}

    def bytes_of(self, names: Iterable[str]) -> int:
        """Size of some entries."""
        return sum(file.bytes for name in names for file in self.entries.get(name, ()))

    def modified(self, name: str) -> float:
        """When an entry changed last."""
        return max((file.modified for file in self.entries.get(name, ())), default=0.0)

    def made(self, number: int) -> float:
        """When a manifest was made, or came here from another store."""
        written = self.modified(self.names[number])
        manifest = self.manifests.get(number)
        if manifest is None:
            return written
        return max(written, datetime.fromisoformat(manifest.created).timestamp())


def plan_collection(
    store: ArtifactStore, keeping: Keeping, *, busy: Iterable[str] = ()
) -> Collection:
    """What `sweeping.sweep` would remove; nothing is changed.

    While something is being made (`busy` names it), whole artifacts stay: what a run has found and
    not yet used is written nowhere. Raises DamagedFileError for a damaged alias, and
    ArtifactNotFoundError for a name to keep that names nothing.
    """
    return _Collector(store, keeping, tuple(busy)).plan()


class _Collector:
    """One look at a store."""

    def __init__(self, store: ArtifactStore, keeping: Keeping, busy: tuple[str, ...]) -> None:
        self.store, self.keeping, self.busy = store, keeping, busy
        self.now = time.time()
        self.ancestry = Ancestry(Manifests(store.files))
        self.roots = Roots.of(store)
        self.notes = [f"{words}: whole artifacts stay until it is finished" for words in busy]

    def plan(self) -> Collection:
        """See `plan_collection`."""
        # Unfinished work is looked for first: what is finished meanwhile is found as an artifact.
        works = unfinished_work(self.store)
        kept_works = [work for work in works if not self._is_left(work.modified, self._patience)]
        folders = list(self._folders())
        roots = [*self._named(kept_works), *(m.ref for f in folders for m in self._young(f))]
        kept = {manifest.ref for manifest in self.ancestry.closure(roots)}
        kept |= set(_about(folders, kept))
        self._say_missing()
        spoken_of = {_place(ref) for ref in (*roots, *kept, *self.ancestry.missing)}
        removals = [one for folder in folders for one in self._of(folder, kept, spoken_of)]
        removals += [self._work(work) for work in works if work not in kept_works]
        removals += self._copies({place for work in kept_works for place in work.inputs})
        return Collection(
            removals=tuple(removals),
            num_kept=len({_place(ref) for ref in kept}),
            roots=self.roots,
            notes=tuple(self.notes),
        )

    @property
    def _patience(self) -> float:
        """How long unfinished work is kept: it is dearer than what a killed upload left."""
        return max(LEFT_SECONDS, self.keeping.young_seconds)

    def _is_left(self, modified: float, seconds: float = LEFT_SECONDS) -> bool:
        return self.now - modified > seconds

    def _folders(self) -> Iterator[Folder]:
        """The newest artifacts first, so that what others were made from comes after them."""
        folders: dict[Place, Folder] = {}
        for station in filter(is_station, self.store.files.names("")):
            for file in listed(self.store.files, station):
                fingerprint, _, path = file.path.partition("/")
                if is_fingerprint(fingerprint) and path:
                    place = (station, fingerprint)
                    folder = folders.setdefault(place, Folder(place))
                    folder.entries.setdefault(path.split("/")[0], []).append(file)
        for folder in folders.values():
            found = self.ancestry.valid(folder.place) if folder.names else []
            folder.manifests = {manifest.number: manifest for manifest in found}
        yield from _descendants_first(folders)

    def _named(self, works: Iterable[Unfinished]) -> list[ArtifactRef]:
        """What aliases, runs, given names and unfinished work refer to."""
        named = [*self.roots.aliases.values(), *map(self.store.resolve, self.keeping.names)]
        named += _refs_of(newest_runs(self.store, self.keeping.runs))
        for work in works:
            for station, fingerprint, attempt in work.inputs:
                valid = self.ancestry.valid((station, fingerprint))
                named += [manifest.ref for manifest in valid if manifest.attempt == attempt]
        return named

    def _young(self, folder: Folder) -> list[Manifest]:
        return [
            manifest
            for number, manifest in folder.manifests.items()
            if number in folder.names and not self._is_old(folder, number)
        ]

    def _is_old(self, folder: Folder, number: int) -> bool:
        return self.now - folder.made(number) > self.keeping.young_seconds

    def _say_missing(self) -> None:
        for ref in dict.fromkeys(self.ancestry.missing):
            self.notes.append(f"{ref.short} is named by something that is kept, but is not there")

    def _of(
        self, folder: Folder, kept: set[ArtifactRef], spoken_of: set[Place]
    ) -> Iterator[Removal]:
        """What can go in the folder of one artifact."""
        names = folder.names
        doomed = [] if self.busy else list(self._doomed(folder, kept, spoken_of))
        if doomed and len(doomed) == len(names):
            yield self._artifact(folder)
            return
        for number, reason in doomed:
            yield self._manifest(folder, number, reason)
        yield from self._leftovers(folder, {number for number, _ in doomed})

    def _doomed(
        self, folder: Folder, kept: set[ArtifactRef], spoken_of: set[Place]
    ) -> Iterator[tuple[int, str]]:
        for number in folder.names:
            manifest = folder.manifests.get(number)
            if manifest is not None and manifest.ref in kept:
                continue
            if manifest is not None:
                # It is not kept, so it is old.
                yield number, "nothing that is kept needs it"
            elif number < max(folder.manifests, default=0):
                yield number, "damaged, and made anew since"
            elif folder.place not in spoken_of and self._is_old(folder, number):
                yield number, "damaged, and nothing that is kept needs it"

    def _artifact(self, folder: Folder) -> Removal:
        dated = [datetime.fromisoformat(m.created) for m in folder.manifests.values()]
        made = f"made {max(dated):%Y-%m-%d}, " if dated else "damaged, "
        left = [removal.paths for removal in self._leftovers(folder, set(folder.names))]
        attempts = attempts_in(folder.manifests.values())
        names = sorted({*attempts, *(path.rsplit("/", 1)[-1] for (path,) in left)})
        return Removal(
            kind="artifact",
            name=folder.short,
            bytes=folder.bytes_of([*folder.names.values(), *names]),
            reason=f"{made}nothing that is kept needs it",
            place=folder.place,
            numbers=tuple(sorted(folder.names)),
            manifests=tuple(sorted(folder.names)),
            paths=tuple(f"{'/'.join(folder.place)}/{name}" for name in names),
        )

    def _manifest(self, folder: Folder, number: int, reason: str) -> Removal:
        manifest = folder.manifests.get(number)
        attempt = [] if manifest is None else [manifest.attempt]
        return Removal(
            kind="manifest",
            name=f"{folder.short} manifest {number}",
            bytes=folder.bytes_of([folder.names[number], *attempt]),
            reason=reason,
            place=folder.place,
            numbers=tuple(sorted(folder.names)),
            manifests=(number,),
            paths=tuple(f"{'/'.join(folder.place)}/{name}" for name in attempt),
        )

    def _leftovers(self, folder: Folder, doomed: set[int]) -> Iterator[Removal]:
        """Attempts that no manifest names; none while a damaged one that stays may do so."""
        if folder.names.keys() - folder.manifests.keys() - doomed:
            return
        named = attempts_in(folder.manifests.values())
        for name in folder.entries:
            is_ours = is_temporary(name) or (is_attempt(name) and name not in named)
            if is_ours and self._is_left(folder.modified(name)):
                yield Removal(
                    kind="leftover",
                    name=f"{folder.short} {name[:15]}",
                    bytes=folder.bytes_of([name]),
                    reason="no manifest names it, and it is older than a day",
                    place=folder.place,
                    numbers=tuple(sorted(folder.names.keys() - doomed)),
                    paths=(f"{'/'.join(folder.place)}/{name}",),
                )

    def _work(self, work: Unfinished) -> Removal:
        days = (self.now - work.modified) / DAY_SECONDS
        return Removal(
            kind="in progress",
            name=f"{work.place[0]}/{work.place[1][:8]} {work.path.rsplit('/', 1)[-1]}",
            bytes=work.bytes,
            reason=f"interrupted, and untouched for {days:.0f} days",
            place=work.place,
            paths=() if work.folder else (work.path,),
            folder=work.folder,
            modified=work.modified,
        )

    def _copies(self, inputs: set[tuple[str, str, str]]) -> Iterator[Removal]:
        """Copies on this host of what lies in a store elsewhere, not used for long."""
        root = local_folder(self.store) / "copies"
        if not self.store.is_elsewhere or not root.exists():
            return
        for folder in sorted(root.glob("[!.]*/*/*")):
            station, fingerprint, attempt = folder.parts[-3:]
            used = folder.stat().st_mtime
            is_input = (station, fingerprint, attempt) in inputs
            if self._is_left(used, self._patience) and not is_input:
                yield Removal(
                    kind="local copy",
                    name=f"{station}/{fingerprint[:8]}",
                    bytes=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
                    reason=f"not used here for {(self.now - used) / DAY_SECONDS:.0f} days",
                    place=(station, fingerprint),
                    folder=folder,
                )


def _place(ref: ArtifactRef) -> Place:
    return ref.station, ref.fingerprint


def _refs_of(runs: Mapping[str, Mapping[str, Any]]) -> Iterator[ArtifactRef]:
    """Every artifact that the records of runs name."""
    for record in runs.values():
        stations = record.get("stations")
        for station in stations.values() if isinstance(stations, Mapping) else ():
            try:
                if isinstance(station, Mapping) and station.get("ref"):
                    yield ArtifactRef.model_validate(station["ref"])
            except ValidationError as error:
                log.warning("the run %s names something odd: %s", record.get("run"), error)


def _about(folders: Iterable[Folder], kept: set[ArtifactRef]) -> Iterator[ArtifactRef]:
    """Scores of what is kept: nothing is made from them, and so nothing else names them."""
    for folder in folders:
        for manifest in folder.manifests.values() if folder.place[0] == SCORE_STATION else ():
            if manifest.input_refs and kept.issuperset(manifest.input_refs.values()):
                yield manifest.ref


def _descendants_first(folders: Mapping[Place, Folder]) -> Iterator[Folder]:
    """So that at no moment an artifact is there without what it was made from."""
    inputs = {
        place: {_place(ref) for m in folder.manifests.values() for ref in m.input_refs.values()}
        for place, folder in folders.items()
    }
    num_users = dict.fromkeys(folders, 0)
    for used in inputs.values():
        for place in used & num_users.keys():
            num_users[place] += 1
    free = [place for place, num in num_users.items() if num == 0]
    while free:
        place = free.pop()
        yield folders[place]
        for used_place in inputs[place] & num_users.keys():
            num_users[used_place] -= 1
            if num_users[used_place] == 0:
                free.append(used_place)
