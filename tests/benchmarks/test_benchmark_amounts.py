"""What a part of a mixture comes to, told before its file is read."""

import pytest

from nanochat_core.benchmarks.amounts import (
    TRAIN_SETS,
    expected_characters,
    expected_conversations,
)
from nanochat_core.conversation.recipes import SET_KINDS, MixturePart


def test_the_reference_mixture_comes_to_what_is_published() -> None:
    parts = (
        MixturePart(kind="smoltalk"),
        MixturePart(kind="mmlu", epochs=3),
        MixturePart(kind="gsm8k", epochs=4),
    )
    assert sum(map(expected_conversations, parts)) == 460_341 + 3 * 99_842 + 4 * 7_473
    assert sum(map(expected_characters, parts)) == pytest.approx(2.31e9, rel=0.01)


def test_fewer_rows_and_own_files_are_estimated() -> None:
    assert set(TRAIN_SETS) == set(SET_KINDS)
    assert expected_conversations(MixturePart(kind="gsm8k", conversations=100, epochs=2)) == 200
    assert expected_conversations(MixturePart(kind="arc-easy", conversations=9_999)) == 2_251
    assert expected_conversations(MixturePart(kind="sums", conversations=70)) == 70
    own = MixturePart(kind="jsonl", file="me.jsonl", epochs=3)
    assert expected_characters(own, file_bytes=50_000) == 150_000
