"""Replies of the model that is being trained, and what they earn: RECIPE section 6."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from nanochat_core.benchmarks.base import GenerativeBenchmark, prompt
from nanochat_core.data.order import permute
from nanochat_core.inference.engine import GeneratedReply, InferenceEngine
from nanochat_core.inference.settings import SamplingSettings
from nanochat_core.tokenizer.chat_format import render_prompt, visible_text
from nanochat_core.training.recipes import RlRecipe


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
    reply: GeneratedReply
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


def _problem_at(position: int, num_problems: int, seed: int) -> int:
    epoch, place = divmod(position, num_problems)
    return int(permute(np.array([place]), num_problems, seed=seed, epoch=epoch, block=0)[0])
