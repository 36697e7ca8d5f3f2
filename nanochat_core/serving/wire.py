"""What the HTTP process and the process of an engine say to each other: JSON, one message a line.

Both ends are always of one version. Everything that one step did goes in one line, with arrays
where names would be said for each token.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from nanochat_core.conversation.types import PartKind
from nanochat_core.inference.requests import (
    EngineStats,
    FinishReason,
    Output,
    Request,
    TokenLogprob,
)
from nanochat_core.inference.settings import SamplingSettings
from nanochat_core.inference.streaming import Piece

MAX_LINE_BYTES = 1 << 24
"""A prompt of 100,000 tokens takes 600 kB; a reader that expects a line must hold all of it."""


@dataclass(frozen=True)
class ModelFacts:
    """What is known about a model once it is loaded."""

    device: str
    max_length: int
    """Tokens that a row holds: prompt and reply."""
    sequence_len: int
    num_parameters: int
    num_rows: int
    """Replies at once, of one replica."""
    dtype: str


@dataclass(frozen=True)
class Submit:
    """Continue a prompt; `number` is what both ends call the reply from now on."""

    number: int
    request: Request


@dataclass(frozen=True)
class Cancel:
    """Nobody wants this reply any more."""

    number: int


@dataclass(frozen=True)
class Ready:
    """The model is loaded; `num_devices` of this kind could each hold a replica."""

    facts: ModelFacts
    num_devices: int
    stats: EngineStats


@dataclass(frozen=True)
class Refused:
    """The model cannot be loaded; `kind` is the name of a class of `nanochat_core.errors`."""

    kind: str
    message: str


class Event(NamedTuple):
    """What one step did for one reply.

    There is one for each token of each reply, so its parts are as they are on the line; `shown`
    and `token_logprob` are for who wants to look at them.
    """

    number: int
    num_tokens: int
    pieces: Sequence[tuple[PartKind, str]] = ()
    logprob: tuple[int, float, Sequence[tuple[int, float]]] | None = None
    finish_reason: FinishReason | None = None

    @classmethod
    def of(cls, number: int, output: Output) -> "Event":
        """The event that an engine's output stands for."""
        logprob = output.logprob
        return cls(
            number,
            0 if output.token is None else 1,
            [(piece.kind, piece.text) for piece in output.pieces],
            None if logprob is None else (logprob.token, logprob.logprob, logprob.top),
            output.finish_reason,
        )

    @property
    def shown(self) -> tuple[Piece, ...]:
        """The text that can be shown now."""
        return tuple(Piece(kind, text) for kind, text in self.pieces)

    @property
    def token_logprob(self) -> TokenLogprob | None:
        """What was asked to be told about the token."""
        if self.logprob is None:
            return None
        token, logprob, top = self.logprob
        return TokenLogprob(token, logprob, tuple((other, value) for other, value in top))


class Failure(NamedTuple):
    """A reply that ended in an error: of the request itself, or of the engine."""

    number: int
    is_of_request: bool
    message: str


@dataclass(frozen=True)
class Step:
    """What happened since the last one; `gone` are replies that were cancelled, rows and all."""

    events: tuple[Event, ...]
    stats: EngineStats
    failures: tuple[Failure, ...] = ()
    gone: tuple[int, ...] = ()


Command: TypeAlias = Submit | Cancel
Report: TypeAlias = Ready | Refused | Step

# No message holds itself; to make sure of that for each list would take as long as the rest.
_as_text = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


def encode(message: Command | Report) -> bytes:
    """A message as one line."""
    # What is not ASCII is escaped, so that no text can hold the end of a line.
    return _as_text(_FORMS[type(message)](message)).encode("ascii") + b"\n"


def decode_command(line: bytes) -> Command:
    """The command of a line; ValueError for anything else."""
    command: Command = _decoded(line, _COMMANDS)
    return command


def decode_report(line: bytes) -> Report:
    """The report of a line; ValueError for anything else."""
    report: Report = _decoded(line, _REPORTS)
    return report


def _decoded(line: bytes, readers: Mapping[str, Callable[..., Any]]) -> Any:
    try:
        name, *values = json.loads(line)
        return readers[name](*values)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"no message of this protocol: {line[:200]!r} ({error!r})") from error


def _submit_form(message: Submit) -> list[Any]:
    request = message.request
    # `dataclasses.asdict` would look at each token of the prompt.
    return ["submit", message.number, {**vars(request), "settings": vars(request.settings)}]


def _read_submit(number: int, values: dict[str, Any]) -> Submit:
    values["prompt"], values["stops"] = tuple(values["prompt"]), tuple(values["stops"])
    values["settings"] = SamplingSettings(**values["settings"])
    return Submit(number, Request(**values))


def _stats_form(stats: EngineStats) -> list[int]:
    return list(vars(stats).values())


def _step_form(message: Step) -> list[Any]:
    return [
        "step",
        message.events,
        _stats_form(message.stats),
        message.failures,
        message.gone,
    ]


def _read_step(events: list[Any], stats: list[int], failures: list[Any], gone: list[int]) -> Step:
    return Step(
        tuple(Event(*event) for event in events),
        EngineStats(*stats),
        tuple(Failure(*failure) for failure in failures),
        tuple(gone),
    )


_FORMS: dict[type, Callable[[Any], list[Any]]] = {
    Submit: _submit_form,
    Cancel: lambda message: ["cancel", message.number],
    Ready: lambda m: ["ready", vars(m.facts), m.num_devices, _stats_form(m.stats)],
    Refused: lambda message: ["refused", message.kind, message.message],
    Step: _step_form,
}
_COMMANDS: dict[str, Callable[..., Command]] = {"submit": _read_submit, "cancel": Cancel}
_REPORTS: dict[str, Callable[..., Report]] = {
    "ready": lambda facts, number, stats: Ready(ModelFacts(**facts), number, EngineStats(*stats)),
    "refused": Refused,
    "step": _read_step,
}
