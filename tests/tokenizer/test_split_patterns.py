"""Split patterns by name: all of them cover all text, and cut words where their scripts do."""

import pytest
import regex
import tiktoken
import tiktoken_ext.openai_public as published
from hypothesis import given
from hypothesis import strategies as st

from nanochat_core.errors import ConfigError, UnknownNameError
from nanochat_core.tokenizer.recipe import SPLIT_PATTERN, TokenizerRecipe
from nanochat_core.tokenizer.split_patterns import SPLIT_PATTERNS, fast_spelling, pattern_name
from nanochat_core.tokenizer.tokenizer import Tokenizer

BYTES = [bytes([i]) for i in range(256)]
BY_NAME = {name: Tokenizer(BYTES, pattern) for name, pattern in SPLIT_PATTERNS.items()}
names = pytest.mark.parametrize("name", SPLIT_PATTERNS)
any_text = st.text(st.characters(exclude_categories=["Cs"]))
scripts = st.text(st.sampled_from("aZ9 \n\r\t.'s\u0301\u0939\u093f\u094d\u200d中文のテーไทยกำ한ษ<"))


def cut(pattern: str, text: str) -> list[str]:
    """The words of a text, as another library of regular expressions finds them."""
    return regex.findall(pattern, text, flags=regex.VERSION1)


def cut_by_tiktoken(pattern: str, text: str) -> list[str]:
    """The words of a text that are tokens when all of its parts are."""
    parts = {text[i:j].encode() for i in range(len(text)) for j in range(i + 1, len(text) + 1)}
    longer = sorted((part for part in parts if len(part) > 1), key=lambda part: (len(part), part))
    ranks = {token: rank for rank, token in enumerate([*BYTES, *longer])}
    encoding = tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return [encoding.decode([token]) for token in encoding.encode_ordinary(text)]


@given(any_text | scripts)
def test_no_named_pattern_loses_text(text: str) -> None:
    for name, tokenizer in BY_NAME.items():
        assert tokenizer.decode(tokenizer.encode(text)) == text, name


@names
@given(text=scripts)
def test_tiktoken_and_another_library_cut_alike(name: str, text: str) -> None:
    pattern = SPLIT_PATTERNS[name]
    words = cut(pattern, text)
    assert "".join(words) == text
    assert cut_by_tiktoken(pattern, text[:12]) == cut(pattern, text[:12])


@given(any_text | scripts | st.text(st.sampled_from("aé'sSLl1\u0663 \u00a0\t\r\n.-\u0301中")))
def test_the_fast_spelling_cuts_every_text_in_the_same_places(
    slow: tiktoken.Encoding, tokenizer: Tokenizer, text: str
) -> None:
    assert cut(fast_spelling(SPLIT_PATTERN), text) == cut(SPLIT_PATTERN, text)
    assert tokenizer.encode(text) == slow.encode_ordinary(text)


@pytest.fixture(scope="module")
def slow(tokenizer: Tokenizer) -> tiktoken.Encoding:
    """The merges of the tests' tokenizer under the pattern as it is stored."""
    assert fast_spelling(tokenizer.split_pattern) != tokenizer.split_pattern
    ranks = {token: rank for rank, token in enumerate(tokenizer.ranks)}
    return tiktoken.Encoding(
        "slow", pat_str=tokenizer.split_pattern, mergeable_ranks=ranks, special_tokens={}
    )


