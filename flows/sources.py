"""What `--source` means: documentation, own text, published shards, or a mixture of them.

docs                            the documentation of what is installed
book.txt, folder, 'x/*.md'      own text; a URL, too
hf://datasets/OWNER/NAME        published shards on the hub
shards:s3://bucket/climbmix     the same in any folder or at any URL
text:hf://datasets/OWNER/NAME   its files as own text
PLACE@30                        any of them with its share of a mixture
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import Literal

from flows.presets import Source
from nanochat_core.data.recipes import (
    FilesSource,
    HarvestSource,
    HubSource,
    MixturePart,
    MixtureSource,
)
from nanochat_core.data.remote_bytes import is_local
from nanochat_core.errors import ConfigError

DOCS = "docs"
HUB, SHARDS, TEXT = "hf://", "shards:", "text:"
_WEIGHTED = re.compile(r"(?P<place>.+)@(?P<weight>\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Asked:
    """One `--source`: what kind of text it is, where it is, and its share where one was given."""

    kind: Literal["docs", "text", "hub"]
    place: str
    weight: float | None = None

    @property
    def is_remote(self) -> bool:
        """Whether it is read over the network."""
        return self.kind != "docs" and not is_local(self.place)


def without_weight(given: str) -> str:
    """A `--source` without the share at its end."""
    found = _WEIGHTED.fullmatch(given)
    return found["place"] if found else given


def parse_sources(given: Sequence[str]) -> tuple[Asked, ...]:
    """What every `--source` means; ConfigError where shares are missing or mean nothing."""
    asked = tuple(map(_parsed, given))
    without = [text for text, one in zip(given, asked, strict=True) if one.weight is None]
    if len(without) == len(asked):
        if len(asked) > 1 and {one.kind for one in asked} != {"text"}:
            example = " ".join(f"--source {text}@{100 // len(given)}" for text in given)
            raise ConfigError(
                f"--source {' and '.join(given)} are of different kinds; give each its share of "
                f"the text, as in {example}"
            )
    elif without:
        raise ConfigError(
            f"--source {without[0]} has no share, and others have; give each one, as in "
            f"{without[0]}@50"
        )
    elif len(asked) == 1:
        raise ConfigError(
            f"--source {given[0]} has a share and nothing to share with; leave out "
            f"@{asked[0].weight:g}, or give another --source with a share"
        )
    return asked


def _parsed(given: str) -> Asked:
    place, weight = without_weight(given), None
    if place != given:
        weight = float(given.rpartition("@")[2])
        if not weight:
            raise ConfigError(f"--source {given} has a share of 0; leave this source out")
    if place == DOCS:
        return Asked("docs", DOCS, weight)
    if place.startswith((HUB, SHARDS)):
        return Asked("hub", place.removeprefix(SHARDS), weight)
    return Asked("text", place.removeprefix(TEXT), weight)


def is_mixture(asked: Sequence[Asked]) -> bool:
    """Whether the sources have shares of one text."""
    return any(one.weight is not None for one in asked)


def draft(asked: Sequence[Asked], harvest: HarvestSource) -> Source:
    """The source as far as it is known before anything was read: without its files."""
    if not is_mixture(asked):
        return _draft_of(asked[0], harvest) if asked else harvest
    parts = tuple(
        MixturePart(name=name, source=_draft_of(one, harvest), weight=one.weight or 1.0)
        for name, one in zip(_names(asked), asked, strict=True)
    )
    return MixtureSource(parts=parts)


def _draft_of(asked: Asked, harvest: HarvestSource) -> HarvestSource | FilesSource | HubSource:
    if asked.kind == "docs":
        return harvest
    return HubSource(files=()) if asked.kind == "hub" else FilesSource(files=())


def _names(asked: Sequence[Asked]) -> list[str]:
    """The last part of every path; where two agree, with a number."""
    names: list[str] = []
    for one in asked:
        name = PurePosixPath(one.place.rstrip("/")).name or one.place
        numbered = (f"{name}-{number}" for number in count(2))
        names.append(next(n for n in chain([name], numbered) if n not in names))
    return names


def addresses(asked: Sequence[Asked], mirrors: Sequence[str], *, offline: bool) -> tuple[str, ...]:
    """What the station reads: the places of the sources in order, then mirrors of their shards.

    Offline those on the network are left out; in a mixture they are empty, since places count.
    """
    places = ["" if offline and one.is_remote else one.place for one in asked]
    if not is_mixture(asked):
        places = [place for place in places if place or not offline]
    has_shards = any(one.kind == "hub" for one in asked)
    if mirrors and not has_shards:
        raise ConfigError(
            f"the mirror {mirrors[0]} has no published shards to stand in for; name a set with "
            f"--source {HUB}datasets/OWNER/NAME or --source {SHARDS}FOLDER"
        )
    if has_shards:
        places += [mirror for mirror in mirrors if not offline or is_local(mirror)]
    is_docs = [one.kind for one in asked] == ["docs"]
    return () if is_docs else tuple(places)


def notes_on(asked: Sequence[Asked]) -> tuple[str, ...]:
    """What may well be meant, but should be said."""
    if any(one.kind == "docs" for one in asked) and Path(DOCS).is_dir():
        return (f"--source {DOCS} is the documentation of what is installed, not ./{DOCS}",)
    return ()
