"""A chat as a file or as JSON: what was said, by which model, and with which settings."""

import json
import os
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nanochat_core.conversation.types import PartKind
from nanochat_core.errors import ConfigError, DataError
from nanochat_core.jobs.chat_dialogue import Answer, Dialogue
from nanochat_core.jobs.chat_settings import ChatSettings
from nanochat_core.jobs.chat_terminal import between

FORMAT = 1


def as_json(answer: Answer) -> dict[str, Any]:
    """A reply with everything that is known of it."""
    return {
        "reply": answer.text,
        "parts": [{"kind": part.kind, "text": part.text} for part in answer.parts],
        "model": answer.model,
        "artifact": answer.ref or None,
        "settings": settings_as_json(answer.settings),
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.num_prompt_tokens,
        "reply_tokens": answer.num_tokens,
        "seconds": round(answer.seconds, 6),
        "tokens_per_second": round(answer.tokens_per_second, 3),
    }


def settings_as_json(settings: ChatSettings) -> dict[str, Any]:
    """The settings by the names of their options."""
    values = asdict(settings)
    stops, system = values.pop("stops"), values.pop("system")
    return {**values, "stop": stops, "system": system or None}


def json_line(answer: Answer) -> str:
    """One line of ASCII, which a terminal shows as it is."""
    # DEL is ASCII, and JSON lets it through.
    return json.dumps(as_json(answer)).replace("\x7f", "\\u007f")


def save(dialogue: Dialogue, path: Path, *, replaces: bool) -> None:
    """Write the conversation, as Markdown or JSON by the file's ending; ConfigError, DataError."""
    writers = {".md": markdown, ".markdown": markdown, ".json": whole_json}
    if path.suffix.lower() not in writers:
        raise ConfigError(
            f"{path.name} ends with {path.suffix or 'nothing'!r}; a file ends with .md (Markdown) "
            "or .json"
        )
    if not dialogue.exchanges:
        raise ConfigError("there is nothing to save yet; say something first")
    content = writers[path.suffix.lower()](dialogue).encode()
    try:
        _write(path, content, replaces=replaces)
    except FileExistsError:
        raise ConfigError(f"{path} is there already; /save! {path} replaces it") from None
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from error


def _write(path: Path, content: bytes, *, replaces: bool) -> None:
    if not replaces:
        with path.open("xb") as file:
            file.write(content)
        return
    # Beside it first: a full disk must not cost the file that is replaced.
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def markdown(dialogue: Dialogue) -> str:
    """The conversation for people."""
    last = dialogue.exchanges[-1].answer
    lines = [f"# A chat with {last.model}", ""]
    if last.settings.system:
        lines += ["## System", "", last.settings.system, ""]
    for exchange in dialogue.exchanges:
        answer = exchange.answer
        lines += ["## You", "", exchange.question, ""]
        lines += [f"## {answer.model}", "", with_brackets(answer), ""]
    settings = settings_as_json(last.settings)
    shown = ", ".join(f"{name} {value}" for name, value in settings.items() if name in _SHOWN)
    return "\n".join([*lines, "---", "", f"{shown}; {_now()}", ""])


_SHOWN = ("temperature", "top_k", "top_p", "max_tokens", "seed")


def with_brackets(answer: Answer) -> str:
    """A reply as the terminal shows it."""
    text = ""
    last: PartKind = "text"
    for part in answer.parts:
        text += between(last, part.kind) + part.text
        last = part.kind
    return text + between(last, "text")


def whole_json(dialogue: Dialogue) -> str:
    """The conversation for programs; each reply says how it was made."""
    messages: list[dict[str, Any]] = []
    for exchange in dialogue.exchanges:
        answer = as_json(exchange.answer)
        messages.append({"role": "user", "content": exchange.question})
        messages.append({"role": "assistant", "content": answer.pop("reply"), **answer})
    values = {
        "format": FORMAT,
        "saved": _now(),
        "model": dialogue.model.name,
        "settings": settings_as_json(dialogue.settings),
        "messages": messages,
    }
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
