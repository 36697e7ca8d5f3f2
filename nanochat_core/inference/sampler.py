"""From logits to a token, by the request's own random numbers.

Shapes: V vocabulary, K candidates.
"""

from dataclasses import dataclass

import torch

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


GREEDY = SamplingSettings(temperature=0.0)


class Sampler:
    """Picks the tokens of one sequence; equal logits and seeds give equal tokens.

    One uniform number a token, drawn on the CPU: what other sequences do changes nothing.
    """

    def __init__(self, settings: SamplingSettings) -> None:
        self.settings = settings
        self._generator = torch.Generator(device="cpu").manual_seed(settings.seed)

    def pick(self, logits_V: torch.Tensor) -> int:
        """The next token for float logits (V,), already on the CPU."""
        if self.settings.temperature == 0.0:
            return int(logits_V.argmax())
        probabilities_K, tokens_K = candidates(logits_V, self.settings)
        cumulative_K = probabilities_K.cumsum(0)
        draw = torch.rand((), generator=self._generator, dtype=torch.float64) * cumulative_K[-1]
        index = int(torch.searchsorted(cumulative_K, draw, right=True))
        return int(tokens_K[min(index, len(tokens_K) - 1)])


def candidates(
    logits_V: torch.Tensor, settings: SamplingSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities (K,) float64 and ids (K,) of the tokens to draw from.

    `top_k` first, then the fewest tokens whose share reaches `top_p` (arXiv:1904.09751).
    """
    # Shifted before the division, so that a tiny temperature cannot overflow.
    shifted_V = (logits_V.double() - logits_V.max()) / settings.temperature
    if settings.top_k == 0 and settings.top_p == 1.0:
        return shifted_V.softmax(0), torch.arange(len(shifted_V))
    num_kept = min(settings.top_k or len(shifted_V), len(shifted_V))
    kept_K, tokens_K = shifted_V.topk(num_kept)
    probabilities_K = kept_K.softmax(0)
    if settings.top_p < 1.0:
        before_K = probabilities_K.cumsum(0) - probabilities_K
        num_kept = int((before_K < settings.top_p).sum())
        probabilities_K, tokens_K = probabilities_K[:num_kept], tokens_K[:num_kept]
    return probabilities_K, tokens_K
