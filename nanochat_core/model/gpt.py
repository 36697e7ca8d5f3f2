"""The model: a decoder-only Transformer with smear, value embeddings and backout.

Shapes: B batch, T positions, C channels, V vocabulary, E value channels, R rotation planes.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from nanochat_core.errors import ConfigError
from nanochat_core.model.attention import Attention, band_mask
from nanochat_core.model.backends.opening import open_backend
from nanochat_core.model.blocks import Block, Own, Shared
from nanochat_core.model.config import SMEAR_CHANNELS, ModelConfig
from nanochat_core.model.fp8 import ALIGNMENT, MIN_SIZE, check_fp8, fits_fp8
from nanochat_core.model.init import init_weights
from nanochat_core.model.layers import Embedding, Linear, norm
from nanochat_core.model.loss import (
    IGNORE_TARGET,
    Reduction,
    head_logits,
    row_losses,
    soft_cap,
    summed_loss,
)
from nanochat_core.model.rotary import MAX_LENGTH_FACTOR, rotary_tables

log = logging.getLogger(__name__)


class GPT(nn.Module):
    """A language model whose matrices are float32 and whose activations are `compute_dtype`.

    Parameters are uninitialised memory until `init_weights` or a checkpoint fills them. The
    embedding tables are stored in the compute dtype (float16: float32). `tokenizer` may be attached
    by whoever loads a model for generation.
    """

    cos_TR: torch.Tensor
    sin_TR: torch.Tensor
    tokenizer: object | None = None

    def __init__(self, config: ModelConfig, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config, self.compute_dtype = config, compute_dtype
        table_dtype = torch.float32 if compute_dtype == torch.float16 else compute_dtype
        self.wte = Embedding(config.padded_vocab_size, config.n_embd, table_dtype)
        self.value_embeddings = nn.ModuleDict(
            {
                str(i): Embedding(config.padded_vocab_size, config.kv_dim, table_dtype)
                for i in range(config.n_layer)
                if config.has_value_embedding(i)
            }
        )
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.n_layer))
        self.lm_head = Linear(config.n_embd, config.padded_vocab_size)
        self.smear_channels = min(SMEAR_CHANNELS, config.n_embd)
        self.smear_gate = Linear(self.smear_channels, 1)
        self.resid_lambdas = nn.Parameter(torch.empty(config.n_layer, dtype=torch.float32))
        self.x0_lambdas = nn.Parameter(torch.empty(config.n_layer, dtype=torch.float32))
        self.smear_lambda = nn.Parameter(torch.empty(1, dtype=torch.float32))
        self.backout_lambda = nn.Parameter(torch.empty(1, dtype=torch.float32))
        self.windows = config.windows
        self.max_positions = MAX_LENGTH_FACTOR * config.sequence_len
        self._register_tables()

    def _register_tables(self) -> None:
        """Rotary tables and window masks: constants that move with the model, never saved."""
        device = self.lm_head.weight.device
        cos_TR, sin_TR = rotary_tables(
            self.max_positions, self.config.head_dim, dtype=self.compute_dtype
        )
        self.register_buffer("cos_TR", cos_TR.to(device), persistent=False)
        self.register_buffer("sin_TR", sin_TR.to(device), persistent=False)
        for window in sorted(set(self.windows)):
            self.register_buffer(f"band_{window}", band_mask(window).to(device), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.lm_head.weight.device

    def init_weights(self, seed: int) -> None:
        """Fill every parameter; equal bits for equal seeds on every device and rank."""
        init_weights(self, seed)

    def use_fp8_training(self) -> None:
        """Multiply in fp8 wherever a gradient is recorded, in every Linear that is large enough.

        Evaluation and generation (under `no_grad` or `inference_mode`), the parameters and the
        state dict stay as they are. Raises ConfigError where the device or the sizes forbid it.
        """
        check_fp8(self.device, self.compute_dtype)
        linears = [module for module in self.modules() if isinstance(module, Linear)]
        large = [linear for linear in linears if fits_fp8(linear.in_features, linear.out_features)]
        if not large:
            raise ConfigError(
                f"fp8=True, but no Linear of this model (width {self.config.n_embd}) has sizes "
                f"that are multiples of {ALIGNMENT} and at least {MIN_SIZE}; set fp8=False"
            )
        for linear in large:
            linear.fp8 = True
        log.info("fp8 matrix multiplications in %d of %d Linears", len(large), len(linears))

    def use_attention(self, name: str) -> None:
        """Attend with a backend of `model.backends` wherever nothing is cached.

        "sdpa" is what a model starts with. Raises as `open_backend` does.
        """
        backend = None if name == "sdpa" else open_backend(name, self.device)
        for module in self.modules():
            if isinstance(module, Attention):
                module.attend_fn = backend

    def forward(
        self,
        tokens_BT: torch.Tensor,
        targets_BT: torch.Tensor | None = None,
        *,
        reduction: Reduction = "mean",
    ) -> torch.Tensor:
        """Loss in nats (float32; -1 targets do not count), or float32 logits (B, T, V).

        Raises ConfigError for inputs longer than ten times `sequence_len`.
        """
        x_BTC = self.hidden(tokens_BT)
        vocab_size = self.config.vocab_size
        if targets_BT is None:
            return soft_cap(head_logits(x_BTC, self.lm_head, vocab_size))
        x_NC, targets_N = x_BTC.flatten(0, 1), targets_BT.flatten()
        if reduction == "none":
            losses_N = row_losses(x_NC, self.lm_head, targets_N, vocab_size=vocab_size)
            return losses_N.view_as(targets_BT)
        total = summed_loss(
            x_NC, self.lm_head, targets_N, None, vocab_size=vocab_size, compiled=False
        )
        return total if reduction == "sum" else total / (targets_N != IGNORE_TARGET).sum()

    def hidden(self, tokens_BT: torch.Tensor, run: "Regions | None" = None) -> torch.Tensor:
        """What the head reads, (B, T, C); `run` may bring compiled regions.

        Raises ConfigError as `forward` does.
        """
        length = tokens_BT.size(1)
        self._check_length(length)
        run = EAGER if run is None else run
        rotary = (self.cos_TR[:length, None], self.sin_TR[:length, None])
        return self._trunk(Shared(tokens_BT, run.begin(self, tokens_BT), rotary), run)

    def _check_length(self, length: int) -> None:
        if length > self.max_positions:
            raise ConfigError(
                f"{length:,} tokens in a row; this model's positions end at "
                f"{self.max_positions:,} (10 x sequence_len); shorten the input"
            )

    def _begin(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        """What the first block reads where nothing is cached."""
        x_BTC = self._embed(tokens_BT)
        return self._smear(x_BTC, torch.zeros_like(x_BTC[:, :1]))

    def _embed(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        """Normed token embeddings (B, T, C), not yet smeared."""
        return norm(self.wte(tokens_BT).to(self.compute_dtype))

    def _smear(self, x_BTC: torch.Tensor, before_B1C: torch.Tensor) -> torch.Tensor:
        """Add a gated part of the token before; `before` is that of the first one (zeros: none)."""
        previous_BTC = torch.cat([before_B1C, x_BTC[:, :-1]], dim=1)
        gate_BT1 = torch.sigmoid(self.smear_gate(x_BTC[..., : self.smear_channels]))
        return x_BTC + self.smear_lambda.to(x_BTC.dtype) * gate_BT1 * previous_BTC

    def _trunk(self, shared: Shared, run: "Regions") -> torch.Tensor:
        """Every block, backout and the final norm."""
        # A tensor object of its own: a compiler makes another graph where x and x0 are one object.
        x_BTC = middle_BTC = shared.x0_BTC.view_as(shared.x0_BTC)
        for i, (block, own) in enumerate(zip(self.blocks, self._owns(x_BTC.dtype), strict=True)):
            x_BTC = run.block(block, x_BTC, shared, own)
            if i == self.config.n_layer // 2:
                middle_BTC = x_BTC
        return run.end(self, x_BTC, middle_BTC)

    def _owns(self, dtype: torch.dtype) -> list[Own]:
        """What belongs to a block but is kept here, under the names of the state dict."""
        resids, x0s = (p.to(dtype).unbind() for p in (self.resid_lambdas, self.x0_lambdas))
        tables = [self._value_embedding(i) for i in range(self.config.n_layer)]
        bands = [getattr(self, f"band_{window}") for window in self.windows]
        return list(map(Own, resids, x0s, tables, bands))

    def _value_embedding(self, block: int) -> Embedding | None:
        if not self.config.has_value_embedding(block):
            return None
        table = self.value_embeddings[str(block)]
        assert isinstance(table, Embedding), "value_embeddings holds embeddings"
        return table

    def _end(self, x_BTC: torch.Tensor, middle_BTC: torch.Tensor) -> torch.Tensor:
        """Take part of the middle of the trunk out again (backout), and norm."""
        return norm(x_BTC - self.backout_lambda.to(x_BTC.dtype) * middle_BTC)


@dataclass(frozen=True)
class Regions:
    """The functions that the trunk is run with; compiled ones may take their places."""

    begin: Callable[[GPT, torch.Tensor], torch.Tensor]
    block: Callable[..., torch.Tensor]
    end: Callable[[GPT, torch.Tensor, torch.Tensor], torch.Tensor]


def run_block(block: nn.Module, x_BTC: torch.Tensor, shared: Shared, own: Own) -> torch.Tensor:
    """One block, as a function of it: compiled, it serves every block of a kind."""
    out_BTC: torch.Tensor = block(x_BTC, shared, own)
    return out_BTC


EAGER = Regions(GPT._begin, run_block, GPT._end)
