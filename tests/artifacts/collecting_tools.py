"""Collecting as the tests do it, and what has to hold after it."""

from nanochat_core.artifacts.ancestry import Ancestry
from nanochat_core.artifacts.collecting import Collection, Keeping, plan_collection
from nanochat_core.artifacts.records import Manifests
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.sweeping import sweep

NOTHING_BUT_ALIASES = Keeping(runs=0, young_seconds=0)


def collect(store: ArtifactStore, keeping: Keeping = NOTHING_BUT_ALIASES) -> Collection:
    """Plan and sweep; what had to stay is a failure."""
    collection = plan_collection(store, keeping)
    stayed: list[str] = []
    sweep(store, collection, lambda removal, why: stayed.append(why) if why else None)
    assert stayed == []
    return collection


def kinds(collection: Collection) -> list[str]:
    return sorted(removal.kind for removal in collection.removals)


def assert_whole(store: ArtifactStore) -> None:
    """Sound, every alias with its whole lineage."""
    assert store.verify() == []
    ancestry = Ancestry(Manifests(store.files))
    ancestry.closure(store.aliases().values())
    assert ancestry.missing == []
