"""The depth dial (torch-free): a recipe sets model, batch, horizon and rates. RECIPE section 2."""

import math

from pydantic import Field

from nanochat_core.config.base import Auto, Config
from nanochat_core.errors import BatchSizeError, ConfigError
from nanochat_core.model.config import ModelConfig
from nanochat_core.model.counts import TrainingMemory, flops_per_token, parameter_counts
from nanochat_core.training.recipes import PretrainRecipe

REFERENCE_DEPTH = 12
REFERENCE_TOKENS_PER_STEP = 2**19
BATCH_EXPONENT = 0.383
"""Power Lines, arXiv:2505.13738: the best batch grows with tokens to this power."""
REFERENCE_WIDTH = 768
SMALL_MODEL_PARAMETERS = 10_000_000
"""Below this many scaling parameters the laws above are extrapolated."""
CPU_ROWS = 8
"""Rows of a micro-batch where nobody says how many: more do not make a CPU faster."""
FULL_SHARE = 0.92
"""Of a device's memory: the rest is for its driver, for sums over ranks and for gaps."""


class TrainingPlan(Config):
    """What the dial worked out; every number that the training loop needs beside the recipe."""

    model: ModelConfig
    tokens_per_step: int = Field(ge=1)
    num_iterations: int = Field(ge=1)
    target_tokens: int = Field(ge=1, description="D, tokens that the ratio asks for")
    scaling_parameters: int = Field(ge=1, description="N, matrices of the blocks and the head")
    batch_lr_scale: float
    width_lr_scale: float
    muon_weight_decay: float
    flops_per_token: int

    @property
    def rows_per_step(self) -> int:
        """Packed sequences of one optimizer step."""
        return self.tokens_per_step // self.model.sequence_len

    @property
    def total_tokens(self) -> int:
        """Tokens that the whole run reads."""
        return self.tokens_per_step * self.num_iterations


def model_config(recipe: PretrainRecipe, vocab_size: int) -> ModelConfig:
    """The model that a recipe asks for, at this vocabulary."""
    return _model_at(recipe, recipe.depth, vocab_size, recipe.n_embd, recipe.n_kv_head)


def plan_training(recipe: PretrainRecipe, vocab_size: int) -> TrainingPlan:
    """Turn the dial: horizon, batch, rate scales and weight decay.

    Explicit steps and FLOPs set only the number of steps; D, and all that follows from it,
    stays what the ratio asks for.
    """
    config = model_config(recipe, vocab_size)
    scaling = parameter_counts(config).scaling
    reference = _model_at(recipe, REFERENCE_DEPTH, vocab_size, "auto", "auto")
    target_tokens = int(recipe.target_param_data_ratio * scaling)
    reference_tokens = recipe.target_param_data_ratio * parameter_counts(reference).scaling
    tokens_per_step = _tokens_per_step(recipe, target_tokens / reference_tokens)
    batch_scale = math.sqrt(tokens_per_step / REFERENCE_TOKENS_PER_STEP)
    weight_decay = recipe.optimizer.matrices.weight_decay
    if recipe.scale_weight_decay:
        weight_decay *= batch_scale * reference_tokens / target_tokens
    per_token = flops_per_token(config)
    return TrainingPlan(
        model=config,
        tokens_per_step=tokens_per_step,
        num_iterations=_num_iterations(recipe, tokens_per_step, target_tokens, per_token),
        target_tokens=target_tokens,
        scaling_parameters=scaling,
        batch_lr_scale=batch_scale if recipe.optimizer.scale_lr_with_batch else 1.0,
        width_lr_scale=(config.n_embd / REFERENCE_WIDTH) ** -0.5,
        muon_weight_decay=weight_decay,
        flops_per_token=per_token,
    )


def extrapolation_warning(recipe: PretrainRecipe, plan: TrainingPlan) -> str:
    """A sentence when the dial's laws are used far below the sizes they were fitted on, or ''."""
    overridden = recipe.tokens_per_step != "auto" and not recipe.scale_weight_decay
    if plan.scaling_parameters >= SMALL_MODEL_PARAMETERS or overridden:
        return ""
    return (
        f"depth {recipe.depth} has {plan.scaling_parameters:,} scaling parameters; below "
        f"{SMALL_MODEL_PARAMETERS:,} the scaling laws are extrapolated (they ask for "
        f"{plan.tokens_per_step:,} tokens a step and a weight decay of "
        f"{plan.muon_weight_decay:.2f}); set pretrain.tokens_per_step and "
        "pretrain.scale_weight_decay=false to choose yourself"
    )


