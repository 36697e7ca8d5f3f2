"""What a request may ask, and what its prompt becomes."""

from typing import Any

import pytest
from pydantic import ValidationError

from nanochat_core.conversation.types import Conversation, Message, Part
from nanochat_core.errors import DataError
from nanochat_core.serving.bodies import ChatCompletionRequest, CompletionRequest
from nanochat_core.serving.problems import RequestError
from nanochat_core.serving.requests import Question, read_chat, read_completion, seed_of
from nanochat_core.serving.settings import ServerSettings
from nanochat_core.tokenizer.chat_format import render_prompt, trim_history
from nanochat_core.tokenizer.tokenizer import SPECIAL_TOKENS
from tests.inference.scripted import byte_tokenizer

SETTINGS = ServerSettings()
TOKENIZER = byte_tokenizer()
MAX_LENGTH = 640
"""Tokens of a row; a conversation is cut to half of that."""
SPECIAL_TEXT = "".join(SPECIAL_TOKENS)


def say(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def request(text: Any = "Are you there?", **fields: Any) -> dict[str, Any]:
    return {"messages": [say("user", text)], **fields}


def read(body: dict[str, Any], max_length: int = MAX_LENGTH) -> Question:
    checked = ChatCompletionRequest.model_validate(body)
    return read_chat(checked, TOKENIZER, max_length, SETTINGS)


def complete(prompt: Any = "Once", max_length: int = MAX_LENGTH, **fields: Any) -> Question:
    checked = CompletionRequest.model_validate({"prompt": prompt, **fields})
    return read_completion(checked, TOKENIZER, max_length, SETTINGS)


def text_of(prompt: tuple[int, ...]) -> str:
    names = {number: name for name, number in TOKENIZER.special_ids.items()}
    return "".join(names[token] if token in names else chr(token) for token in prompt)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"messages": []}, "messages", ["empty"]),
        ({"messages": [say("user", "a")] * 501}, "messages", ["501", "500"]),
        ({"messages": [say("user", "a" * 8001)]}, "messages[0]", ["8,001", "8,000"]),
        (
            {"messages": [say("user", "a" * 6500), say("assistant", "b" * 6500)] * 2
             + [say("user", "c" * 6500)]},
            "messages",
            ["32,500", "32,000"],
        ),
        ({"messages": [say("user", "")]}, "messages[0].content", ["no text"]),
        ({"messages": [say("user", [{"type": "image_url"}])]}, "messages[0].content[0]", ["text"]),
        ({"temperature": 2.5}, "temperature", ["2.5", "0 to 2"]),
        ({"temperature": -0.1}, "temperature", ["-0.1"]),
        ({"temperature": 1e308}, "temperature", ["1e+308", "0 to 2"]),
        ({"top_p": 1.5}, "top_p", ["1.5", "0 to 1"]),
        ({"top_k": 201}, "top_k", ["201", "0 to 200"]),
        ({"top_k": -(10**400)}, "top_k", ["...", "0 to 200"]),
        ({"max_tokens": 0}, "max_tokens", ["1 to 4,096"]),
        ({"max_completion_tokens": 4097}, "max_completion_tokens", ["4097", "4,096"]),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", ["5", "4"]),
        ({"stop": ["a" * 201]}, "stop", ["201", "200"]),
        ({"stop": [""]}, "stop", ["empty"]),
        ({"seed": 2**63}, "seed", ["9223372036854775808", "2**63 - 1"]),
        ({"seed": -(10**400)}, "seed", ["...", "-2**63"]),
        ({"n": 33}, "n", ["n=33", "1 to 32"]),
        ({"n": 0}, "n", ["n=0", "1 to 32"]),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", ["21", "0 to 20"]),
        ({"top_logprobs": 3}, "top_logprobs", ["logprobs=true"]),
        ({"tools": [{"type": "function"}]}, "tools", ["not supported"]),
        ({"response_format": {"type": "json_object"}}, "response_format", ["not supported"]),
        ({"frequency_penalty": False}, "frequency_penalty", ["False", "not supported"]),
        ({"messages": [say("user", "a" * 640)]}, "messages", ["644", "640"]),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_with_its_field_limit_and_value(
    fields: dict[str, Any], param: str, words: list[str]
) -> None:
    with pytest.raises(RequestError) as caught:
        read(request(**fields))
    assert caught.value.param == param
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("prompt", "fields", "param", "words"),
    [
        ([], {}, "prompt", ["empty list"]),
        (["a"] * 33, {}, "prompt", ["33 prompts", "32"]),
        (["a"] * 9, {"n": 4}, "prompt", ["36 replies", "32"]),
        (["a" * 20_000] * 2, {}, "prompt", ["40,000", "32,000"]),
        ([[1] * 16_001] * 2, {}, "prompt", ["32,002", "32,000"]),
        ("a" * 640, {}, "prompt", ["641", "640"]),
        (["a", "a" * 640], {}, "prompt[1]", ["641", "640"]),
        ([1, 256], {}, "prompt", ["[1]", "256", "special", "0 to 255"]),
        ([[1], [1, 265]], {}, "prompt[1]", ["[1][1]", "265", "no token of this model"]),
        ([-1], {}, "prompt", ["-1", "no token"]),
        ([10**400], {}, "prompt", ["...", "no token"]),
        ("a", {"logprobs": 6}, "logprobs", ["6", "0 to 5"]),
        ("a", {"suffix": "b"}, "suffix", ["not supported"]),
        ("a", {"best_of": 2}, "best_of", ["best_of=2", "give 1"]),
        ("a", {"echo": True, "logprobs": 1}, "echo", ["logprobs"]),
    ],
)
def test_what_a_completion_cannot_do_is_refused(
    prompt: Any, fields: dict[str, Any], param: str, words: list[str]
) -> None:
    with pytest.raises(RequestError) as caught:
        complete(prompt, **fields)
    assert caught.value.param == param
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"n": True},
        {"n": 1.5},
        {"n": float("inf")},
        {"temperature": "1"},
        {"temperature": True},
        {"temperature": float("nan")},
        {"max_tokens": "5"},
        {"stream": 1},
        {"logprobs": 2},
        {"stop": 5},
        {"messages": [say("tool", "a")]},
        {"messages": "a"},
        {"model": 5},
    ],
)
def test_types_are_not_guessed(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        read(request(**fields))


@pytest.mark.parametrize(
    ("roles", "kind"),
    [
        ("assistant", RequestError),
        ("user assistant", RequestError),
        ("user user", DataError),
        ("user system", DataError),
        ("system system user", DataError),
        ("system", DataError),
    ],
)
def test_messages_out_of_turn_are_refused(roles: str, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="user"):
        read({"messages": [say(role, "a") for role in roles.split()]})


def test_whole_numbers_may_have_a_point() -> None:
    assert read(request(n=2.0, seed=1e3, top_k=5.0)) == read(request(n=2, seed=1000, top_k=5))
    assert complete([97.0], seed=1) == complete([97], seed=1)


def test_what_asks_for_nothing_and_what_is_unknown_is_ignored() -> None:
    neutral = {"n": 1, "tools": [], "presence_penalty": 0.0, "user": "me", "no_such_field": {}}
    neutral |= {"logprobs": False, "stop": [], "logit_bias": {}, "response_format": None}
    assert read(request(**neutral, seed=1)) == read(request(seed=1))
    neutral = {"best_of": 3, "suffix": "", "echo": False}
    assert complete("a", n=3, seed=1, **neutral) == complete("a", n=3, seed=1)


def test_text_may_come_in_parts_and_the_system_under_two_names() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    expected = "<|bos|><|user_start|>S\n\nab<|user_end|><|assistant_start|>"
    for role in ("system", "developer"):
        messages = [say(role, "S"), say("user", parts)]
        assert text_of(read({"messages": messages}).prompts[0]) == expected


def test_special_tokens_in_any_text_are_text() -> None:
    parts = [{"kind": "python", "text": SPECIAL_TEXT}, {"kind": "text", "text": SPECIAL_TEXT}]
    messages = [
        say("system", SPECIAL_TEXT),
        say("user", SPECIAL_TEXT),
        say("assistant", SPECIAL_TEXT),
        say("user", [{"type": "text", "text": SPECIAL_TEXT}]),
        say("assistant", "", nanochat_parts=parts),
        say("user", "a"),
    ]
    plain = [{**message, "content": "a"} for message in messages]
    plain[4]["nanochat_parts"] = [{**part, "text": "a"} for part in parts]
    asked, expected = (
        [token for token in read({"messages": given}, 8_000).prompts[0] if token > 255]
        for given in (messages, plain)
    )
    assert asked == expected
    for prompt in (SPECIAL_TEXT, [SPECIAL_TEXT]):
        (only,) = complete(prompt).prompts
        assert [token for token in only if token > 255] == [TOKENIZER.bos_id]


def test_control_characters_are_bytes_like_others() -> None:
    text = "\x00\x01\x7f\r\n\ufeff\u202e"
    assert TOKENIZER.decode(complete(text).prompts[0][1:]) == text
    assert TOKENIZER.decode(read(request(text)).prompts[0][2:-2]) == text


def test_a_reply_may_come_back_with_its_calculation() -> None:
    parts = [{"kind": "python", "text": "6*7"}, {"kind": "python_output", "text": "42"}]
    parts.append({"kind": "text", "text": "ok"})
    messages = [say("user", "a"), say("assistant", "ok", nanochat_parts=parts), say("user", "b")]
    assert (
        "<|python_start|>6*7<|python_end|><|output_start|>42<|output_end|>ok<|assistant_end|>"
        in text_of(read({"messages": messages}).prompts[0])
    )


def test_a_long_history_loses_its_oldest_exchanges_and_says_how_many() -> None:
    history = [say("user", "old" * 30), say("assistant", "")] * 5
    question = read({"messages": [*history, say("user", "new")]})
    assert question.num_prompt_tokens <= MAX_LENGTH // 2
    assert question.num_dropped_messages == 4


def test_a_last_message_may_take_more_than_half_a_row() -> None:
    history = [say("user", "old"), say("assistant", "older")]
    question = read({"messages": [*history, say("user", "a" * 600)]})
    assert (question.num_prompt_tokens, question.num_dropped_messages) == (604, 2)
    assert question.requests[0].max_new_tokens == MAX_LENGTH - 604


@pytest.mark.parametrize("system", [[], [say("system", "Be brief. " * 9)]])
@pytest.mark.parametrize("num_exchanges", range(0, 30, 3))
def test_what_is_kept_of_a_history_is_what_the_chat_command_keeps(
    system: list[dict[str, Any]], num_exchanges: int
) -> None:
    turns = [say("user", "q" * 20), say("assistant", "a" * 9)] * num_exchanges
    messages = [*system, *turns, say("user", "now")]
    conversation = Conversation(
        messages=tuple(Message(role=m["role"], parts=(Part(text=m["content"]),)) for m in messages)
    )
    kept = trim_history(TOKENIZER, conversation, max_tokens=MAX_LENGTH // 2)
    expected = render_prompt(TOKENIZER, kept, max_tokens=MAX_LENGTH // 2)
    assert list(read({"messages": messages}).prompts[0]) == expected


def test_defaults_and_the_newer_name_of_a_limit() -> None:
    (asked,) = read(request()).requests
    assert (asked.settings.temperature, asked.settings.top_k) == (0.6, 50)
    assert (asked.max_new_tokens, asked.max_reply_tokens, asked.num_logprobs) == (512, 512, None)
    assert asked.settings.seed != read(request()).requests[0].settings.seed
    body = request(max_tokens=7, max_completion_tokens=9, top_p=0, seed=-3, stop="x")
    (both,) = read(body).requests
    assert (both.max_new_tokens, both.settings.seed, both.stops) == (9, -3, ("x",))
    longest = read(request(max_tokens=4096))
    assert longest.requests[0].max_new_tokens == MAX_LENGTH - longest.num_prompt_tokens


def test_probabilities_are_asked_for_in_two_ways() -> None:
    assert read(request(logprobs=True)).requests[0].num_logprobs == 0
    assert read(request(logprobs=True, top_logprobs=3)).requests[0].num_logprobs == 3
    assert complete(logprobs=0).requests[0].num_logprobs == 0
    assert complete().requests[0].num_logprobs is None


def test_the_first_of_several_replies_has_the_seed_that_was_given() -> None:
    (alone,), several = read(request(seed=5)).requests, read(request(seed=5, n=4)).requests
    assert several[0] == alone
    assert len({asked.settings.seed for asked in several}) == 4
    neighbour = read(request(seed=6, n=4)).requests
    assert not {a.settings.seed for a in several} & {a.settings.seed for a in neighbour}


@pytest.mark.parametrize("seed", [0, 1, -(2**63), 2**63 - 1])
def test_derived_seeds_stay_in_the_range_of_given_ones(seed: int) -> None:
    assert seed_of(seed, 0) == seed
    assert all(-(2**63) <= seed_of(seed, index) < 2**63 for index in range(40))


def test_prompts_of_a_completion_may_be_texts_or_ids() -> None:
    bos = TOKENIZER.bos_id
    for prompt, expected in [
        ("ab", [(bos, 97, 98)]),
        ([97, 98], [(bos, 97, 98)]),
        (["a", "b"], [(bos, 97), (bos, 98)]),
        ([[97], [98]], [(bos, 97), (bos, 98)]),
        (None, [(bos,)]),
        ("", [(bos,)]),
        ([[]], [(bos,)]),
    ]:
        assert list(complete(prompt).prompts) == expected


def test_replies_are_in_the_order_of_their_prompts() -> None:
    question = complete(["a", "bc"], n=2, echo=True, seed=3)
    assert [asked.prompt[1:] for asked in question.requests] == [(97,), (97,), (98, 99), (98, 99)]
    assert question.echoes == ("a", "a", "bc", "bc")
    # Each prompt gets the replies that it would get alone.
    assert question.requests[2:] == complete("bc", n=2, seed=3).requests
    # A prompt is read once, whatever number of replies it gets.
    assert question.num_prompt_tokens == 5
    assert [question.num_new_prompt_tokens(index) for index in range(4)] == [2, 0, 3, 0]
    # Without a seed, equal prompts are different draws.
    unseeded = complete(["a", "a"]).requests
    assert unseeded[0].settings.seed != unseeded[1].settings.seed
