"""A model as decoding wants it: weights in the compute dtype, few and large operations.

The same function as `GPT.forward`, which training needs in other words; tests hold the two equal.
Shapes: N tokens of all rows, B rows, T columns, C channels, H query heads, G key heads, D head dim,
E = G * D, V vocabulary, R rotation planes, F channels of the projection of queries, keys, values
and gates.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from nanochat_core.model.attention import QK_SCALE, VALUE_GATE_SCALE, Attention
from nanochat_core.model.blocks import Block
from nanochat_core.model.gpt import GPT
from nanochat_core.model.layers import NORM_EPS, norm
from nanochat_core.model.rotary import rotate


class Pass(Protocol):
    """Which tokens one forward pass takes in, and how they meet what is cached."""

    tokens_N: torch.Tensor
    before_N: torch.Tensor
    """The token before each one in its sequence; `CachedModel.nothing` where there is none."""
    shape: tuple[int, int]
    """Rows and columns, B and T."""
    last_B: torch.Tensor | None
    """Of each row the token in N whose logits are wanted; None: all N."""

    def rotary(
        self, cos_TR: torch.Tensor, sin_TR: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows of the tables for the tokens, as `rotate` wants them."""

    def attend(
        self,
        block: int,
        q_BTHD: torch.Tensor,
        k_BTGD: torch.Tensor,
        v_BTGD: torch.Tensor,
        *,
        window: int,
    ) -> torch.Tensor:
        """Store keys and values, then attend over those cached; (B, T, H, D) or (B, T, H * D)."""


@dataclass(frozen=True)
class BlockWeights:
    """One block; `projection_FC` is q, k, v and, with a value table, the gates on top of another.

    Gates read the first channels only: their other columns are zeros.
    """

    resid: torch.Tensor
    x0: torch.Tensor
    projection_FC: torch.Tensor
    out: torch.Tensor
    fc: torch.Tensor
    proj: torch.Tensor
    values_VE: torch.Tensor | None


@dataclass(frozen=True)
class _Weights:
    """What the pass multiplies with; the last row of `embedded_VC` is that of no token: zeros."""

    embedded_VC: torch.Tensor
    smear_V1: torch.Tensor
    backout: torch.Tensor
    head: torch.Tensor
    blocks: tuple[BlockWeights, ...]

    def tensors(self) -> Iterator[torch.Tensor]:
        """All of them, in a fixed order."""
        for part in (self, *self.blocks):
            yield from (value for value in vars(part).values() if isinstance(value, torch.Tensor))


