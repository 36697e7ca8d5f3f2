"""Prompts: the tokens of a conversation, of texts, or those that a client gives itself.

Whatever a text holds is text: the tokenizer never makes a special token of it. Control characters
are bytes like others and stay. Among ids that a client gives, special ones are refused.
"""

import reprlib
from collections.abc import Sequence

from nanochat_core.conversation.types import Conversation, Message, Part, Role
from nanochat_core.serving.bodies import ChatMessage, ContentPart
from nanochat_core.serving.problems import RequestError
from nanochat_core.serving.settings import Limits
from nanochat_core.tokenizer.chat_format import MAX_TOKENS, render, render_prompt, trim_history
from nanochat_core.tokenizer.tokenizer import Tokenizer

NO_LIMIT = 1 << 30


def chat_prompt(
    messages: Sequence[ChatMessage], tokenizer: Tokenizer, max_length: int, limits: Limits
) -> tuple[tuple[int, ...], int]:
    """The prompt of a conversation, and how many of its messages were left out.

    The oldest exchanges are dropped until half a row is free for the reply, as in `nanochat chat`;
    the system's text and the last message stay, and may take all of the row but one token.
    """
    conversation = _conversation(messages, limits)
    room = min(MAX_TOKENS, max_length // 2)
    recent = _recent(tokenizer, conversation, room)
    trimmed = trim_history(tokenizer, recent, max_tokens=room)
    prompt = render_prompt(tokenizer, trimmed, max_tokens=NO_LIMIT)
    _check_fits("messages", "the last message needs", len(prompt), max_length)
    return tuple(prompt), len(conversation.messages) - len(trimmed.messages)


def text_prompts(
    prompt: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | None,
    tokenizer: Tokenizer,
    max_length: int,
    limits: Limits,
) -> tuple[list[tuple[int, ...]], list[str]]:
    """The prompts of /v1/completions and their texts; each starts with bos, as documents do."""
    given = _several(prompt)
    check_most("prompt", len(given), limits.max_choices, "prompts")
    check_most("prompt", _num_characters(given), limits.max_total_characters, "characters in all")
    check_most("prompt", _num_ids(given), limits.max_prompt_tokens, "token ids in all")
    prompts, texts = [], []
    for i, one in enumerate(given):
        place = f"prompt[{i}]" if given is prompt else "prompt"
        if isinstance(one, str):
            text, ids = one, tokenizer.encode(one)
        else:
            _check_ids(place, one, tokenizer)
            text, ids = tokenizer.decode(one), list(one)
        _check_fits(place, "it needs", len(ids) + 1, max_length)
        prompts.append((tokenizer.bos_id, *ids))
        texts.append(text)
    return prompts, texts


def check_most(param: str, given: int, most: int, unit: str) -> None:
    """Raise RequestError for more than the limit."""
    if given > most:
        raise RequestError(
            f"{param} has {given:,} {unit}, the limit is {most:,}; send less", param=param
        )


def _check_fits(param: str, what: str, num_tokens: int, max_length: int) -> None:
    if num_tokens >= max_length:
        raise RequestError(
            f"{param}: {what} a prompt of {num_tokens:,} tokens, and prompt and reply together "
            f"may have {max_length:,} with this model; shorten it",
            param=param,
            code="context_length_exceeded",
        )


def _conversation(messages: Sequence[ChatMessage], limits: Limits) -> Conversation:
    if not messages:
        raise RequestError("messages is empty; give at least one of the user's", param="messages")
    check_most("messages", len(messages), limits.max_messages, "messages")
    read = tuple(_message(i, message) for i, message in enumerate(messages))
    total = 0
    for i, message in enumerate(read):
        length = sum(len(part.text) for part in message.parts)
        check_most(f"messages[{i}]", length, limits.max_message_characters, "characters")
        total += length
    check_most("messages", total, limits.max_total_characters, "characters in all")
    if read[-1].role == "assistant":
        raise RequestError(
            "messages ends with one of the assistant's; expected the user's", param="messages"
        )
    return Conversation(messages=read)


def _recent(tokenizer: Tokenizer, conversation: Conversation, room: int) -> Conversation:
    """The conversation without the exchanges that cannot fit, whatever the system's text takes.

    `trim_history` alone renders everything again for each one that it drops: seconds for 500.
    """
    head = () if conversation.system is None else (conversation.system,)
    turns, first, num_tokens = conversation.turns, len(conversation.turns) - 1, 0
    while first >= 0:
        exchange = Conversation(messages=turns[first : first + 2])
        num_tokens += len(render(tokenizer, exchange, max_tokens=room)[0]) - 1
        if num_tokens > room and first < len(turns) - 1:
            break
        first -= 2
    return Conversation(messages=(*head, *turns[max(first + 2, 0) :]))


def _message(index: int, message: ChatMessage) -> Message:
    role: Role = "system" if message.role == "developer" else message.role
    if message.nanochat_parts and role == "assistant":
        return Message(role=role, parts=tuple(message.nanochat_parts))
    text = message.content
    if isinstance(text, list):
        text = "".join(_part_text(f"messages[{index}].content[{i}]", p) for i, p in enumerate(text))
    # An assistant may have said nothing, and its turn still counts.
    if not text and role != "assistant":
        raise RequestError(
            f"messages[{index}] of the {role} has no text; leave it out, or say something",
            param=f"messages[{index}].content",
        )
    return Message(role=role, parts=(Part(text=text or ""),))


def _part_text(place: str, part: ContentPart) -> str:
    if part.type != "text" or part.text is None:
        raise RequestError(
            f"{place} is of type {part.type[:40]!r}; this model reads text only: "
            'give {"type": "text", "text": "..."}',
            param=place,
            code="unsupported_value",
        )
    return part.text


def _several(
    prompt: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | None,
) -> Sequence[str | Sequence[int]]:
    if prompt is None:
        return [""]
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise RequestError("prompt is an empty list; give a text, or token ids", param="prompt")
    return [prompt] if isinstance(prompt[0], int) else prompt  # type: ignore[list-item,return-value]


def _num_characters(prompts: Sequence[str | Sequence[int]]) -> int:
    return sum(len(prompt) for prompt in prompts if isinstance(prompt, str))


def _num_ids(prompts: Sequence[str | Sequence[int]]) -> int:
    return sum(len(prompt) for prompt in prompts if not isinstance(prompt, str))


def _check_ids(param: str, ids: Sequence[int], tokenizer: Tokenizer) -> None:
    num_ordinary = len(tokenizer.ranks)
    for i, token in enumerate(ids):
        if not 0 <= token < num_ordinary:
            what = "a special token" if tokenizer.is_special(token) else "no token of this model"
            raise RequestError(
                f"{param}[{i}] is {reprlib.repr(token)}, {what}; give ids from 0 to "
                f"{num_ordinary - 1:,} (bos comes by itself)",
                param=param,
            )
