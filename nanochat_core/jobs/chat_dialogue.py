"""A conversation with a model: what was said so far, and the next reply to it."""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from nanochat_core.conversation.types import Conversation, Message, Part, PartKind, system, user
from nanochat_core.errors import ConfigError, DeviceMemoryError
from nanochat_core.jobs.chat_settings import ChatSettings
from nanochat_core.tokenizer.chat_format import MAX_TOKENS, render, render_prompt

if TYPE_CHECKING:
    from nanochat_core.inference.engine import InferenceEngine
    from nanochat_core.inference.requests import Request
    from nanochat_core.inference.streaming import Piece

MAX_CHARACTERS = 1_000_000
"""Of a message; far more than any context holds, and few enough to be counted at once."""
UNCUT = 1 << 62

EndReason: TypeAlias = Literal["stop", "length", "stopped"]
"""`stop`: the model ended it, or a stop text; `length`: no token more; `stopped`: by the person."""
Hear: TypeAlias = Callable[[PartKind, str], None]
"""Is told each stretch of a reply as it comes."""


@dataclass(frozen=True)
class ChatModel:
    """A model that is ready to answer, and what it is called; `ref` when it is of a store."""

    name: str
    engine: InferenceEngine
    ref: str = ""


@dataclass(frozen=True)
class Answer:
    """A reply, and all that it was made with."""

    parts: tuple[Part, ...]
    model: str
    ref: str
    """Of the model in its store; empty when it is of none."""
    settings: ChatSettings
    finish_reason: EndReason
    num_prompt_tokens: int
    num_tokens: int
    seconds: float
    num_dropped: int
    """Exchanges of the conversation, its oldest, that did not fit before this reply."""

    @property
    def text(self) -> str:
        """What was said, without tool calls."""
        return "".join(part.text for part in self.parts if part.kind == "text")

    @property
    def tokens_per_second(self) -> float:
        """Tokens of the reply by all the time that it took."""
        return self.num_tokens / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True)
class Exchange:
    """A message and its reply."""

    question: str
    answer: Answer

    @property
    def messages(self) -> tuple[Message, Message]:
        """Both, as the chat format takes them."""
        return user(self.question), Message(role="assistant", parts=self.answer.parts)


