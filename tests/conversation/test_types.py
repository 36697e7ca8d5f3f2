"""Conversations: turns that cannot be rendered cannot be built."""

import pytest

from nanochat_core.conversation.types import (
    Conversation,
    Message,
    Part,
    assistant,
    exchange,
    python,
    python_output,
    system,
    user,
)
from nanochat_core.errors import DataError


@pytest.mark.parametrize(
    "messages",
    [
        (),
        (system("s"),),
        (assistant("a"),),
        (user("u"), user("u")),
        (user("u"), assistant("a"), assistant("a")),
        (system("s"), assistant("a")),
        (user("u"), system("s")),
        (system("s"), system("s"), user("u")),
    ],
)
def test_messages_that_do_not_take_turns_are_refused(messages: tuple[Message, ...]) -> None:
    with pytest.raises(DataError, match="user and assistant in turn, user first"):
        Conversation(messages=messages)


def test_only_the_assistant_may_use_the_tool() -> None:
    with pytest.raises(DataError, match="a user message holds a python part"):
        Conversation(messages=(Message(role="user", parts=(python("1"),)),))


def test_system_and_turns_are_told_apart() -> None:
    conversation = Conversation(messages=(system("s"), user("u"), assistant("a"), user("v")))
    assert conversation.system == system("s")
    assert [message.text for message in conversation.turns] == ["u", "a", "v"]
    assert exchange("u", "a").system is None


def test_the_text_of_a_message_leaves_the_tool_out() -> None:
    answer = assistant("It ", python("1+1"), python_output("2"), "is 2.")
    assert answer.text == "It is 2."
    assert answer.parts[0] == Part(text="It ")


def test_a_conversation_survives_json() -> None:
    conversation = exchange("1+1?", python("1+1"), python_output("2"), "2")
    assert Conversation.model_validate_json(conversation.model_dump_json()) == conversation
