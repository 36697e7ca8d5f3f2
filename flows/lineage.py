"""From an artifact back to the shards it was made of, and to where their text came from."""

from collections.abc import Mapping, Sequence
from typing import Any

from flows.presets import STATIONS
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import ArtifactRef, Manifest
from nanochat_core.errors import ArtifactNotFoundError, DamagedFileError
from nanochat_core.report.begun import began_with

_INDENT = "  "
_SHOWN = 3


def lineage_lines(store: ArtifactStore, manifest: Manifest) -> list[str]:
    """A tree from an artifact to its inputs, back to the text; each artifact stands there once.

    What is made of several names them all on its own line: those that are not below it are above.
    """
    lines: list[str] = []
    _add(store, manifest, "", {_key(manifest.ref)}, lines)
    return lines


def _add(
    store: ArtifactStore, manifest: Manifest, indent: str, seen: set[str], lines: list[str]
) -> None:
    refs = _latest_first(manifest.input_refs)
    lines.append(f"{indent}{_line(manifest, refs)}")
    inner = indent + _INDENT
    lines += [f"{inner}{line}" for line in source_lines(manifest.recipe)]
    lines += [f"{inner}{begun}"] if (begun := began_with(manifest)) else []
    for name, ref in refs.items():
        if _key(ref) in seen:
            continue
        seen.add(_key(ref))
        try:
            found = store.manifest(ref)
        except (ArtifactNotFoundError, DamagedFileError):
            lines.append(f"{inner}{ref.short}, as {name}: not in this store, or damaged")
            continue
        _add(store, found, inner, seen, lines)


def _key(ref: ArtifactRef) -> str:
    return f"{ref.station}/{ref.fingerprint}/{ref.manifest}"


def _latest_first(refs: Mapping[str, ArtifactRef]) -> dict[str, ArtifactRef]:
    """Inputs from the end of the line to its start: so the tree goes down the line, once."""

    def place(name: str) -> tuple[int, str]:
        return (-STATIONS.index(name) if name in STATIONS else 1, name)

    return {name: refs[name] for name in sorted(refs, key=place)}


def _line(manifest: Manifest, refs: Mapping[str, ArtifactRef]) -> str:
    made = manifest.created[:16].replace("T", " ")
    number = "" if manifest.number == 1 else f", manifest {manifest.number}"
    made_of = f", of {', '.join(refs)}" if refs else ""
    return f"{manifest.ref.short}  {made}{number}{made_of}"


def source_lines(recipe: Mapping[str, Any]) -> list[str]:
    """Where text or benchmarks came from, as far as a recipe says; none of other recipes."""
    source = recipe.get("source", recipe)
    if not isinstance(source, Mapping):
        return []
    if source.get("kind") == "harvest":
        versions = [f"{name} {version}" for name, version in source["versions"].items()]
        packages = f", {_first(versions, 'packages')}" if versions else ""
        return [f"text: documentation of Python {source['python']}{packages}"]
    files = source.get("files")
    if not files or not isinstance(files, Sequence):
        return []
    names = [f"{file['name']} (sha256 {file['sha256'][:12]}…)" for file in files]
    return [f"files: {_first(names, 'files')}"]


def _first(names: Sequence[str], what: str) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more:,} more {what}" if more > 0 else "")