def accumulation_steps(rows_per_step: int, device_batch_size: int, ranks: int) -> int:
    """Micro-batches that each rank runs for one step; must come out whole."""
    per_pass = device_batch_size * ranks
    if rows_per_step % per_pass:
        whole = max(rows_per_step // per_pass, 1) * per_pass
        raise BatchSizeError(
            f"a step of {rows_per_step:,} rows is not a multiple of {per_pass:,} "
            f"(device_batch_size {device_batch_size} x {ranks} ranks); use a step of {whole:,} "
            "rows, or another device_batch_size or number of ranks"
        )
    return rows_per_step // per_pass


def rows_of_rank(rows_per_step: int, ranks: int) -> int:
    """Rows of one step that each rank computes; must come out whole."""
    if rows_per_step % ranks:
        whole = -(-rows_per_step // ranks) * ranks
        raise BatchSizeError(
            f"a step of {rows_per_step:,} rows cannot be shared out evenly among {ranks} ranks; "
            f"use a step of {whole:,} rows, or another number of ranks"
        )
    return rows_per_step // ranks


def check_device_batch(rows_per_step: int, device_batch_size: int | Auto, ranks: int) -> None:
    """Refuse a step that does not divide into micro-batches, as far as their size is known."""
    if device_batch_size == "auto":
        rows_of_rank(rows_per_step, ranks)
    else:
        accumulation_steps(rows_per_step, device_batch_size, ranks)


def most_rows(rows_per_rank: int) -> int:
    """The largest power of two that divides a rank's rows: micro-batches are not larger."""
    return rows_per_rank & -rows_per_rank


def guess_rows(memory: TrainingMemory, rows_per_rank: int, limit_bytes: int) -> int:
    """The largest power of two of rows that should fit, before anything was tried; at least 1."""
    rows = most_rows(rows_per_rank)
    while rows > 1 and memory.peak(rows, rows_per_rank // rows) > FULL_SHARE * limit_bytes:
        rows //= 2
    return rows


def _model_at(
    recipe: PretrainRecipe,
    depth: int,
    vocab_size: int,
    n_embd: int | Auto,
    n_kv_head: int | Auto,
) -> ModelConfig:
    if n_embd == "auto":
        n_embd = math.ceil(depth * recipe.aspect_ratio / recipe.head_dim) * recipe.head_dim
    if n_embd % recipe.head_dim:
        raise ConfigError(
            f"pretrain.n_embd={n_embd} is not a multiple of head_dim={recipe.head_dim}; "
            f"use {max(n_embd // recipe.head_dim, 1) * recipe.head_dim} or set pretrain.head_dim"
        )
    n_head = n_embd // recipe.head_dim
    return ModelConfig(
        sequence_len=recipe.sequence_len,
        vocab_size=vocab_size,
        n_layer=depth,
        n_head=n_head,
        n_kv_head=n_head if n_kv_head == "auto" else n_kv_head,
        n_embd=n_embd,
        window_pattern=recipe.window_pattern,
    )


def _tokens_per_step(recipe: PretrainRecipe, relative_tokens: float) -> int:
    if recipe.tokens_per_step == "auto":
        best = REFERENCE_TOKENS_PER_STEP * relative_tokens**BATCH_EXPONENT
        return int(2 ** round(math.log2(best)))
    tokens = int(recipe.tokens_per_step)
    if tokens <= 0 or tokens % recipe.sequence_len:
        nearest = max(tokens // recipe.sequence_len, 1) * recipe.sequence_len
        raise BatchSizeError(
            f"pretrain.tokens_per_step={tokens:,} is not a multiple of "
            f"sequence_len={recipe.sequence_len:,}; use {nearest:,}"
        )
    return tokens


def _num_iterations(
    recipe: PretrainRecipe, tokens_per_step: int, target_tokens: int, per_token: int
) -> int:
    if recipe.num_iterations != "auto":
        steps = int(recipe.num_iterations)
    elif recipe.target_flops != "auto":
        steps = round(float(recipe.target_flops) / (per_token * tokens_per_step))
    else:
        steps = target_tokens // tokens_per_step
    if steps < 1:
        raise ConfigError(
            f"the horizon comes out at {steps} steps of {tokens_per_step:,} tokens; "
            "set pretrain.num_iterations, or ask for more tokens or FLOPs"
        )
    return steps
