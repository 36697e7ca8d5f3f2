"""Seconds of each station on the machine of reference, by closed forms over its amounts.

Wrong by a factor on any other machine: `flows.forecast.estimating` works that factor out of
records. What counts here is how time grows with the sizes in a recipe.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from flows.forecast.amounts import QUESTION_TOKENS, Amounts
from flows.forecast.rates import Rates
from nanochat_core.benchmarks.names import FROM_FILES
from nanochat_core.config.execution import Execution
from nanochat_core.evals.recipes import BaseEvalRecipe, ChatEvalRecipe
from nanochat_core.model.config import ModelConfig
from nanochat_core.model.counts import NUMBER_BYTES, Numbers, flops_per_token
from nanochat_core.training.dial import CPU_ROWS, most_rows
from nanochat_core.training.recipes import RlRecipe

TRAINED = ("pretrain", "sft", "rl")
MUON_FLOPS_PER_CUBED_WIDTH = 300
"""Of one block: five Newton-Schulz rounds, 30 C^3 for each of four C x C matrices and 90 C^3 for
each of two C x 4C."""
BLOCK_TRAFFIC = 60
"""Times a number of a block's width is read or written for a token, forward and backward."""
LOGIT_TRAFFIC_BYTES = 24
MOMENT_TRAFFIC_BYTES = 32
HEAD_OF_A_REPLY = 2.0
"""Blocks that take as long as choosing the next token."""
CHOSEN_ROWS = {"cuda": 32}
"""Rows of a pass where nobody says how many; the same on other devices is CPU_ROWS."""
LETTER_BENCHMARKS = {"arc-easy", "arc-challenge", "mmlu"}

SHARDS_SECONDS, DISTRIBUTION_SECONDS = 5.0, 0.15
CHARACTER_SECONDS = {"shards": 2e-7, "tokenizer": 9e-8, "tokens": 4e-7}
POOL_SECONDS = 0.7
"""Start of worker processes."""
BYTE_SECONDS = 1e-8
REPORT_SECONDS = 1.6
SECOND_COMPILE_SHARE = 0.2
"""SFT trains the same blocks as pretraining; what it compiles beside them is little."""


Compiling = Literal["cold", "second", "warm"]
"""With nothing compiled before; after another station with the same blocks; all of it before."""


@dataclass(frozen=True)
class Nominal:
    """Seconds of one station by reference."""

    fixed: float
    """All but steps and compiling: start, reading, evaluations in between."""
    steps: int = 0
    step: float = 0.0
    compiling: Mapping[Compiling, float] = field(default_factory=dict)
    """The first step, on top; empty where nothing is compiled."""

    @property
    def training(self) -> float:
        """All steps."""
        return self.steps * self.step

    @property
    def arounds(self) -> tuple[float, ...]:
        """All but steps, for every way to compile, the longest first."""
        return tuple(self.fixed + seconds for seconds in self.compiling.values()) or (self.fixed,)

    def around(self, how: Compiling) -> float:
        """All but steps."""
        return self.fixed + self.compiling.get(how, 0.0)

    def with_steps(self, steps: float) -> "Nominal":
        """The same with so many steps, none at least."""
        return replace(self, steps=max(round(steps), 0))


