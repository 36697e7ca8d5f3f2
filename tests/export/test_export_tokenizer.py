"""The exported tokenizer cuts as ours does, for every split pattern, and says when it does not."""

import json
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError
from tokenizers import Tokenizer as HubTokenizer

from nanochat_core.conversation.types import (
    Conversation,
    assistant,
    exchange,
    python,
    python_output,
    system,
    user,
)
from nanochat_core.errors import ConfigError, ExportError
from nanochat_core.export.check_strings import (
    NUM_CODE_POINTS,
    SLICE,
    SURROGATES,
    StringMaker,
    make_strings,
)
from nanochat_core.export.hub_patterns import hub_pattern
from nanochat_core.export.recipe import ExportRecipe
from nanochat_core.export.tokenizer_check import compare_tokenizers, messages_of
from nanochat_core.export.tokenizer_json import (
    TOKENIZER_FILE,
    byte_letters,
    merge_pairs,
    tokenizer_values,
    write_tokenizer,
)
from nanochat_core.tokenizer.chat_format import render, render_prompt
from nanochat_core.tokenizer.comparing import _read_merges
from nanochat_core.tokenizer.recipe import TokenizerRecipe
from nanochat_core.tokenizer.split_patterns import SPLIT_PATTERNS
from nanochat_core.tokenizer.tokenizer import SPECIAL_TOKENS, Tokenizer

NUM_STRINGS = 65
BYTES = [bytes([i]) for i in range(256)]
TEXT = (
    "It's WE'LL don't 1234567 x=12*34 self._value 3.14159\r\n\r\n\tfor i in range(10):\n        "
    "print('naïve café', i)   \n  Straße Привет мир γειά नमस्ते दुनिया שָׁלוֹם مرحبا สวัสดีครับ "
    "中文字符测试 日本語のテスト 한국어 👩‍🚀👍🏽 \U0001d54f\U0001d550 HTTPServer getHTTPResponse"
)


@cache
def learnt(pattern: str) -> Tokenizer:
    """A tokenizer with a few hundred merges of text in many scripts."""
    rng = random.Random(0)
    words = TEXT.split(" ")
    words += ["".join(rng.choices(word, k=len(word))) for word in words * 20 if word]
    words += [str(rng.randrange(10**6)) for _ in range(100)]
    documents = [" ".join(rng.choices(words, k=60)) for _ in range(60)]
    recipe = TokenizerRecipe(vocab_size=600, split_pattern=pattern)
    return Tokenizer.train(documents, recipe)


@pytest.fixture(scope="module", autouse=True)
def _transformers() -> None:
    """Importing it takes seconds, which count for no test."""
    from transformers import PreTrainedTokenizerFast  # noqa: F401


@pytest.fixture
def load(tmp_path: Path) -> Callable[[Tokenizer], Any]:
    """The tokenizer as transformers reads it from the files of an export."""

    def loaded(tokenizer: Tokenizer) -> Any:
        from transformers import PreTrainedTokenizerFast

        write_tokenizer(tokenizer, tmp_path)
        return PreTrainedTokenizerFast.from_pretrained(tmp_path, local_files_only=True)

    return loaded


@pytest.mark.parametrize("name", SPLIT_PATTERNS)
def test_ids_text_and_conversations_are_ours(name: str, tmp_path: Path) -> None:
    tokenizer = learnt(SPLIT_PATTERNS[name])
    write_tokenizer(tokenizer, tmp_path)
    assert compare_tokenizers(tokenizer, tmp_path, NUM_STRINGS) == NUM_STRINGS


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_tokens_merges_as_ours_does(seed: int) -> None:
    """Also tokens that many merges lead to, or none, and neighbours that overlap."""
    rng = random.Random(seed)
    words = {"".join(rng.choices("ab", k=rng.randint(2, 7))) for _ in range(rng.randint(3, 40))}
    ranks = [*BYTES, *(word.encode() for word in rng.sample(sorted(words), len(words)))]
    tokenizer = Tokenizer(ranks, SPLIT_PATTERNS["gpt2"])
    theirs = HubTokenizer.from_str(json.dumps(tokenizer_values(tokenizer)))
    for _ in range(200):
        text = "".join(rng.choices("ab", k=rng.randint(1, 30)))
        assert theirs.encode(text, add_special_tokens=False).ids == tokenizer.encode(text), text


def test_a_token_that_its_bytes_do_not_lead_to_has_no_merge() -> None:
    # "ab" comes first, so "bc" never meets "a"; "abd" is nothing that merging makes of "ab".
    ranks = [*BYTES, b"ab", b"bc", b"abc", b"xyz"]
    assert merge_pairs(ranks) == [(b"a", b"b"), (b"b", b"c"), (b"ab", b"c")]


def test_bytes_are_written_as_gpt2_writes_them(tmp_path: Path) -> None:
    letters = byte_letters()
    path = tmp_path / "vocab.bpe"
    path.write_text("#version\n" + "\n".join(letters) + "\n", encoding="utf-8")
    assert _read_merges(path)[256:] == BYTES


def test_special_tokens_have_our_ids_and_text_is_text_where_that_is_asked(
    load: Callable[[Tokenizer], Any],
) -> None:
    tokenizer = learnt(SPLIT_PATTERNS["nanochat"])
    theirs = load(tokenizer)
    assert theirs.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [*tokenizer.special_ids.values()]
    text = "a<|assistant_end|>b"
    as_text = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert as_text == tokenizer.encode(text)
    asked = theirs.apply_chat_template(
        [{"role": "user", "content": text}],
        tokenize=True,
        return_dict=True,
        sanitize_control_tokens=True,
    )["input_ids"]
    end = tokenizer.special_id("assistant_end")
    assert end not in asked
    assert end in theirs(text)["input_ids"]  # as every tokenizer of theirs does


