"""The running loss of a training run, and when it is so wrong that the run must end."""

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from nanochat_core.errors import TrainingError
from nanochat_core.training.reading import Reading, StepValues

log = logging.getLogger(__name__)

LOSS_BETA = 0.9
SPREAD_BETA = 0.99
SPIKE_SPREADS = 8.0
"""A loss that lies so many mean deviations above the running loss is a spike. Deviations of 6 and
more from noise alone were not seen in the demo's 1,500 steps (LOG.md)."""
MIN_SPIKE_NATS = 0.25
SPIKES_AFTER = 50
"""Losses that are needed before one can be called unusual."""


def _no_checkpoint() -> str:
    return "none was saved"


@dataclass
class LossWatch:
    """Takes in the reading of every step, in order, as soon as the device has it.

    Spikes and losses that are not finite stay out of the running loss, else a run that diverges
    would look normal to itself after some steps. `ema`, `spread`, `count` and `bad_in_a_row`
    belong to the checkpoint; the rest is how to act. With `finds_spikes` False (the loss of
    reinforcement learning has no level) only losses that are not finite count.
    """

    ema: float = 0.0
    spread: float = 0.0
    count: int = 0
    bad_in_a_row: int = 0
    max_in_a_row: int = 20
    finds_spikes: bool = True
    scales_loss: bool = False
    last_checkpoint: Callable[[], str] = _no_checkpoint
    _pending: deque[tuple[int, Reading]] = field(default_factory=deque)

    @property
    def smooth(self) -> float:
        """Exponential mean of the losses in nats per token, without start-up bias."""
        return self.ema / (1 - LOSS_BETA ** max(self.count, 1))

    def add(self, step: int, reading: Reading, *, leave: int = 0) -> None:
        """Take a step's reading; all but the last `leave` are waited for and looked at.

        Raises TrainingError after `max_in_a_row` bad steps in a row.
        """
        self._pending.append((step, reading))
        self.settle(leave=leave)

    def settle(self, *, leave: int = 0) -> None:
        """Look at everything that was added but the last `leave`, waiting for the device."""
        while len(self._pending) > leave:
            step, earliest = self._pending.popleft()
            self._observe(step, earliest.wait())

    def scalars(self) -> dict[str, float | int]:
        """What a resume needs."""
        self.settle()
        return {
            "ema": self.ema,
            "spread": self.spread,
            "count": self.count,
            "bad_in_a_row": self.bad_in_a_row,
        }

    def restore(self, scalars: dict[str, float | int]) -> None:
        """Take over what `scalars` gave."""
        self.ema, self.spread = float(scalars["ema"]), float(scalars["spread"])
        self.count, self.bad_in_a_row = int(scalars["count"]), int(scalars["bad_in_a_row"])

    def _observe(self, step: int, values: StepValues) -> None:
        if not values.healthy:
            # In float16 this is how the scale of the loss finds its level.
            if not self.scales_loss:
                self._count_bad(
                    step,
                    f"the loss ({values.loss_nats:g}) or a gradient is not finite, and the update "
                    "was left out",
                )
            return
        if self._is_spike(values.loss_nats):
            self._count_bad(
                step, f"loss {values.loss_nats:.3f} is far above the running {self.smooth:.3f}"
            )
            return
        self.bad_in_a_row = 0
        deviation = abs(values.loss_nats - self.smooth) if self.count else 0.0
        self.spread = SPREAD_BETA * self.spread + (1 - SPREAD_BETA) * deviation
        self.ema = LOSS_BETA * self.ema + (1 - LOSS_BETA) * values.loss_nats
        self.count += 1

    def _is_spike(self, loss: float) -> bool:
        if not self.finds_spikes or self.count < SPIKES_AFTER:
            return False
        spread = self.spread / (1 - SPREAD_BETA**self.count)
        return loss > self.smooth + max(SPIKE_SPREADS * spread, MIN_SPIKE_NATS)

    def _count_bad(self, step: int, what: str) -> None:
        self.bad_in_a_row += 1
        log.warning("step %d: %s (%d in a row)", step, what, self.bad_in_a_row)
        if self.bad_in_a_row >= self.max_in_a_row:
            raise TrainingError(
                f"step {step}: {what}; it is the {self.bad_in_a_row}. such step in a row "
                f"(max_loss_spikes={self.max_in_a_row}). Last good checkpoint: "
                f"{self.last_checkpoint()}. Lower the learning rates (pretrain.optimizer.lr_scale, "
                "sft.lr_scale, rl.lr_scale), use float32, or allow more such steps"
            )
