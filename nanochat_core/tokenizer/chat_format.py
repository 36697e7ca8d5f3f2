"""How conversations become tokens (RECIPE section 3).

    bos (user_start text user_end assistant_start parts assistant_end)*

A part is plain text, `python_start code python_end`, or `output_start result output_end`.
"""

from collections.abc import Sequence

from nanochat_core.conversation.types import Conversation, Message, Part, PartKind
from nanochat_core.errors import DataError
from nanochat_core.tokenizer.tokenizer import Tokenizer

MAX_TOKENS = 2048
"""Conversations and prompts are cut to this many tokens (RECIPE section 3)."""

_BRACKETS: dict[PartKind, tuple[str, str]] = {
    "python": ("python_start", "python_end"),
    "python_output": ("output_start", "output_end"),
}


def render(
    tokenizer: Tokenizer, conversation: Conversation, *, max_tokens: int = MAX_TOKENS
) -> tuple[list[int], list[int]]:
    """Ids of a conversation and a mask of equal length: 1 where the token is trained on.

    Trained are the assistant's text and python parts with their brackets, and `assistant_end`;
    bos, `assistant_start`, tool output and everything of the user are not.
    """
    ids, mask = [tokenizer.bos_id], [0]
    for turn in _merged_turns(conversation):
        turn_ids, turn_mask = _render_turn(tokenizer, turn)
        ids += turn_ids
        mask += turn_mask
    return ids[:max_tokens], mask[:max_tokens]


def render_prompt(
    tokenizer: Tokenizer, conversation: Conversation, *, max_tokens: int = MAX_TOKENS
) -> list[int]:
    """Ids of a conversation that ends with the user, and `assistant_start` for the answer.

    The end is cut when it is too long; `trim_history` drops the oldest turns before that.
    Raises `DataError` when the last message is the assistant's.
    """
    if conversation.messages[-1].role != "user":
        raise DataError(
            "a prompt ends with the assistant's message; expected the user's: leave the last out"
        )
    ids, _ = render(tokenizer, conversation, max_tokens=max_tokens - 1)
    return [*ids, tokenizer.special_id("assistant_start")]


def trim_history(
    tokenizer: Tokenizer, conversation: Conversation, *, max_tokens: int = MAX_TOKENS
) -> Conversation:
    """The conversation without its oldest exchanges, until its prompt fits `max_tokens`.

    The system message and the last user message always stay.
    """
    head = () if conversation.system is None else (conversation.system,)
    turns = conversation.turns
    while len(turns) > 2:
        trimmed = Conversation(messages=(*head, *turns))
        ids, _ = render(tokenizer, trimmed, max_tokens=max_tokens)
        if len(ids) < max_tokens:
            return trimmed
        turns = turns[2:]
    return Conversation(messages=(*head, *turns))


def parse_reply(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[Part, ...]:
    """Parts of a reply's ids, read up to `assistant_end` or bos; the inverse of rendering.

    A bracket that never closes ends with the reply; other specials are left out.
    """
    names = {token_id: name.strip("<|>") for name, token_id in tokenizer.special_ids.items()}
    opening = {start: kind for kind, (start, _) in _BRACKETS.items()}
    parts: list[Part] = []
    kind: PartKind = "text"
    pending: list[int] = []

    def close() -> None:
        if pending or kind != "text":
            parts.append(Part(kind=kind, text=tokenizer.decode(pending)))
            pending.clear()

    for token_id in ids:
        name = names.get(token_id)
        if name is None:
            pending.append(token_id)
            continue
        if name in ("assistant_end", "bos"):
            break
        if name in opening or name in ("python_end", "output_end"):
            close()
            kind = opening.get(name, "text")
    close()
    return tuple(parts)


def visible_text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """What a reader sees of a reply: its text, without code and tool output."""
    parts = parse_reply(tokenizer, ids)
    return "".join(part.text for part in parts if part.kind == "text").strip()


def _merged_turns(conversation: Conversation) -> tuple[Message, ...]:
    # The chat format has no system role: its text stands before the first question.
    system, turns = conversation.system, conversation.turns
    if system is None:
        return turns
    first = Message(role="user", parts=(Part(text=f"{system.text}\n\n{turns[0].text}"),))
    return (first, *turns[1:])


def _render_turn(tokenizer: Tokenizer, message: Message) -> tuple[list[int], list[int]]:
    start, end = (tokenizer.special_id(f"{message.role}_{edge}") for edge in ("start", "end"))
    is_assistant = message.role == "assistant"
    ids, mask = [start], [0]
    for part in message.parts:
        part_ids = _render_part(tokenizer, part)
        is_trained = is_assistant and part.kind != "python_output"
        ids += part_ids
        mask += [int(is_trained)] * len(part_ids)
    return [*ids, end], [*mask, int(is_assistant)]


def _render_part(tokenizer: Tokenizer, part: Part) -> list[int]:
    ids = tokenizer.encode(part.text)
    if part.kind not in _BRACKETS:
        return ids
    start, end = _BRACKETS[part.kind]
    return [tokenizer.special_id(start), *ids, tokenizer.special_id(end)]
