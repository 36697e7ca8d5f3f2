import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nanochat_core.data.packing import (
    RowTable,
    count_rows,
    pack,
    pack_crop,
    pack_split,
    split_documents,
)

lengths_strategy = st.lists(st.integers(1, 70), min_size=1, max_size=60)
rows_strategy = st.integers(2, 33)


def as_array(lengths: list[int]) -> np.ndarray:
    return np.array(lengths, dtype=np.int64)


def rows_of(table: RowTable) -> list[list[tuple[int, int, bool]]]:
    pieces = table.pieces
    triples = list(
        zip(
            pieces.starts.tolist(),
            pieces.lengths.tolist(),
            pieces.continued.tolist(),
            strict=True,
        )
    )
    return [triples[a:b] for a, b in zip(table.pointers[:-1], table.pointers[1:], strict=True)]


@given(lengths=lengths_strategy, row_tokens=rows_strategy)
def test_split_rows_hold_every_token_exactly_once(lengths: list[int], row_tokens: int) -> None:
    rows = rows_of(pack_split(as_array(lengths), row_tokens))
    held = sorted(start + i for row in rows for start, length, _ in row for i in range(length))
    assert held == list(range(sum(lengths)))


@given(lengths=lengths_strategy, row_tokens=rows_strategy)
def test_split_rows_are_never_overfull_and_pieces_start_at_bos(
    lengths: list[int], row_tokens: int
) -> None:
    first_tokens = set((np.cumsum(lengths) - lengths).tolist())
    for row in rows_of(pack_split(as_array(lengths), row_tokens)):
        assert 0 < sum(length + continued for _, length, continued in row) <= row_tokens
        assert all((start in first_tokens) != continued for start, _, continued in row)


def plain_best_fit(sizes: list[int], row_tokens: int) -> list[int]:
    """Best-fit decreasing one piece at a time; how full each row ends."""
    rooms: list[int] = []
    for size in sorted(sizes, reverse=True):
        fitting = [room for room in rooms if room >= size]
        if fitting:
            rooms[rooms.index(min(fitting))] -= size
        else:
            rooms.append(row_tokens - size)
    return sorted(rooms)


@given(lengths=lengths_strategy, row_tokens=rows_strategy)
def test_split_rows_are_those_of_plain_best_fit_decreasing(
    lengths: list[int], row_tokens: int
) -> None:
    sizes = split_documents(as_array(lengths), row_tokens).sizes.tolist()
    rows = rows_of(pack_split(as_array(lengths), row_tokens))
    rooms = sorted(row_tokens - sum(n + c for _, n, c in row) for row in rows)
    assert rooms == plain_best_fit(sizes, row_tokens)


def plain_crop(lengths: list[int], row_tokens: int) -> list[list[tuple[int, int]]]:
    """RECIPE section 4 word by word: (document, tokens of it) of every row."""
    rows, buffer, coming = [], [], list(range(len(lengths)))
    while buffer or coming:
        row, room = [], row_tokens
        while room:
            while len(buffer) < 1000 and coming:
                buffer += coming[:128]
                del coming[:128]
            if not buffer:
                break
            best = None
            for document in buffer:
                if lengths[document] <= room and (
                    best is None or lengths[document] > lengths[best]
                ):
                    best = document
            if best is None:
                shortest = min(lengths[document] for document in buffer)
                best = next(d for d in buffer if lengths[d] == shortest)
            buffer.remove(best)
            row.append((best, min(lengths[best], room)))
            room -= row[-1][1]
        rows.append(row)
    return rows


def test_crop_rows_are_those_of_a_plain_restatement_of_the_reference_policy() -> None:
    generator = np.random.default_rng(5)
    lengths = generator.integers(1, 40, 1500).tolist()
    starts = (np.cumsum(lengths) - lengths).tolist()
    expected = [[(starts[d], n, False) for d, n in row] for row in plain_crop(lengths, 24)]
    assert rows_of(pack_crop(as_array(lengths), 24)) == expected


@given(lengths=lengths_strategy, row_tokens=rows_strategy)
def test_small_sets_are_cropped_as_in_the_plain_restatement(
    lengths: list[int], row_tokens: int
) -> None:
    starts = (np.cumsum(lengths) - lengths).tolist()
    expected = [[(starts[d], n, False) for d, n in row] for row in plain_crop(lengths, row_tokens)]
    assert rows_of(pack_crop(as_array(lengths), row_tokens)) == expected


@given(lengths=lengths_strategy, row_tokens=rows_strategy)
def test_rows_are_counted_without_packing(lengths: list[int], row_tokens: int) -> None:
    for packing in ("split", "crop"):
        expected = pack(as_array(lengths), row_tokens, packing).num_rows
        assert count_rows(as_array(lengths), row_tokens, packing) == expected


def test_ten_thousand_documents_leave_less_than_a_thousandth_of_the_places_empty() -> None:
    lengths = np.random.default_rng(0).lognormal(5.3, 1.0, 10_000).astype(np.int64) + 2
    table = pack_split(lengths, 513)
    assert 1 - table.pieces.sizes.sum() / (table.num_rows * 513) < 1e-3
