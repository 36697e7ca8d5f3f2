"""What all training shares: build the state, resume it, train it, hand over files."""

import hashlib
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nanochat_core.artifacts.canonical import canonical_json
from nanochat_core.artifacts.location import user_cache_folder
from nanochat_core.config.job import METRICS_FILE, PROGRESS_FILE, JobSpec
from nanochat_core.distributed.bandwidth import check_bandwidth, exchanged_bytes
from nanochat_core.distributed.collectives import agree_any, broadcast
from nanochat_core.distributed.ranks import Ranks
from nanochat_core.errors import CheckpointError, ConfigError
from nanochat_core.jobs.hardware import describe_hardware, peak_flops
from nanochat_core.jobs.model_files import PublishedState
from nanochat_core.logs import JsonLines, Progress
from nanochat_core.model.backends.choosing import choose_backend
from nanochat_core.model.backends.opening import OPENERS
from nanochat_core.model.gpt import GPT
from nanochat_core.optim.groups import ParamGroup
from nanochat_core.optim.muon_adamw import MuonAdamW
from nanochat_core.optim.recipe import ScheduleRecipe
from nanochat_core.training.checkpoint_files import (
    Checkpoint,
    newest_checkpoint,
)
from nanochat_core.training.checkpoints import CheckpointWriter
from nanochat_core.training.compiling import loss_function
from nanochat_core.training.hooks import (
    METRICS_ATTACHMENT,
    CheckpointHook,
    CommunicationHook,
    EvaluationHook,
    MetricsHook,
    RewardHook,
)
from nanochat_core.training.loop import WARM_STEPS, Hook, Trainer
from nanochat_core.training.loss_scale import LossScale
from nanochat_core.training.state import TrainState
from nanochat_core.training.step import LossFunction, MicroBatch
from nanochat_core.training.trunk import numerics

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
ATTENTION_FILE = "attention.txt"
BACKENDS = tuple(OPENERS)


@dataclass(frozen=True)
class RunPlan:
    """The numbers of one run that do not change while it runs."""

    num_steps: int
    rows_per_step: int
    tokens_per_step: int
    flops_per_token: int
    schedule: ScheduleRecipe


