"""Stop texts and pieces: what is shown is the text before the first stop text, and nothing else."""

import random

import pytest

from nanochat_core.inference.replies import Reply, StopScanner, merged
from nanochat_core.inference.streaming import Piece
from tests.inference.scripted import byte_tokenizer


def show(stops: list[str], *pieces: Piece | str) -> list[Piece]:
    scanner, shown = StopScanner(stops), []
    for piece in pieces:
        shown += scanner.feed(Piece("text", piece) if isinstance(piece, str) else piece)
        if scanner.is_found:
            return merged(shown)
    return merged(shown + scanner.release())


def visible(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces if piece.kind == "text")


def test_what_is_shown_is_the_text_before_the_first_stop_text_however_it_is_cut() -> None:
    rng = random.Random(0)
    for _ in range(500):
        pieces = ["".join(rng.choices("ab", k=rng.randint(1, 3))) for _ in range(8)]
        stops = ["".join(rng.choices("abc", k=rng.randint(1, 4))) for _ in range(2)]
        text = "".join(pieces)
        ends = [(text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text]
        _, end = min(ends, default=(0, len(text)))
        assert visible(show(stops, *pieces)) == text[:end]


def test_a_text_that_can_start_no_stop_text_is_shown_at_once() -> None:
    scanner = StopScanner(["END"])
    assert scanner.feed(Piece("text", "some E")) == [Piece("text", "some ")]
    assert scanner.feed(Piece("text", "very")) == [Piece("text", "E"), Piece("text", "very")]


def test_a_stop_text_is_found_across_a_calculation() -> None:
    call = Piece("python", "1+1")
    assert show(["bc"], "ab", call, "cd") == [Piece("text", "a")]
    assert show(["bc"], "ab", call, "xbc") == [Piece("text", "ab"), call, Piece("text", "x")]


def test_a_stop_text_is_not_looked_for_in_code() -> None:
    call = Piece("python", "1+1")
    assert show(["1"], "a", call, "b") == [Piece("text", "a"), call, Piece("text", "b")]


def test_a_reply_that_is_cut_off_gives_back_what_it_held() -> None:
    reply = Reply(byte_tokenizer(), ["abc"])
    assert reply.feed(ord("a")) == ()
    assert reply.feed(ord("b")) == ()
    assert not reply.is_stopped
    assert visible(reply.end()) == "ab"


@pytest.mark.parametrize(("stops", "shown"), [([], "é"), (["é"], "")])
def test_no_character_is_split(stops: list[str], shown: str) -> None:
    reply = Reply(byte_tokenizer(), stops)
    assert reply.feed(0xC3) == ()
    assert visible(reply.feed(0xA9)) == shown
    assert visible(reply.end()) == ""
    assert reply.is_stopped == bool(stops)
