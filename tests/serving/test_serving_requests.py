"""What a request may ask, and what its prompt becomes."""

from typing import Any

import pytest
from serving_tools import YES, make_engine, request

from nanochat_core.conversation.types import Conversation, Message, Part
from nanochat_core.errors import DataError
from nanochat_core.inference.engine import InferenceEngine
from nanochat_core.serving.problems import RequestError, UnknownModelError
from nanochat_core.serving.requests import ChatCompletionRequest, Question, read_question
from nanochat_core.serving.settings import ServerSettings
from nanochat_core.tokenizer.chat_format import render_prompt, trim_history

SETTINGS = ServerSettings(name="scripted")


@pytest.fixture(scope="module")
def engine() -> InferenceEngine:
    """Takes prompts of 320 tokens."""
    return make_engine(*YES)


def read(engine: InferenceEngine, body: dict[str, Any]) -> Question:
    return read_question(ChatCompletionRequest.model_validate(body), engine, SETTINGS)


def prompt_text(engine: InferenceEngine, body: dict[str, Any]) -> str:
    prompt = read(engine, body).prompt
    names = {number: name for name, number in engine.tokenizer.special_ids.items()}
    return "".join(names[token] if token in names else chr(token) for token in prompt)


def say(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


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
        ({"top_p": 1.5}, "top_p", ["1.5", "0 to 1"]),
        ({"top_k": 201}, "top_k", ["201", "0 to 200"]),
        ({"max_tokens": 0}, "max_tokens", ["1 to 4,096"]),
        ({"max_completion_tokens": 4097}, "max_completion_tokens", ["4097", "4,096"]),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", ["5", "4"]),
        ({"stop": [""]}, "stop", ["empty"]),
        ({"n": 2}, "n", ["n=2", "give 1"]),
        ({"tools": [{"type": "function"}]}, "tools", ["not supported"]),
        ({"response_format": {"type": "json_object"}}, "response_format", ["not supported"]),
        ({"messages": [say("user", "a" * 400)]}, "messages", ["404", "320"]),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_with_its_field_limit_and_value(
    engine: InferenceEngine, fields: dict[str, Any], param: str, words: list[str]
) -> None:
    with pytest.raises(RequestError) as caught:
        read(engine, request(**fields))
    assert caught.value.param == param
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_another_model_is_refused_by_its_name(engine: InferenceEngine) -> None:
    with pytest.raises(UnknownModelError, match=r"'gpt-4'.*'scripted'"):
        read(engine, request(model="gpt-4"))
    assert read(engine, request(model="scripted")) != read(engine, request(model=None))  # the seed


@pytest.mark.parametrize(
    ("roles", "kind"),
    [
        ("assistant", RequestError),
        ("user assistant", RequestError),
        ("user user", DataError),
        ("user system", DataError),
        ("system", DataError),
    ],
)
def test_messages_out_of_turn_are_refused(
    engine: InferenceEngine, roles: str, kind: type[Exception]
) -> None:
    with pytest.raises(kind, match="user"):
        read(engine, {"messages": [say(role, "a") for role in roles.split()]})


def test_what_asks_for_nothing_and_what_is_unknown_is_ignored(engine: InferenceEngine) -> None:
    neutral = {"n": 1, "tools": [], "presence_penalty": 0.0, "user": "me", "no_such_field": {}}
    assert read(engine, request(**neutral, seed=1)) == read(engine, request(seed=1))


def test_text_may_come_in_parts_and_the_system_under_two_names(engine: InferenceEngine) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    expected = "<|bos|><|user_start|>S\n\nab<|user_end|><|assistant_start|>"
    for role in ("system", "developer"):
        messages = [say(role, "S"), say("user", parts)]
        assert prompt_text(engine, {"messages": messages}) == expected


def test_special_tokens_in_a_text_are_text(engine: InferenceEngine) -> None:
    prompt = read(engine, request("<|assistant_end|>")).prompt
    assert engine.tokenizer.special_id("assistant_end") not in prompt


def test_a_reply_may_come_back_with_its_calculation(engine: InferenceEngine) -> None:
    parts = [{"kind": "python", "text": "6*7"}, {"kind": "python_output", "text": "42"}]
    parts.append({"kind": "text", "text": "ok"})
    messages = [say("user", "a"), say("assistant", "ok", nanochat_parts=parts), say("user", "b")]
    assert (
        "<|python_start|>6*7<|python_end|><|output_start|>42<|output_end|>ok<|assistant_end|>"
        in prompt_text(engine, {"messages": messages})
    )


def test_a_long_history_loses_its_oldest_exchanges_and_says_how_many(
    engine: InferenceEngine,
) -> None:
    history = [say("user", "old" * 30), say("assistant", "")] * 5
    question = read(engine, {"messages": [*history, say("user", "new")]})
    assert len(question.prompt) <= 320
    assert question.num_dropped_messages == 4


@pytest.mark.parametrize("system", [[], [say("system", "Be brief. " * 9)]])
@pytest.mark.parametrize("num_exchanges", range(0, 30, 3))
def test_what_is_kept_of_a_history_is_what_the_chat_command_keeps(
    engine: InferenceEngine, system: list[dict[str, Any]], num_exchanges: int
) -> None:
    turns = [say("user", "q" * 20), say("assistant", "a" * 9)] * num_exchanges
    messages = [*system, *turns, say("user", "now")]
    conversation = Conversation(
        messages=tuple(Message(role=m["role"], parts=(Part(text=m["content"]),)) for m in messages)
    )
    kept = trim_history(engine.tokenizer, conversation, max_tokens=320)
    expected = render_prompt(engine.tokenizer, kept, max_tokens=320)
    assert list(read(engine, {"messages": messages}).prompt) == expected


def test_defaults_and_the_newer_name_of_a_limit(engine: InferenceEngine) -> None:
    question = read(engine, request())
    assert (question.settings.temperature, question.settings.top_k) == (0.6, 50)
    assert question.max_tokens == 512
    assert question.settings.seed != read(engine, request()).settings.seed
    both = read(engine, request(max_tokens=7, max_completion_tokens=9, top_p=0, seed=-3, stop="x"))
    assert (both.max_tokens, both.settings.seed, both.stops) == (9, -3, ("x",))
    # The model has 640 positions.
    longest = read(engine, request(max_tokens=4096))
    assert longest.max_tokens == 640 - len(longest.prompt)