def test_what_is_stored_and_hashed_is_the_pattern_as_it_was_given() -> None:
    assert BY_NAME["nanochat"].split_pattern == SPLIT_PATTERN
    assert fast_spelling(r"\p{L}+|(?s:.)") == r"\p{L}+|(?s:.)"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("nanochat", "It's 2026, ok", ["It", "'s", " ", "20", "26", ",", " ok"]),
        ("gpt2", "It's 2026", ["It", "'s", " 2026"]),
        ("gpt4", "it 12345", ["it", " ", "123", "45"]),
        ("gpt4o", "camelCase it's", ["camel", "Case", " it's"]),
        # A vowel sign ends a word of letters alone.
        ("nanochat", "हिन्दी में", ["ह", "िन", "्द", "ी", " म", "ें"]),
        ("marks", "हिन्दी में", ["हिन्दी", " में"]),
        ("marks", "می\u200cکنم it's", ["می\u200cکنم", " it", "'s"]),
        ("nanochat", "我喝。日本語のテストab", ["我喝", "。日本語のテストab"]),
    ],
)
def test_words_are_cut_where_the_name_says(name: str, text: str, words: list[str]) -> None:
    assert cut_by_tiktoken(SPLIT_PATTERNS[name], text) == words


def _pattern_of(constructor: str) -> str:
    """The pattern inside a function of tiktoken that would download its tokens."""
    kept = published.load_tiktoken_bpe
    published.load_tiktoken_bpe = lambda *_, **__: {}
    try:
        return getattr(published, constructor)()["pat_str"]
    finally:
        published.load_tiktoken_bpe = kept


PUBLISHED = {
    "gpt2": published.r50k_pat_str,
    "gpt4": _pattern_of("cl100k_base"),
    "gpt4o": _pattern_of("o200k_base"),
}


@given(st.text(st.sampled_from("aZé9 \n\r\t.'slL<中ि"), max_size=40))
def test_the_published_patterns_cut_as_tiktoken_spells_them(text: str) -> None:
    for name, pattern in PUBLISHED.items():
        assert cut(SPLIT_PATTERNS[name], text) == cut(pattern, text), name


@names
def test_a_name_is_hashed_as_its_pattern(name: str) -> None:
    recipe = TokenizerRecipe(split_pattern=name)
    assert recipe.split_pattern == SPLIT_PATTERNS[name]
    assert recipe == TokenizerRecipe(split_pattern=SPLIT_PATTERNS[name])
    assert TokenizerRecipe.model_validate(recipe.model_dump()) == recipe
    assert pattern_name(recipe.split_pattern) == name


@names
def test_a_tokenizer_can_be_learnt_with_every_pattern(name: str, documents: list[str]) -> None:
    recipe = TokenizerRecipe(vocab_size=300, split_pattern=name)
    tokenizer = Tokenizer.train(documents, recipe)
    assert tokenizer.vocab_size == 300
    assert tokenizer.decode(tokenizer.encode("हिन्दी 中文 é 12")) == "हिन्दी 中文 é 12"


def test_the_default_is_that_of_the_reference() -> None:
    assert TokenizerRecipe(vocab_size=300).split_pattern == SPLIT_PATTERN
    assert SPLIT_PATTERNS["nanochat"] == SPLIT_PATTERN


def test_an_unknown_name_lists_those_that_there_are() -> None:
    with pytest.raises(UnknownNameError, match=r"no split pattern 'gtp4'; there is nanochat, gpt2"):
        TokenizerRecipe(split_pattern="gtp4")


@pytest.mark.parametrize(
    ("pattern", "lost"),
    [
        (r"\p{L}+", "'"),
        (r"\S+", " "),
        (r"\p{L}+|\s+|[[:ascii:]]", "\u0301"),
    ],
)
def test_a_pattern_that_would_lose_text_is_refused(pattern: str, lost: str) -> None:
    with pytest.raises(ConfigError, match="leaves out text") as error:
        TokenizerRecipe(split_pattern=pattern)
    assert f"first '{lost}'" in str(error.value) or f'first "{lost}"' in str(error.value)


def test_a_pattern_of_ones_own_that_covers_all_text_is_taken() -> None:
    assert TokenizerRecipe(split_pattern=r"\p{L}+|(?s:.)").split_pattern == r"\p{L}+|(?s:.)"
    assert pattern_name(r"\p{L}+|(?s:.)") == "own"
