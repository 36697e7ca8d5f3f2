"""From logits to a token, by the request's own random numbers.

Shapes: B sequences, V vocabulary, K candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

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

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0.0


GREEDY = SamplingSettings(temperature=0.0)


class Sampler:
    """Picks the tokens of one sequence; equal logits and seeds give equal tokens.

    One uniform number a token, drawn on the CPU: what other sequences do changes nothing.
    """

    def __init__(self, settings: SamplingSettings) -> None:
        self.settings = settings
        self._generator = torch.Generator(device="cpu").manual_seed(settings.seed)

    def pick(self, logits_V: torch.Tensor) -> int:
        """The next token for float logits (V,)."""
        return pick_each(logits_V[None], [self])[0]

    def draw(self) -> torch.Tensor:
        """The next uniform number in [0, 1), a float64 scalar."""
        return torch.rand((), generator=self._generator, dtype=torch.float64)


def pick_each(logits_BV: torch.Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """The next token of every sequence: what its own sampler would pick, all at once.

    Rows whose settings differ in more than the seed are worked on in turn.
    """
    rows_by_settings: dict[SamplingSettings, list[int]] = {}
    for row, sampler in enumerate(samplers):
        rows_by_settings.setdefault(replace(sampler.settings, seed=0), []).append(row)
    tokens = [0] * len(samplers)
    for settings, rows in rows_by_settings.items():
        own_BV = logits_BV if len(rows) == len(samplers) else logits_BV[rows]
        picked = _pick(own_BV, settings, [samplers[row] for row in rows])
        for row, token in zip(rows, picked, strict=True):
            tokens[row] = token
    return tokens


def _pick(
    logits_BV: torch.Tensor, settings: SamplingSettings, samplers: Sequence[Sampler]
) -> list[int]:
    if settings.is_greedy:
        greedy: list[int] = logits_BV.argmax(dim=-1).tolist()
        return greedy
    probabilities_BK, tokens_BK = candidates(logits_BV, settings)
    cumulative_BK = probabilities_BK.cumsum(1)
    whole_B1 = cumulative_BK[:, -1:].contiguous()
    draws_B1 = torch.stack([sampler.draw() for sampler in samplers])[:, None]
    index_B1 = torch.searchsorted(cumulative_BK, draws_B1 * whole_B1, right=True)
    # A draw just below 1 may be rounded up to the whole; then it is the last candidate's.
    last_B1 = torch.searchsorted(cumulative_BK, whole_B1)
    picked: list[int] = tokens_BK.gather(1, torch.minimum(index_B1, last_B1))[:, 0].tolist()
    return picked


def candidates(
    logits_BV: torch.Tensor, settings: SamplingSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities (B, K) float64 and ids (B, K) of the tokens to draw from, on the CPU.

    `top_k` first, then the fewest tokens whose share reaches `top_p` (arXiv:1904.09751); those
    beyond it have probability 0. Only candidates leave the device of the logits.
    """
    num_tokens = logits_BV.size(1)
    if settings.top_k == 0 and settings.top_p == 1.0:
        kept_BK = logits_BV.cpu()
        tokens_BK = torch.arange(num_tokens).expand_as(kept_BK)
    else:
        most = min(settings.top_k or num_tokens, num_tokens)
        kept_BK, tokens_BK = (part.cpu() for part in logits_BV.topk(most))
    # Shifted before the division, so that a tiny temperature cannot overflow.
    shifted_BK = kept_BK.double() - kept_BK.amax(1, keepdim=True)
    probabilities_BK = (shifted_BK / settings.temperature).softmax(1)
    if settings.top_p < 1.0:
        before_BK = probabilities_BK.cumsum(1) - probabilities_BK
        probabilities_BK = torch.where(before_BK < settings.top_p, probabilities_BK, 0.0)
    return probabilities_BK, tokens_BK
