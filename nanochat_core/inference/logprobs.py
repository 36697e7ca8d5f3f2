"""Log-probabilities of picked tokens, for those who asked.

Shapes: B sequences, V vocabulary.
"""

from collections.abc import Sequence

import torch

from nanochat_core.inference.requests import TokenLogprob
from nanochat_core.model.loss import soft_cap


def token_logprobs(
    logits_BV: torch.Tensor, tokens: Sequence[int], counts: Sequence[int | None]
) -> list[TokenLogprob | None]:
    """Of each row the log-probability of its token and of its `counts` likeliest; None for None.

    Logits are those before the cap.
    """
    found: list[TokenLogprob | None] = [None] * len(tokens)
    asked = [row for row, count in enumerate(counts) if count is not None]
    if not asked:
        return found
    logprobs_BV = soft_cap(logits_BV[asked]).log_softmax(dim=-1)
    most = max(counts[row] or 0 for row in asked)
    top_logprobs, top_tokens = (part.tolist() for part in logprobs_BV.topk(most))
    picked = logprobs_BV[range(len(asked)), [tokens[row] for row in asked]].tolist()
    for i, row in enumerate(asked):
        top = zip(top_tokens[i][: counts[row]], top_logprobs[i], strict=False)
        found[row] = TokenLogprob(tokens[row], picked[i], tuple(top))
    return found
