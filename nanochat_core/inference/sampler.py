"""From logits to tokens, by each request's own random numbers.

Logits come as the head gives them, before the cap: that is monotonic, so the likeliest tokens are
found without it. Shapes: B sequences, V vocabulary, K candidates.
"""

from collections.abc import Sequence
from typing import Literal

import torch

from nanochat_core.inference.settings import SamplingSettings
from nanochat_core.model.loss import soft_cap

DRAWS = 64
"""Random numbers made at once: one by one they cost ten times as much."""


Kind = Literal["greedy", "ranked", "nucleus", "whole"]
"""What a token is picked from: the first, the first `top_k`, any sorted, any in order of ids."""


class Sampler:
    """Picks the tokens of one sequence; equal logits and seeds give equal tokens.

    One uniform number a token, drawn on the CPU: what other sequences do changes nothing.
    """

    def __init__(self, settings: SamplingSettings) -> None:
        self.settings = settings
        self.kind = _kind(settings)
        self._generator = (
            None if settings.is_greedy else torch.Generator().manual_seed(settings.seed)
        )
        self._draws: list[float] = []

    def pick(self, logits_V: torch.Tensor) -> int:
        """The next token for logits (V,)."""
        return pick_each(logits_V[None], [self])[0]

    def draw(self) -> float:
        """The next uniform number in [0, 1)."""
        if not self._draws:
            drawn = torch.rand(DRAWS, generator=self._generator, dtype=torch.float64)
            self._draws = drawn.tolist()[::-1]
        return self._draws.pop()


def _kind(settings: SamplingSettings) -> Kind:
    if settings.is_greedy:
        return "greedy"
    if settings.top_k:
        return "ranked"
    return "whole" if settings.top_p == 1.0 else "nucleus"


def pick_each(logits_BV: torch.Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """The next token of every sequence: what its own sampler would pick, all at once."""
    kinds = {sampler.kind for sampler in samplers}
    if len(kinds) == 1:
        return _pick(logits_BV, samplers[0].kind, samplers)
    tokens = [0] * len(samplers)
    for kind in kinds:
        rows = [row for row, sampler in enumerate(samplers) if sampler.kind == kind]
        picked = _pick(logits_BV[rows], kind, [samplers[row] for row in rows])
        for row, token in zip(rows, picked, strict=True):
            tokens[row] = token
    return tokens


def _pick(logits_BV: torch.Tensor, kind: Kind, samplers: Sequence[Sampler]) -> list[int]:
    if kind == "greedy":
        greedy: list[int] = logits_BV.argmax(dim=-1).tolist()
        return greedy
    # Apple's GPUs have no float64.
    own_BV = logits_BV.cpu() if logits_BV.device.type == "mps" else logits_BV
    probabilities_BK, tokens_BK = candidates(own_BV, [s.settings for s in samplers])
    cumulative_BK = probabilities_BK.cumsum(1)
    whole_B1 = cumulative_BK[:, -1:].contiguous()
    draws_B1 = _column([sampler.draw() for sampler in samplers], whole_B1)
    index_B1 = torch.searchsorted(cumulative_BK, draws_B1 * whole_B1, right=True)
    # A draw just below 1 may be rounded up to the whole; then it is the last candidate's.
    last_B1 = torch.searchsorted(cumulative_BK, whole_B1)
    index_B1 = torch.minimum(index_B1, last_B1).clamp_(max=cumulative_BK.size(1) - 1)
    picked: list[int] = tokens_BK.gather(1, index_B1)[:, 0].tolist()
    return picked


def candidates(
    logits_BV: torch.Tensor, settings: Sequence[SamplingSettings]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities (B, K) float64 and ids (B, K) of the tokens to draw from, by row.

    `top_k` first, then the fewest tokens whose share reaches `top_p` (arXiv:1904.09751); those
    beyond it have probability 0. All settings are of one kind, and none is greedy.
    """
    num_tokens = logits_BV.size(1)
    if _kind(settings[0]) == "whole":
        kept_BK = logits_BV
        tokens_BK = torch.arange(num_tokens, device=logits_BV.device).expand_as(kept_BK)
    else:
        top_ks = [min(one.top_k or num_tokens, num_tokens) for one in settings]
        kept_BK, tokens_BK = logits_BV.topk(max(top_ks))
    capped_BK = soft_cap(kept_BK).double()
    # Shifted before the division, so that a tiny temperature cannot overflow.
    shifted_BK = capped_BK - capped_BK.amax(1, keepdim=True)
    shifted_BK /= _column([one.temperature for one in settings], shifted_BK)
    if _kind(settings[0]) == "whole":
        return shifted_BK.softmax(1), tokens_BK
    if min(top_ks) < max(top_ks):
        ranks_K = torch.arange(max(top_ks), device=logits_BV.device)
        shifted_BK.masked_fill_(ranks_K >= _column(top_ks, ranks_K), float("-inf"))
    probabilities_BK = shifted_BK.softmax(1)
    if min(one.top_p for one in settings) < 1.0:
        top_ps_B1 = _column([one.top_p for one in settings], probabilities_BK)
        before_BK = probabilities_BK.cumsum(1) - probabilities_BK
        # A row without the cut keeps all: rounding may take its sum to 1 before the end.
        is_cut_BK = (before_BK >= top_ps_B1) & (top_ps_B1 < 1.0)
        probabilities_BK = probabilities_BK.masked_fill(is_cut_BK, 0.0)
    return probabilities_BK, tokens_BK


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    """One value a row, (B, 1), of the dtype and on the device of a tensor."""
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]
