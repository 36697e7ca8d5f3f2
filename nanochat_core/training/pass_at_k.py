"""pass@k: how often at least one of k sampled replies is right."""

from collections.abc import Sequence
from math import comb

from nanochat_core.distributed.collectives import agree_any, sum_numbers
from nanochat_core.distributed.ranks import Ranks
from nanochat_core.errors import JobStoppedError
from nanochat_core.training.rollouts import Question, RolloutMaker, sampling_seed


def pass_at_k(num_right: int, num_samples: int, k: int) -> float:
    """Chance that k of the samples, drawn without putting back, hold a right one.

    The unbiased estimator of Chen et al., arXiv:2107.03374, section 2.1.
    """
    return 1.0 - comb(num_samples - num_right, k) / comb(num_samples, k)


def measure_pass_at_k(maker: RolloutMaker, ranks: Ranks) -> dict[str, float]:
    """pass@1 to pass@n on the first test questions, each sampled n times, shared by the ranks.

    The random numbers are the same at every call, so that only the model makes a difference.
    Raises JobStoppedError, on all ranks, after a stop request.
    """
    recipe, samples = maker.recipe, maker.recipe.pass_at_k
    num_questions = min(recipe.pass_at_k_questions, len(maker.benchmark))
    own = range(ranks.rank, num_questions, ranks.world_size)
    rollouts = maker.roll_out(
        [
            Question(problem, sample, sampling_seed("pass@k", recipe.seed, problem, sample))
            for problem in own
            for sample in range(samples)
        ]
    )
    if agree_any(maker.stop_requested(), ranks):
        raise JobStoppedError("stopped while pass@k was measured")
    rewards = [rollout.reward for rollout in rollouts]
    right = [sum(reward == 1.0 for reward in question) for question in _split(rewards, samples)]
    sums = [sum(pass_at_k(n, samples, k) for n in right) for k in range(1, samples + 1)]
    totals = sum_numbers(sums, ranks)
    return {f"pass@{k}": total / num_questions for k, total in enumerate(totals, start=1)}


def _split(values: Sequence[float], size: int) -> list[Sequence[float]]:
    return [values[first : first + size] for first in range(0, len(values), size)]
