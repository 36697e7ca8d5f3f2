"""Text that cannot be read, or is too little for the steps: refused before a run starts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flows.checks import plan
from flows.forecast.amounts import (
    DISTRIBUTION_CHARACTERS,
    DOCUMENT_CHARACTERS,
    STANDARD_LIBRARY_CHARACTERS,
)
from flows.presets import Preset
from flows.source_files import UNSURE, characters_per_token
from flows.sources import Asked
from nanochat_core.data.distributions import DISTRIBUTIONS
from nanochat_core.data.recipes import FilesSource, HarvestSource, MixturePart, MixtureSource
from nanochat_core.data.sources import (
    check_first_documents,
    list_source,
    num_text_bytes,
    resolve_files_source,
)
from nanochat_core.data.text_amounts import Rows, TextAmount, measure_text
from nanochat_core.errors import DataError

MAX_TOKENS_PER_BYTE = 3.0
"""A token is a byte or more; beginnings of documents and unfilled rows cost more of them."""
USUAL_BYTES_PER_TOKEN = 3.5
MEASURED_BYTES = 4_000_000
"""Of text that is tokenized before a run starts: 1.1 MB took 0.3 s."""


def check_source(asked: Sequence[Asked], preset: Preset) -> None:
    """Refuse own text that cannot be read, or is no text."""
    for places, source in own_text(asked, preset):
        check_first_documents(
            list_source(places),
            text_column=source.text_column,
            max_characters=source.max_document_characters,
            min_characters=source.min_document_characters,
        )


def own_text(asked: Sequence[Asked], preset: Preset) -> list[tuple[list[str], FilesSource]]:
    """Where own text is, with what a recipe says of it; one entry for each part of a mixture."""
    source = preset.recipes.shards.source
    if isinstance(source, FilesSource):
        return [([one.place for one in asked], source)]
    if not isinstance(source, MixtureSource):
        return []
    return [
        ([one.place], part.source)
        for one, part in zip(asked, source.parts, strict=True)
        if isinstance(part.source, FilesSource)
    ]


def check_enough_text(asked: Sequence[Asked], preset: Preset) -> None:
    """Refuse own text that is too little for the steps.

    A small one is measured; of a larger one only tokens tell, so it has to be far too little.
    """
    source = preset.recipes.shards.source
    if isinstance(source, MixtureSource):
        _check_parts(asked, source, preset)
    if not isinstance(source, FilesSource):
        return
    places = [one.place for one in asked]
    num_bytes = num_text_bytes(list_source(places))
    if num_bytes is None:
        return
    if num_bytes <= MEASURED_BYTES:
        _check_rows(_measured(places, source, preset), num_bytes, preset)
        return
    planned = plan(preset)
    epochs = preset.recipes.pretrain.data.max_epochs
    if planned.total_tokens > MAX_TOKENS_PER_BYTE * num_bytes * epochs:
        wanted = planned.total_tokens / epochs * USUAL_BYTES_PER_TOKEN
        raise DataError(
            f"the source holds {num_bytes:,} bytes; training reads {planned.total_tokens:,} "
            f"tokens, and no text more than {epochs:g} times (pretrain.data.max_epochs). Give "
            f"{wanted / 1e6:.2g} MB of text or more, or fewer steps with --set "
            f"pretrain.num_iterations (now {planned.num_iterations:,})"
        )


@dataclass(frozen=True)
class _Amount:
    """How much text a part of a mixture has: the tokens that it makes at most, and in words."""

    most_tokens: float
    told: str
    remedy: str = ""


def _check_parts(asked: Sequence[Asked], mixture: MixtureSource, preset: Preset) -> None:
    """Refuse a mixture that one of its texts ends far too early: shares are kept to the end."""
    planned = plan(preset)
    epochs = preset.recipes.pretrain.data.max_epochs
    total = sum(part.weight for part in mixture.parts)
    for number, (one, part) in enumerate(zip(asked, mixture.parts, strict=True)):
        share = part.weight / total
        amount = _amount_of(one, part, planned.total_tokens / epochs * share, preset)
        if amount is None:
            continue
        mixed = amount.most_tokens * part.max_epochs / share
        if planned.total_tokens > mixed * epochs:
            raise DataError(
                f"training reads {planned.total_tokens:,} tokens, of which {part.name} is to be "
                f"{share:.0%}, and it holds {amount.told}; the mixture ends where it has no more. "
                f"{amount.remedy} a smaller share, or let it be read more often with --set "
                f"shards.source.parts.{number}.max_epochs=N (now {part.max_epochs:g})"
            )


def _amount_of(
    asked: Asked, part: MixturePart, wanted_tokens: float, preset: Preset
) -> _Amount | None:
    """Of own text by its size, of documentation about; None where that cannot be told yet."""
    if isinstance(part.source, HarvestSource):
        characters = _documentation(preset)
        tokens = characters / characters_per_token(preset.recipes.tokenizer.vocab_size)
        told = f"about {characters / 1e6:.2g} MB of text"
        return _Amount(UNSURE * tokens, told, "Give it")
    if not isinstance(part.source, FilesSource):
        return None
    num_bytes = num_text_bytes(list_source([asked.place]))
    if num_bytes is None:
        return None
    wanted = wanted_tokens * USUAL_BYTES_PER_TOKEN
    remedy = f"Give about {wanted / 1e6:.2g} MB of it,"
    return _Amount(MAX_TOKENS_PER_BYTE * num_bytes, f"{num_bytes:,} bytes", remedy)


def _documentation(preset: Preset) -> float:
    """Characters of prose in all that the harvest may read, about; nothing is opened for it."""
    found = STANDARD_LIBRARY_CHARACTERS + DISTRIBUTION_CHARACTERS * len(DISTRIBUTIONS)
    return min(found, preset.recipes.shards.max_documents * DOCUMENT_CHARACTERS or found)


def _measured(places: Sequence[str], source: FilesSource, preset: Preset) -> TextAmount:
    """What the text comes to; DataError where a station could not go on with it."""
    recipes = preset.recipes
    hashed = source.model_copy(update={"files": resolve_files_source(places).files})
    order = recipes.pretrain.data
    return measure_text(
        recipes.shards.model_copy(update={"source": hashed}),
        places,
        recipes.tokenizer,
        Rows(recipes.pretrain.sequence_len, order.packing, order.block_shards),
    )


def _check_rows(amount: TextAmount, num_bytes: int, preset: Preset) -> None:
    planned, order = plan(preset), preset.recipes.pretrain.data
    needed = planned.num_iterations * planned.rows_per_step
    allowed = math.floor(amount.train_rows * order.max_epochs)
    if needed <= allowed:
        return
    epochs = needed / amount.train_rows
    wanted = math.ceil(num_bytes * epochs / order.max_epochs / 1e4) / 100
    most = allowed // planned.rows_per_step
    remedy = f"set pretrain.num_iterations={most} or less" if most else "train with smaller steps"
    raise DataError(
        f"{planned.num_iterations:,} steps are about {epochs:.2g} epochs of this text: training "
        f"reads {planned.total_tokens:,} tokens, the source ({num_bytes:,} bytes) holds "
        f"{amount.train_tokens:,}, and no text is read more than {order.max_epochs:g} times "
        f"(pretrain.data.max_epochs). Give {wanted:g} MB of text or more, or {remedy}"
    )
