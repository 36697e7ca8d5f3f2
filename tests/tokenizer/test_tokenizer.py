"""Byte-level BPE: round trips, special text stays text, files that are checked when read."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from nanochat_core.errors import ConfigError, DataError, UnknownNameError
from nanochat_core.tokenizer.recipe import TokenizerRecipe
from nanochat_core.tokenizer.tokenizer import (
    INFO_FILE,
    RANKS_FILE,
    SPECIAL_TOKENS,
    Tokenizer,
)

RECIPE = TokenizerRecipe(vocab_size=400)
any_text = st.text(st.characters(exclude_categories=["Cs"]))


def reference_encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Textbook BPE: in every word, join the pair of lowest rank until none is left."""
    rank = {token: i for i, token in enumerate(tokenizer.ranks)}
    ids = []
    for word in regex.findall(tokenizer.split_pattern, text):
        parts = [bytes([byte]) for byte in word.encode()]
        while True:
            pairs = [rank.get(a + b, 10**9) for a, b in itertools.pairwise(parts)]
            if not pairs or min(pairs) == 10**9:
                break
            i = pairs.index(min(pairs))
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        ids += [rank[part] for part in parts]
    return ids


@given(any_text)
def test_any_text_survives_encoding_and_decoding(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes[ids].sum() == len(text.encode())


@given(st.text(st.sampled_from("abcdé 019'.\n\t<|>s"), max_size=60))
def test_ids_are_those_of_textbook_byte_pair_encoding(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.encode(text) == reference_encode(tokenizer, text)


@given(st.lists(st.sampled_from([*SPECIAL_TOKENS, "a", "<|", "|>", " "])).map("".join))
def test_text_that_looks_like_a_special_token_stays_text(tokenizer: Tokenizer, text: str) -> None:
    every_way = [
        tokenizer.encode(text),
        tokenizer.encode_document(text)[1:].tolist(),
    ]
    assert every_way[0] == every_way[1]
    assert not any(tokenizer.is_special(i) for i in every_way[0])
    assert tokenizer.decode(every_way[0]) == text


@given(st.lists(st.lists(st.sampled_from([*SPECIAL_TOKENS, "ab ", "<|bo", "s|>", "\n", "é"]))))
def test_documents_in_one_run_are_those_encoded_one_by_one(
    tokenizer: Tokenizer, parts: list[list[str]]
) -> None:
    texts = ["".join(words) for words in parts]
    ids, lengths = tokenizer.encode_documents(texts)
    one_by_one = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in texts]
    assert ids.tolist() == [token for document in one_by_one for token in document]
    assert lengths.tolist() == [len(document) for document in one_by_one]


def test_specials_come_after_the_merges_in_the_order_of_the_recipe(tokenizer: Tokenizer) -> None:
    names = [
        "bos", "user_start", "user_end", "assistant_start", "assistant_end",
        "python_start", "python_end", "output_start", "output_end",
    ]  # fmt: skip
    assert [tokenizer.special_id(name) for name in names] == list(range(391, 400))
    assert tokenizer.special_id("<|bos|>") == tokenizer.bos_id == 391
    assert tokenizer.vocab_size == 400
    with pytest.raises(UnknownNameError, match="no special token 'eos'; there are"):
        tokenizer.special_id("eos")


def test_token_bytes_are_the_lengths_of_raw_tokens_and_zero_for_specials(
    tokenizer: Tokenizer,
) -> None:
    lengths = tokenizer.token_bytes
    assert lengths.shape == (400,)
    assert lengths[-9:].tolist() == [0] * 9
    assert lengths[:256].tolist() == [1] * 256
    assert all(lengths[i] == len(tokenizer.decode_bytes([i])) for i in range(391))


def test_a_document_starts_with_bos_and_is_stored_in_two_bytes_a_token(
    tokenizer: Tokenizer,
) -> None:
    document = tokenizer.encode_document("an abc")
    assert document.dtype == np.uint16
    assert document.tolist() == [tokenizer.bos_id, *tokenizer.encode("an abc")]
    assert tokenizer.encode_document("").tolist() == [tokenizer.bos_id]


def test_a_vocabulary_beyond_two_bytes_takes_four() -> None:
    ranks = [bytes([i]) for i in range(256)]
    ranks += [bytes([a, b]) for a in range(256) for b in range(256)]
    tokenizer = Tokenizer(ranks[: 2**16 - 8], RECIPE.split_pattern)
    assert tokenizer.vocab_size == 2**16 + 1
    assert tokenizer.encode_document("a").dtype == np.uint32


def test_half_a_surrogate_pair_becomes_the_replacement_character(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a\ud800b")
    assert tokenizer.decode(ids) == "a\ufffdb"
    assert tokenizer.encode_document("a\ud800b")[1:].tolist() == ids
    halves = tokenizer.encode_documents(["a\ud83d", "\ude00b"])[0].tolist()
    assert tokenizer.decode(halves) == "<|bos|>a\ufffd<|bos|>\ufffdb", "no pair across two texts"
    assert Tokenizer.train(["a\ud800b"], TokenizerRecipe(vocab_size=265)).vocab_size == 265


def test_half_a_character_decodes_to_the_replacement_character(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([0xE9]) == "\ufffd"
    assert tokenizer.decode_bytes([0xE9]) == b"\xe9"


def test_unknown_ids_are_refused_by_name(tokenizer: Tokenizer) -> None:
    for wrong in (400, -1, 2**40):
        with pytest.raises(DataError, match=rf"\[{wrong}\] do not exist.*0 to 399"):
            tokenizer.decode([1, wrong])


def test_training_twice_gives_the_same_files(
    tokenizer: Tokenizer, documents: list[str], tmp_path: Path
) -> None:
    names = tokenizer.save(tmp_path / "a")
    assert Tokenizer.train(iter(documents), RECIPE).save(tmp_path / "b") == names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_long_documents_are_cut_and_reading_stops_after_the_limit(documents: list[str]) -> None:
    recipe = TokenizerRecipe(vocab_size=300, max_document_characters=200, max_characters=1000)
    read: list[str] = []

    def source() -> Iterator[str]:
        for document in documents:
            read.append(document)
            yield document

    whole = Tokenizer.train(source(), recipe)
    # Five documents of 200 reach 1,000 characters; the sixth exceeds it and is the last one used.
    by_hand = Tokenizer.train([document[:200] for document in documents[:6]], recipe)
    assert whole.ranks == by_hand.ranks
    assert len(read) <= 7


def test_too_little_text_says_how_many_merges_it_allows() -> None:
    # "aaaa" allows two merges: aa, then aaaa.
    with pytest.raises(DataError, match=r"allows 2 merges .*vocab_size of at most 267"):
        Tokenizer.train(["aaaa"], TokenizerRecipe(vocab_size=300))
    with pytest.raises(DataError, match="allows 0 merges"):
        Tokenizer.train([], TokenizerRecipe(vocab_size=300))


def test_an_error_of_the_source_is_passed_on_unchanged() -> None:
    def source() -> Iterator[str]:
        yield "text"
        raise DataError("shard 3 is unreadable")

    with pytest.raises(DataError, match="shard 3"):
        Tokenizer.train(source(), RECIPE)


def test_a_pattern_that_is_no_regular_expression_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected a regular expression"):
        Tokenizer.train(["text"], TokenizerRecipe(vocab_size=300, split_pattern="(("))


def test_numbers_are_split_into_groups_of_at_most_two_digits(tokenizer: Tokenizer) -> None:
    assert all(len(token) <= 2 for token in tokenizer.ranks if token.isdigit() and token.isascii())


def test_a_saved_tokenizer_loads_as_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert tokenizer.save(tmp_path) == [RANKS_FILE, INFO_FILE]
    loaded = Tokenizer.load(tmp_path)
    assert loaded.ranks == tokenizer.ranks
    assert loaded.split_pattern == tokenizer.split_pattern
    assert loaded.encode("an abc 123 é") == tokenizer.encode("an abc 123 é")
    assert (loaded.token_bytes == tokenizer.token_bytes).all()


def _edit_info(folder: Path, **changes: object) -> None:
    path = folder / INFO_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _edit_ranks(folder: Path, old: str, new: str) -> None:
    path = folder / RANKS_FILE
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / RANKS_FILE).unlink(), "cannot be read as merges"),
        (lambda f: (f / INFO_FILE).unlink(), "cannot be read as a tokenizer description"),
        (lambda f: _edit_ranks(f, " 300\n", " 301\n"), "rank 301 on line 301, expected 300"),
        (lambda f: _edit_ranks(f, "YQ== 97\n", ""), "rank 98 on line 98, expected 97"),
        (lambda f: _edit_ranks(f, "YQ== 97\n", "YWI= 97\n"), "not the single bytes"),
        (lambda f: _edit_ranks(f, "YQ== 97\n", "YQ=* 97\n"), "cannot be read as merges"),
        (lambda f: (f / RANKS_FILE).write_text("a b c\n"), "cannot be read as merges"),
        (lambda f: (f / RANKS_FILE).write_bytes(b"\xff"), "cannot be read as merges"),
        (lambda f: _edit_info(f, vocab_size=401), "401 tokens"),
        (lambda f: _edit_info(f, token_bytes=[1] * 400), "differ in byte lengths"),
        (lambda f: _edit_info(f, special_tokens=["<|bos|>"]), "special tokens <|bos|>; expected"),
        (lambda f: _edit_info(f, format=2), "tokenizer description"),
        (lambda f: _edit_info(f, split_pattern="(("), "expected a regular expression"),
    ],
)
def test_damaged_files_are_refused(
    tokenizer: Tokenizer, tmp_path: Path, damage: object, message: str
) -> None:
    tokenizer.save(tmp_path)
    damage(tmp_path)  # type: ignore[operator]
    with pytest.raises((DataError, ConfigError)) as error:
        Tokenizer.load(tmp_path)
    assert message in str(error.value)
