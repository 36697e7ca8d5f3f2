"""`STATION.field=value`: single numbers of a preset, changed by name and checked at the door."""

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from flows.presets import MAKING_STATIONS, STATIONS, Preset
from nanochat_core.config.execution import Execution
from nanochat_core.errors import ConfigError, UnknownNameError

_UNION_TAG = re.compile(r"^(int|float|str|bool|tuple|constrained-.*|.*[\[(].*)$")
Model = TypeVar("Model", bound=BaseModel)


def one_of(kind: str, name: str, names: Sequence[str]) -> str:
    """`name` if it is one of `names`, else an error that lists them, the likeliest first."""
    if name in names:
        return name
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise UnknownNameError(f"no {kind} {name!r}; {hint}there are: {', '.join(names)}")


def parse_assignments(texts: Sequence[str]) -> dict[str, str]:
    """`--set` options as overrides; the same field twice is refused."""
    overrides: dict[str, str] = {}
    for name, value in map(parse_assignment, texts):
        if overrides.setdefault(name, value) != value:
            raise ConfigError(f"--set gives {name} twice, as {overrides[name]} and {value}")
    return overrides


def parse_assignment(text: str) -> tuple[str, str]:
    """`sft.epochs=2` as a pair."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"--set {text!r}: expected STATION.field=value, as in sft.epochs=2")
    return name.strip(), value.strip()


def apply_overrides(preset: Preset, overrides: Mapping[str, Any]) -> Preset:
    """The preset with single fields changed, everything checked again.

    A first name after the station is looked up among the fields of its recipe, then of its
    execution. Raises ConfigError or UnknownNameError that names the field.
    """
    recipes, executions = preset.recipes, preset.executions
    for station in _stations_of(overrides):
        changes = {
            name.partition(".")[2]: value
            for name, value in overrides.items()
            if name.partition(".")[0] == station
        }
        recipe, execution = getattr(recipes, station), getattr(executions, station)
        places = {path: value for path, value in changes.items() if _is_execution(recipe, path)}
        numbers = {path: value for path, value in changes.items() if path not in places}
        recipes = recipes.model_copy(update={station: changed(recipe, station, numbers)})
        executions = executions.model_copy(update={station: changed(execution, station, places)})
    return Preset(recipes=recipes, executions=executions)


def _stations_of(names: Iterable[str]) -> list[str]:
    found = []
    for name in names:
        station = one_of("station", name.partition(".")[0], STATIONS)
        if station not in MAKING_STATIONS or "." not in name:
            example = "pretrain.num_iterations=100"
            raise ConfigError(f"--set {name}: expected STATION.field=value, as in {example}")
        found.append(station)
    return list(dict.fromkeys(found))


def _is_execution(recipe: BaseModel, path: str) -> bool:
    first = path.partition(".")[0]
    return first not in type(recipe).model_fields and first in Execution.model_fields


def changed(model: Model, label: str, changes: Mapping[str, Any]) -> Model:
    """A copy of `model` with the fields at dotted paths changed, and checked together."""
    if not changes:
        return model
    values = model.model_dump(mode="python")
    for path, value in changes.items():
        _put(model, values, path.split("."), value, f"{label}.{path}")
    try:
        return type(model).model_validate(values)
    except ValidationError as error:
        raise config_error(label, error) from error


def _put(model: Any, values: Any, path: list[str], value: Any, label: str) -> None:
    """Set one nested value; `values` is the dump of `model`."""
    name, *rest = path
    if isinstance(model, tuple):
        if not name.isdigit() or int(name) >= len(model):
            raise UnknownNameError(
                f"{label}: expected a place from 0 to {len(model) - 1}, got {name!r}"
            )
        place: Any = int(name)
        inner = model[place]
    elif isinstance(model, BaseModel):
        fields = list(type(model).model_fields)
        if len(path) == 1 or name not in fields:
            known = fields if "." in label.partition(".")[2] else [*fields, *Execution.model_fields]
            one_of(f"field {label}:", name, known if name not in fields else fields)
        place, inner = name, getattr(model, name)
        if not rest and type(model).model_fields[name].annotation is str:
            value = str(value)
        else:
            value = _parsed(value)
    else:
        raise UnknownNameError(f"{label}: the value before {name!r} is {model!r}, with no fields")
    if rest:
        _put(inner, values[place], rest, value, label)
    elif isinstance(values, tuple):
        raise ConfigError(f"{label}: name a field of it, as in {label}.conversations")
    else:
        values[place] = value


def _parsed(value: Any) -> Any:
    """Text from a command line as the JSON value that it spells, or else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _said(found: Mapping[str, Any]) -> str:
    """One finding of pydantic in the words of this project."""
    text = str(found["msg"]).replace("Input should be", "expected").replace("String should", "must")
    if found["type"] != "literal_error":
        return text
    names = re.findall(r"'([^']*)'", str(found["ctx"]["expected"]))
    close = difflib.get_close_matches(str(found["input"]), names, n=1, cutoff=0.6)
    return f"{text} (did you mean {close[0]}?)" if close else text


def config_error(label: str, error: ValidationError) -> ConfigError:
    """pydantic's findings as one error of ours: field, what was given, what was expected."""
    given: dict[str, Any] = {}
    expected: dict[str, list[str]] = {}
    kinds = set()
    for found in error.errors(include_url=False):
        # Members of a union are told one by one, with a tag that is no part of the name.
        names = [str(part) for part in found["loc"] if not _UNION_TAG.match(str(part))]
        place = ".".join([label, *names]).strip(".")
        given[place] = found["input"]
        expected.setdefault(place, []).append(_said(found))
        kinds.add(found["type"])
    lines = [f"{place}={given[place]!r}: {'; or '.join(expected[place])}" for place in given]
    is_name = kinds <= {"literal_error", "extra_forbidden"}
    return (UnknownNameError if is_name else ConfigError)("\n".join(lines))
