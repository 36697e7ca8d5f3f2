"""The loss of reinforcement learning against its formula, written out with plain torch."""

import itertools

import pytest
import torch

from nanochat_core.distributed.ranks import Ranks
from nanochat_core.inference.engine import GeneratedReply
from nanochat_core.model.config import ModelConfig
from nanochat_core.model.gpt import GPT
from nanochat_core.optim.gradient_sum import GradientSum
from nanochat_core.optim.muon_adamw import MuonAdamW
from nanochat_core.optim.recipe import OptimizerRecipe
from nanochat_core.training.compiling import loss_function
from nanochat_core.training.groups import build_groups
from nanochat_core.training.pass_at_k import pass_at_k
from nanochat_core.training.policy_gradient import (
    padded_length,
    policy_micro_batches,
    token_weights,
)
from nanochat_core.training.rollouts import Question, Rollout
from nanochat_core.training.state import TrainState
from nanochat_core.training.step import MicroBatch, StepRates, train_step

CONFIG = ModelConfig(
    sequence_len=16, vocab_size=64, n_layer=2, n_head=1, n_kv_head=1, n_embd=32, window_pattern="L"
)
QUESTIONS, SAMPLES, GROUP = 2, 4, 2
PAD = 63


def new_state() -> TrainState:
    model = GPT(CONFIG)
    model.init_weights(1)
    groups = build_groups(
        model.named_parameters(),
        OptimizerRecipe(),
        batch_lr_scale=0.1,
        width_lr_scale=1.0,
        muon_weight_decay=0.0,
    )
    return TrainState(model, MuonAdamW(groups, Ranks.single()))


def rollouts(rewards: list[float]) -> list[Rollout]:
    """Replies of several lengths, one of them empty, every third token a tool's."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for i, reward in enumerate(rewards):
        prompt, tokens = (
            torch.randint(60, (n,), generator=generator).tolist() for n in (3 + i, (5 * i) % 7)
        )
        is_sampled = [position % 3 != 2 for position in range(len(tokens))]
        question = Question(problem=i // SAMPLES, sample=i % SAMPLES, seed=i)
        made.append(Rollout(question, prompt, GeneratedReply(tokens, is_sampled), "", reward))
    return made


def micro_batches(made: list[Rollout], rows: int) -> list[MicroBatch]:
    weights = []
    for first in range(0, len(made), SAMPLES):
        weights += token_weights(
            made[first : first + SAMPLES],
            normalise_group=GROUP,
            num_groups=QUESTIONS * SAMPLES // GROUP,
        )
    return policy_micro_batches(made, weights, rows=rows, pad_id=PAD)


def objective(model: GPT, made: list[Rollout]) -> torch.Tensor:
    """RECIPE section 6: mean over groups of sum(logp * advantage) / max(1, valid tokens)."""
    groups = []
    for first in range(0, len(made), GROUP):
        question = made[first // SAMPLES * SAMPLES :][:SAMPLES]
        baseline = sum(rollout.reward for rollout in question) / SAMPLES
        total, valid = torch.zeros(()), 0
        for rollout in made[first : first + GROUP]:
            ids = torch.tensor([[*rollout.prompt, *rollout.reply.tokens]])
            log_probabilities = model(ids)[0].log_softmax(-1)
            for i, (token, is_sampled) in enumerate(
                zip(rollout.reply.tokens, rollout.reply.is_sampled, strict=True)
            ):
                if is_sampled:
                    logp = log_probabilities[len(rollout.prompt) + i - 1, token]
                    total = total + logp * (rollout.reward - baseline)
                    valid += 1
        groups.append(total / max(1, valid))
    return torch.stack(groups).mean()


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_the_gradient_is_that_of_the_formula_whatever_the_micro_batches(rows: int) -> None:
    made = rollouts([1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0])
    model = new_state().model
    (-objective(model, made)).backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    again = new_state().model
    loss = torch.zeros(())
    for batch in micro_batches(made, rows):
        share = loss_function(again, compiled=False)(
            batch.inputs_BT, batch.targets_BT, batch.token_weights_BT
        )
        share.backward()
        loss += share.detach()
    torch.testing.assert_close(loss, -objective(model, made).detach(), rtol=1e-4, atol=1e-5)
    for name, parameter in again.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6)


def test_questions_answered_all_alike_teach_nothing() -> None:
    for reward in (0.0, 1.0):
        batches = micro_batches(rollouts([reward] * 8), rows=4)
        assert not any(batch.has_gradient for batch in batches)


def test_a_pass_left_out_gives_the_bits_of_the_pass() -> None:
    made = rollouts([1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    states = new_state(), new_state()
    for state, leave_out in zip(states, (True, False), strict=True):
        for _ in range(3):
            batches = micro_batches(made, rows=2)
            assert [batch.has_gradient for batch in batches] == [True, True, False, False]
            if not leave_out:
                tensors = [(b.inputs_BT, b.targets_BT, 1.0, b.token_weights_BT) for b in batches]
                batches = [MicroBatch(*tensor) for tensor in tensors]
            train_step(
                state,
                batches,
                StepRates(1.0, 0.95, 1.0),
                loss_function=loss_function(state.model, compiled=False),
                gradients=GradientSum(list(state.model.parameters())),
                ranks=Ranks.single(),
            )
    left_out, whole = (
        {shard.name: shard.tensor.numpy().tobytes() for shard in state.shards(0, 1)}
        for state in states
    )
    names = [name for name in whole if name.startswith("model.")]
    assert [name for name in names if left_out[name] != whole[name]] == []


def test_rows_are_padded_to_few_lengths() -> None:
    lengths = {padded_length(n) for n in range(1, 513)}
    assert sorted(lengths) == [32, 48, 64, 96, 128, 192, 256, 384, 512]
    assert all(n <= padded_length(n) for n in range(1, 513))


@pytest.mark.parametrize("right", range(5))
def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_reply(right: int) -> None:
    replies = [True] * right + [False] * (5 - right)
    for k in range(1, 6):
        draws = list(itertools.combinations(replies, k))
        expected = sum(any(draw) for draw in draws) / len(draws)
        assert pass_at_k(right, 5, k) == pytest.approx(expected)