@dataclass
class _Growing:
    """A reply while it comes; stretches of one kind become one part."""

    parts: list[Part] = field(default_factory=list)
    num_tokens: int = 0
    finish_reason: EndReason = "stopped"

    def add(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            before = ""
            if self.parts and self.parts[-1].kind == piece.kind:
                before = self.parts.pop().text
            self.parts.append(Part(kind=piece.kind, text=before + piece.text))


def never() -> bool:
    """No one stops this reply."""
    return False


def unheard(_kind: PartKind, _text: str) -> None:
    """No one hears this reply while it comes."""


class Dialogue:
    """Exchanges so far, the model that answers next, and its settings."""

    def __init__(self, model: ChatModel, settings: ChatSettings) -> None:
        self.model, self.settings = model, settings
        self.exchanges: list[Exchange] = []

    @property
    def room(self) -> int:
        """Tokens that a prompt may have, so that a reply has as many; as the server has it."""
        return min(MAX_TOKENS, self.model.engine.max_length // 2)

    def ask(self, text: str, hear: Hear, is_stopped: Callable[[], bool] = never) -> Answer:
        """The reply to a message; both are kept, unless it was stopped before it said anything.

        Raises ConfigError for a message that cannot be sent, and changes nothing then.
        """
        return self._ask(self.exchanges, text, self.settings, hear, is_stopped)

    def retry(self, hear: Hear, is_stopped: Callable[[], bool] = never) -> Answer:
        """Another reply, of the next seed, in the place of the last one; ConfigError for none."""
        if not self.exchanges:
            raise ConfigError("there is no reply to try again; say something first")
        if self.settings.temperature == 0:
            raise ConfigError(
                "at temperature 0 the reply would be the same; try /temperature 0.6, then /retry"
            )
        last = self.exchanges[-1]
        seed = (last.answer.settings.seed + 1) % 2**63
        settings = self.settings.with_number("seed", seed)
        return self._ask(self.exchanges[:-1], last.question, settings, hear, is_stopped)

    def reset(self) -> None:
        """Forget everything that was said; model and settings stay."""
        self.exchanges = []

    def undo(self) -> Exchange:
        """Forget the last message and its reply; ConfigError when there is none."""
        if not self.exchanges:
            raise ConfigError("there is nothing to take back")
        return self.exchanges.pop()

    def _ask(
        self,
        before: Sequence[Exchange],
        text: str,
        settings: ChatSettings,
        hear: Hear,
        is_stopped: Callable[[], bool],
    ) -> Answer:
        prompt, num_dropped = self._prompt(before, text)
        reply, started = _Growing(), time.perf_counter()
        run(self.model.engine, engine_request(prompt, settings), reply, hear, is_stopped)
        answer = Answer(
            parts=tuple(reply.parts) or (Part(text=""),),
            model=self.model.name,
            ref=self.model.ref,
            settings=settings,
            finish_reason=reply.finish_reason,
            num_prompt_tokens=len(prompt),
            num_tokens=reply.num_tokens,
            seconds=time.perf_counter() - started,
            num_dropped=num_dropped,
        )
        if reply.parts or reply.finish_reason != "stopped":
            self.exchanges = [*before, Exchange(text, answer)]
        return answer

    def _prompt(self, before: Sequence[Exchange], text: str) -> tuple[list[int], int]:
        """Ids of the prompt, and how many of the oldest exchanges it leaves out."""
        check_text(text)
        tokenizer = self.model.engine.tokenizer

        def fits(first: int) -> bool:
            conversation = self._conversation(before[first:], text)
            ids, _ = render(tokenizer, conversation, max_tokens=self.room)
            return len(ids) < self.room

        # By halves: rendering everything again for each exchange would take seconds for hundreds.
        first = bisect.bisect_left(range(len(before)), True, key=fits)
        conversation = self._conversation(before[first:], text)
        prompt = render_prompt(tokenizer, conversation, max_tokens=UNCUT)
        if len(prompt) > self.room:
            with_system = " with the system text" if self.settings.system else ""
            raise ConfigError(
                f"the message{with_system} has {len(prompt):,} tokens; {self.model.name} takes "
                f"{self.room:,}: shorten it"
            )
        return prompt, first

    def _conversation(self, before: Sequence[Exchange], text: str) -> Conversation:
        head = (system(self.settings.system),) if self.settings.system else ()
        kept = [message for exchange in before for message in exchange.messages]
        return Conversation(messages=(*head, *kept, user(text)))


def run(
    engine: InferenceEngine,
    request: Request,
    reply: _Growing,
    hear: Hear,
    is_stopped: Callable[[], bool],
) -> None:
    """Let the engine answer; whoever hears it may stop it between two tokens."""
    sequence = engine.submit(request)
    try:
        while not is_stopped():
            for output in engine.step():
                reply.num_tokens += output.token is not None
                reply.add(output.pieces)
                for piece in output.pieces:
                    hear(piece.kind, piece.text)
                if output.finish_reason is not None:
                    reply.finish_reason = output.finish_reason
                    return
    finally:
        engine.cancel(sequence)


def engine_request(prompt: Sequence[int], settings: ChatSettings) -> Request:
    """What the engine is asked."""
    from nanochat_core.inference.requests import Request
    from nanochat_core.inference.settings import SamplingSettings

    return Request(
        prompt=tuple(prompt),
        settings=SamplingSettings(
            settings.temperature, settings.top_k, settings.top_p, settings.seed
        ),
        max_new_tokens=settings.max_tokens,
        stops=settings.stops,
    )


def check_text(text: str) -> None:
    """ConfigError for a message that no model can be sent."""
    if not text.strip():
        raise ConfigError("the message is empty; give -p TEXT or a text through the pipe")
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(
            f"the message has more than {MAX_CHARACTERS:,} characters; no model here takes so "
            "many: shorten it"
        )
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ConfigError("the message is not valid UTF-8; give text in that encoding")


def load_chat_model(
    name: str, model_folder: Path, tokenizer_folder: Path, device: str, ref: str = ""
) -> ChatModel:
    """Read a model from its folders; torch is imported here, and not before."""
    import torch

    from nanochat_core.inference.engine import EngineSettings
    from nanochat_core.inference.opening import open_engine

    # One reply at a time; the row beside it keeps what the turn before has read.
    settings = EngineSettings(num_rows=2)
    try:
        return ChatModel(name, open_engine(model_folder, tokenizer_folder, device, settings), ref)
    except torch.OutOfMemoryError as error:
        raise DeviceMemoryError(
            f"{name} does not fit the memory of the device; give --device cpu, or end what else "
            "uses it"
        ) from error