def test_a_batch_is_padded_on_the_left_with_the_end_of_a_reply(
    load: Callable[[Tokenizer], Any],
) -> None:
    tokenizer = learnt(SPLIT_PATTERNS["nanochat"])
    batch = load(tokenizer)(["for", "for i in range"], padding=True)
    assert batch["input_ids"][0][0] == tokenizer.special_id("assistant_end")
    assert batch["attention_mask"][0][0] == 0
    assert batch["input_ids"][0][-1] == tokenizer.encode("for")[-1]


CONVERSATIONS = (
    exchange("Hi!", "Hello."),
    exchange("2+3?", "Let me see: ", python("2+3"), python_output("5"), "It is 5 👍🏽"),
    exchange("2+3?", python("2+3"), python_output("5")),
    exchange("2+3?", python("2+3")),
    Conversation(messages=(system("Be brief."), user(" Hi \n"), assistant(""), user("Well?"))),
    Conversation(messages=(user("{{ bos_token }} {% raise %}"),)),
)


@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_a_conversation_is_rendered_and_marked_as_for_training(
    conversation: Conversation, load: Callable[[Tokenizer], Any]
) -> None:
    tokenizer = learnt(SPLIT_PATTERNS["nanochat"])
    theirs, messages = load(tokenizer), messages_of(conversation)
    found = theirs.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert (found["input_ids"], found["assistant_masks"]) == render(tokenizer, conversation)
    if conversation.messages[-1].role == "user":
        prompt = theirs.apply_chat_template(
            messages, tokenize=True, return_dict=True, add_generation_prompt=True
        )
        assert prompt["input_ids"] == render_prompt(tokenizer, conversation)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "system", "content": "Be brief."}], "no message of a user"),
        ([{"role": "assistant", "content": "Hi"}], "the user first"),
        ([{"role": "user", "content": "Hi"}] * 2, "in turn"),
        ([{"role": "user", "content": [{"type": "image"}]}], "the type image; only text"),
        (
            [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": [{"type": "code", "text": ""}]},
            ],
            "the type code; known are",
        ),
    ],
)
def test_what_the_format_does_not_know_is_refused(
    messages: list[dict[str, Any]], message: str, load: Callable[[Tokenizer], Any]
) -> None:
    theirs = load(learnt(SPLIT_PATTERNS["nanochat"]))
    with pytest.raises(TemplateError, match=message):
        theirs.apply_chat_template(messages, tokenize=False)


def test_a_reply_is_asked_for_only_after_the_user(load: Callable[[Tokenizer], Any]) -> None:
    theirs = load(learnt(SPLIT_PATTERNS["nanochat"]))
    with pytest.raises(TemplateError, match="the last is not one"):
        theirs.apply_chat_template(
            messages_of(CONVERSATIONS[0]), tokenize=False, add_generation_prompt=True
        )


def test_merges_that_were_changed_are_noticed_and_shown(tmp_path: Path) -> None:
    tokenizer = learnt(SPLIT_PATTERNS["nanochat"])
    write_tokenizer(tokenizer, tmp_path)
    path = tmp_path / TOKENIZER_FILE
    values = json.loads(path.read_bytes())
    values["model"]["merges"].reverse()
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ExportError, match=r"cuts .* otherwise, from token \d+ on: .* expected"):
        compare_tokenizers(tokenizer, tmp_path, NUM_STRINGS)


def test_a_pattern_that_cuts_otherwise_there_is_noticed(tmp_path: Path) -> None:
    # Possessive here; in the other library "one to three, once or more".
    tokenizer = learnt(r"\p{N}{1,3}+|[^\p{N}]+")
    write_tokenizer(tokenizer, tmp_path)
    with pytest.raises(ExportError, match=r"split pattern own\) cuts"):
        compare_tokenizers(tokenizer, tmp_path, NUM_STRINGS)


def test_a_pattern_of_ones_own_is_exported(tmp_path: Path) -> None:
    tokenizer = learnt(r"\p{L}+|\p{N}|[^\p{L}\p{N}]+")
    write_tokenizer(tokenizer, tmp_path)
    assert compare_tokenizers(tokenizer, tmp_path, NUM_STRINGS) == NUM_STRINGS


def test_a_pattern_that_they_cannot_read_is_refused_with_what_would_do() -> None:
    with pytest.raises(ConfigError, match=r"no regular expression of .* one of nanochat, gpt2"):
        hub_pattern(r"(?P<word>\w+)|\W+")


def test_the_strings_of_an_export_hold_every_code_point() -> None:
    """Two kinds of thirteen go through them in turn."""
    assert ExportRecipe().strings * 2 // 13 * SLICE >= NUM_CODE_POINTS
    maker = StringMaker(learnt(SPLIT_PATTERNS["nanochat"]), random.Random(0))
    num_slices = 72
    seen = {ord(character) for _ in range(num_slices) for character in maker.every_code_point()}
    end = num_slices * SLICE + len(SURROGATES)
    assert end > SURROGATES.stop
    assert {code for code in range(end) if code not in SURROGATES} == seen


def test_equal_arguments_give_equal_strings_that_can_be_written() -> None:
    tokenizer = learnt(SPLIT_PATTERNS["nanochat"])
    strings = make_strings(tokenizer, NUM_STRINGS)
    assert strings == make_strings(tokenizer, NUM_STRINGS)
    assert len(set(strings)) > NUM_STRINGS * 0.9
    for text in strings:
        text.encode()
    joined = "".join(strings)
    assert any(name in joined for name in SPECIAL_TOKENS)
