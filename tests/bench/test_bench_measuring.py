"""The training benchmark measures the real step: figures that agree with each other."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bench_tools import TINY, setup, tiny_parts

from nanochat_core.bench.markov import ENTROPY_NATS
from nanochat_core.bench.train_measuring import PeakMemory, describe, measure
from nanochat_core.bench.train_setup import build, prepared_batches
from nanochat_core.bench.train_timing import StepTimes
from nanochat_core.bench.train_variants import fp8_loss_check, ratio
from nanochat_core.distributed.ranks import Ranks

MODULE = "nanochat_core.bench.train"
SECONDS_ALLOWED = 900
"""Compiling takes ten times as long on a machine that does other things, too."""


def test_the_figures_of_one_measurement_agree_with_each_other() -> None:
    parts = tiny_parts()
    memory = PeakMemory(torch.device("cpu"))
    report = measure(parts, memory, warm_up=1, steps=4, checkpoints=2)
    quickest, slowest = (report["step_seconds"][name] for name in ("p5", "p95"))
    assert 128 / slowest * 0.9 <= report["tokens_per_second"] <= 128 / quickest * 1.1
    flops = report["flops_per_token"] * report["tokens_per_second"]
    assert report["mfu_measured"] == pytest.approx(
        flops / report["roofline_flops"], rel=0.02, abs=1e-4
    ), "both are rounded"
    assert 0 < report["mfu_measured"] < 1
    assert report["mfu_data_sheet"] is None, "a CPU has no data sheet here"
    assert report["loss_first"] == pytest.approx(math.log(256), rel=0.1)
    assert 0 < report["checkpoint_stall_seconds"] <= report["checkpoint_stall_seconds_max"] < 10
    # The first, one to warm up, four timed, and some beside two saves.
    assert parts.state.step >= 1 + 1 + 4 + 2
    assert report["loss_last"] < report["loss_first"]


def test_the_report_says_what_was_run() -> None:
    told = describe(tiny_parts("--activation-checkpointing"))
    assert told["parameters"] > 0
    expected = {
        "depth": 2,
        "width": 128,
        "dtype": "float32",
        "fp8": False,
        "attention": "sdpa",
        "compile": "off",
        "activation_checkpointing": True,
        "device_batch_size": 2,
        "accumulation": 2,
        "threads": 1,
    }
    assert {name: told[name] for name in expected} == expected


def test_a_step_reads_all_its_rows_at_any_number_of_ranks() -> None:
    one = tiny_parts()
    whole = torch.cat([batch.inputs_BT for batch in prepared_batches(one)(1)])
    worlds = [Ranks(rank, 2, rank, torch.device("cpu")) for rank in range(2)]
    halves = [prepared_batches(build(setup(), ranks, None))(1) for ranks in worlds]
    assert torch.equal(torch.cat([b.inputs_BT for half in halves for b in half]), whole)
    assert sum(batch.loss_weight * batch.targets_BT.numel() for h in halves for batch in h) == 1.0


def test_every_step_is_timed_and_has_its_loss() -> None:
    parts = tiny_parts()
    times = StepTimes(torch.device("cpu"))
    parts.train(prepared_batches(parts), 3, [times])
    assert len(times.seconds) == len(times.losses) == 3
    assert all(seconds > 0 for seconds in times.seconds)


def test_the_ratio_is_how_many_times_as_long_the_other_takes() -> None:
    quick, slow = tiny_parts(), tiny_parts("--tokens-per-step", "1024")
    found = ratio(quick, slow, rounds=3, steps=1, warm_up=0)
    assert found["ratio_min"] <= found["ratio_median"]
    assert found["ratio_median"] > 1.5


def test_fp8_learns_the_made_up_text_as_bfloat16_does() -> None:
    rates = {"schedule": {"warmup_steps": 0}, "optimizer": {"scale_lr_with_batch": False}}
    asked = setup("--tokens-per-step", "64").changed(rates)
    report = fp8_loss_check(asked, lambda changed: build(changed, Ranks.single(), None), 6)
    loss, difference = report["loss"], report["relative_difference"]
    assert ENTROPY_NATS < loss["bfloat16"] < math.log(256)
    assert loss["fp8"] != loss["bfloat16"]
    assert difference == pytest.approx(loss["fp8"] / loss["bfloat16"] - 1, abs=1e-5)
    assert abs(difference) < 0.02
    assert report["fp8"] is True
    assert report["dtype"] == "bfloat16"


def bench(*options: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *launcher, "-m", MODULE, *TINY, *options],
        env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"},
        capture_output=True,
        text=True,
        timeout=SECONDS_ALLOWED,
        check=False,
    )


@pytest.mark.e2e
def test_the_command_prints_one_line_and_writes_it_to_a_file(tmp_path: Path) -> None:
    out = tmp_path / "line.json"
    options = ("--steps", "2", "--checkpoints", "1", "--against", "bfloat16", "--rounds", "1")
    done = bench(*options, "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert done.stdout == out.read_text()
    report = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert report["against"] == "bfloat16"
    assert report["ratio_min"] == report["ratio_median"]
    assert 0.5 < report["seconds_to_first_step"] < SECONDS_ALLOWED
    refused = bench("--device-batch-size", "3")
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert "device_batch_size 3 x 1 ranks" in refused.stderr


@pytest.mark.distributed
def test_two_ranks_are_measured_together_and_one_of_them_speaks() -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1")
    done = bench(
        *("--steps", "2", "--checkpoints", "0"), launcher=(*launcher, "--nproc-per-node", "2")
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert (report["ranks"], report["accumulation"]) == (2, 1)


@pytest.mark.long
@pytest.mark.timeout(SECONDS_ALLOWED)
def test_a_start_with_compiled_code_at_another_place_compiles_far_less() -> None:
    done = bench("--compile", "blocks", "--cold-start")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["compile_seconds_warm"] < 0.5 * report["compile_seconds_cold"]
    assert report["seconds_to_first_step_warm"] < report["seconds_to_first_step_cold"]
    assert report["cache_bytes"] > 10_000
