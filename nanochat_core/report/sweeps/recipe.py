"""What the station `sweep` computes (torch-free): a table of runs that differ in a few fields."""

from typing import Literal

from pydantic import Field, model_validator

from nanochat_core.config.base import Recipe
from nanochat_core.errors import ConfigError

SweepKind = Literal["miniseries", "scaling_laws", "sweep"]
Value = bool | int | float | str
POINT_STATIONS = ("pretrain", "base_eval", "sft", "chat_eval_sft", "rl", "chat_eval_rl")
"""What may be an input for each point; a point has a pretrained model at least."""


class SweepPoint(Recipe):
    """One run of a sweep, by what is its own."""

    label: str = Field(min_length=1, description="as depth=2,pretrain.seed=1")
    values: dict[str, Value] = Field(
        description="what was varied: dotted names of fields; `depth` is pretrain.depth"
    )


class SweepRecipe(Recipe):
    """A page about many runs. The points are the finished ones, in the order to show them."""

    kind: SweepKind
    points: tuple[SweepPoint, ...] = Field(min_length=1)
    failed: tuple[str, ...] = Field((), description="labels of points that could not be made")
    price_per_hour: float = Field(
        0.0, ge=0, description="of what one point uses (its GPUs); 0: nothing is said about money"
    )

    @model_validator(mode="after")
    def _each_label_once(self) -> "SweepRecipe":
        labels = [*(point.label for point in self.points), *self.failed]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ConfigError(f"a sweep got the point {twice[0]} twice; give every value once")
        return self

    @property
    def varied(self) -> tuple[str, ...]:
        """Names of everything that was varied, in the order in which points name them."""
        return tuple(dict.fromkeys(name for point in self.points for name in point.values))


def input_name(index: int, station: str) -> str:
    """Under which name an artifact of the point at this place of the recipe goes in."""
    return f"{index:03d}-{station}"
