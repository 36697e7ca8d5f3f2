"""Bytes of what a station leaves in the store, and of what lies beside that while it runs."""

from flows.forecast.amounts import Amounts
from flows.forecast.nominal import TRAINED, Job
from nanochat_core.evals.recipes import BaseEvalRecipe
from nanochat_core.model.counts import training_memory
from nanochat_core.training.recipes import RlRecipe

SHARD_BYTES_PER_CHARACTER = 0.62
"""Parquet of prose, with its questions and answers: 3.44 MB of 5.56 M characters."""
FILES_BYTES_PER_CHARACTER = 0.5
TOKENIZER_BYTES = 16
"""Of one entry of the vocabulary."""
NARROW_VOCABULARY = 1 << 16
LENGTH_BYTES = 4
METRICS_LINE_BYTES = 230
SMALL_BYTES = 30_000
"""Logs, configs, scores."""
REPORT_BYTES = 130_000
ROLLOUT_BYTES = 140
EXAMPLE_BYTES = 280


def published_bytes(job: Job) -> int:
    """Files of the artifact."""
    amounts = job.amounts
    match job.station:
        case "shards":
            each = SHARD_BYTES_PER_CHARACTER if amounts.is_harvest else FILES_BYTES_PER_CHARACTER
            return int(each * amounts.characters)
        case "tokenizer":
            return TOKENIZER_BYTES * amounts.vocab_size
        case "tokens":
            return _token_bytes(amounts)
        case "benchmarks":
            return amounts.benchmark_bytes
        case "report":
            return REPORT_BYTES
        case "base_eval":
            is_whole = amounts.recipe("base_eval", BaseEvalRecipe).max_per_task == 0
            return SMALL_BYTES + (600 * EXAMPLE_BYTES if is_whole else 0)
        case "pretrain" | "sft" | "rl":
            return _trained_bytes(job)
        case _:
            return SMALL_BYTES


def work_bytes(job: Job) -> int:
    """Checkpoints while it trains: those kept, the best, and the one that is being written."""
    if job.station not in TRAINED:
        return 0
    memory = training_memory(job.model, numbers=job.numbers)
    return (job.execution.keep_checkpoints + 2) * memory.static


def _trained_bytes(job: Job) -> int:
    steps, station = job.amounts.steps(job.station), job.station
    records = METRICS_LINE_BYTES * steps // job.execution.log_every + SMALL_BYTES
    memory = training_memory(job.model, numbers=job.numbers)
    found = memory.weights + records
    if station == "pretrain":
        found += memory.moments
    if station == "rl":
        recipe = job.amounts.recipe("rl", RlRecipe)
        found += ROLLOUT_BYTES * steps * recipe.questions_per_step * recipe.samples_per_question
    return found


def _token_bytes(amounts: Amounts) -> int:
    each = 2 if amounts.vocab_size <= NARROW_VOCABULARY else 4
    documents = amounts.known("shards", "documents") or amounts.characters / 1_200
    return int(each * amounts.characters / amounts.characters_per_token + LENGTH_BYTES * documents)
