"""Optimizer numbers (torch-free): RECIPE section 2. Rates here are before any scaling."""

from pydantic import Field

from nanochat_core.config.base import Recipe


class AdamWGroup(Recipe):
    """One AdamW parameter group; weight decay is decoupled and constant over the run."""

    lr: float = Field(ge=0)
    beta1: float = Field(0.8, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    eps: float = Field(1e-10, gt=0)
    weight_decay: float = Field(0.0, ge=0)


class MuonGroup(Recipe):
    """Every matrix inside the blocks; `lr` is times sqrt(max(1, rows/cols))."""

    lr: float = Field(0.02, ge=0)
    beta2: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(0.28, ge=0, description="before the dial's scaling")
    polar_express_steps: int = Field(5, ge=1, le=5)


class OptimizerRecipe(Recipe):
    """The groups of MuonAdamW."""

    head: AdamWGroup = AdamWGroup(lr=0.008, beta2=0.96, weight_decay=0.01)
    wte: AdamWGroup = AdamWGroup(lr=0.3, beta2=0.995, weight_decay=0.001)
    value_embeddings: AdamWGroup = AdamWGroup(lr=0.15, beta2=0.995, weight_decay=0.01)
    resid: AdamWGroup = AdamWGroup(lr=0.005, weight_decay=0.05)
    x0: AdamWGroup = AdamWGroup(lr=0.5, beta1=0.96)
    smear: AdamWGroup = AdamWGroup(lr=0.2)
    matrices: MuonGroup = MuonGroup()
    lr_scale: float = Field(1.0, gt=0, description="times every rate")
    scalar_lr_scale: float = Field(1.0, gt=0, description="times the rates of resid, x0, smear")
    scale_lr_with_batch: bool = Field(True, description="sqrt(B / B_REF), all but smear")


class ScheduleRecipe(Recipe):
    """Schedules over a run of n steps; lengths are in steps or fractions of n."""

    warmup_steps: int = Field(40, ge=0)
    warmdown_fraction: float = Field(0.65, ge=0, le=1)
    final_lr_fraction: float = Field(0.05, ge=0, le=1)
    momentum_start: float = Field(0.85, ge=0, lt=1)
    momentum_peak: float = Field(0.97, ge=0, lt=1)
    momentum_ramp_steps: int = Field(400, ge=0)
    momentum_end: float = Field(0.90, ge=0, lt=1, description="reached at the end of warm-down")
    cosine_weight_decay: bool = Field(True, description="Muon decay times (1 + cos(pi t/n)) / 2")
