"""Recipes of the training stations (torch-free)."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from nanochat_core.config.base import Auto, ComputeDtype, Recipe
from nanochat_core.conversation.recipes import Mixture
from nanochat_core.errors import ConfigError
from nanochat_core.optim.recipe import OptimizerRecipe, ScheduleRecipe

MAX_DEPTH = 1_000
"""Far beyond any use; a mistyped depth must not keep the plan busy for hours."""
Count = Annotated[int, Field(ge=1)]


class DataOrderRecipe(Recipe):
    """How documents become rows and in which order rows are read."""

    packing: Literal["split", "crop"] = Field(
        "split", description="split keeps every token; crop is the reference's policy"
    )
    block_shards: int = Field(
        8, ge=1, description="shards whose rows are packed and mixed together"
    )
    max_epochs: float = Field(1.0, gt=0, description="refuse to read the shards more often")
    seed: int = Field(42, ge=0)


class PretrainRecipe(Recipe):
    """Everything that decides which base model comes out; `depth` is the dial."""

    depth: int = Field(20, ge=1, le=MAX_DEPTH)
    aspect_ratio: int = Field(64, ge=1, description="model width per unit of depth")
    head_dim: int = Field(128, ge=2)
    n_embd: Count | Auto = Field("auto", description="auto: depth * aspect_ratio in whole heads")
    n_kv_head: Count | Auto = Field("auto", description="auto: as many as query heads")
    sequence_len: int = Field(2048, ge=2)
    window_pattern: str = Field("SSSL", pattern=r"^[SL]+$")
    num_iterations: Count | Auto = Field("auto", description="explicit number of steps")
    target_flops: Annotated[float, Field(gt=0)] | Auto = Field(
        "auto", description="training FLOPs that set the steps"
    )
    target_param_data_ratio: float = Field(12.0, gt=0, description="tokens per scaling parameter")
    tokens_per_step: Count | Auto = Field("auto", description="auto: Power Lines, arXiv:2505.13738")
    scale_weight_decay: bool = Field(True, description="constant T_epoch, arXiv:2405.13698")
    compute_dtype: ComputeDtype = "auto"
    fp8: bool = Field(False, description="large matrix products of training in 8 bits (H100)")
    seed: int = Field(42, ge=0, description="of the initial weights")
    optimizer: OptimizerRecipe = OptimizerRecipe()
    schedule: ScheduleRecipe = ScheduleRecipe()
    data: DataOrderRecipe = DataOrderRecipe()

    @model_validator(mode="after")
    def _one_horizon(self) -> "PretrainRecipe":
        if self.num_iterations != "auto" and self.target_flops != "auto":
            raise ConfigError(
                f"pretrain got both num_iterations={self.num_iterations} and "
                f"target_flops={self.target_flops:g}; give one of them and set the other to auto"
            )
        return self


SFT_SCHEDULE = ScheduleRecipe(
    warmup_steps=0,
    warmdown_fraction=0.5,
    final_lr_fraction=0.0,
    momentum_start=0.85,
    momentum_peak=0.95,
    momentum_ramp_steps=300,
    momentum_end=0.95,
    cosine_weight_decay=False,
)


class SftRecipe(Recipe):
    """Supervised fine-tuning: sequence length, batch and rates come from the base model."""

    mixture: Mixture = Mixture()
    epochs: Annotated[float, Field(gt=0)] | Auto = Field(
        "auto", description="passes over the mixture; auto is 1"
    )
    num_iterations: Count | Auto = Field("auto", description="explicit number of steps instead")
    lr_scale: float = Field(0.8, gt=0, description="times the base model's unscaled rates")
    value_embedding_lr_fraction: float = Field(0.5, gt=0, description="of the rate of wte")
    resid_lr: float = Field(0.005, ge=0)
    x0_lr: float = Field(0.5, ge=0)
    smear_lr: float = Field(0.2, ge=0)
    schedule: ScheduleRecipe = SFT_SCHEDULE
    packing_buffer: int = Field(100, ge=1, description="conversations from which a row is filled")
    compute_dtype: ComputeDtype = "auto"

    @model_validator(mode="after")
    def _one_horizon(self) -> "SftRecipe":
        if self.epochs != "auto" and self.num_iterations != "auto":
            raise ConfigError(
                f"sft got both epochs={self.epochs} and num_iterations={self.num_iterations}; "
                "give one of them, the other follows"
            )
        return self


RL_SCHEDULE = ScheduleRecipe(
    warmup_steps=0,
    warmdown_fraction=1.0,
    final_lr_fraction=0.0,
    momentum_start=0.95,
    momentum_peak=0.95,
    momentum_ramp_steps=0,
    momentum_end=0.95,
    cosine_weight_decay=False,
)
"""Rates fall linearly to 0; momentum is constant (RECIPE section 6)."""


class RlRecipe(Recipe):
    """Reinforcement learning on problems whose answers can be judged: RECIPE section 6."""

    task: Literal["gsm8k", "sums"] = Field("gsm8k", description="the problems, and their reward")
    problems: int = Field(7_473, ge=1, description="training problems at most; sums are made")
    questions_per_step: int = Field(16, ge=1)
    samples_per_question: int = Field(16, ge=2)
    normalise_group: int = Field(8, ge=1, description="samples whose tokens share one mean")
    temperature: float = Field(1.0, gt=0)
    top_k: int = Field(50, ge=0, description="0 keeps every token")
    max_new_tokens: int = Field(256, ge=1, description="sampled tokens of one reply")
    num_iterations: Count | Auto = Field("auto", description="auto: each problem once")
    wte_lr: float = Field(0.2, ge=0)
    value_embedding_lr: float = Field(0.1, ge=0)
    head_lr: float = Field(0.004, ge=0)
    matrix_lr: float = Field(0.02, ge=0)
    resid_lr: float = Field(0.005, ge=0)
    x0_lr: float = Field(0.5, ge=0)
    smear_lr: float = Field(0.2, ge=0)
    lr_scale: float = Field(0.05, gt=0, description="times every rate")
    schedule: ScheduleRecipe = RL_SCHEDULE
    pass_at_k: int = Field(8, ge=1, description="samples of each test question")
    pass_at_k_questions: int = Field(400, ge=1, description="test questions at most")
    seed: int = Field(42, ge=0, description="of made problems, their order and all sampling")
    compute_dtype: ComputeDtype = "auto"

    @model_validator(mode="after")
    def _whole_groups(self) -> "RlRecipe":
        if self.samples_per_question % self.normalise_group:
            whole = max(self.samples_per_question // self.normalise_group, 1)
            raise ConfigError(
                f"rl.samples_per_question={self.samples_per_question} is not a multiple of "
                f"rl.normalise_group={self.normalise_group}; use "
                f"{whole * self.normalise_group} samples, or another group"
            )
        return self
