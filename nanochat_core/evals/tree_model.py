"""The forward pass over trees of prompts: logits where they are wanted, and nowhere else.

Of the last block, nothing but keys and values is needed of the tokens that are not read: of a model
of two blocks that is almost half the work.

Shapes: N tokens, L places whose logits are wanted, C channels, V vocabulary, H query heads, G key
heads, D head dim, E = G * D.
"""

import torch
import torch.nn.functional as F

from nanochat_core.evals.tree_pass import TreePass
from nanochat_core.inference.cached_model import BlockWeights, CachedModel
from nanochat_core.model.layers import NORM_EPS, norm
from nanochat_core.model.rotary import rotate


class TreeModel(CachedModel):
    """A model whose passes are trees."""

    def read(self, step: TreePass) -> torch.Tensor:
        """Logits (L, V) before the cap, in the compute dtype."""
        whole, middle = self._weights, self.config.n_layer // 2
        x_NC = F.embedding(step.tokens_N, whole.embedded_VC)
        before_NC = F.embedding(step.before_N, whole.embedded_VC)
        x_NC = torch.addcmul(x_NC, F.embedding(step.tokens_N, whole.smear_V1), before_NC)
        x0_NC = middle_NC = x_NC
        rotary = step.rotary(self.model.cos_TR, self.model.sin_TR)
        *blocks, last = whole.blocks
        for i, weights in enumerate(blocks):
            x_NC = torch.addcmul(x_NC * weights.resid, x0_NC, weights.x0)
            attended_NC = self._attend(i, weights, x_NC, step, rotary)
            x_NC = _widen(torch.addmm(x_NC, attended_NC, weights.out.t()), weights)
            if i == middle:
                middle_NC = x_NC
        x_NC = torch.addcmul(x_NC * last.resid, x0_NC, last.x0)
        attended_LC = self._attend_at(last, x_NC, step, rotary)
        x_LC = _widen(torch.addmm(x_NC[step.places_L], attended_LC, last.out.t()), last)
        middle_LC = x_LC if middle == len(blocks) else middle_NC[step.places_L]
        return F.linear(norm(torch.addcmul(x_LC, whole.backout, middle_LC, value=-1)), whole.head)

    def _attend_at(
        self,
        weights: BlockWeights,
        x_NC: torch.Tensor,
        step: TreePass,
        rotary: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        """What the heads of the last block bring to the places that are read, (L, C)."""
        config, scale_D = self.config, self._qk_scale_D
        head_dim, num_q, num_kv = config.head_dim, config.n_embd, config.kv_dim
        shape_NGD = (-1, config.n_kv_head, head_dim)
        normed_NC = norm(x_NC)
        projected_NF = F.linear(normed_NC, weights.projection_FC[num_q:])
        q_LHD = F.linear(normed_NC[step.places_L], weights.projection_FC[:num_q])
        q_LHD = rotate(q_LHD.view(-1, config.n_head, head_dim), *(x[step.places_L] for x in rotary))
        k_NGD = rotate(projected_NF[:, :num_kv].view(shape_NGD), *rotary)
        q_LHD, k_NGD = (F.rms_norm(x, (head_dim,), scale_D, NORM_EPS) for x in (q_LHD, k_NGD))
        v_NGD = projected_NF[:, num_kv : 2 * num_kv].view(shape_NGD)
        if weights.values_VE is not None:
            gate_NG1 = torch.sigmoid(projected_NF[:, 2 * num_kv :])[..., None]
            extra_NE = F.embedding(step.tokens_N, weights.values_VE)
            v_NGD = torch.addcmul(v_NGD, gate_NG1, extra_NE.view(v_NGD.shape))
        window = self.model.windows[-1]
        return step.attend_at(q_LHD, k_NGD, v_NGD, window=window).flatten(1)


def _widen(x: torch.Tensor, weights: BlockWeights) -> torch.Tensor:
    """What a block does after attention, for (..., C)."""
    hidden = F.relu_(F.linear(norm(x), weights.fc)).square_()
    return torch.addmm(x, hidden, weights.proj.t())
