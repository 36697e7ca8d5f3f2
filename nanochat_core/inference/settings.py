"""How tokens are picked. Without torch, for the process that listens."""

from dataclasses import dataclass

from nanochat_core.errors import ConfigError


@dataclass(frozen=True)
class SamplingSettings:
    """How tokens are picked; temperature 0 is greedy, `top_k` 0 and `top_p` 1 keep every token."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature={self.temperature}; give 0 (greedy) or more")
        if self.top_k < 0:
            raise ConfigError(f"top_k={self.top_k}; give 0 (every token) or more")
        if not 0.0 < self.top_p <= 1.0:
            raise ConfigError(f"top_p={self.top_p}; give more than 0 and at most 1")

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0.0


GREEDY = SamplingSettings(temperature=0.0)
