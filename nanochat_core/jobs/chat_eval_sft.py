"""Evaluate a fine-tuned model as a torchrun job: held-out questions about itself, and sums."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nanochat_core.config.job import PROGRESS_FILE, JobSpec, StageOutput
from nanochat_core.conversation.identity import ModelFacts
from nanochat_core.distributed.ranks import Ranks
from nanochat_core.errors import DataError
from nanochat_core.evals.chat import ChatAnswer, ask, chat_scores, make_questions
from nanochat_core.evals.progress import EvalProgress
from nanochat_core.evals.recipes import ChatEvalRecipe
from nanochat_core.inference.engine import InferenceEngine
from nanochat_core.inference.loading import load_pair
from nanochat_core.inference.sampler import GREEDY
from nanochat_core.jobs.base_eval import SCORES_FILE, write_json
from nanochat_core.jobs.common import StopRequest, run_job_main
from nanochat_core.jobs.hardware import describe_hardware
from nanochat_core.training.precision import resolve_compute_dtype

log = logging.getLogger(__name__)

ANSWERS_FILE = "answers.json"
KEY_SCORES = ("identity", "identity/right", "identity/asked", "sums")


def main(spec: JobSpec, ranks: Ranks, stop: StopRequest) -> None:
    """Ask every question; the first rank writes the files of the artifact."""
    if not ranks.is_main:
        return  # a hundred short answers are not worth sharing out
    recipe = ChatEvalRecipe.model_validate(spec.recipe)
    dtype = resolve_compute_dtype(recipe.compute_dtype, ranks.device)
    folders = spec.input("sft"), spec.input("tokenizer")
    model, config, tokenizer = load_pair(*folders, ranks.device, dtype)
    questions = make_questions(
        model_facts(config),
        identity=recipe.identity_questions,
        sums=recipe.sums,
        seed=recipe.seed,
    )
    engine = InferenceEngine(model, tokenizer)
    progress = EvalProgress(Path(spec.work_folder) / PROGRESS_FILE, len(questions), stop)
    answers = ask(
        questions,
        tokenizer,
        partial(engine.generate_batch, settings=GREEDY, max_new_tokens=recipe.max_new_tokens),
        batch_size=spec.execution.device_batch_size,
        on_done=lambda done: progress.update(done, "questions"),
    )
    publish(spec, answers, describe_hardware(ranks, model.compute_dtype))


def model_facts(config: dict[str, Any]) -> ModelFacts:
    """What the model was taught about itself, as its own files say."""
    try:
        return ModelFacts.model_validate(config["facts"])
    except (KeyError, ValidationError) as error:
        raise DataError(
            f"config.json of the chat model has no usable `facts` ({error}); evaluate a model "
            "that the station sft made"
        ) from error


def publish(spec: JobSpec, answers: list[ChatAnswer], provenance: dict[str, Any]) -> None:
    """Write scores and answers, and `outputs.json` last."""
    output, scores = Path(spec.output_folder), chat_scores(answers)
    log.info("scores: %s", scores)
    write_json(output / SCORES_FILE, scores)
    write_json(output / ANSWERS_FILE, [answer.record() for answer in answers])
    StageOutput(
        files={SCORES_FILE: "result", ANSWERS_FILE: "result"},
        metrics={name: scores[name] for name in KEY_SCORES if name in scores},
        provenance=provenance,
    ).save(output)


if __name__ == "__main__":
    run_job_main(main)
