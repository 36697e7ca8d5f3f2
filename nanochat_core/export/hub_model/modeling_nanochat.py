"""The nanochat model (as nanochat-flows trains it), for transformers with `trust_remote_code=True`.

Tokens that `attention_mask` hides count as if they were not there, on whichever side they are.

Shapes: B batch, T new tokens, S all tokens (cached ones first), C channels, H query heads, G key
heads, D head dim, V vocabulary, E = G * D value channels.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, LogitsProcessorList, PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

# All of them here: transformers 4.57 does not take along what only these files import.
from .answers_nanochat import CalculatorAnswers, has_end, place_of, tokenizer_in
from .calculator_nanochat import calculate
from .columns_nanochat import Columns
from .configuration_nanochat import NanochatConfig


class NanochatLinear(nn.Linear):
    """A Linear without bias, and the range that its initial weights are drawn from."""

    def __init__(self, num_inputs: int, num_outputs: int, low: float, high: float) -> None:
        super().__init__(num_inputs, num_outputs, bias=False)
        self.initial_range = (low, high)


class NanochatAttention(nn.Module):
    """Causal attention within a window; `value_gate` is there where a value table is, too."""

    def __init__(self, config: NanochatConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer, self.window = config, layer, config.windows[layer]
        width = config.hidden_size
        kv_width = config.num_key_value_heads * config.head_dim
        spread = math.sqrt(3.0 / width)
        self.q = NanochatLinear(width, width, -spread, spread)
        self.k = NanochatLinear(width, kv_width, -spread, spread)
        self.v = NanochatLinear(width, kv_width, -spread, spread)
        self.out = NanochatLinear(width, width, 0.0, 0.0)
        self.value_gate = None
        if layer in config.value_embedding_layers:
            self.value_gate = NanochatLinear(
                config.value_gate_channels, config.num_key_value_heads, 0.0, 0.02
            )

    def forward(
        self,
        x_BTC: torch.Tensor,
        values_BTE: torch.Tensor | None,
        rotary: tuple[torch.Tensor, torch.Tensor],
        columns: Columns,
        cache: DynamicCache | None,
    ) -> torch.Tensor:
        """Attend over what is cached and `x`, the normed block input; returns (B, T, C)."""
        config = self.config
        shape = (*x_BTC.shape[:2], -1, config.head_dim)
        q_BTHD, k_BTGD = self.q(x_BTC).view(shape), self.k(x_BTC).view(shape)
        q_BTHD = _norm(_rotate(q_BTHD, *rotary), config) * config.qk_scale
        k_BTGD = _norm(_rotate(k_BTGD, *rotary), config) * config.qk_scale
        v_BTGD = self.v(x_BTC).view(shape)
        if self.value_gate is not None and values_BTE is not None:
            gate_BTG = torch.sigmoid(self.value_gate(x_BTC[..., : config.value_gate_channels]))
            extra_BTGD = values_BTE.view(shape)
            v_BTGD = v_BTGD + config.value_gate_scale * gate_BTG[..., None] * extra_BTGD
        q, k, v = (x.transpose(1, 2) for x in (q_BTHD, k_BTGD, v_BTGD))
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        attended_BHTD = self._attend(q, k, v, columns)
        out_BTC: torch.Tensor = self.out(attended_BHTD.transpose(1, 2).reshape(x_BTC.shape))
        return out_BTC

    def _attend(
        self, q_BHTD: torch.Tensor, k_BGSD: torch.Tensor, v_BGSD: torch.Tensor, columns: Columns
    ) -> torch.Tensor:
        k_BHSD, v_BHSD = (_repeat_heads(x, q_BHTD.size(1)) for x in (k_BGSD, v_BGSD))
        sees_all = columns.real_BS is None and self.window >= k_BHSD.size(2) - 1
        if sees_all and columns.start == 0:
            return F.scaled_dot_product_attention(q_BHTD, k_BHSD, v_BHSD, is_causal=True)
        outputs = [
            F.scaled_dot_product_attention(
                q_BHTD[:, :, queries],
                k_BHSD[:, :, keys],
                v_BHSD[:, :, keys],
                attn_mask=None if mask is None else mask.to(q_BHTD.device),
            )
            for queries, keys, mask in columns.seen(self.window)
        ]
        return torch.cat(outputs, dim=2)


class NanochatMLP(nn.Module):
    """`W_proj relu(W_fc x)^2` (squared ReLU: Primer, arXiv:2109.08668)."""

    def __init__(self, config: NanochatConfig) -> None:
        super().__init__()
        spread = 0.4 * math.sqrt(3.0 / config.hidden_size)
        self.fc = NanochatLinear(config.hidden_size, config.intermediate_size, -spread, spread)
        self.proj = NanochatLinear(config.intermediate_size, config.hidden_size, 0.0, 0.0)

    def forward(self, x_BTC: torch.Tensor) -> torch.Tensor:
        """Map (B, T, C) to (B, T, C)."""
        out_BTC: torch.Tensor = self.proj(F.relu(self.fc(x_BTC)).square())
        return out_BTC


class NanochatBlock(nn.Module):
    """Mixes `x` with the trunk's start `x0`, then adds attention and MLP, each of a normed `x`."""

    def __init__(self, config: NanochatConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        self.attn = NanochatAttention(config, layer)
        self.mlp = NanochatMLP(config)

    def forward(
        self,
        x_BTC: torch.Tensor,
        x0_BTC: torch.Tensor,
        lambdas: tuple[torch.Tensor, torch.Tensor],
        **attention: Any,
    ) -> torch.Tensor:
        """`lambdas` are how much of `x` and of `x0` it reads; the rest is for the attention."""
        x_BTC = lambdas[0] * x_BTC + lambdas[1] * x0_BTC
        x_BTC = x_BTC + self.attn(_norm(x_BTC, self.config), **attention)
        out_BTC: torch.Tensor = x_BTC + self.mlp(_norm(x_BTC, self.config))
        return out_BTC


class NanochatForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[no-untyped-call]
    """The language model: embeddings with smear, blocks, backout and a soft-capped head.

    The token before a new one is read again (smear). A cache therefore has one layer more than the
    model: it keeps the ids of the tokens, and is reordered, repeated and cut like the others.
    """

    config: NanochatConfig
    lm_head: nn.Linear
    config_class = NanochatConfig
    _supports_sdpa = True
    _no_split_modules = ["NanochatBlock"]  # noqa: RUF012 - the base class has it so
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012

    def __init__(self, config: NanochatConfig) -> None:
        super().__init__(config)
        self._loaded_from = place_of(config)
        rows, width = config.padded_vocab_size, config.hidden_size
        kv_width = config.num_key_value_heads * config.head_dim
        self.wte = nn.Embedding(rows, width)
        self.value_embeddings = nn.ModuleDict(
            {str(layer): nn.Embedding(rows, kv_width) for layer in config.value_embedding_layers}
        )
        self.blocks = nn.ModuleList(
            NanochatBlock(config, layer) for layer in range(config.num_hidden_layers)
        )
        self.lm_head = nn.Linear(width, rows, bias=False)
        self.smear_gate = NanochatLinear(config.smear_channels, 1, 0.0, 0.02)
        self.resid_lambdas = nn.Parameter(torch.empty(config.num_hidden_layers))
        self.x0_lambdas = nn.Parameter(torch.empty(config.num_hidden_layers))
        self.smear_lambda = nn.Parameter(torch.empty(1))
        self.backout_lambda = nn.Parameter(torch.empty(1))
        self.post_init()  # type: ignore[no-untyped-call]

    def get_input_embeddings(self) -> nn.Embedding:
        """The table of token embeddings."""
        return self.wte

    def get_output_embeddings(self) -> nn.Module:
        """The head; its weights are not those of the embeddings."""
        return self.lm_head

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Refused: ids would change their meaning in some tables and not in others."""
        raise NotImplementedError(
            "the vocabulary of a nanochat model is fixed: embeddings, value embeddings and head "
            "belong together; train a model with another tokenizer instead"
        )

    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: Any = None,
        logits_processor: Any = None,
        *others: Any,
        calculator: bool = True,
        **options: Any,
    ) -> Any:
        """As that of transformers, but a calculator answers what the model asks it.

        `calculator=False` leaves the model alone. So do settings without an end token: replies that
        never end are measurements.
        """
        processors = LogitsProcessorList(logits_processor or [])
        if calculator and has_end(options, generation_config, self.generation_config):
            revision = getattr(self.config, "_commit_hash", None)
            tokenizer = tokenizer_in(self._loaded_from, revision)
            if tokenizer is not None:
                processors.append(CalculatorAnswers(tokenizer, calculate))
        return super().generate(  # type: ignore[misc]
            inputs, generation_config, processors, *others, **options
        )

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Float32 logits of `vocab_size` tokens, and the mean loss where labels are given.

        `attention_mask` is (batch, all tokens), those in the cache included; labels are shifted
        here, and -100 does not count.
        """
        if input_ids is None or kwargs.get("inputs_embeds") is not None:
            raise ValueError("give input_ids: value embeddings are looked up by token id")
        _refuse(kwargs)
        use_cache = self.config.use_cache if use_cache is None else use_cache
        has_cache = use_cache or past_key_values is not None
        cache = self._open_cache(past_key_values) if has_cache else None
        columns = self._columns(input_ids, attention_mask, cache)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        hidden: list[torch.Tensor] | None = [] if output_hidden_states else None
        x_BTC = self._trunk(input_ids, columns, cache, hidden)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits_BTV = self._logits(x_BTC[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits_BTV, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits_BTV,
            past_key_values=cache,
            hidden_states=None if hidden is None else tuple(hidden),
        )
        is_tuple = return_dict is False or getattr(self.config, "return_dict", True) is False
        return output.to_tuple() if is_tuple and return_dict is not True else output

    def _open_cache(self, cache: DynamicCache | None) -> DynamicCache:
        if cache is None:
            return DynamicCache()
        if not isinstance(cache, DynamicCache):
            raise ValueError(
                f"the cache is a {type(cache).__name__}; give a DynamicCache or none: token ids "
                "are kept beside keys and values, for which other caches have no room"
            )
        return cache

    def _columns(
        self, ids_BT: torch.Tensor, mask: torch.Tensor | None, cache: DynamicCache | None
    ) -> Columns:
        """The new tokens after those of the cache, which takes their ids in."""
        start = 0 if cache is None else cache.get_seq_length()
        shape = (ids_BT.size(0), start + ids_BT.size(1))
        if mask is not None and mask.shape != shape:
            raise ValueError(
                f"attention_mask has the shape {tuple(mask.shape)}; give {shape}: one number for "
                "each token, those in the cache included"
            )
        # Without padding there is a faster way, and no mask at all.
        real_BS = None if mask is None or bool((mask != 0).all()) else mask != 0
        self._check_length(shape[1], real_BS)
        ids_BS = ids_BT if cache is None else self._remember(ids_BT, cache)
        return Columns(ids_BS, real_BS, start)

    def _remember(self, ids_BT: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        """All ids so far (B, S): they are the keys of a layer after the model's own."""
        layer = self.config.num_hidden_layers
        if len(cache.layers) == layer and cache.layer_class_to_replicate is None:
            cache.layers.append(DynamicLayer())  # type: ignore[no-untyped-call]
        keys_B1T1 = ids_BT[:, None, :, None]
        keys_B1S1, _ = cache.update(keys_B1T1, keys_B1T1[..., :0], layer)
        return keys_B1S1[:, 0, :, 0]

    def _check_length(self, length: int, real_BS: torch.Tensor | None) -> None:
        most = self.config.max_position_embeddings
        if length > most and real_BS is not None:
            length = int(real_BS.sum(dim=1).max())
        if length > most:
            raise ValueError(
                f"{length:,} tokens in a row; this model's positions end at {most:,} "
                f"({most // self.config.sequence_len} x sequence_len): shorten the input"
            )

    def _trunk(
        self,
        ids_BT: torch.Tensor,
        columns: Columns,
        cache: DynamicCache | None,
        hidden: list[torch.Tensor] | None,
    ) -> torch.Tensor:
        """What the head reads, (B, T, C); `hidden` takes what each block reads, and this."""
        x_BTC = x0_BTC = middle_BTC = self._smeared(ids_BT, columns)
        dtype = x_BTC.dtype
        rotary = columns.rotary(self.config, dtype)
        for layer, block in enumerate(self.blocks):
            if hidden is not None:
                hidden.append(x_BTC)
            values_BTE = None
            if str(layer) in self.value_embeddings:
                values_BTE = self.value_embeddings[str(layer)](ids_BT).to(dtype)
            x_BTC = block(
                x_BTC,
                x0_BTC=x0_BTC,
                lambdas=(self.resid_lambdas[layer].to(dtype), self.x0_lambdas[layer].to(dtype)),
                values_BTE=values_BTE,
                rotary=rotary,
                columns=columns,
                cache=cache,
            )
            if layer == self.config.backout_layer:
                middle_BTC = x_BTC
        x_BTC = x_BTC - self.backout_lambda.to(x_BTC) * middle_BTC.to(x_BTC)
        x_BTC = _norm(x_BTC, self.config)
        if hidden is not None:
            hidden.append(x_BTC)
        return x_BTC

    def _smeared(self, ids_BT: torch.Tensor, columns: Columns) -> torch.Tensor:
        """Normed embeddings, and to each a gated part of that of the token before."""
        x_BTC = self._embed(ids_BT)
        before_BT, exists_BT = columns.before()
        previous_BTC = self._embed(before_BT) * exists_BT[..., None].to(x_BTC.dtype)
        gate_BT1 = torch.sigmoid(self.smear_gate(x_BTC[..., : self.config.smear_channels]))
        smeared_BTC: torch.Tensor = x_BTC + self.smear_lambda.to(x_BTC) * gate_BT1 * previous_BTC
        return smeared_BTC

    def _embed(self, ids_BT: torch.Tensor) -> torch.Tensor:
        return _norm(self.wte(ids_BT).to(self.resid_lambdas.dtype), self.config)

    def _logits(self, x_BTC: torch.Tensor) -> torch.Tensor:
        """`cap * tanh(z / cap)` in float32, written with a sigmoid; no padding columns."""
        cap = self.config.logit_cap
        raw_BTV = self.lm_head(x_BTC)[..., : self.config.vocab_size].float()
        logits_BTV: torch.Tensor = (2.0 * cap) * torch.sigmoid(raw_BTV * (2.0 / cap)) - cap
        return logits_BTV

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Values to train a new model from, where no weights were loaded."""
        width, last = self.config.hidden_size, max(self.config.num_hidden_layers - 1, 1)
        if module is self:
            for layer in range(self.config.num_hidden_layers):
                self.resid_lambdas[layer] = 1.15 - 0.10 * layer / last
                self.x0_lambdas[layer] = 0.20 - 0.15 * layer / last
            nn.init.zeros_(self.smear_lambda)
            nn.init.constant_(self.backout_lambda, 0.2)
        elif module is self.wte:
            nn.init.normal_(module.weight, 0.0, 0.8)
        elif module is self.lm_head:
            nn.init.normal_(module.weight, 0.0, 0.001)
        elif isinstance(module, nn.Embedding):
            spread = math.sqrt(3.0 / width)
            nn.init.uniform_(module.weight, -spread, spread)
        elif isinstance(module, NanochatLinear):
            nn.init.uniform_(module.weight, *module.initial_range)


def _refuse(kwargs: dict[str, Any]) -> None:
    """Raise ValueError for what others can ask of a model, but not of this one."""
    if kwargs.get("position_ids") is not None:
        raise ValueError("leave position_ids out: positions follow from attention_mask")
    if kwargs.get("output_attentions"):
        raise ValueError("leave output_attentions out: attention runs in kernels that show none")


def _norm(x: torch.Tensor, config: NanochatConfig) -> torch.Tensor:
    """RMSNorm over the last axis without parameters (arXiv:1910.07467)."""
    return F.rms_norm(x, (x.size(-1),), eps=config.rms_norm_eps)


def _rotate(x_BTHD: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding, two-halves layout, by -theta (arXiv:2104.09864)."""
    first, second = x_BTHD.chunk(2, dim=-1)
    return torch.cat([first * cos + second * sin, second * cos - first * sin], dim=-1)


def _repeat_heads(x_BGSD: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Give every query head its key head: (B, G, S, D) to (B, H, S, D)."""
    batch, groups, length, head_dim = x_BGSD.shape
    if groups == num_heads:
        return x_BGSD
    repeated = x_BGSD[:, :, None].expand(batch, groups, num_heads // groups, length, head_dim)
    return repeated.reshape(batch, num_heads, length, head_dim)
