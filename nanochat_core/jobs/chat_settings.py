"""How a chat's replies are made, and what each number may be (light: for the command line, too)."""

import math
from dataclasses import dataclass, replace
from typing import Any

from nanochat_core.errors import ConfigError, UnknownNameError

MOST = 10**9
"""Of what is counted; far above what any model can do."""


@dataclass(frozen=True)
class Knob:
    """One number of the settings: its type, its range, and how people are told of both."""

    type: type[int] | type[float]
    least: float
    most: float
    expected: str
    meaning: str
    excludes_least: bool = False

    def allows(self, value: float) -> bool:
        """Whether the value is a number in the range."""
        is_above = value > self.least if self.excludes_least else value >= self.least
        return math.isfinite(value) and is_above and value <= self.most


KNOBS = {
    "temperature": Knob(float, 0, MOST, "0 (greedy) or more", "0 always takes the likeliest"),
    "top_k": Knob(int, 0, MOST, "0 (every token) or more", "sample from the N likeliest tokens"),
    "top_p": Knob(
        float, 0, 1, "more than 0, and 1 (every token) at most", "and from that share of them", True
    ),
    "max_tokens": Knob(int, 1, MOST, "1 or more", "of a reply"),
    "seed": Knob(int, 0, 2**63 - 1, "a whole number from 0", "equal seeds give equal replies"),
}


@dataclass(frozen=True)
class ChatSettings:
    """The settings of a chat; the numbers are those that `KNOBS` describes."""

    temperature: float = 0.6
    top_k: int = 50
    top_p: float = 1.0
    max_tokens: int = 256
    seed: int = 0
    stops: tuple[str, ...] = ()
    system: str = ""

    def with_number(self, name: str, given: str | float) -> "ChatSettings":
        """The same with one number changed; ConfigError for one that cannot work."""
        value: Any = read_number(name, given)
        return replace(self, **{name: value})


def read_number(name: str, given: str | float) -> int | float:
    """A number of the settings as a person wrote it; ConfigError for what cannot be one."""
    if name not in KNOBS:
        raise UnknownNameError(f"there is no setting {name!r}; there are {', '.join(KNOBS)}")
    knob = KNOBS[name]
    try:
        value = knob.type(given)
    except ValueError:
        value = math.nan
    if not knob.allows(value):
        raise ConfigError(f"{name} {given}: give {knob.expected}")
    return value
