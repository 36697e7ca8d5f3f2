"""A conversation out of JSON: `{"messages": [{"role", "content"}]}`, or the bare list of messages.

Content is text, or a list of parts `{"type": "text" | "python" | "python_output", "text"}`, as
others write them; what this project itself writes (`parts` with `kind` and `text`) is read too.
"""

from typing import Any, get_args

from nanochat_core.conversation.types import Conversation, Message, Part, PartKind, Role
from nanochat_core.errors import DataError

ROLES: tuple[Role, ...] = get_args(Role)
PART_KINDS: tuple[PartKind, ...] = get_args(PartKind)
MAX_MESSAGES = 1_000
SHOWN_CHARACTERS = 40


def conversation_of(value: Any, *, may_be_empty: bool = False) -> Conversation:
    """The conversation that a value of JSON stands for.

    Raises DataError that says what is wrong with it and what was expected, without a place. A
    message without text is refused unless `may_be_empty`.
    """
    is_object = isinstance(value, dict) and "messages" in value
    messages = value["messages"] if is_object else value
    if not isinstance(messages, list):
        given = f"messages is {_shown(messages)}" if is_object else _shown(value)
        raise DataError(f"{given}; {_EXPECTED}")
    if not messages:
        raise DataError(f"a conversation without messages; {_EXPECTED}")
    if len(messages) > MAX_MESSAGES:
        raise DataError(f"{len(messages):,} messages; expected {MAX_MESSAGES:,} or fewer")
    found = []
    for number, message in enumerate(messages, start=1):
        try:
            found.append(_message_of(message, may_be_empty))
        except DataError as error:
            raise DataError(f"message {number}: {error}") from None
    return Conversation(messages=tuple(found))


_EXPECTED = (
    'expected an object {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", '
    '"content": "..."}]}, or the list of messages alone'
)


def _message_of(value: Any, may_be_empty: bool) -> Message:
    if not isinstance(value, dict):
        raise DataError(f"{_shown(value)}; expected an object with role and content")
    role = value.get("role")
    if role not in ROLES:
        given = f"role={repr(role)[:SHOWN_CHARACTERS]}" if "role" in value else _shown(value)
        raise DataError(f"{given}; expected a role, one of {', '.join(ROLES)}")
    if ("content" in value) == ("parts" in value):
        both = "both content and parts" if "parts" in value else _shown(value)
        raise DataError(f"{both}; expected content, a text or a list of parts")
    content = value["content"] if "content" in value else value["parts"]
    parts = _parts_of(content)
    if not may_be_empty and not any(part.text.strip() for part in parts):
        raise DataError(f"an empty message of {role}; expected some text, or leave the line out")
    return Message(role=role, parts=parts)


def _parts_of(content: Any) -> tuple[Part, ...]:
    if isinstance(content, str):
        return (Part(text=_whole(content)),)
    if not isinstance(content, list) or not content:
        raise DataError(f"content is {_shown(content)}; expected a text or a list of parts")
    return tuple(_part_of(part) for part in content)


def _part_of(value: Any) -> Part:
    kind = value.get("type", value.get("kind")) if isinstance(value, dict) else None
    if kind not in PART_KINDS or not isinstance(value.get("text"), str):
        raise DataError(
            f"a part is {_shown(value)}; expected an object with type, one of "
            f"{', '.join(PART_KINDS)}, and text"
        )
    return Part(kind=kind, text=_whole(value["text"]))


def _whole(text: str) -> str:
    """The text, unless it holds half a character, which no file could take."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"half a character, \\u{ord(text[error.start]):04x}, at {error.start}; expected "
            "whole ones: write the file again in UTF-8"
        ) from None
    return text


def _shown(value: Any) -> str:
    """What was given, without its texts."""
    if isinstance(value, dict):
        # As they are written in Python: what a terminal acts on is only shown.
        fields = ", ".join(repr(name)[1:-1][:SHOWN_CHARACTERS] for name in list(value)[:6])
        return f"an object with {fields}" if fields else "an empty object"
    return _TYPES.get(type(value), type(value).__name__)


_TYPES = {
    list: "a list",
    str: "a text",
    int: "a number",
    float: "a number",
    bool: "a boolean",
    type(None): "null",
}
