"""What `nanochat artifacts gc` says and does."""

from collections.abc import Iterator

from flows.looking import table
from flows.wording import size
from nanochat_core.artifacts.collecting import (
    DAY_SECONDS,
    Collection,
    Keeping,
    Removal,
    plan_collection,
)
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.sweeping import sweep, sweep_uploads
from nanochat_core.artifacts.unfinished import being_made


class Cleaning:
    """One collection of one store, to be told of or to be done."""

    def __init__(
        self,
        store: ArtifactStore,
        keep_runs: int,
        older_than_days: float,
        keep: tuple[str, ...],
        while_busy: bool = False,
    ) -> None:
        self.store = store
        keeping = Keeping(keep_runs, older_than_days * DAY_SECONDS, keep)
        busy = [] if while_busy else being_made(store)
        self.collection: Collection = plan_collection(store, keeping, busy=busy)

    def told(self) -> Iterator[str]:
        """What would be removed; nothing is."""
        yield from self._lines()
        if self.collection.removals:
            yield f"nothing was removed; without --dry-run it would be {self._sum()}"
        else:
            yield f"there is nothing to remove; {self._kept()}"

    def done(self) -> Iterator[str]:
        """The same, removed; a line for what had to stay."""
        yield from self._lines()
        stayed: list[str] = []

        def told(removal: Removal, reason: str) -> None:
            if reason:
                stayed.append(f"{removal.name} stays: {reason}")

        freed = sweep(self.store, self.collection, told)
        yield from stayed
        num = len(self.collection.removals) - len(stayed)
        if self.collection.removals:
            yield f"removed {num} of {len(self.collection.removals)}, {size(freed)}; {self._kept()}"
        else:
            yield f"there is nothing to remove; {self._kept()}"
        if aborted := sweep_uploads(self.store):
            yield f"gave up {aborted} uploads that were cut off more than a day ago"

    def _lines(self) -> Iterator[str]:
        yield from (f"note: {note}" for note in self.collection.notes)
        removals = self.collection.removals
        if not removals:
            return
        rows = [("what", "name", "size", "why")]
        rows += [(one.kind, one.name, size(one.bytes), one.reason) for one in removals]
        yield from table(rows, right_aligned=(2,))

    def _sum(self) -> str:
        num = len(self.collection.removals)
        things = f"{num} thing{'' if num == 1 else 's'}, {size(self.collection.bytes)}"
        return f"{things}; {self._kept()}"

    def _kept(self) -> str:
        num = self.collection.num_kept
        return f"{num} artifact{'' if num == 1 else 's'} kept for good reason"
