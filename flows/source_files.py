"""The files of a run's source, by content: own text is hashed, published shards are listed.

Here it is decided how many shards a run needs, and refused what cannot be had.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from flows.forecast.amounts import CHARACTERS_PER_TOKEN
from flows.presets import Preset
from flows.sources import Asked
from nanochat_core.artifacts.store import ArtifactStore, only_read
from nanochat_core.artifacts.types import Manifest
from nanochat_core.data.hub import choose_shards, is_whole_set, list_shards
from nanochat_core.data.hub_shards import (
    USUAL_CHARACTERS,
    HubAccess,
    characters_of,
    num_shards_for,
    usual_characters,
)
from nanochat_core.data.recipes import (
    FileDigest,
    FilesSource,
    HubSource,
    MixtureSource,
    ShardsRecipe,
)
from nanochat_core.data.remote_bytes import is_local
from nanochat_core.data.sources import resolve_files_source
from nanochat_core.errors import ConfigError, DataError
from nanochat_core.training.dial import TrainingPlan

LISTING_ATTEMPTS = 4
"""Some seconds: a hub that cannot be reached is told before anything starts."""
UNSURE = 2.0
"""How far the estimate of a shard's text may be off before a set is called too small."""


@dataclass(frozen=True)
class Reading:
    """How the files of a source are found."""

    access: HubAccess
    store_url: str
    offline: bool = False
    """Ask the store instead of the network which shards there are."""
    num_shards: int | None = None
    """Train shards, where somebody has asked for a number; of a mixture those it is dealt to."""
    is_trained: bool = True
    """Whether the run goes on to pretraining."""
    hashed: bool = True
    """Whether own text is hashed; published shards are looked up in any case."""
    is_part: bool = False
    """Whether a set is one of a mixture, whose number of shards is another."""


def with_files(preset: Preset, asked: Sequence[Asked], plan: TrainingPlan, how: Reading) -> Preset:
    """The preset with the files of its source.

    Raises DataError or ConfigError for a set that cannot be listed, or holds too little text.
    """
    if how.offline:
        _refuse_remote_text(asked)
    recipe = preset.recipes.shards
    source = recipe.source
    wanted = Wanted.of(preset, plan)
    if isinstance(source, HubSource):
        found = _published(asked[0].place, source, wanted, how)
        # What else a recipe of shards says is about text that is cut into shards here.
        recipe = ShardsRecipe(source=found, num_shards=len(found.files) - 1)
    elif isinstance(source, MixtureSource):
        number = how.num_shards or _enough_to_deal_to(recipe, source, wanted)
        mixed = _mixed(asked, source, wanted, replace(how, num_shards=None, is_part=True))
        recipe = recipe.model_copy(update={"source": mixed, "num_shards": number})
    elif isinstance(source, FilesSource) and how.hashed:
        places = [one.place for one in asked]
        recipe = recipe.model_copy(update={"source": _hashed(places, source)})
    recipes = preset.recipes.model_copy(update={"shards": recipe})
    return preset.model_copy(update={"recipes": recipes})


def _refuse_remote_text(asked: Sequence[Asked]) -> None:
    for one in asked:
        if one.kind == "text" and one.is_remote:
            raise ConfigError(
                f"--source {one.place} is on the network, and the run is offline; give a copy on "
                "this machine, or leave out --offline"
            )


def _hashed(places: Sequence[str], source: FilesSource) -> FilesSource:
    return source.model_copy(update={"files": resolve_files_source(places).files})


def _enough_to_deal_to(recipe: ShardsRecipe, mixture: MixtureSource, wanted: "Wanted") -> int:
    """Shards of the usual size for what may come of published ones; of other text a few do."""
    if not any(isinstance(part.source, HubSource) for part in mixture.parts):
        return recipe.num_shards
    usual = num_shards_for(wanted.characters, USUAL_CHARACTERS, 1)
    if usual <= recipe.num_shards:
        return recipe.num_shards
    return num_shards_for(wanted.characters, USUAL_CHARACTERS, wanted.block_shards)


def _mixed(
    asked: Sequence[Asked], mixture: MixtureSource, wanted: "Wanted", how: Reading
) -> MixtureSource:
    total = sum(part.weight for part in mixture.parts)
    parts = []
    for one, part in zip(asked, mixture.parts, strict=True):
        source = part.source
        if isinstance(source, HubSource):
            share = wanted.part(part.weight / total, part.max_epochs)
            source = _published(one.place, source, share, how)
        elif isinstance(source, FilesSource) and how.hashed:
            source = _hashed([one.place], source)
        parts.append(part.model_copy(update={"source": source}))
    return mixture.model_copy(update={"parts": tuple(parts)})


