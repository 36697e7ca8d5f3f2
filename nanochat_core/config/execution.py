"""Where and how a station runs: recorded in provenance, never part of a fingerprint."""

from typing import Annotated, Literal

from pydantic import Field

from nanochat_core.config.base import Config

Device = Literal["auto", "cuda", "mps", "cpu"]
Reduction = Literal["exact", "fast"]
Tracker = Literal["none", "wandb", "trackio"]
Cadence = Annotated[int, Field(ge=1)] | Literal[-1]


class Execution(Config):
    """Placement and cadence of one station; it may change bits, never what was asked for."""

    device: Device = Field("auto", description="auto takes cuda, then mps, then cpu")
    ranks: int = Field(1, ge=1, description="training processes on this machine")
    threads: int = Field(1, ge=1, description="CPU threads of one rank")
    workers: int = Field(2, ge=1, description="processes of a data station")
    device_batch_size: int = Field(8, ge=1, description="rows of one micro-batch on one rank")
    compile: bool = Field(True, description="torch.compile the training step")
    reduction: Reduction = Field(
        "exact", description="exact sums gradients in a fixed tree order, fast in any order"
    )
    log_every: int = Field(10, ge=1, description="steps between lines of metrics.jsonl")
    checkpoint_every: int = Field(250, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="newest checkpoints that are kept")
    eval_every: Cadence = Field(250, description="steps between validation losses; -1 is never")
    core_metric_every: Cadence = Field(
        -1, description="steps between in-context scores while training; -1 is never"
    )
    sample_every: Cadence = Field(-1, description="steps between samples in the log; -1 is never")
    tracker: Tracker = Field("none", description="where metrics.jsonl is sent, too")
    tracker_run: str = Field("", description="name of the run at the tracker; empty: the station")
    allow_weak_sandbox: bool = Field(
        False, description="run generated code where only limits hold it back"
    )
    grace_seconds: float = Field(8.0, gt=0, description="time to save after a stop request")
