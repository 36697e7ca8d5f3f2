"""Aliases set and removed by hand."""

from nanochat_core.artifacts.records import Aliases
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.errors import ArtifactNotFoundError


def move_alias(store: ArtifactStore, name: str, text: str) -> str:
    """Let `name` stand for what `text` names; a line that says so."""
    ref = store.resolve(text)
    before = store.alias(name)
    if not store.set_alias(name, ref):
        return f"{name} names {ref.short} already"
    was = f", no longer {before.short}" if before else ""
    return f"{name} names {ref.short} from now on{was}"


def remove_alias(store: ArtifactStore, name: str) -> str:
    """Let `name`, damaged or not, stand for nothing; a line that says so."""
    aliases = Aliases(store.files)
    if name not in aliases.names():
        known = ", ".join(aliases.names()) or "none"
        raise ArtifactNotFoundError(f"{store.url} has no alias {name!r}; there are: {known}")
    aliases.remove(name)
    return f"{name} names nothing any more; what it named stays"
