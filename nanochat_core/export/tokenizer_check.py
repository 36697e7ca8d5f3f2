"""Whether the tokenizer of an export is ours: ids, text of ids, and rendered conversations."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nanochat_core.conversation.types import Conversation, Message, Part, Role
from nanochat_core.errors import ExportError
from nanochat_core.export.check_strings import StringMaker, make_strings
from nanochat_core.tokenizer.chat_format import render, render_prompt
from nanochat_core.tokenizer.split_patterns import pattern_name
from nanochat_core.tokenizer.tokenizer import SPECIAL_TOKENS, Tokenizer

SHOWN_CHARACTERS = 80
SHOWN_IDS = 12
STRINGS_PER_CHAT = 50
MOST_IDS = 200
NO_LIMIT = 1 << 40


def compare_tokenizers(tokenizer: Tokenizer, folder: Path, strings: int) -> int:
    """Compare the tokenizer of an export folder with ours on so many strings; returns how many.

    Each string is cut into ids, and these are put together again; beside them sequences of ids
    that no text has, bos before a text, and conversations by the chat template. Nothing is
    downloaded, and no code of the folder runs. Raises `ExportError` that shows the first
    difference.
    """
    from transformers import PreTrainedTokenizerFast  # here: importing it takes seconds

    theirs: Any = PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
    texts = make_strings(tokenizer, strings)
    _check_vocabulary(tokenizer, theirs)
    _check_encoding(tokenizer, theirs, texts)
    _check_decoding(tokenizer, theirs, strings)
    for conversation in make_conversations(tokenizer, max(strings // STRINGS_PER_CHAT, 10)):
        _check_chat(tokenizer, theirs, conversation)
    return len(texts)


def make_conversations(tokenizer: Tokenizer, count: int, seed: int = 0) -> list[Conversation]:
    """Conversations with any text, tool parts, and now and then a system message."""
    rng = random.Random(f"conversations {seed}")
    maker = StringMaker(tokenizer, rng)
    kinds = (maker.tokens, maker.script, maker.code, maker.emoji, maker.controls, maker.numbers)
    return [_conversation(rng, lambda: _plain(rng.choice(kinds)())) for _ in range(count)]


def _plain(text: str) -> str:
    """Without what the template's reader could take for a special token."""
    return text.replace("<|", "< |")


def _conversation(rng: random.Random, text: Callable[[], str]) -> Conversation:
    def said(role: Role, *kinds: str) -> Message:
        parts = tuple(Part.model_validate({"kind": kind, "text": text()}) for kind in kinds)
        return Message(role=role, parts=parts)

    messages = [said("system", "text")] if rng.random() < 0.3 else []
    replies = (
        ("text",),
        ("text", "python", "python_output", "text"),
        ("python", "python_output", "text"),
        ("python",),
    )
    for _ in range(rng.randint(1, 4)):
        messages += [said("user", "text"), said("assistant", *rng.choice(replies))]
    if rng.random() < 0.5:
        messages.append(said("user", "text"))
    return Conversation(messages=tuple(messages))


def messages_of(conversation: Conversation) -> list[dict[str, Any]]:
    """A conversation as `apply_chat_template` takes it."""
    return [
        {
            "role": message.role,
            "content": message.text
            if len(message.parts) == 1 and message.parts[0].kind == "text"
            else [{"type": part.kind, "text": part.text} for part in message.parts],
        }
        for message in conversation.messages
    ]


def _check_vocabulary(tokenizer: Tokenizer, theirs: Any) -> None:
    special = {name: theirs.convert_tokens_to_ids(name) for name in SPECIAL_TOKENS}
    if len(theirs) != tokenizer.vocab_size or special != tokenizer.special_ids:
        raise ExportError(
            f"the exported tokenizer has {len(theirs):,} tokens and the special ids {special}; "
            f"expected {tokenizer.vocab_size:,} and {tokenizer.special_ids}: {_REMEDY}"
        )


