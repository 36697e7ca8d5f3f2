"""Dynamic loss scaling for float16: gradients that overflow skip the step and halve the scale."""

from dataclasses import dataclass

from nanochat_core.errors import TrainingError

GROWTH_INTERVAL = 2_000
"""Good steps after which the scale doubles; the usual choice for mixed precision
(Micikevicius et al., arXiv:1710.03740, section 3.2)."""


@dataclass
class LossScale:
    """The factor on the loss; 1.0 and inactive unless `enabled`."""

    enabled: bool = False
    scale: float = 1.0
    good_steps: int = 0

    @classmethod
    def for_float16(cls) -> "LossScale":
        """The usual start of float16 training."""
        return cls(enabled=True, scale=2.0**16)

    def update(self, *, overflowed: bool) -> None:
        """Halve after an overflow; double after enough good steps.

        Raises TrainingError when gradients overflow although the loss is not scaled up any more.
        """
        if not self.enabled:
            return
        if overflowed:
            self.scale, self.good_steps = self.scale / 2, 0
            if self.scale < 1.0:
                raise TrainingError(
                    "gradients overflow float16 whatever the scale of the loss; train in bfloat16 "
                    "or float32 (compute_dtype), or lower the learning rates"
                )
            return
        self.good_steps += 1
        if self.good_steps == GROWTH_INTERVAL:
            self.scale, self.good_steps = self.scale * 2, 0