class CachedModel:
    """The forward pass over a cache; `refresh` follows a model whose weights have changed."""

    def __init__(self, model: GPT) -> None:
        self.model, self.config, self.dtype = model, model.config, model.compute_dtype
        self.device = model.device
        self.nothing = model.config.padded_vocab_size
        """The token id before the first one of a sequence."""
        scale = torch.full((self.config.head_dim,), QK_SCALE, dtype=self.dtype, device=self.device)
        self._qk_scale_D = scale
        self.bands = {window: getattr(model, f"band_{window}") for window in model.windows}
        """By window, what a block of queries sees (`attention.band_mask`)."""
        self._weights = self._read()

    def refresh(self) -> None:
        """Take the weights over as they are now, into the memory of those before."""
        for old, new in zip(self._weights.tensors(), self._read().tensors(), strict=True):
            if old.data_ptr() != new.data_ptr():
                old.copy_(new)

    @torch.no_grad()
    def _read(self) -> _Weights:
        model, dtype = self.model, self.dtype
        embedded_VC = model._embed(torch.arange(self.nothing, device=self.device))
        gate_V1 = torch.sigmoid(model.smear_gate(embedded_VC[:, : model.smear_channels]))
        return _Weights(
            embedded_VC=F.pad(embedded_VC, (0, 0, 0, 1)),
            smear_V1=model.smear_lambda.to(dtype) * gate_V1,
            backout=model.backout_lambda.detach().to(dtype),
            head=_cast(model.lm_head.weight[: self.config.vocab_size], dtype),
            blocks=tuple(self._read_block(i) for i in range(self.config.n_layer)),
        )

    def _read_block(self, i: int) -> BlockWeights:
        model, dtype = self.model, self.dtype
        block, table = model.blocks[i], model._value_embedding(i)
        assert isinstance(block, Block), "blocks holds blocks"
        return BlockWeights(
            resid=model.resid_lambdas[i].detach().to(dtype),
            x0=model.x0_lambdas[i].detach().to(dtype),
            projection_FC=_projection(block.attn, dtype),
            out=_cast(block.attn.out.weight, dtype),
            fc=_cast(block.mlp.fc.weight, dtype),
            proj=_cast(block.mlp.proj.weight, dtype),
            values_VE=None if table is None else VALUE_GATE_SCALE * table.weight.to(dtype),
        )

    def forward(self, step: Pass) -> torch.Tensor:
        """Logits before the cap, in the compute dtype: (B, V) of each row's last, or (N, V)."""
        whole = self._weights
        x_NC = F.embedding(step.tokens_N, whole.embedded_VC)
        before_NC = F.embedding(step.before_N, whole.embedded_VC)
        x_NC = torch.addcmul(x_NC, F.embedding(step.tokens_N, whole.smear_V1), before_NC)
        x0_NC = middle_NC = x_NC
        rotary = step.rotary(self.model.cos_TR, self.model.sin_TR)
        for i, weights in enumerate(whole.blocks):
            x_NC = torch.addcmul(x_NC * weights.resid, x0_NC, weights.x0)
            attended = self._attend(i, weights, x_NC, step, rotary)
            x_NC = torch.addmm(x_NC, attended, weights.out.t())
            hidden = F.relu_(F.linear(norm(x_NC), weights.fc)).square_()
            x_NC = torch.addmm(x_NC, hidden, weights.proj.t())
            if i == self.config.n_layer // 2:
                middle_NC = x_NC
        if step.last_B is not None:
            x_NC, middle_NC = x_NC[step.last_B], middle_NC[step.last_B]
        return F.linear(norm(torch.addcmul(x_NC, whole.backout, middle_NC, value=-1)), whole.head)

    def _attend(
        self,
        i: int,
        weights: BlockWeights,
        x_NC: torch.Tensor,
        step: Pass,
        rotary: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        """What the heads of a block bring, (N, C), before the output projection."""
        config, (rows, columns) = self.config, step.shape
        heads, groups, head_dim = config.n_head, config.n_kv_head, config.head_dim
        num_qk, num_v = (heads + groups) * head_dim, config.kv_dim
        projected_BTF = F.linear(norm(x_NC), weights.projection_FC).view(rows, columns, -1)
        qk = projected_BTF[..., :num_qk].view(rows, columns, heads + groups, head_dim)
        qk = F.rms_norm(rotate(qk, *rotary), (head_dim,), self._qk_scale_D, NORM_EPS)
        v_BTGD = projected_BTF[..., num_qk : num_qk + num_v].view(rows, columns, groups, head_dim)
        if weights.values_VE is not None:
            gate_BTG = torch.sigmoid(projected_BTF[..., num_qk + num_v :])
            extra_NE = F.embedding(step.tokens_N, weights.values_VE)
            v_BTGD = torch.addcmul(v_BTGD, gate_BTG[..., None], extra_NE.view(v_BTGD.shape))
        q_BTHD, k_BTGD = qk[:, :, :heads], qk[:, :, heads:]
        attended = step.attend(i, q_BTHD, k_BTGD, v_BTGD, window=self.model.windows[i])
        return attended.reshape(rows * columns, config.n_embd)


def _cast(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A weight in a dtype; itself, without a copy, where it is of that one already."""
    return weight.detach().to(dtype)


def _projection(attention: Attention, dtype: torch.dtype) -> torch.Tensor:
    parts: list[torch.Tensor] = [attention.q.weight, attention.k.weight, attention.v.weight]
    if attention.value_gate is not None:
        gate = attention.value_gate.weight
        parts.append(F.pad(gate, (0, attention.q.in_features - gate.size(1))))
    return torch.cat([part.detach().to(dtype) for part in parts])
