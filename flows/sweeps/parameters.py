"""What each kind of sweep is asked for: the parameters of a run, and what is varied."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, ValidationError

from flows.overrides import config_error, one_of
from flows.parameters import FROM_PRESET, RunParameters
from flows.presets import PRESETS
from flows.sweeps.values import Value
from nanochat_core.config.base import Config
from nanochat_core.errors import ConfigError
from nanochat_core.report.sweeps.recipe import SweepKind

DEPTH, BUDGET, STEPS = "depth", "pretrain.target_flops", "pretrain.num_iterations"
SAME = {DEPTH: "pretrain.depth", "pretrain.depth": DEPTH}
"""The one field with two names."""
Axes = dict[str, tuple[Value, ...]]
"""What is varied, by name: `depth`, or a field as `--set` names it."""
COMMON = (
    *("preset", "store", "upstream", "source", "mirrors", "offline", "benchmarks"),
    *("conversations", "compute_dtype", "stage_pools", "wait", "run", "tracker"),
)
"""Parameters of a run that every point of a sweep has."""


def _as_of_a_run(name: str) -> Any:
    return RunParameters.model_fields[name]


class AnySweep(Config):
    """What all kinds of sweeps take; every point is the run that these values ask for."""

    kind: ClassVar[SweepKind]

    preset: str = _as_of_a_run("preset")
    store: str = _as_of_a_run("store")
    upstream: str = _as_of_a_run("upstream")
    source: tuple[str, ...] = _as_of_a_run("source")
    mirrors: tuple[str, ...] = _as_of_a_run("mirrors")
    offline: bool = _as_of_a_run("offline")
    benchmarks: str = _as_of_a_run("benchmarks")
    conversations: tuple[str, ...] = _as_of_a_run("conversations")
    overrides: dict[str, Any] = _as_of_a_run("overrides")
    vary: dict[str, tuple[bool | int | float | str, ...]] = Field(
        {}, description='fields and their values, as in {"pretrain.seed": [1, 2, 3]}'
    )
    compute_dtype: str = _as_of_a_run("compute_dtype")
    chat: bool = Field(False, description="fine-tune, reinforce and examine each model, too")
    jobs: int = Field(1, ge=1, description="points that are made at a time, each on its own GPUs")
    price_per_hour: float = Field(
        0.0, ge=0, description="of what one point uses (its GPUs); 0 says nothing of money"
    )
    stage_pools: dict[str, str] = _as_of_a_run("stage_pools")
    wait: bool = _as_of_a_run("wait")
    run: str = _as_of_a_run("run")
    tracker: str = _as_of_a_run("tracker")

    @property
    def axes(self) -> Axes:
        """What is varied; points are all combinations, the last name changing fastest."""
        return self._checked({**self._own_axes(), **self.vary})

    def _own_axes(self) -> Axes:
        return {}

    def _checked(self, axes: Axes) -> Axes:
        if not axes:
            raise ConfigError(self._nothing_varied())
        for name, values in axes.items():
            if not values:
                raise ConfigError(f"{name}: give at least one value")
            if both := {name, SAME.get(name, name)} & self.overrides.keys():
                raise ConfigError(
                    f"{name} is varied, and {both.pop()} is set, too; give one of them"
                )
        return axes

    def _nothing_varied(self) -> str:
        return "nothing is varied; give a field with its values: --set pretrain.seed=1,2,3"

    def run_values(self) -> dict[str, Any]:
        """Parameters of a run that are the same for every point."""
        return {**{name: getattr(self, name) for name in COMMON}, "overrides": self.overrides}


class SweepParameters(AnySweep):
    """Parameters of the flow `sweep`: any fields of any recipe, in all combinations."""

    kind = "sweep"

    depth: int | str = _as_of_a_run("depth")

    def run_values(self) -> dict[str, Any]:
        """As of every sweep, and the depth."""
        return {**super().run_values(), DEPTH: self.depth}

    def _checked(self, axes: Axes) -> Axes:
        both = {DEPTH, SAME[DEPTH]} & axes.keys()
        if both and self.depth != FROM_PRESET:
            raise ConfigError(f"depth={self.depth} is set, and {both.pop()} is varied; give one")
        return super()._checked(axes)


class MiniseriesParameters(AnySweep):
    """Parameters of the flow `miniseries`: one model of each depth."""

    kind = "miniseries"

    depths: tuple[int, ...] = Field((), description="layers of the models, as in 1, 2, 3")

    def _own_axes(self) -> Axes:
        return {DEPTH: _given("depths", self.depths, "1,2,3")}


class ScalingLawsParameters(AnySweep):
    """Parameters of the flow `scaling_laws`: models of several depths for each FLOP budget."""

    kind = "scaling_laws"

    budgets: tuple[float, ...] = Field((), description="training FLOPs, as in 1e18, 3e18")
    depths: tuple[int, ...] = Field((), description="layers of the models of every budget")

    def _own_axes(self) -> Axes:
        return {
            BUDGET: _given("budgets", self.budgets, "1e18,3e18"),
            DEPTH: _given("depths", self.depths, "8,10,12,14"),
        }

    def run_values(self) -> dict[str, Any]:
        """As of every sweep, but the budget says how many steps there are."""
        values = super().run_values()
        if self.overrides.get(STEPS, "auto") != "auto" or STEPS in self.vary:
            raise ConfigError(
                f"{STEPS} is set, but here the budget says how many steps there are; leave it out"
            )
        return {**values, "overrides": {**self.overrides, STEPS: "auto"}}


def _given(name: str, values: tuple[Any, ...], example: str) -> tuple[Any, ...]:
    if not values:
        raise ConfigError(f"no {name} given; give some, as in --{name} {example}")
    return values


PARAMETERS: dict[SweepKind, type[AnySweep]] = {
    kind.kind: kind for kind in (MiniseriesParameters, ScalingLawsParameters, SweepParameters)
}


def parse_sweep(kind: SweepKind, values: Mapping[str, Any]) -> AnySweep:
    """Parameters of a sweep from plain values; a mistake is a ConfigError that names the field."""
    model = PARAMETERS[kind]
    for name in values:
        one_of("parameter", name, list(model.model_fields))
    try:
        asked = model.model_validate(values)
    except ValidationError as error:
        raise config_error("", error) from error
    # Before the points, of which the first would be named for it.
    one_of("preset", asked.preset, list(PRESETS))
    return asked
