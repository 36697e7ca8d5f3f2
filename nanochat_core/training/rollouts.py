"""Replies of the model that is being trained, and what they earn: RECIPE section 6."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TypeVar

import numpy as np

from nanochat_core.benchmarks.base import GenerativeBenchmark, prompt
from nanochat_core.data.order import permute
from nanochat_core.inference.engine import InferenceEngine, Reply
from nanochat_core.inference.sampler import SamplingSettings
from nanochat_core.model.config import ModelConfig
from nanochat_core.tokenizer.chat_format import render_prompt, visible_text
from nanochat_core.training.recipes import RlRecipe

CACHE_BYTES = 4 * 2**30
"""Of the key-value caches of one batch of replies."""
MAX_ROWS = 1024
"""Replies that are made at once; more do not make any hardware faster."""

T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """A problem to be answered once, with random numbers of its own."""

    problem: int
    sample: int
    seed: int


@dataclass(frozen=True)
class Rollout:
    """A question, the model's reply, and the reward for its visible text."""

    question: Question
    prompt: list[int]
    reply: Reply
    text: str
    reward: float

    @property
    def length(self) -> int:
        """Tokens of prompt and reply together."""
        return len(self.prompt) + len(self.reply.tokens)


@dataclass(frozen=True)
class RolloutMaker:
    """Puts questions to the model as it is now."""

    engine: InferenceEngine
    benchmark: GenerativeBenchmark
    recipe: RlRecipe
    stop_requested: Callable[[], bool]

    def roll_out(self, questions: Sequence[Question]) -> list[Rollout]:
        """One reply to each question; replies are cut short, or missing, after a stop request."""
        rollouts: list[Rollout] = []
        for chunk in _chunks(questions, rows_at_once(self.engine.model.config, self.recipe)):
            if self.stop_requested():
                break
            rollouts += self._roll_out(chunk)
        return rollouts

    def _roll_out(self, questions: Sequence[Question]) -> list[Rollout]:
        prompts = [self._prompt(question.problem) for question in questions]
        replies = self.engine.generate_replies(
            prompts,
            SamplingSettings(self.recipe.temperature, top_k=self.recipe.top_k),
            max_new_tokens=self.recipe.max_new_tokens,
            seeds=[question.seed for question in questions],
            stop_requested=self.stop_requested,
        )
        rollouts = []
        for question, ids, reply in zip(questions, prompts, replies, strict=True):
            text = visible_text(self.engine.tokenizer, reply.tokens)
            reward = self.benchmark.score(question.problem, text)
            rollouts.append(Rollout(question, ids, reply, text, reward))
        return rollouts

    def _prompt(self, problem: int) -> list[int]:
        conversation = prompt(self.benchmark.conversation(problem))
        return render_prompt(self.engine.tokenizer, conversation)


def step_questions(recipe: RlRecipe, step: int, num_problems: int) -> list[list[Question]]:
    """The samples of every question of a step: a pure function of the seed and the step.

    All problems come once, in an order of their own, before any comes again.
    """
    first = step * recipe.questions_per_step
    return [
        [
            Question(
                problem=_problem_at(first + number, num_problems, recipe.seed),
                sample=sample,
                seed=sampling_seed("rollout", recipe.seed, step, number, sample),
            )
            for sample in range(recipe.samples_per_question)
        ]
        for number in range(recipe.questions_per_step)
    ]


def sampling_seed(purpose: str, *numbers: int) -> int:
    """A seed of 63 bits that other numbers do not share."""
    text = f"{purpose} {' '.join(map(str, numbers))}"
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def rows_at_once(config: ModelConfig, recipe: RlRecipe) -> int:
    """How many replies fit in `CACHE_BYTES`, when prompts are as long as the sequence length."""
    tokens = config.sequence_len + recipe.max_new_tokens
    # Keys and values, counted with 4 bytes: an equal number in every compute dtype.
    bytes_per_row = 2 * config.n_layer * config.kv_dim * 4 * tokens
    return max(1, min(MAX_ROWS, CACHE_BYTES // bytes_per_row))


def _problem_at(position: int, num_problems: int, seed: int) -> int:
    epoch, place = divmod(position, num_problems)
    return int(permute(np.array([place]), num_problems, seed=seed, epoch=epoch, block=0)[0])


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]
