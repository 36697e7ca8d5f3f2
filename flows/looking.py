"""Reading the artifact store for people: lists, damages, and the folders of a model."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.counted import counted
from flows.overrides import one_of
from flows.presets import STATIONS
from flows.wording import duration, key_numbers, size
from nanochat_core.artifacts.listing import listed
from nanochat_core.artifacts.location import default_store_url
from nanochat_core.artifacts.newest import newest_manifests
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import (
    EXPORT_STATION,
    RESERVED_NAMES,
    SCORE_STATION,
    SHARD_STATION,
    SWEEP_STATION,
    Manifest,
)
from nanochat_core.errors import ArtifactNotFoundError
from nanochat_core.inference.finding import ModelFinder
from tasks.kernel_cache import STATION as KERNELS
from tasks.listening import describe_metrics

LATEST = "latest"
BESIDE_THE_LINE = (KERNELS, SHARD_STATION, SCORE_STATION, SWEEP_STATION, EXPORT_STATION)
"""What stations keep for others (compiled kernels, published shards, scores of single tasks), and
what is made of their artifacts.
"""


def open_store(url: str, environ: Mapping[str, str]) -> ArtifactStore:
    """The store of a URL, or of the environment's choice for "default"."""
    return ArtifactStore(default_store_url(environ) if url == "default" else url)


def resolve_model(
    store: ArtifactStore, name: str, by_hand: Path | None = None
) -> tuple[Path, Path]:
    """Folders of a model and of its tokenizer, by any name that it has (see `ModelFinder`)."""
    try:
        found = ModelFinder(store, by_hand).find(name)
    except ArtifactNotFoundError:
        if name != LATEST:
            raise
        raise ArtifactNotFoundError(
            f"there is no model to chat with in {store.url} yet; make one with: nanochat run demo"
        ) from None
    return found.model, found.tokenizer


def artifact_lines(store: ArtifactStore, station: str = "", limit: int = 0) -> list[str]:
    """A table with one line an artifact, the newest `limit` (0: all), the newest last.

    UnknownNameError for a station that there is not.
    """
    if station:
        one_of("station", station, (*STATIONS, *BESIDE_THE_LINE))
    names: dict[str, list[str]] = {}
    for alias, ref in store.aliases().items():
        names.setdefault(ref.short, []).append(alias)
    rows = [("artifact", "size", "made (UTC)", "names", "key numbers")]
    # One more than is shown tells whether there are more.
    found = newest_manifests(store, station, limit + 1 if limit else 0)
    for manifest in found[-limit:]:
        ref = manifest.ref
        aliases = ", ".join(names.get(ref.short, []))
        made = manifest.created[:16].replace("T", " ")
        numbers = key_numbers(ref.station, manifest.metrics)
        rows.append((ref.short, size(manifest.bytes), made, aliases, numbers))
    if len(rows) == 1:
        what = f"artifact of {station}" if station else "artifact"
        return [f"{store.url} holds no {what} yet; make one with: nanochat run demo"]
    lines = table(rows, right_aligned=(1,))
    if limit and len(found) > limit:
        lines.append(f"the newest {limit} are listed; all of them: --limit 0")
    return lines


def alias_lines(store: ArtifactStore) -> list[str]:
    """A table of all aliases; damaged ones are said in the log."""
    aliases = store.aliases()
    if not aliases:
        return [f"{store.url} has no alias yet; set one with: nanochat artifacts alias NAME REF"]
    rows = [("alias", "artifact")]
    rows += [(name, f"{ref.station}/{ref.fingerprint[:16]}") for name, ref in aliases.items()]
    return table(rows)


def table(rows: Sequence[Sequence[str]], right_aligned: Sequence[int] = ()) -> list[str]:
    """Rows as lines, each column as wide as its widest cell."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if i in right_aligned else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def artifact_page(manifest: Manifest) -> str:
    """One artifact for people: what it is, from what, its numbers, recipe and files."""
    facts = [
        ("artifact", f"{manifest.station}/{manifest.fingerprint}"),
        ("digest", manifest.digest),
        ("made", f"{manifest.created}, manifest {manifest.number}"),
    ]
    if "seconds" in manifest.provenance:
        facts.append(("took", duration(float(manifest.provenance["seconds"]))))
    facts += [(f"from {name}", ref.short) for name, ref in sorted(manifest.input_refs.items())]
    numbers = [
        (name, describe_metrics({"": value}).strip()) for name, value in manifest.metrics.items()
    ]
    recipe = [(name, json.dumps(value)) for name, value in flat(manifest.recipe)]
    files = [(file.path, size(file.bytes), file.role) for file in manifest.files]
    parts = [table(facts)]
    for title, rows, right in (
        ("numbers", numbers, ()),
        ("recipe", recipe, ()),
        ("files", files, (1,)),
    ):
        if rows:
            parts.append([f"{title}:", *(f"  {line}" for line in table(rows, right))])
    return "\n\n".join("\n".join(part) for part in parts)


def flat(values: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    """Nested fields by their dotted names, as --set takes them; lists of objects by place."""
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        place = f"{before}{name}"
        if isinstance(value, Mapping) and value:
            found += flat(value, f"{place}.")
        elif isinstance(value, Sequence) and value and isinstance(value[0], Mapping):
            found += flat({str(i): member for i, member in enumerate(value)}, f"{place}.")
        else:
            found.append((place, value))
    return found


def verify_lines(store: ArtifactStore, name: str = "") -> tuple[list[str], int]:
    """One line for every damaged file, of one artifact or of the whole store, and how many matter.

    Those that were made anew since then do not.
    """
    if name:
        damages = store.verify(store.resolve(name))
    else:
        total = sum(file.bytes for file in listed(store.files, "", but=RESERVED_NAMES))
        with counted("verified", total) as verified:
            damages = store.verify(verified=verified)
    lines = [
        f"{damage.path}: {damage.reason}{'; made anew since' if damage.repaired else ''}"
        for damage in damages
    ]
    return lines, sum(not damage.repaired for damage in damages)
