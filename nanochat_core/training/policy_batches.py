"""The micro-batches of a reinforcement learning step, made of the model's own replies."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from nanochat_core.distributed.collectives import agree_any, gather_texts
from nanochat_core.distributed.ranks import Ranks
from nanochat_core.errors import JobStoppedError
from nanochat_core.training.policy_gradient import advantages, policy_micro_batches, token_weights
from nanochat_core.training.rollout_files import write_step
from nanochat_core.training.rollouts import Rollout, RolloutMaker, step_questions
from nanochat_core.training.step import MicroBatch

Records = list[dict[str, Any]]


@dataclass
class PolicyBatches:
    """Lets the model answer the questions of a step as it is, and makes micro-batches of that.

    A rank has a contiguous range of the questions of every step. `rows` of a micro-batch; files of
    rollouts go to `folder`; `measured` is of the last step.
    """

    maker: RolloutMaker
    ranks: Ranks
    rows: int
    folder: Path
    measured: dict[str, float] = field(default_factory=dict)

    def __call__(self, step: int) -> list[MicroBatch]:
        """Raises JobStoppedError, on all ranks, when a stop is asked for meanwhile."""
        maker, recipe = self.maker, self.maker.recipe
        questions = step_questions(recipe, step, len(maker.benchmark))
        share = len(questions) // self.ranks.world_size
        own = questions[self.ranks.rank * share : (self.ranks.rank + 1) * share]
        rollouts = maker.roll_out([sample for samples in own for sample in samples])
        if agree_any(maker.stop_requested(), self.ranks):
            raise JobStoppedError(f"stopped in the rollouts of step {step + 1}, which are lost")
        self._record(step, rollouts)
        weights = [
            weight
            for samples in _split(rollouts, recipe.samples_per_question)
            for weight in token_weights(
                samples,
                normalise_group=recipe.normalise_group,
                num_groups=recipe.questions_per_step
                * (recipe.samples_per_question // recipe.normalise_group),
            )
        ]
        pad_id = maker.engine.tokenizer.bos_id
        batches = policy_micro_batches(rollouts, weights, rows=self.rows, pad_id=pad_id)
        return [batch.to(self.ranks.device) for batch in batches]

    def _record(self, step: int, rollouts: Sequence[Rollout]) -> None:
        """Measure the rollouts of all ranks, and let rank 0 write them down."""
        by_question = _split(rollouts, self.maker.recipe.samples_per_question)
        own = [record for samples in by_question for record in self._records(step, samples)]
        texts = gather_texts(json.dumps(own), self.ranks)
        records = [record for text in texts for record in json.loads(text)]
        self.measured = measure(records)
        if self.ranks.is_main:
            write_step(self.folder, step + 1, records)

    def _records(self, step: int, samples: Sequence[Rollout]) -> Records:
        problem = samples[0].question.problem
        question = self.maker.benchmark.conversation(problem).messages[-2].text
        values = advantages([rollout.reward for rollout in samples])
        return [
            {
                "step": step + 1,
                "question_index": problem,
                "sample": rollout.question.sample,
                "question": question,
                "reply": rollout.text,
                "reply_with_tools": self.maker.engine.tokenizer.decode(rollout.reply.tokens),
                "reward": rollout.reward,
                "advantage": advantage,
                "num_prompt_tokens": len(rollout.prompt),
                "num_tokens": len(rollout.reply.tokens),
            }
            for rollout, advantage in zip(samples, values, strict=True)
        ]


def measure(records: Records) -> dict[str, float]:
    """What the rollouts of a step were like, over all ranks.

    `rl/mixed_groups` is the share of questions with replies of different rewards: only those teach.
    """
    problems = {record["question_index"] for record in records}
    mixed = {record["question_index"] for record in records if record["advantage"] != 0.0}
    return {
        "rl/reward": fmean(record["reward"] for record in records),
        "rl/sequence_length": fmean(r["num_prompt_tokens"] + r["num_tokens"] for r in records),
        "rl/mixed_groups": len(mixed) / len(problems),
    }


def _split(rollouts: Sequence[Rollout], size: int) -> Iterator[Sequence[Rollout]]:
    for first in range(0, len(rollouts), size):
        yield rollouts[first : first + size]
