"""Who watches a run: the terminal, a test, or nobody."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

from pydantic import Field

from nanochat_core.artifacts.types import ArtifactRef
from nanochat_core.config.base import Config

StageState = Literal["cached", "made", "resumed", "stopped", "failed"]


class StageRecord(Config):
    """How one stage of one run went; a run record is made of these."""

    station: str
    state: StageState
    seconds: float
    ref: ArtifactRef | None = None
    metrics: dict[str, float | int | str] = Field(default_factory=dict)
    message: str = ""


class Listener:
    """Hears what the stages of a run do; this one does nothing about it."""

    def planned(self, stations: tuple[str, ...]) -> None:
        """These stations will be run, in this order."""

    def started(self, station: str) -> None:
        """A station was entered; whether it is cached is not known yet."""

    def progressed(self, station: str, done: int, total: int, unit: str, message: str) -> None:
        """`done` of `total` units of a station's work are done."""

    def logged(self, station: str, level: int, line: str) -> None:
        """A station had something to say."""

    def ended(self, record: StageRecord) -> None:
        """A station was left, however it went."""

    def concluded(self, line: str) -> None:
        """Something is to be said of the whole run, once it is over."""


_LISTENER: ContextVar[Listener | None] = ContextVar("nanochat_listener", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Let `listener` hear the runs that are started in this block."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def current_listener() -> Listener:
    """The listener of this context, or one that ignores everything."""
    return _LISTENER.get() or Listener()


def describe_metrics(metrics: dict[str, Any]) -> str:
    """Key numbers on one line: `val/bpb 1.516, tokens 3,072,000`."""
    shown = []
    for name, value in metrics.items():
        if isinstance(value, float):
            shown.append(f"{name} {value:.4g}")
        else:
            shown.append(f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}")
    return ", ".join(shown)
