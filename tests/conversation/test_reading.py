"""Conversations out of JSON: the forms that people write, and what is wrong with others."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat_core.conversation.reading import MAX_MESSAGES, conversation_of
from nanochat_core.conversation.types import (
    Conversation,
    Part,
    assistant,
    exchange,
    python,
    python_output,
    system,
    user,
)
from nanochat_core.errors import DataError

PAIR = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


@pytest.mark.parametrize(
    "value", [PAIR, {"messages": PAIR}, {"messages": PAIR, "source": "elsewhere", "id": 3}]
)
def test_a_list_of_messages_and_an_object_with_them_are_the_same(value: Any) -> None:
    assert conversation_of(value) == exchange("Hi", "Hello")


def test_content_may_be_parts_and_a_system_message_comes_first() -> None:
    parts = [
        {"type": "text", "text": "It is "},
        {"type": "python", "text": "1+1"},
        {"type": "python_output", "text": "2"},
    ]
    value = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "1+1?"}]},
        {"role": "assistant", "content": parts},
    ]
    expected = (
        system("Be brief."),
        user("1+1?"),
        assistant("It is ", python("1+1"), python_output("2")),
    )
    assert conversation_of(value).messages == expected


def test_what_this_project_writes_is_read_back() -> None:
    conversation = exchange("1+1?", python("1+1"), python_output("2"), Part(text="2"))
    assert conversation_of(conversation.model_dump(mode="json")) == conversation


def message(**fields: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": "Hi"}, fields]


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (3, r'a number; expected an object \{"messages"'),
        (None, "null; expected"),
        ({}, "an empty object; expected"),
        ({"messages": "Hi"}, "messages is a text; expected"),
        ({"conversations": PAIR}, "an object with conversations; expected"),
        ({"a\x1b[2J": 1}, r"an object with a\\x1b\[2J; expected"),
        ([{"role": "r" * 999}], r"message 1: role='r{39}; expected a role"),
        ([], "without messages"),
        (["Hi"], "message 1: a text; expected an object with role and content"),
        ([{"content": "Hi"}], "message 1: an object with content; expected a role"),
        ([{"role": "human", "content": "Hi"}], "message 1: role='human'; expected .* user"),
        ([{"role": [], "content": "Hi"}], r"message 1: role=\[\]; expected"),
        (message(role="assistant"), "message 2: an object with role; expected content"),
        (message(role="assistant", content=None), "message 2: content is null"),
        (message(role="assistant", content=[]), "message 2: content is a list"),
        (message(role="assistant", content={"a": 1}), "message 2: content is an object with a"),
        (message(role="assistant", content=["a"]), "message 2: a part is a text; expected"),
        (message(role="assistant", content=[{"type": "image", "text": ""}]), "one of text, python"),
        (message(role="assistant", content=[{"type": "text"}]), "a part is an object with type"),
        (message(role="assistant", content=" \n"), "message 2: an empty message of assistant"),
        (message(role="assistant", content="a", parts=[]), "both content and parts"),
        (message(role="assistant", content="a\ud800"), r"half a character, \\ud800, at 1"),
        (message(role="user", content="a"), "user first"),
        (PAIR[1:], "the roles assistant; expected"),
        ([*PAIR, {"role": "system", "content": "a"}], "optional system message"),
        (
            [{"role": "user", "content": [{"type": "python", "text": "1"}]}],
            "a user message holds a python part",
        ),
        (PAIR * (MAX_MESSAGES // 2 + 1), "1,002 messages; expected 1,000 or fewer"),
    ],
)
def test_what_is_no_conversation_is_told_with_what_was_expected(value: Any, what: str) -> None:
    with pytest.raises(DataError, match=what) as caught:
        conversation_of(value)
    assert "expected" in str(caught.value) or "only the assistant" in str(caught.value)


def test_a_published_set_may_hold_empty_messages() -> None:
    empty = exchange("", "")
    assert conversation_of(empty.model_dump(mode="json"), may_be_empty=True) == empty


def test_a_question_alone_is_a_conversation() -> None:
    assert conversation_of(PAIR[:1]) == Conversation(messages=(user("Hi"),))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["messages", "role", "content", "parts", "type", "kind", "text", "x"]),
            inner | st.sampled_from(["user", "assistant", "system", "text", "python"]),
            max_size=4,
        )
    ),
    max_leaves=20,
)


@settings(max_examples=50, deadline=None, database=None)
@given(JSON, st.booleans())
def test_no_value_of_json_is_a_surprise(value: Any, may_be_empty: bool) -> None:
    try:
        conversation = conversation_of(value, may_be_empty=may_be_empty)
    except DataError:
        return
    assert conversation_of(conversation.model_dump(mode="json"), may_be_empty=True) == conversation