@dataclass(frozen=True)
class Job:
    """One station with all that its time depends on."""

    station: str
    amounts: Amounts
    execution: Execution
    numbers: Numbers
    device_type: str
    rates: Rates

    def nominal(self) -> Nominal:
        """Its seconds by reference."""
        return SECONDS[self.station](self)

    @property
    def model(self) -> ModelConfig:
        """The model that it trains or asks."""
        return self.amounts.plan.model

    @property
    def rows(self) -> int:
        """Rows of a micro-batch on one rank."""
        asked = self.execution.device_batch_size
        if asked != "auto":
            return asked
        ranks = self.execution.ranks * self.execution.nodes
        share = max(self.amounts.plan.rows_per_step // ranks, 1)
        return min(most_rows(share), CHOSEN_ROWS.get(self.device_type, CPU_ROWS))

    @property
    def shape(self) -> str:
        """What compiled code is for: blocks are compiled once, however many there are."""
        model = self.model.model_dump(mode="json", exclude={"n_layer"})
        parts = (*model.values(), self.rows, self.numbers, self.execution.compile_scope)
        depth = (self.model.n_layer,) if self.execution.compile_scope == "model" else ()
        return " ".join(map(str, (*parts, *depth)))


def shards(job: Job) -> Nominal:
    """Reading, cleaning, finding near duplicates, writing."""
    if not job.amounts.is_harvest:
        return _text(job, POOL_SECONDS)
    return _text(job, SHARDS_SECONDS + DISTRIBUTION_SECONDS * job.amounts.distributions)


def tokenizer(job: Job) -> Nominal:
    """Counting and merging."""
    return _text(job, 0.05)


def tokens(job: Job) -> Nominal:
    """Encoding, shared among processes."""
    return _text(job, POOL_SECONDS)


def benchmarks(job: Job) -> Nominal:
    """Copying and hashing files."""
    return Nominal(job.rates.start_seconds * 0.05 + job.amounts.benchmark_bytes * BYTE_SECONDS)


def pretrain(job: Job) -> Nominal:
    """Start, steps, and a look at held-out text now and then."""
    steps, every = job.amounts.steps("pretrain"), job.execution.eval_every
    looks = steps // every if every > 0 else 0
    looking = looks * _forward(job, job.amounts.looked_at_tokens) if looks else 0.0
    return replace(_compiled(job, job.rates.start_seconds + looking), steps=steps, step=_step(job))


def base_eval(job: Job) -> Nominal:
    """Held-out text, tasks, and some samples."""
    recipe = job.amounts.recipe("base_eval", BaseEvalRecipe)
    samples = len(recipe.sample_prompts) * recipe.sample_tokens
    if recipe.sample_temperature:
        samples *= 2
    seconds = _forward(job, job.amounts.base_eval_tokens) + _replies(job, samples, 1)
    return Nominal(job.rates.start_seconds + seconds)


def sft(job: Job) -> Nominal:
    """Start, rendering and packing, steps."""
    steps = job.amounts.steps("sft")
    packing = steps * job.amounts.plan.tokens_per_step * job.amounts.characters_per_token
    fixed = job.rates.start_seconds + CHARACTER_SECONDS["tokens"] * packing
    return replace(_compiled(job, fixed), steps=steps, step=_step(job))


def rl(job: Job) -> Nominal:
    """Steps of replies and of learning from them; pass@k in between and at the ends."""
    recipe = job.amounts.recipe("rl", RlRecipe)
    steps, every = job.amounts.steps("rl"), job.execution.eval_every
    rollouts = recipe.questions_per_step * recipe.samples_per_question
    length = job.amounts.reply_tokens + QUESTION_TOKENS // 4
    learning = _learning(job, rollouts, length)
    looks = 2 + (max(steps - 1, 0) // every if every > 0 else 0)
    tested = recipe.pass_at_k * recipe.pass_at_k_questions
    fixed = job.rates.start_seconds + looks * _replies(job, recipe.max_new_tokens, tested)
    step = learning + _replies(job, recipe.max_new_tokens, rollouts)
    return replace(_compiled(job, fixed), steps=steps, step=step)


def chat_eval(job: Job) -> Nominal:
    """Letters by one pass, words token by token."""
    recipe = job.amounts.recipe(job.station, ChatEvalRecipe)
    seconds = 0.0
    for name, count in job.amounts.questions(job.station).items():
        read = _forward(job, count * QUESTION_TOKENS * (4 if name in FROM_FILES else 1))
        batches = -(-count // 64)
        written = 0 if name in LETTER_BENCHMARKS else batches * recipe.max_new_tokens
        seconds += read + _replies(job, written, min(count, 64))
    return Nominal(job.rates.start_seconds + seconds)


def report(job: Job) -> Nominal:
    """Plots and text."""
    return Nominal(REPORT_SECONDS * job.rates.start_seconds / 4.0)


SECONDS: dict[str, Callable[[Job], Nominal]] = {
    "shards": shards,
    "tokenizer": tokenizer,
    "tokens": tokens,
    "benchmarks": benchmarks,
    "pretrain": pretrain,
    "base_eval": base_eval,
    "sft": sft,
    "chat_eval_sft": chat_eval,
    "rl": rl,
    "chat_eval_rl": chat_eval,
    "report": report,
}
"""Every station that makes an artifact."""


def _text(job: Job, start: float) -> Nominal:
    each = CHARACTER_SECONDS[job.station]
    workers = 1 if job.station == "tokenizer" else min(job.execution.workers, 2)
    slower = job.rates.start_seconds / 4.0
    return Nominal(slower * (start + each * job.amounts.characters / workers))


def _step(job: Job) -> float:
    """One optimizer step of the dial's batch."""
    return _passes(job, job.amounts.plan.rows_per_step, job.model.sequence_len) + _optimizer(job)


def _learning(job: Job, rows: int, length: int) -> float:
    return _passes(job, rows, min(length, job.model.sequence_len)) + _optimizer(job)


def _passes(job: Job, rows: int, length: int) -> float:
    """Forward and backward of so many rows, in micro-batches."""
    model, tokens = job.model, rows * length
    ranks = job.execution.ranks * job.execution.nodes
    passes = -(-rows // (job.rows * ranks))
    block = BLOCK_TRAFFIC * model.n_layer * model.n_embd * NUMBER_BYTES[job.numbers]
    traffic = tokens * (block + LOGIT_TRAFFIC_BYTES * model.vocab_size) / ranks
    return (
        tokens * flops_per_token(model) / job.rates.flops
        + traffic / job.rates.bytes
        + passes * model.n_layer * job.rates.layer_seconds
    )


def _optimizer(job: Job) -> float:
    model = job.model
    muon = MUON_FLOPS_PER_CUBED_WIDTH * model.n_layer * model.n_embd**3
    moments = MOMENT_TRAFFIC_BYTES * job.amounts.parameters / job.rates.bytes
    return muon / job.rates.flops + moments + model.n_layer * job.rates.layer_seconds


def _forward(job: Job, tokens: float) -> float:
    """Tokens through the model without gradients: a third of training."""
    rows = max(round(tokens / job.model.sequence_len), 1)
    return _passes(job, rows, job.model.sequence_len) / 3.0


def _replies(job: Job, tokens: float, rows: int) -> float:
    """So many tokens for each of so many rows at once, one after the other."""
    model = job.model
    host = tokens * (model.n_layer + HEAD_OF_A_REPLY) * job.rates.token_seconds
    matrices = rows * tokens * flops_per_token(model) / 3.0 / job.rates.flops
    return (
        host
        + matrices
        + rows * tokens * 4 * LOGIT_TRAFFIC_BYTES * model.vocab_size / (8 * job.rates.bytes)
    )


def _compiled(job: Job, fixed: float) -> Nominal:
    if not job.execution.compile:
        return Nominal(fixed)
    cold, warm = job.rates.compile_seconds, job.rates.warm_seconds
    second = max(SECOND_COMPILE_SHARE * cold, warm)
    return Nominal(fixed, compiling={"cold": cold, "second": second, "warm": warm})
