import random

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
    _, targets = rows.read(0, rows.num_rows)
    targets = targets[targets != IGNORE]
    expected = [i for ids, mask in rendered for i, m in zip(ids, mask, strict=True) if m]
    assert sorted(targets.tolist()) == sorted(expected)


def test_an_input_is_the_token_before_its_target() -> None:
    rows = pack_conversations([conversation(6, 100)], sequence_len=8, buffer=1, pad_id=7)
    inputs, targets = rows.read(0, 1)
    assert inputs.tolist() == [[100, 101, 102, 103, 104, 105, 7, 7]]
    assert targets.tolist() == [[-1, 102, 103, 104, 105, -1, -1, -1]]


def test_conversations_that_cannot_fit_or_teach_nothing_are_counted_apart() -> None:
    masked, long_and_masked = ([1, 2, 3], [0, 0, 0]), (list(range(40)), [0] * 40)
    rendered = [conversation(5, 10), conversation(40, 100), masked, long_and_masked]
    rows = pack_conversations(rendered, sequence_len=16, buffer=4, pad_id=0)
    assert (rows.conversations, rows.too_long, rows.without_targets) == (1, 2, 1)


def test_a_token_that_only_a_row_of_its_own_would_lose_is_nothing_to_train_on() -> None:
    # Of a row's first token no input tells anything.
    rendered = [([5, 6], [1, 0]), conversation(4, 10)]
    rows = pack_conversations(rendered, sequence_len=16, buffer=4, pad_id=0)
    assert (rows.conversations, rows.without_targets) == (1, 1)


def test_nothing_that_fits_is_an_error_that_says_why() -> None:
    rendered = [conversation(40, 100), ([1, 2], [0, 0])]
    with pytest.raises(DataError, match=r"none of 2 .* into 9 tokens .* 1 are longer, and 1 hold"):
        pack_conversations(rendered, sequence_len=8, buffer=4, pad_id=0)


def test_every_row_supervises_something_and_reading_wraps_around() -> None:
    rendered = [conversation(5 + i % 5, 100 * (i + 1)) for i in range(23)]
    rows = pack_conversations(rendered, sequence_len=12, buffer=5, pad_id=0)
    inputs, targets = rows.read(0, rows.num_rows)
    assert (targets != IGNORE).any(axis=1).all()
    wrapped, _ = rows.read(rows.num_rows - 1, 2)
    assert np.array_equal(wrapped, inputs[[-1, 0]])


def test_the_targets_of_rows_are_known_without_reading_them() -> None:
    # Conversations that are trained on from their first token on lose it in the row's first place.
    rendered = [(list(range(3 + i % 7)), [1] * (3 + i % 7)) for i in range(40)]
    rows = pack_conversations(rendered, sequence_len=15, buffer=9, pad_id=0)
    for first, count in ((0, 1), (2, 5), (rows.num_rows - 2, 4)):
        _, targets = rows.read(first, count)
        assert rows.targets_in(first, count) == (targets != IGNORE).sum()


def plainly_packed(lengths: list[int], capacity: int, buffer: int) -> list[list[int]]:
    """Best fit as RECIPE section 6 words it, looking at every conversation of the buffer."""
    waiting, upcoming, rows = list(range(buffer)), buffer, []
    waiting = [i for i in waiting if i < len(lengths)]
    while waiting:
        row: list[int] = []
        while True:
            space = capacity - sum(lengths[i] for i in row)
            fitting = [i for i in waiting if lengths[i] <= space]
            if not fitting:
                break
            longest = max(lengths[i] for i in fitting)
            row.append(next(i for i in fitting if lengths[i] == longest))
            waiting.remove(row[-1])
            if upcoming < len(lengths):
                waiting.append(upcoming)
                upcoming += 1
        rows.append(row)
    return rows


@pytest.mark.parametrize("buffer", [1, 2, 7, 100])
def test_rows_are_filled_with_the_longest_that_fits_and_the_first_of_equals(buffer: int) -> None:
    rng = random.Random(buffer)
    lengths = [rng.randint(3, 17) for _ in range(200)]
    rendered = [conversation(length, 100 * i) for i, length in enumerate(lengths)]
    rows = pack_conversations(rendered, sequence_len=16, buffer=buffer, pad_id=0)
    assert rows.members == plainly_packed(lengths, 17, buffer)
