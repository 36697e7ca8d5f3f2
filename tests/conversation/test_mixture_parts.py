"""Parts of a mixture that are read from files: their order, their epochs, and their identity."""

import random
from typing import Any

import numpy as np
import pytest

from nanochat_core.conversation.identity import ModelFacts
from nanochat_core.conversation.mixture import build_mixture
from nanochat_core.conversation.pools import Drawn
from nanochat_core.conversation.recipes import Mixture, MixturePart
from nanochat_core.conversation.types import exchange
from nanochat_core.errors import ConfigError

SIZES = {"smoltalk": 40, "mmlu": 11, "gsm8k": 7, "me.jsonl": 5}
REFERENCE = Mixture(
    parts=(
        MixturePart(kind="smoltalk"),
        MixturePart(kind="mmlu", epochs=3),
        MixturePart(kind="gsm8k", epochs=4),
    ),
    seed=42,
)


def pool(part: MixturePart) -> Drawn:
    return Drawn([exchange(f"{part.label} {row}", "Yes.") for row in range(SIZES[part.label])])


def asked(mixture: Mixture, facts: ModelFacts) -> list[str]:
    built = build_mixture(mixture, facts, [], pool)
    return [conversation.messages[0].text for conversation in built.conversations]


def test_the_order_of_the_reference_mixture_is_that_of_the_recipe(facts: ModelFacts) -> None:
    pairs = []
    for name, epochs in (("smoltalk", 1), ("mmlu", 3), ("gsm8k", 4)):
        shuffled = np.random.default_rng(42).permutation(SIZES[name])
        pairs += [(name, row) for _ in range(epochs) for row in shuffled]
    random.Random(42).shuffle(pairs)
    assert asked(REFERENCE, facts) == [f"{name} {row}" for name, row in pairs]


@pytest.mark.parametrize(
    ("fields", "times"),
    [({}, 5), ({"epochs": 2.0}, 10), ({"epochs": 0.6}, 3), ({"epochs": 2.4}, 12),
     ({"conversations": 2}, 2), ({"conversations": 2, "epochs": 3}, 6), ({"conversations": 99}, 5)],
)  # fmt: skip
def test_a_file_is_used_as_often_as_there_are_epochs(
    facts: ModelFacts, fields: dict[str, Any], times: int
) -> None:
    own = MixturePart(kind="jsonl", file="me.jsonl", **fields)
    mixture = Mixture(parts=(MixturePart(kind="sums", conversations=3), own))
    built = build_mixture(mixture, facts, [], pool)
    assert built.counts == {"sums": 3, "me.jsonl": times}
    rows = [row for number, row in built.order if number == 1]
    least, most = (
        rows.count(row) for row in (min(rows, key=rows.count), max(rows, key=rows.count))
    )
    assert len(rows) == times
    assert most - least <= 1


def test_every_conversation_that_comes_up_is_read_once(facts: ModelFacts) -> None:
    built = build_mixture(REFERENCE, facts, [], pool)
    read = dict(built.read(built.order))
    assert list(read) == sorted(set(built.order))
    assert len(read) == 40 + 11 + 7
    assert len(built) == 40 + 33 + 28
    some = built.order[::9]
    assert dict(built.read(some)) == {place: read[place] for place in some}


def test_a_part_of_made_conversations_is_asked_for_as_it_always_was() -> None:
    part = MixturePart(kind="sums", conversations=5)
    assert part.model_dump(mode="json") == {"kind": "sums", "conversations": 5}
    assert MixturePart.model_validate(part.model_dump()) == part


@pytest.mark.parametrize(
    ("part", "values"),
    [
        (
            MixturePart(kind="mmlu", epochs=3),
            {"kind": "mmlu", "conversations": 0, "epochs": 3.0},
        ),
        (
            MixturePart(kind="jsonl", file="a.jsonl"),
            {"kind": "jsonl", "conversations": 0, "epochs": 1.0, "file": "a.jsonl"},
        ),
    ],
)
def test_a_part_of_a_file_says_which_and_how_often(
    part: MixturePart, values: dict[str, Any]
) -> None:
    assert part.model_dump(mode="json") == values
    assert MixturePart.model_validate(values) == part


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "sums"}, "conversations=0 of kind sums"),
        ({"kind": "sums", "conversations": 5, "epochs": 2}, "epochs=2 of kind sums"),
        ({"kind": "sums", "conversations": 5, "file": "a"}, "file='a' of kind sums"),
        ({"kind": "gsm8k", "file": "a"}, "file='a' of kind gsm8k"),
        ({"kind": "jsonl"}, "file='' of kind jsonl"),
    ],
)
def test_fields_that_say_nothing_of_a_kind_are_refused(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        MixturePart.model_validate(values)


def test_a_part_of_a_file_without_files_is_refused(facts: ModelFacts) -> None:
    with pytest.raises(ConfigError, match="part smoltalk, which is read from a file"):
        build_mixture(REFERENCE, facts, [])
