import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from loop_tools import (
    RANKS,
    SCHEDULE,
    batches,
    checkpoint_hook,
    everything,
    new_state,
    reading,
    train,
)

from nanochat_core.distributed.ranks import Ranks
from nanochat_core.errors import JobStoppedError, TrainingError
from nanochat_core.optim.gradient_sum import GradientSum
from nanochat_core.training.checkpoint_files import newest_checkpoint
from nanochat_core.training.compiling import loss_function
from nanochat_core.training.loop import Trainer
from nanochat_core.training.loss_watch import LossWatch
from nanochat_core.training.state import TrainState
from nanochat_core.training.step import MicroBatch, rates_at, train_step


@pytest.mark.parametrize("run_ahead", [False, True], ids=["in step", "run ahead"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_two_stops_and_resumes_give_the_bits_of_a_run_never_stopped(
    tmp_path: Path, dtype: torch.dtype, run_ahead: bool
) -> None:
    straight = new_state(dtype)
    train(straight, 6, run_ahead=run_ahead)
    for number, stop in enumerate((2, 5, -1)):
        state = new_state(dtype)
        if (checkpoint := newest_checkpoint(tmp_path, "x")) is not None:
            state.restore(checkpoint)
        hook = checkpoint_hook(tmp_path, token=f"0000000{number}")
        if stop > 0:
            with pytest.raises(JobStoppedError, match=f"after step {stop}"):
                train(state, 6, [hook], stop_after=stop, run_ahead=run_ahead)
        else:
            train(state, 6, [hook], run_ahead=run_ahead)
    expected, found = everything(straight), everything(state)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert state.scalars() | {"training_seconds": 0} == straight.scalars() | {"training_seconds": 0}


def check_steps_that_run_ahead(ranks: Ranks, enter: Callable[[], None] = lambda: None) -> None:
    """A step to settle in, and one behind `enter`."""
    state = new_state(torch.bfloat16, ranks=ranks)
    gradients = GradientSum(list(state.model.parameters()))
    own = [batch.to(ranks.device) for batch in batches(0)]
    readings = []
    for number in range(2):
        if number == 1:
            enter()
        readings.append(
            train_step(
                *(state, own, rates_at(number, 9, SCHEDULE)),
                loss_function=loss_function(state.model, compiled=False),
                gradients=gradients,
                ranks=ranks,
                run_ahead=True,
            )
        )
    first, second = (each.wait() for each in readings)
    assert first.healthy
    assert second.healthy
    assert second.loss_nats < first.loss_nats


def test_a_step_that_runs_ahead_moves_the_weights() -> None:
    check_steps_that_run_ahead(RANKS)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_on_a_gpu_the_host_waits_for_nothing_in_a_step() -> None:
    try:
        check_steps_that_run_ahead(
            Ranks.single("cuda"), lambda: torch.cuda.set_sync_debug_mode("error")
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_training_lowers_the_loss_of_what_can_be_learnt() -> None:
    state = new_state(lr_scale=1.0)
    tokens = torch.arange(17).repeat(4, 1)
    batch = [MicroBatch(tokens[:, :-1], tokens[:, 1:], 1 / 64)]
    losses: list[float] = []

    class Watch:
        def after_step(self, state: TrainState, metrics: object) -> None:
            losses.append(metrics.loss_nats)  # type: ignore[attr-defined]

        def at_end(self, state: TrainState) -> None:
            pass

    Trainer(
        num_steps=30,
        schedule=SCHEDULE,
        loss_function=loss_function(state.model, compiled=False),
        batches=lambda step: batch,
        ranks=RANKS,
        stop_requested=lambda: False,
        hooks=[Watch()],
    ).train(state)
    assert losses[0] == pytest.approx(math.log(64), abs=0.05)
    assert losses[-1] < 0.3 * losses[0]


def spoiled(*steps: int) -> Callable[[int], Sequence[MicroBatch]]:
    """Batches of which those of some steps give gradients that are not finite."""

    def batches_of(step: int) -> Sequence[MicroBatch]:
        weight = float("nan") if step in steps else 1 / (2 * 4 * 16)
        return [replace(batch, loss_weight=weight) for batch in batches(step)]

    return batches_of


def train_on(
    batches: Callable[[int], Sequence[MicroBatch]], state: TrainState, steps: int, **settings: Any
) -> None:
    Trainer(
        num_steps=steps,
        schedule=SCHEDULE,
        loss_function=loss_function(state.model, compiled=False),
        batches=batches,
        ranks=RANKS,
        stop_requested=lambda: False,
        **{"hooks": [], **settings},
    ).train(state)


@pytest.mark.parametrize("run_ahead", [False, True], ids=["in step", "run ahead"])
def test_a_step_that_is_not_finite_changes_no_weight_and_no_moment(run_ahead: bool) -> None:
    before, after = new_state(), new_state()
    with pytest.raises(JobStoppedError):
        train(before, 5, stop_after=4, run_ahead=run_ahead)
    train_on(spoiled(4), after, 5, run_ahead=run_ahead)
    expected, found = everything(before), everything(after)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert after.watch.bad_in_a_row == 1
    assert after.watch.ema == before.watch.ema


def test_training_goes_on_after_steps_that_are_not_finite() -> None:
    state = new_state()
    train_on(spoiled(2, 3, 5), state, 8)
    assert state.weights_are_finite()
    assert state.watch.bad_in_a_row == 0
    assert (state.watch.count, state.optimizer.steps) == (5, 5)


@pytest.mark.parametrize("run_ahead", [False, True], ids=["in step", "run ahead"])
def test_too_many_bad_steps_in_a_row_end_the_run_and_name_the_last_good_checkpoint(
    tmp_path: Path, run_ahead: bool
) -> None:
    state = new_state()
    state.watch.max_in_a_row = 3
    hooks = [checkpoint_hook(tmp_path, every=1)]
    state.watch.last_checkpoint = hooks[0].writer.describe_last
    with pytest.raises(TrainingError, match=r"3\. such step in a row.*checkpoint: step 4 in"):
        train_on(spoiled(*range(4, 20)), state, 20, hooks=hooks, run_ahead=run_ahead)
    checkpoint = newest_checkpoint(tmp_path, "x")
    assert checkpoint is not None
    assert checkpoint.step == 4


def test_a_loss_far_above_the_running_one_is_a_spike_that_does_not_count_as_normal() -> None:
    watch = LossWatch(max_in_a_row=4)
    for step in range(200):
        watch.add(step, reading(3.0 + 0.02 * (step % 3)))
    for step in range(3):
        watch.add(200 + step, reading(3.6))
    assert watch.bad_in_a_row == 3
    assert watch.smooth == pytest.approx(3.02, abs=0.01)
    watch.add(203, reading(3.1))
    assert watch.bad_in_a_row == 0
    for step in range(3):
        watch.add(204 + step, reading(9.0))
    with pytest.raises(TrainingError, match="far above the running 3"):
        watch.add(207, reading(9.0))


def test_readings_that_are_left_pending_are_looked_at_in_order_later() -> None:
    early, late = LossWatch(), LossWatch()
    for step in range(5):
        early.add(step, reading(float(step)))
        late.add(step, reading(float(step)), leave=1)
    assert late.count == 4
    assert late.scalars() == early.scalars()


def test_weights_that_the_last_update_spoiled_are_not_saved(tmp_path: Path) -> None:
    state = new_state(lr_scale=float("inf"))
    with pytest.raises(TrainingError, match="weights are not finite after step 1"):
        train(state, 1, [checkpoint_hook(tmp_path)])
    assert newest_checkpoint(tmp_path, "x") is None


def test_a_float16_step_that_overflows_is_skipped_and_halves_the_scale() -> None:
    state = new_state(torch.float16)
    state.loss_scale.scale = 2.0**60
    before = everything(state)
    train(state, 1)
    assert state.loss_scale.scale == 2.0**59
    assert all(torch.equal(before[name], t) for name, t in everything(state).items())
    assert state.optimizer.steps == 0


def test_float16_that_overflows_at_any_scale_is_an_error_and_leaves_the_running_loss() -> None:
    state = new_state(torch.float16)
    train(state, 1)
    loss = state.smooth_loss
    with torch.no_grad():
        state.model.wte.weight.fill_(float("inf"))
    with pytest.raises(TrainingError, match="train in bfloat16 or float32"):
        train(state, 30)
    assert state.loss_scale.scale < 1.0
    assert state.smooth_loss == loss


def test_a_step_whose_batches_are_given_up_is_not_saved(tmp_path: Path) -> None:
    state = new_state()

    def give_up(step: int) -> Sequence[MicroBatch]:
        if step == 3:
            raise JobStoppedError("in the middle of it")
        return batches(step)

    with pytest.raises(JobStoppedError, match="after step 3"):
        Trainer(
            num_steps=6,
            schedule=SCHEDULE,
            loss_function=loss_function(state.model, compiled=False),
            batches=give_up,
            ranks=RANKS,
            stop_requested=lambda: False,
            hooks=[checkpoint_hook(tmp_path)],
        ).train(state)
    checkpoint = newest_checkpoint(tmp_path, "x")
    assert checkpoint is not None
    assert checkpoint.step == 3
    straight = new_state()
    with pytest.raises(JobStoppedError):
        train(straight, 6, stop_after=3)
    for name, tensor in everything(straight).items():
        assert torch.equal(checkpoint.read(name), tensor), name


def test_a_step_that_float16_skips_is_skipped_after_a_resume_too(tmp_path: Path) -> None:
    def run(stop_after: int) -> TrainState:
        state = new_state(torch.float16)
        # So large that the first steps overflow, until it is small enough.
        state.loss_scale.scale = 2.0**40
        if (checkpoint := newest_checkpoint(tmp_path, "x")) is not None:
            state.restore(checkpoint)
        if stop_after > 0:
            with pytest.raises(JobStoppedError):
                train(state, 30, [checkpoint_hook(tmp_path)], stop_after=stop_after)
        else:
            train(state, 30)
        return state

    straight = run(-1)
    assert 0 < straight.optimizer.steps < 30
    halted = run(3)
    assert halted.optimizer.steps == 0
    resumed = run(-1)
    assert resumed.scalars() | {"training_seconds": 0} == straight.scalars() | {
        "training_seconds": 0
    }
    for name, tensor in everything(straight).items():
        assert torch.equal(everything(resumed)[name], tensor), name