@dataclass
class TrainingRun:
    """One training job on one rank, from an initialised model to the finished state.

    `trunk`: a state that this run would come to by itself, to go on from instead.
    `resumed_from_step` is the first step of this process.
    """

    spec: JobSpec
    ranks: Ranks
    plan: RunPlan
    state: TrainState
    trunk: PublishedState | None = None
    resumed_from_step: int = 0
    attention: str = "sdpa"

    def __post_init__(self) -> None:
        self.attention = self._use_attention()

    @property
    def work_folder(self) -> Path:
        """Folder that survives this process."""
        return Path(self.spec.work_folder)

    @property
    def checkpoint_folder(self) -> Path:
        """Folder of the step checkpoints."""
        return self.work_folder / CHECKPOINTS

    @property
    def identity(self) -> str:
        """sha256 that ties checkpoints to what is computed."""
        body = {"station": self.spec.station, "recipe": self.spec.recipe}
        return hashlib.sha256(canonical_json(body)).hexdigest()

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the bits of a step beside recipe and data, once micro-batches are chosen."""
        execution = self.spec.execution
        return {
            **numerics(execution, self.ranks.device.type, self.ranks.world_size),
            "compute_dtype": str(self.state.model.compute_dtype),
            "attention": self.attention,
            "device_batch_size": execution.device_batch_size,
        }

    def train(
        self,
        batches: Callable[[int], Sequence[MicroBatch]],
        stop: Callable[[], bool],
        validate: Callable[[], float] | None = None,
        more_hooks: Sequence[Hook] = (),
        *,
        rewards: Callable[[], Mapping[str, float]] | None = None,
    ) -> None:
        """Resume from the newest checkpoint, else from the trunk, and train to the end.

        `more_hooks` come after the checkpoint: what they do is never lost work. `rewards` says what
        the last step's rollouts were like, where there are any.
        """
        writer = self._checkpoint_writer()
        self._resume(writer)
        self._watch_losses(writer, finds_spikes=rewards is None)
        validation = [self._validation_hook(validate, writer)] if validate is not None else []
        looks = [*validation, *self._communication_hooks(), *more_hooks]
        saving = self._checkpoint_hook(writer, looks)
        trainer = Trainer(
            num_steps=self.plan.num_steps,
            schedule=self.plan.schedule,
            loss_function=self.loss_function,
            batches=batches,
            ranks=self.ranks,
            stop_requested=stop,
            hooks=[*self._metrics_hooks(rewards), saving, *looks],
            save_requested=saving.is_due_by_time,
            run_ahead=self.ranks.device.type == "cuda",
        )
        trainer.train(self.state)
        # The last evaluation may have marked the best one.
        writer.wait()

    def evaluation_hook(
        self,
        evaluate: Callable[[], Mapping[str, float]],
        name: str,
        every: int,
        *,
        at_ends: bool = False,
    ) -> EvaluationHook:
        """A hook whose values go to this run's metrics.jsonl, once for each step."""
        return EvaluationHook(
            evaluate,
            name,
            self._metrics_path,
            self.ranks,
            every,
            num_steps=self.plan.num_steps,
            at_ends=at_ends,
        )

    def final_checkpoint(self) -> Checkpoint:
        """The checkpoint of the last step."""
        checkpoint = newest_checkpoint(self.checkpoint_folder, self.identity)
        assert checkpoint is not None, "training ended without a checkpoint"
        assert checkpoint.step == self.plan.num_steps, "the last checkpoint is not the last step"
        return checkpoint

    def _checkpoint_writer(self) -> CheckpointWriter:
        token = _from_rank_0(secrets.randbits(31), self.ranks)
        return CheckpointWriter(
            self.checkpoint_folder,
            identity=self.identity,
            token=f"{token:08x}",
            rank=self.ranks.rank,
            world_size=self.ranks.world_size,
            keep=self.spec.execution.keep_checkpoints,
            peer_timeout_seconds=self.spec.execution.collective_timeout_seconds,
        )

    def _resume(self, writer: CheckpointWriter) -> None:
        """Restore the newest whole checkpoint; rank 0 chooses, all ranks take the same step."""
        checkpoint = newest_checkpoint(self.checkpoint_folder, self.identity)
        step = _from_rank_0(-1 if checkpoint is None else checkpoint.step, self.ranks)
        metrics_path = self.work_folder / METRICS_FILE
        history = b""
        writer.prepare(self.state.shards(self.ranks.rank, self.ranks.world_size))
        if step >= 0:
            assert checkpoint is not None, f"this rank sees no checkpoint, rank 0 step {step}"
            assert checkpoint.step == step, f"this rank sees step {checkpoint.step}, not {step}"
            self.state.restore(checkpoint)
            writer.last_step = self.resumed_from_step = step
            history = checkpoint.attachment(METRICS_ATTACHMENT) or b""
            log.info("resumed after step %d", step)
        elif self._start_from_trunk():
            history = self._history_of_trunk()
        if self.ranks.rank == 0:
            metrics_path.write_bytes(history)

    def _start_from_trunk(self) -> bool:
        """Take over the trunk's state, on all ranks or on none."""
        problem = ""
        try:
            if self.trunk is not None:
                self.trunk.check_settings(self.settings)
                self.trunk.check(self.state)
        except CheckpointError as error:
            problem = str(error)
            log.warning("a shared beginning cannot be used, training starts at step 0: %s", error)
        if agree_any(self.trunk is None or bool(problem), self.ranks):
            return False
        assert self.trunk is not None
        self.state.restore(self.trunk)
        self.state.started_from_step = self.resumed_from_step = self.trunk.step
        log.info("started after step %d, from a beginning that runs share", self.trunk.step)
        return True

    def _history_of_trunk(self) -> bytes:
        """The trunk's metrics; a record, so that training does not end where they are gone."""
        assert self.trunk is not None
        try:
            return (self.trunk.folder / METRICS_FILE).read_bytes()
        except OSError as error:
            log.warning("the metrics of the shared beginning cannot be read: %s", error)
            return b""

    @property
    def _metrics_path(self) -> Path | None:
        """Where rank 0 writes its metrics; the others write none."""
        return self.work_folder / METRICS_FILE if self.ranks.rank == 0 else None

    def _metrics_hooks(self, rewards: Callable[[], Mapping[str, float]] | None) -> list[Hook]:
        if self._metrics_path is None:
            return []
        lines, log_every = JsonLines(self._metrics_path), self.spec.execution.log_every
        progress = Progress(self.work_folder / PROGRESS_FILE, self.plan.num_steps, "steps")
        if rewards is not None:
            return [RewardHook(lines, progress, self.plan.num_steps, log_every, rewards)]
        return [
            MetricsHook(
                lines=lines,
                progress=progress,
                num_steps=self.plan.num_steps,
                tokens_per_step=self.plan.tokens_per_step,
                flops_per_token=self.plan.flops_per_token,
                peak_flops=peak_flops(self.ranks),
                log_every=log_every,
            )
        ]

    def _checkpoint_hook(self, writer: CheckpointWriter, looks: Sequence[Hook]) -> CheckpointHook:
        execution = self.spec.execution
        evaluations = [look for look in looks if isinstance(look, EvaluationHook)]
        return CheckpointHook(
            writer,
            self.ranks,
            execution.checkpoint_every,
            self._metrics_path,
            minutes=execution.checkpoint_minutes,
            is_evaluated=lambda step: any(each.is_due(step) for each in evaluations),
        )

    def _validation_hook(
        self, validate: Callable[[], float], writer: CheckpointWriter
    ) -> EvaluationHook:
        """Bits per byte of the held-out rows; the checkpoint with the fewest is kept."""

        def evaluate() -> dict[str, float]:
            bits = validate()
            writer.mark_best(self.state.step, bits)
            return {"val/bpb": bits}

        return self.evaluation_hook(evaluate, "val/bpb", self.spec.execution.eval_every)

    @cached_property
    def loss_function(self) -> LossFunction:
        """The summed loss of a micro-batch, compiled and checkpointed as the execution says."""
        execution = self.spec.execution
        return loss_function(
            self.state.model,
            compiled=execution.compile,
            scope=execution.compile_scope,
            checkpoint_activations=execution.activation_checkpointing,
        )

    def _use_attention(self) -> str:
        """Rank 0 chooses, as verdicts are of a machine; all ranks attend alike.

        Bits depend on it, and `auto` on the clock, so a resume tries first what was taken before.
        """
        model, number = self.state.model, 0
        if self.ranks.is_main:
            kept = self.work_folder / ATTENTION_FILE
            trunks = "" if self.trunk is None else self.trunk.settings["attention"]
            before = kept.read_text(encoding="utf-8") if kept.exists() else trunks
            name = self._choose_attention(before)
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(name, encoding="utf-8")
            number = BACKENDS.index(name)
        name = BACKENDS[_from_rank_0(number, self.ranks)]
        model.use_attention(name)
        return name

    def _choose_attention(self, before: str) -> str:
        model, wanted = self.state.model, self.spec.execution.attention

        def choose(name: str) -> str:
            return choose_backend(
                name,
                self.ranks.device,
                model.compute_dtype,
                user_cache_folder() / "attention",
                head_dim=model.config.head_dim,
            ).name

        if wanted != "auto" or before not in BACKENDS or self.ranks.device.type != "cuda":
            return choose(wanted)
        try:
            return choose(before)
        except ConfigError as error:
            log.warning(
                "this run has attended with %s, which is not possible here: %s", before, error
            )
            return choose(wanted)

    def _communication_hooks(self) -> list[Hook]:
        """Measures on every rank, and lets rank 0 say what it means; nothing for one rank."""
        parameters = self.state.model.parameters()
        bandwidth = check_bandwidth(self.ranks, exchanged_bytes(parameters))
        if bandwidth.world_size == 1 or not self.ranks.is_main:
            return []
        return [CommunicationHook(bandwidth, self.resumed_from_step + WARM_STEPS + 1)]

    def _watch_losses(self, writer: CheckpointWriter, *, finds_spikes: bool) -> None:
        watch = self.state.watch
        watch.finds_spikes = finds_spikes
        watch.max_in_a_row = self.spec.execution.max_loss_spikes
        watch.last_checkpoint = writer.describe_last


