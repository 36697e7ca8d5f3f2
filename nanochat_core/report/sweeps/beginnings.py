"""Steps that points of a sweep share: how many were really run, and how long they took."""

from collections.abc import Iterable
from dataclasses import dataclass

from nanochat_core.artifacts.types import Manifest
from nanochat_core.report.numbers import is_number
from nanochat_core.report.sweeps.rows import first_step
from nanochat_core.training.recipes import PretrainRecipe
from nanochat_core.training.trunk import trunk_key


@dataclass(frozen=True)
class Sharing:
    """Steps of all models; those of them that came from a beginning; and the beginnings' own.

    The time of these is known by the part that their branches carry on: of steps, not of starting.
    """

    steps: int
    shared: int
    run: int
    seconds: float

    @property
    def all_run(self) -> int:
        """Steps that were run for all of this."""
        return self.steps - self.shared + self.run


def sharing(models: Iterable[Manifest]) -> Sharing:
    """Of these pretrained models, each given once.

    Of one kind the longest beginning is all that was run: it goes on from the shorter ones.
    """
    steps = shared = 0
    longest: dict[tuple[str, ...], tuple[int, float]] = {}
    for manifest in models:
        begun, total = first_step(manifest), int(manifest.metrics["steps"])
        steps, shared = steps + total, shared + begun
        if begun:
            kind = trunk_key(PretrainRecipe.model_validate(manifest.recipe))
            key = (kind, *sorted(manifest.inputs.values()))
            stepping = manifest.metrics.get("total_training_time")
            seconds = float(stepping) * begun / total if is_number(stepping) else 0.0
            longest[key] = max(longest.get(key, (0, 0.0)), (begun, seconds))
    run, seconds = sum(n for n, _ in longest.values()), sum(s for _, s in longest.values())
    return Sharing(steps, shared, run, seconds)