def _check_encoding(tokenizer: Tokenizer, theirs: Any, texts: Sequence[str]) -> None:
    expected = [tokenizer.encode(text) for text in texts]
    # Ours never reads a special token out of text; theirs does, unless told not to.
    as_text = _encoded(theirs, texts, split_special_tokens=True)
    plain = [text for text in texts if not any(name in text for name in SPECIAL_TOKENS)]
    by_default = dict(zip(plain, _encoded(theirs, plain, add_special_tokens=True), strict=True))
    for text, ours, found in zip(texts, expected, as_text, strict=True):
        _check_ids(tokenizer, f"the text {_shown(text)}", ours, found)
        if text in by_default:
            beginning = f"bos and the text {_shown(text)}"
            _check_ids(tokenizer, beginning, [tokenizer.bos_id, *ours], by_default[text])
        _check_text(theirs, tokenizer, ours)


def _encoded(theirs: Any, texts: Sequence[str], **options: bool) -> list[list[int]]:
    if not texts:
        return []
    given = {"add_special_tokens": False, "return_attention_mask": False, **options}
    found: list[list[int]] = theirs(list(texts), **given)["input_ids"]
    return found


def _check_decoding(tokenizer: Tokenizer, theirs: Any, count: int) -> None:
    """Ids in an order in which no text has them: halves of characters, specials between them."""
    rng = random.Random("ids")
    for _ in range(count):
        length = rng.randint(1, rng.choice((4, 20, MOST_IDS)))
        _check_text(theirs, tokenizer, rng.choices(range(tokenizer.vocab_size), k=length))


def _check_text(theirs: Any, tokenizer: Tokenizer, ids: Sequence[int]) -> None:
    ours, found = tokenizer.decode(ids), theirs.decode(list(ids))
    if ours != found:
        place = _first_difference(ours, found)
        raise ExportError(
            f"the exported tokenizer gives other text for the ids {list(ids[:SHOWN_IDS])}…: from "
            f"character {place} on {_shown(found[place:])}, expected {_shown(ours[place:])}: "
            f"{_REMEDY}"
        )


def _check_chat(tokenizer: Tokenizer, theirs: Any, conversation: Conversation) -> None:
    messages = messages_of(conversation)
    ours, mask = render(tokenizer, conversation, max_tokens=NO_LIMIT)
    found = theirs.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    what = f"the conversation that begins with {_shown(str(messages[0]['content']))}"
    _check_ids(tokenizer, what, ours, found["input_ids"])
    _check_mask(what, mask, found["assistant_masks"])
    if conversation.messages[-1].role == "user":
        prompt = theirs.apply_chat_template(
            messages, tokenize=True, return_dict=True, add_generation_prompt=True
        )
        expected = render_prompt(tokenizer, conversation, max_tokens=NO_LIMIT)
        _check_ids(tokenizer, f"a prompt, {what}", expected, prompt["input_ids"])


def _check_mask(what: str, ours: Sequence[int], found: Sequence[int]) -> None:
    if list(ours) != list(found):
        place = _first_difference(ours, found)
        raise ExportError(
            f"the exported chat template marks other tokens of the assistant, the first at {place} "
            f"of {what}: {_REMEDY}"
        )


def _check_ids(tokenizer: Tokenizer, what: str, ours: Sequence[int], found: Sequence[int]) -> None:
    if list(ours) == list(found):
        return
    place = _first_difference(ours, found)
    shown = slice(place, place + SHOWN_IDS)
    raise ExportError(
        f"the exported tokenizer (split pattern {pattern_name(tokenizer.split_pattern)}) cuts "
        f"{what} otherwise, from token {place} on: {_parts(tokenizer, found[shown])}, expected "
        f"{_parts(tokenizer, ours[shown])}: {_REMEDY}"
    )


def _parts(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    known = [i for i in ids if 0 <= i < tokenizer.vocab_size]
    return f"{list(ids)} {[tokenizer.decode([i]) for i in known]}"


def _first_difference(ours: Sequence[Any], found: Sequence[Any]) -> int:
    same = (place for place, (a, b) in enumerate(zip(ours, found, strict=False)) if a != b)
    return next(same, min(len(ours), len(found)))


def _shown(text: str) -> str:
    return repr(text[:SHOWN_CHARACTERS]) + ("…" if len(text) > SHOWN_CHARACTERS else "")


_REMEDY = (
    "nothing was published; with a split pattern of your own, take one of the named ones, else "
    "report this with the versions of tokenizers and transformers"
)