@dataclass(frozen=True)
class Wanted:
    """How much text the plan needs of one source, and what else its messages say."""

    characters: float
    per_token: float
    block_shards: int
    max_epochs: float
    plan: TrainingPlan

    @classmethod
    def of(cls, preset: Preset, plan: TrainingPlan) -> "Wanted":
        """All that pretraining reads; no text more than `max_epochs` times."""
        order = preset.recipes.pretrain.data
        per_token = characters_per_token(plan.model.vocab_size)
        characters = plan.total_tokens * per_token / order.max_epochs
        if order.packing == "crop":
            characters *= CROPPING
        return cls(characters, per_token, order.block_shards, order.max_epochs, plan)

    def part(self, share: float, max_epochs: float) -> "Wanted":
        """The same of one source of a mixture, which is dealt to shards of its own anyway."""
        return Wanted(
            self.characters * share / max_epochs * PART_SPARE,
            self.per_token,
            1,
            self.max_epochs,
            self.plan,
        )


CROPPING = 1.4
"""So much more text is read when what does not fit into a row is cut off: RECIPE section 4."""
PART_SPARE = 1.15
"""Of a mixture, which ends where one of its parts does."""


def characters_per_token(vocab_size: int) -> float:
    """How much text a token stands for, between the sizes that were measured."""
    sizes = sorted(CHARACTERS_PER_TOKEN)
    at = min(max(vocab_size, sizes[0]), sizes[-1])
    low = max(size for size in sizes if size <= at)
    high = min(size for size in sizes if size >= at)
    if low == high:
        return CHARACTERS_PER_TOKEN[low]
    share = math.log(at / low) / math.log(high / low)
    return CHARACTERS_PER_TOKEN[low] * (1 - share) + CHARACTERS_PER_TOKEN[high] * share


def _published(address: str, source: HubSource, wanted: Wanted, how: Reading) -> HubSource:
    """The shards that the plan needs of a published set, or as many as were asked for."""
    count = how.num_shards
    if count is None:
        # Not by the last one, which often is a remainder.
        per_shard = usual_characters(address) or characters_of(_listed(address, 1, how)[:1])
        count = num_shards_for(wanted.characters, per_shard, wanted.block_shards)
        found = _listed(address, count, how)
        if len(found) <= count:
            if how.is_trained:
                _check_enough(address, len(found) - 1, per_shard, wanted)
            count = None
    else:
        found = _listed(address, count, how)
    return choose_shards(found, count).model_copy(update={"text_column": source.text_column})


def _check_enough(address: str, available: int, per_shard: float, wanted: Wanted) -> None:
    """Refuse a set that is far too small; how much text it has, only its tokens tell."""
    needed = num_shards_for(wanted.characters, per_shard, 1)
    if needed <= UNSURE * available:
        return
    steps = wanted.plan.num_iterations
    raise DataError(
        f"{address} has {available:,} train shards of some {per_shard / wanted.per_token:,.0f} "
        f"tokens; training reads {wanted.plan.total_tokens:,}, and no text more than "
        f"{wanted.max_epochs:g} times (pretrain.data.max_epochs), for which it takes about "
        f"{needed:,} shards. Name a larger set, or take about "
        f"{max(1, steps * available // needed):,} steps with --set pretrain.num_iterations (now "
        f"{steps:,})"
    )


def _listed(address: str, num_train: int, how: Reading) -> list[FileDigest]:
    """The first shards of a set, and its last one."""
    if how.offline and not is_local(address):
        known = known_shards(only_read(how.store_url), address)
        if num_train > len(known) - 1 and not is_whole_set([file.name for file in known]):
            fewer = f"shards.num_shards={len(known) - 1}"
            if how.is_part:
                fewer = "a smaller share or fewer steps (pretrain.num_iterations)"
            raise DataError(
                f"the run is offline and needs {num_train:,} train shards of {address}, of which "
                f"the store knows {len(known) - 1:,}; run once online, or set {fewer}"
            )
        return [*known[:-1][:num_train], known[-1]]
    policy = replace(how.access.policy, attempts=LISTING_ATTEMPTS)
    return list_shards(address, policy=policy, headers=how.access.headers, num_train=num_train)


def known_shards(store: ArtifactStore, address: str) -> list[FileDigest]:
    """The shards of a set that the store knows from earlier runs, in order, validation last."""
    best: tuple[FileDigest, ...] = ()
    for ref in store.list("shards"):
        for place, source in _published_in(store.manifest(ref)):
            if place.rstrip("/") == address.rstrip("/"):
                best = max(best, source.files, key=len)
    if not best:
        raise DataError(
            f"the run is offline, and the store has no shards of {address}; run once online, or "
            "name a folder that has them, as in --source shards:FOLDER"
        )
    return list(best)


def _published_in(made: Manifest) -> Iterator[tuple[str, HubSource]]:
    """Sets of published shards in an artifact, alone or in a mixture, and where they are from."""
    source = made.recipe.get("source", {})
    sources = [part["source"] for part in source.get("parts", ())] or [source]
    # A set that is alone has mirrors after its place.
    for place, one in zip(made.provenance.get("addresses", ()), sources, strict=False):
        if one.get("kind") == "hub":
            yield place, HubSource.model_validate(one)
