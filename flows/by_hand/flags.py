"""What a flag of the reference stands for here, and the translation of given values.

Every flag is one entry of a table (`tables.py`) with exactly one meaning: numbers of the recipe,
a field of the execution, an option that the command itself deals with, a number that the base
model already has, a word that is noted and changes nothing, or a refusal with its reason.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from nanochat_core.errors import ConfigError

Meaning = Literal["recipe", "execution", "option", "inherited", "noted", "refused"]


@dataclass(frozen=True)
class Flag:
    """One flag: its name with dashes, what it takes, and what that means."""

    name: str
    takes: type
    meaning: Meaning
    help: str
    short: str = ""
    metavar: str = ""
    repeatable: bool = False
    fields: Mapping[str, float] = field(default_factory=dict)
    """recipe: dotted field -> factor (1 for what is no rate). execution: the field."""
    instead: Mapping[Any, Any] = field(default_factory=dict)
    """Words of the reference for other values here, such as -1 for "auto"."""
    without_effect: tuple[Any, ...] = ()
    """Values that ask for what happens anyway; nothing is said about them."""
    why: str = ""
    """The note, or the reason of the refusal."""

    @property
    def key(self) -> str:
        """The name as Python spells it."""
        return self.name.replace("-", "_")


@dataclass
class Translation:
    """What the given flags ask for."""

    recipe: dict[str, Any] = field(default_factory=dict)
    execution: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    inherited: dict[str, tuple[str, Any]] = field(default_factory=dict)
    """Flag -> (field of the base model's recipe, the value that it has to have)."""
    notes: list[str] = field(default_factory=list)


def translate(flags: Sequence[Flag], values: Mapping[str, Any]) -> Translation:
    """Sort given values (None or empty: not given) by their meaning; ConfigError for a refusal."""
    found = Translation()
    for flag in flags:
        given = values.get(flag.key)
        if given is not None and given != () and given != []:
            _take(found, flag, given)
    return found


def _take(found: Translation, flag: Flag, given: Any) -> None:
    value = flag.instead.get(given, given) if not flag.repeatable else tuple(given)
    if flag.meaning == "option":
        found.options[flag.key] = value
    elif not flag.repeatable and given in flag.without_effect:
        return
    elif flag.meaning == "refused":
        raise ConfigError(f"--{flag.name}={given}: {flag.why}")
    elif flag.meaning == "noted":
        found.notes.append(f"--{flag.name}={given}: {flag.why}")
    elif flag.meaning == "execution":
        found.execution |= dict.fromkeys(flag.fields, value)
    elif flag.meaning == "inherited":
        (place,) = flag.fields
        found.inherited[flag.name] = (place, value)
    else:
        found.recipe |= {name: _times(value, factor) for name, factor in flag.fields.items()}


def _times(value: Any, factor: float) -> Any:
    return value if factor == 1 or isinstance(value, str | bool) else value * factor


def check_inherited(translation: Translation, base: Mapping[str, Any]) -> None:
    """Refuse numbers that differ from those that the base model was trained with.

    `base` holds the dotted fields of its config.json.
    """
    for name, (place, value) in translation.inherited.items():
        if base.get(place) != value:
            raise ConfigError(
                f"--{name}={value}: fine-tuning takes this from the base model, which has "
                f"{base.get(place)}; leave the flag away, or train a base model with {value}"
            )
