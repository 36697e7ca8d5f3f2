"""What is looked at while a base model is trained: in-context scores and samples, as hooks.

They see the weights as they are and change nothing: no generator of the training is drawn from,
no compiled function is touched, and weights come out bit for bit the same without them.
"""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nanochat_core.config.job import JobSpec
from nanochat_core.data.eval_bundle import build_heldout_bundle
from nanochat_core.distributed.collectives import agree_any, barrier
from nanochat_core.distributed.ranks import Ranks
from nanochat_core.errors import DataError, JobStoppedError
from nanochat_core.evals.bundle import Bundle, read_bundle
from nanochat_core.evals.core import evaluate_core
from nanochat_core.evals.core_prompts import build_prompts, keep_examples
from nanochat_core.evals.core_results import CoreResult, TaskResult
from nanochat_core.evals.looks import TrainingLooks
from nanochat_core.evals.recipes import BaseEvalRecipe
from nanochat_core.evals.result_files import BUNDLE_FOLDER
from nanochat_core.evals.samples import draw_samples
from nanochat_core.inference.engine import InferenceEngine
from nanochat_core.inference.settings import GREEDY
from nanochat_core.jobs.common import StopRequest
from nanochat_core.jobs.device_rows import rows_of
from nanochat_core.jobs.training_run import TrainingRun
from nanochat_core.model.config import ModelConfig
from nanochat_core.tokenizer.tokenizer import Tokenizer
from nanochat_core.training.loop import Hook, StepMetrics
from nanochat_core.training.state import TrainState

log = logging.getLogger(__name__)

BUNDLE_INPUT, SHARDS_INPUT = "eval_bundle", "shards"
CHECKED_EXAMPLES = 8
MAX_LOGITS = 2**29
"""Of one forward pass: it is not compiled, so several float32 copies of 2 GiB each exist."""


@dataclass
class SampleHook:
    """Writes what the model makes of fixed prompts into the log, every `every` steps."""

    engine: InferenceEngine
    looks: TrainingLooks
    every: int

    def after_step(self, state: TrainState, metrics: StepMetrics) -> None:
        """Sample when it is due."""
        if state.step % self.every == 0:
            for sample in draw_samples(
                self.engine, self.looks.prompts, GREEDY, max_new_tokens=self.looks.sample_tokens
            ):
                log.info("step %d: %r -> %r", state.step, sample.prompt, sample.completion)

    def at_end(self, state: TrainState) -> None:
        """The evaluation station draws samples of the final model."""


def training_looks(run: TrainingRun, tokenizer: Tokenizer, stop: StopRequest) -> list[Hook]:
    """The hooks that the execution asks for; they come after the checkpoint."""
    spec, execution = run.spec, run.spec.execution
    looks = TrainingLooks.of(run.work_folder)
    hooks: list[Hook] = []
    is_asked = 0 < execution.core_metric_every <= run.plan.num_steps
    if is_asked and (bundle := tasks_at_hand(spec, run.ranks)).tasks:
        check_tasks(bundle, tokenizer, looks.max_per_task, run.state.model.max_positions)
        name = "core_metric" if bundle.is_official else "demo_score"
        scores = InContextScores(run, tokenizer, bundle, looks.max_per_task, stop)
        hooks.append(run.evaluation_hook(scores, name, execution.core_metric_every))
    if execution.sample_every > 0 and run.ranks.is_main:
        engine = InferenceEngine(run.state.model, tokenizer)
        hooks.append(SampleHook(engine, looks, execution.sample_every))
    return hooks


@dataclass(frozen=True)
class InContextScores:
    """CORE of the current weights (of other tasks: demo_score), asked on every rank."""

    run: TrainingRun
    tokenizer: Tokenizer
    bundle: Bundle
    max_per_task: int
    stop: StopRequest

    def __call__(self) -> Mapping[str, float]:
        """The score under its name; a stop request is heard after each task, by all ranks."""
        run, results = self.run, list[TaskResult]()
        model = run.state.model
        rows = forward_rows(model.config, rows_of(run.spec))
        for task in self.bundle.tasks:
            part = evaluate_core(
                model,
                self.tokenizer,
                Bundle((task,)),
                run.ranks,
                max_per_task=self.max_per_task,
                batch_tokens=rows * model.config.sequence_len,
            )
            results += part.tasks
            if agree_any(self.stop(), run.ranks):
                raise JobStoppedError(
                    f"stopped on request in the tasks after step {run.state.step}"
                )
        score = CoreResult(tuple(results), self.bundle.is_official)
        step, name = run.state.step, score.metric_name
        log.info("step %d: %s %.4f +- %.4f", step, name, score.score, score.score_stderr)
        return {name: score.score}


def forward_rows(config: ModelConfig, device_batch_size: int) -> int:
    """Rows of one evaluating pass: a micro-batch of training, or fewer, but at least one."""
    most_rows = MAX_LOGITS // (config.vocab_size * config.sequence_len)
    return max(1, min(device_batch_size, most_rows))


def check_tasks(bundle: Bundle, tokenizer: Tokenizer, max_per_task: int, max_tokens: int) -> None:
    """Read every task and build its first prompts: a bad one must not end a run half-way.

    Raises DataError.
    """
    for task in bundle.tasks:
        kept = keep_examples(task, task.read_examples(), max_per_task)
        for row in range(min(len(kept), CHECKED_EXAMPLES)):
            build_prompts(task, kept, row, tokenizer, max_tokens)


def tasks_at_hand(spec: JobSpec, ranks: Ranks) -> Bundle:
    """The tasks of a given bundle, else some made of held-out documents, else none."""
    if BUNDLE_INPUT in spec.inputs:
        return read_bundle(spec.input(BUNDLE_INPUT))
    if SHARDS_INPUT not in spec.inputs:
        log.warning("no in-context scores: neither %s nor %s given", BUNDLE_INPUT, SHARDS_INPUT)
        return Bundle(())
    return heldout_tasks(spec, Path(spec.work_folder), BaseEvalRecipe().seed, ranks)


def heldout_tasks(spec: JobSpec, place: Path, seed: int, ranks: Ranks) -> Bundle:
    """The tasks made of held-out documents; none when these hold too few sentences."""
    folder = place / BUNDLE_FOLDER
    if ranks.is_main:
        # Those of an earlier run may be of other documents.
        shutil.rmtree(folder, ignore_errors=True)
        try:
            build_heldout_bundle(spec.input(SHARDS_INPUT), folder, seed=seed)
        except DataError as error:
            # A text without sentences (code, tables) still has bits per byte and samples.
            log.warning("no in-context tasks, and so no demo_score: %s", error)
    barrier(ranks)
    return read_bundle(folder) if folder.exists() else Bundle(())
