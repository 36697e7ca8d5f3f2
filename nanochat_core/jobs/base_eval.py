"""Evaluate a base model as a torchrun job: bits per byte, in-context tasks, samples.

What is given is measured: bits per byte with the input `tokens`, tasks with `eval_bundle` or made
of `shards`.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat_core.config.job import PROGRESS_FILE, JobSpec
from nanochat_core.data.validation_rows import ValidationRows
from nanochat_core.distributed.ranks import Ranks
from nanochat_core.evals.bits_per_byte import Batch, LossTotals, loss_totals
from nanochat_core.evals.bundle import Bundle, read_bundle
from nanochat_core.evals.core import count_examples, evaluate_core
from nanochat_core.evals.core_results import CoreResult, TaskResult
from nanochat_core.evals.kept_scores import KeptScores
from nanochat_core.evals.progress import EvalProgress
from nanochat_core.evals.recipes import BaseEvalRecipe
from nanochat_core.evals.result_files import base_scores, write_base_eval
from nanochat_core.evals.samples import Sample, draw_samples
from nanochat_core.evals.score_table import score_lines
from nanochat_core.inference.engine import InferenceEngine
from nanochat_core.inference.loading import load_pair
from nanochat_core.inference.settings import SamplingSettings
from nanochat_core.jobs.common import StopRequest, run_job_main
from nanochat_core.jobs.device_rows import DeviceRows, evaluated_rows, rows_of
from nanochat_core.jobs.hardware import describe_hardware
from nanochat_core.jobs.in_training import (
    BUNDLE_INPUT,
    SHARDS_INPUT,
    forward_rows,
    heldout_tasks,
)
from nanochat_core.jobs.training_run import to_device
from nanochat_core.model.gpt import GPT
from nanochat_core.tokenizer.tokenizer import Tokenizer
from nanochat_core.training.precision import resolve_compute_dtype

log = logging.getLogger(__name__)

TOKENS_INPUT = "tokens"


@dataclass(frozen=True)
class BaseEval:
    """One evaluation on one rank: what is evaluated, and how far it is."""

    spec: JobSpec
    recipe: BaseEvalRecipe
    ranks: Ranks
    model: GPT
    config: dict[str, Any]
    tokenizer: Tokenizer
    rows: ValidationRows | None
    bundle: Bundle
    scores: KeptScores
    known: Mapping[str, TaskResult]
    progress: EvalProgress

    @property
    def batch_tokens(self) -> int:
        """Tokens of one forward pass."""
        return rows_of(self.spec) * self.model.config.sequence_len

    def validation_loss(self) -> LossTotals | None:
        """Summed loss of the validation rows, of all ranks; None without rows."""
        if self.rows is None:
            return None
        self.progress.start_phase()
        batches = self._batches(self.rows)
        return loss_totals(self.model, batches, self.tokenizer.token_bytes, self.ranks)

    def tasks(self) -> CoreResult:
        """Every task of the bundle; those that are asked now are kept, one by one."""
        self.progress.start_phase()
        return evaluate_core(
            self.model,
            self.tokenizer,
            self.bundle,
            self.ranks,
            max_per_task=self.recipe.max_per_task,
            batch_tokens=self.batch_tokens,
            known=self.known,
            on_task=self._keep,
            on_progress=self.progress.update,
        )

    def _keep(self, result: TaskResult) -> None:
        if self.ranks.is_main:
            self.scores.keep(result.task.label, result.record(), result.summary())

    def samples(self) -> list[Sample]:
        """Completions of the fixed prompts."""
        self.progress.start_phase()
        recipe = self.recipe
        samples = draw_samples(
            InferenceEngine(self.model, self.tokenizer),
            recipe.sample_prompts,
            SamplingSettings(recipe.sample_temperature, recipe.sample_top_k, seed=recipe.seed),
            max_new_tokens=recipe.sample_tokens,
        )
        self.progress.update(len(recipe.sample_prompts), "samples")
        return samples

    def _batches(self, rows: ValidationRows) -> Iterator[Batch]:
        size, ranks = self.batch_tokens // rows.sequence_len, self.ranks
        batches = rows.batches(size, rank=ranks.rank, world_size=ranks.world_size)
        num_read = 0
        for tokens_BT, targets_BT in batches:
            yield to_device(tokens_BT, ranks.device), to_device(targets_BT, ranks.device)
            num_read += len(tokens_BT)
            self.progress.update(num_read, "bits per byte")


def main(spec: JobSpec, ranks: Ranks, stop: StopRequest) -> None:
    """Measure everything on every rank, then write the files of the artifact on the first."""
    device_rows = DeviceRows(spec, ranks)
    with device_rows.told():
        evaluation = prepare(spec, ranks, stop, device_rows)
        loss = evaluation.validation_loss()
        tasks = evaluation.tasks()
        samples = evaluation.samples() if ranks.is_main else []
    if ranks.is_main:
        for line in score_lines(base_scores(numbers_of(loss), tasks)):
            log.info("%s", line)
        publish(evaluation, loss, tasks, samples)
        evaluation.progress.finish()


def prepare(spec: JobSpec, ranks: Ranks, stop: StopRequest, device_rows: DeviceRows) -> BaseEval:
    """Read everything that will be needed; whatever cannot work is refused here."""
    recipe = BaseEvalRecipe.model_validate(spec.recipe)
    dtype = resolve_compute_dtype(recipe.compute_dtype, ranks.device)
    folders = spec.input("pretrain"), spec.input("tokenizer")
    model, config, tokenizer = load_pair(*folders, ranks.device, dtype)
    bundle = make_bundle(spec, recipe, ranks)
    most_rows = evaluated_rows(spec.execution, ranks.device)
    spec = device_rows.settle(lambda: forward_rows(model.config, most_rows))
    rows = None
    if TOKENS_INPUT in spec.inputs:
        rows = ValidationRows(
            spec.input(TOKENS_INPUT),
            sequence_len=model.config.sequence_len,
            max_tokens=recipe.validation_tokens,
        )
    scores = KeptScores.of(spec.inputs)
    known = scores.known_tasks(bundle)
    if known:
        log.info("%d of %d tasks are known already", len(known), len(bundle.tasks))
    left = Bundle(tuple(task for task in bundle.tasks if task.label not in known))
    num_examples = count_examples(left, recipe.max_per_task)
    # What one rank does, near enough for a progress bar.
    num_rows = 0 if rows is None else rows.num_rows
    total = (num_rows + num_examples) // ranks.world_size + len(recipe.sample_prompts)
    path = Path(spec.work_folder) / PROGRESS_FILE if ranks.is_main else None
    progress = EvalProgress(path, total, stop)
    return BaseEval(
        spec, recipe, ranks, model, config, tokenizer, rows, bundle, scores, known, progress
    )


def make_bundle(spec: JobSpec, recipe: BaseEvalRecipe, ranks: Ranks) -> Bundle:
    """The tasks of a given bundle, else some made of held-out documents, else none."""
    if BUNDLE_INPUT in spec.inputs:
        return read_bundle(spec.input(BUNDLE_INPUT))
    if SHARDS_INPUT not in spec.inputs:
        return Bundle(())
    return heldout_tasks(spec, Path(spec.output_folder), recipe.seed, ranks)


def publish(
    evaluation: BaseEval, loss: LossTotals | None, tasks: CoreResult, samples: list[Sample]
) -> None:
    """Write scores, samples and the record of every example, and `outputs.json` last."""
    output = Path(evaluation.spec.output_folder)
    records = [sample.record() for sample in samples]
    written = write_base_eval(output, numbers_of(loss), tasks, records, config=evaluation.config)
    provenance = describe_hardware(evaluation.ranks, evaluation.model.compute_dtype)
    known = {"known_scores": sorted(evaluation.known)}
    written.model_copy(update={"provenance": provenance | known}).save(output)


def numbers_of(loss: LossTotals | None) -> dict[str, float | int]:
    """What scores.json says of bits per byte."""
    if loss is None:
        return {}
    return {
        "val/bpb": loss.bits_per_byte,
        "val/loss": loss.nats_per_token,
        "val/tokens": loss.num_targets,
        "val/bytes": loss.num_bytes,
    }


if __name__ == "__main__":
    run_job_main(main)
