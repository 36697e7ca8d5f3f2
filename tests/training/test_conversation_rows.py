import numpy as np
import pytest

from nanochat_core.data.conversation_rows import IGNORE, pack_conversations
from nanochat_core.errors import DataError

Rendered = tuple[list[int], list[int]]


def conversation(length: int, first_id: int) -> Rendered:
    return list(range(first_id, first_id + length)), [0, 0] + [1] * (length - 2)


def test_every_supervised_token_of_every_conversation_is_a_target_once() -> None:
    rendered = [conversation(3 + i % 9, 1000 * (i + 1)) for i in range(50)]
    rows = pack_conversations(rendered, sequence_len=16, buffer=10, pad_id=0)
    targets = rows.targets_nT[rows.targets_nT != IGNORE]
    expected = [i for ids, mask in rendered for i, m in zip(ids, mask, strict=True) if m]
    assert sorted(targets.tolist()) == sorted(expected)


def test_an_input_is_the_token_before_its_target() -> None:
    rows = pack_conversations([conversation(6, 100)], sequence_len=8, buffer=1, pad_id=7)
    assert rows.inputs_nT.tolist() == [[100, 101, 102, 103, 104, 105, 7, 7]]
    assert rows.targets_nT.tolist() == [[-1, 102, 103, 104, 105, -1, -1, -1]]


def test_conversations_that_cannot_fit_are_counted() -> None:
    rows = pack_conversations(
        [conversation(5, 10), conversation(40, 100)], sequence_len=16, buffer=4, pad_id=0
    )
    assert (rows.conversations, rows.too_long) == (1, 1)


def test_nothing_that_fits_is_an_error() -> None:
    with pytest.raises(DataError, match="none of 1 conversations fits into 9 tokens"):
        pack_conversations([conversation(40, 100)], sequence_len=8, buffer=4, pad_id=0)


def test_every_row_supervises_something_and_reading_wraps_around() -> None:
    rendered = [conversation(5 + i % 5, 100 * (i + 1)) for i in range(23)]
    rows = pack_conversations(rendered, sequence_len=12, buffer=5, pad_id=0)
    assert (rows.targets_nT != IGNORE).any(axis=1).all()
    inputs, _ = rows.read(rows.num_rows - 1, 2)
    assert np.array_equal(inputs[1], rows.inputs_nT[0])
