import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from loop_tools import RANKS, SCHEDULE, batches, checkpoint_hook, new_state, reading, train

from nanochat_core.logs import JsonLines, Progress
from nanochat_core.training.checkpoint_files import checkpoint_folders, newest_checkpoint
from nanochat_core.training.checkpoints import CheckpointWriter
from nanochat_core.training.hooks import (
    METRICS_ATTACHMENT,
    CheckpointHook,
    EvaluationHook,
    MetricsHook,
)
from nanochat_core.training.loop import StepMetrics
from nanochat_core.training.state import TrainState
from nanochat_core.training.step import MicroBatch, rates_at


def test_metrics_carry_the_names_of_the_reference(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    hook = MetricsHook(
        lines=JsonLines(path),
        progress=Progress(tmp_path / "progress.json", 4, "steps"),
        num_steps=4,
        tokens_per_step=128,
        flops_per_token=1000,
        peak_flops=None,
        log_every=2,
    )
    train(new_state(), 4, [hook])
    lines = path.read_text().splitlines()
    assert len(lines) == 2
    for name in ("step", "total_training_time", "total_training_flops", "train/loss"):
        assert f'"{name}"' in lines[0]
    for name in ("train/lrm", "train/dt", "train/tok_per_sec", "train/mfu"):
        assert f'"{name}"' in lines[0]
    assert '"done": 4' in (tmp_path / "progress.json").read_text()


def logged_losses(folder: Path, *, run_ahead: bool) -> list[float]:
    folder.mkdir()
    hook = MetricsHook(
        lines=JsonLines(folder / "metrics.jsonl"),
        progress=Progress(None, 5, "steps"),
        num_steps=5,
        tokens_per_step=128,
        flops_per_token=1000,
        peak_flops=None,
        log_every=1,
    )
    train(new_state(), 5, [hook], run_ahead=run_ahead)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["train/loss"] for line in lines]


def test_a_line_of_metrics_waits_for_the_device_only_where_there_is_no_loss_yet_or_no_more(
    tmp_path: Path,
) -> None:
    in_step = logged_losses(tmp_path / "in step", run_ahead=False)
    assert len(set(in_step)) == 5
    ahead = logged_losses(tmp_path / "run ahead", run_ahead=True)
    assert ahead == pytest.approx([in_step[0], *in_step[:3], in_step[4]])


def test_a_save_that_a_bad_step_put_off_is_made_after_the_next_good_one(tmp_path: Path) -> None:
    def batches_of(step: int) -> Sequence[MicroBatch]:
        weight = float("nan") if step == 3 else 1 / (2 * 4 * 16)
        return [replace(batch, loss_weight=weight) for batch in batches(step)]

    train(new_state(), 7, [checkpoint_hook(tmp_path, every=4)], batches=batches_of)
    assert [step for step, _ in checkpoint_folders(tmp_path)] == [7, 5]


def test_the_end_is_saved_though_the_save_before_it_failed(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.write_text("a disk that is away")
    state, hook = new_state(), checkpoint_hook(folder, every=1)
    state.step = 1
    hook.after_step(state, StepMetrics(reading(3.0), rates_at(0, 9, SCHEDULE), seconds=1.0))
    while hook.writer.is_writing:
        time.sleep(0.01)
    folder.unlink()
    state.step = 2
    hook.at_end(state)
    assert [step for step, _ in checkpoint_folders(folder)] == [2]
    assert newest_checkpoint(folder, "x") is not None


def test_a_wish_to_save_that_is_heard_after_it_was_granted_saves_nothing_again(
    tmp_path: Path,
) -> None:
    state, hook = new_state(), checkpoint_hook(tmp_path, every=5)
    wish = StepMetrics(reading(3.0), rates_at(0, 9, SCHEDULE), seconds=1.0, save=True)
    saved = []
    for state.step in range(5, 9):
        hook.after_step(state, wish if state.step in (6, 8) else replace(wish, save=False))
        saved.append(hook.writer.last_step)
    hook.writer.wait()
    assert saved == [5, 5, 5, 8]


class DiesError(Exception):
    """Stands for a process that is killed."""


@pytest.mark.parametrize("dies_in", [4, 8])
@pytest.mark.parametrize("dies_after", [False, True], ids=["before its line", "after its line"])
def test_an_evaluation_is_recorded_once_wherever_the_process_dies(
    tmp_path: Path, dies_in: int, dies_after: bool
) -> None:
    def run(folder: Path, dies_in: int, token: str) -> str:
        state, metrics = new_state(), folder / "metrics.jsonl"
        folder.mkdir(exist_ok=True)
        metrics.write_bytes(b"")
        if (checkpoint := newest_checkpoint(folder / "checkpoints", "x")) is not None:
            state.restore(checkpoint)
            metrics.write_bytes(checkpoint.attachment(METRICS_ATTACHMENT) or b"")

        def evaluate() -> dict[str, float]:
            if state.step == dies_in and not dies_after:
                raise DiesError
            with torch.no_grad():
                return {"weights": float(state.model.lm_head.weight.norm())}

        class Dies:
            def after_step(self, state: TrainState, metrics: object) -> None:
                if state.step == dies_in and dies_after:
                    raise DiesError

            def at_end(self, state: TrainState) -> None:
                self.after_step(state, None)

        writer = CheckpointWriter(folder / "checkpoints", identity="x", token=token)
        save = CheckpointHook(writer, RANKS, 2, metrics)
        evaluation = EvaluationHook(evaluate, "weights", metrics, RANKS, 4, 8, at_ends=True)
        try:
            train(state, 8, [save, evaluation, Dies()])
        finally:
            writer.wait()
        return metrics.read_text()

    expected = run(tmp_path / "straight", -1, "0000000a")
    assert [json.loads(line)["step"] for line in expected.splitlines()] == [0, 4, 8]
    with pytest.raises(DiesError):
        run(tmp_path / "killed", dies_in, "0000000a")
    assert run(tmp_path / "killed", -1, "0000000b") == expected
