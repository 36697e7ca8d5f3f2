"""Where and how a station runs: recorded in provenance, never part of a fingerprint."""

from typing import Annotated, Literal

from pydantic import Field

from nanochat_core.config.base import Auto, Config

Device = Literal["auto", "cuda", "mps", "cpu"]
Reduction = Literal["exact", "fast"]
Tracker = Literal["none", "wandb", "trackio"]
AttentionChoice = Literal["auto", "fa3", "fa4", "flex", "sdpa"]
Cadence = Annotated[int, Field(ge=1)] | Literal[-1]
Count = Annotated[int, Field(ge=1)]
Gigabytes = Annotated[float, Field(gt=0)]


class Execution(Config):
    """Placement and cadence of one station; it may change bits, never what was asked for."""

    device: Device = Field("auto", description="auto takes cuda, then mps, then cpu")
    ranks: int = Field(1, ge=1, description="training processes on each machine")
    nodes: int = Field(1, ge=1, description="machines that train together, with one file system")
    rendezvous_endpoint: str = Field("", description="host:port where the machines meet")
    rendezvous_id: str = Field("", description="what the machines of one job call it")
    collective_timeout_seconds: float = Field(
        600.0, gt=0, description="a rank that waits longer for another one gives up"
    )
    threads: int = Field(1, ge=1, description="CPU threads of one rank")
    workers: int = Field(2, ge=1, description="processes of a data station")
    device_batch_size: Count | Auto = Field(
        "auto", description="rows of one micro-batch on one rank; auto: the most that fit a GPU"
    )
    memory_limit_gb: Gigabytes | Auto = Field(
        "auto", description="device memory that one rank may take; auto: all of it"
    )
    activation_checkpointing: bool = Field(
        False, description="compute activations again in backward instead of keeping them"
    )
    attention: AttentionChoice = Field(
        "auto", description="auto: the fastest that proves right on this machine"
    )
    compile: bool = Field(True, description="torch.compile the training step")
    compile_scope: Literal["blocks", "model"] = Field(
        "blocks", description="compile a block once for all of its kind, or the model as one"
    )
    share_kernels: bool = Field(
        True, description="keep compiled code in the store and take it from there"
    )
    share_beginnings: bool = Field(
        True, description="start pretraining from the store's steps that are the same"
    )
    reduction: Reduction = Field(
        "exact", description="exact sums gradients in a fixed tree order, fast in any order"
    )
    log_every: int = Field(10, ge=1, description="steps between lines of metrics.jsonl")
    checkpoint_every: int = Field(250, ge=1, description="steps between checkpoints")
    checkpoint_minutes: float = Field(10.0, gt=0, description="the same in minutes, if sooner")
    keep_checkpoints: int = Field(
        2, ge=1, description="newest checkpoints that are kept, beside the best"
    )
    max_loss_spikes: int = Field(
        20, ge=1, description="steps in a row with a loss far too high, or none, that end the run"
    )
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