def build_state(model: GPT, groups: list[ParamGroup], ranks: Ranks, spec: JobSpec) -> TrainState:
    """Optimizer and loss scale around an initialised model."""
    optimizer = MuonAdamW(
        groups,
        ranks,
        compute_dtype=model.compute_dtype,
        reduction=spec.execution.reduction,
        compile=spec.execution.compile and ranks.device.type != "mps",
    )
    scale = LossScale.for_float16() if model.compute_dtype == torch.float16 else LossScale()
    return TrainState(model, optimizer, loss_scale=scale)


def provenance(run: TrainingRun) -> dict[str, Any]:
    """What a training job says about how and where it ran."""
    hardware = describe_hardware(run.ranks, run.state.model.compute_dtype)
    shared = run.state.started_from_step
    return {
        **hardware,
        "attention": run.attention,
        "device_batch_size": run.spec.execution.device_batch_size,
        "resumed_from_step": run.resumed_from_step,
        **({"started_from_step": shared} if shared else {}),
    }


def to_device(array: np.ndarray[Any, Any], device: torch.device) -> torch.Tensor:
    """An int64 array as a tensor on the device, without waiting for the copy on CUDA."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _from_rank_0(value: int, ranks: Ranks) -> int:
    return int(broadcast(torch.tensor([value], device=ranks.device), ranks).item())
