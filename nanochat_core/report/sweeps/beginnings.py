"""Steps that points of a sweep share: how many were really run, and how long they took."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from nanochat_core.artifacts.types import Manifest
from nanochat_core.report.begun import first_step
from nanochat_core.report.numbers import is_number
from nanochat_core.training.recipes import PretrainRecipe
from nanochat_core.training.trunk import trunk_key


@dataclass(frozen=True)
class Sharing:
    """Steps of all models; those of them that came from a beginning; and the beginnings' own.

    A beginning that is one of these models is no other run. The time of the others is known by the
    part that their branches carry on: of steps, not of starting.
    """

    steps: int
    shared: int
    run: int
    seconds: float

    @property
    def all_run(self) -> int:
        """Steps that were run for all of this."""
        return self.steps - self.shared + self.run


def sharing(models: Sequence[Manifest]) -> Sharing:
    """Of these pretrained models, each given once.

    Of one kind each beginning goes on from the one before it.
    """
    made = {f"{manifest.station}/{manifest.fingerprint}" for manifest in models}
    kinds: dict[tuple[str, ...], dict[int, list[Manifest]]] = {}
    for manifest in models:
        if begun := first_step(manifest):
            kinds.setdefault(_kind(manifest), {}).setdefault(begun, []).append(manifest)
    own = [
        (end - start, max(map(_seconds_per_step, branches[end])))
        for branches in kinds.values()
        for start, end in pairwise((0, *sorted(branches)))
        if made.isdisjoint(each.provenance.get("started_from", "") for each in branches[end])
    ]
    return Sharing(
        steps=sum(int(manifest.metrics["steps"]) for manifest in models),
        shared=sum(map(first_step, models)),
        run=sum(steps for steps, _ in own),
        seconds=sum(steps * pace for steps, pace in own),
    )


def _kind(manifest: Manifest) -> tuple[str, ...]:
    """What models have in common that begin alike."""
    key = trunk_key(PretrainRecipe.model_validate(manifest.recipe))
    return (key, *sorted(manifest.inputs.values()))


def _seconds_per_step(manifest: Manifest) -> float:
    stepping = manifest.metrics.get("total_training_time")
    return float(stepping) / int(manifest.metrics["steps"]) if is_number(stepping) else 0.0
