"""What a job does when memory runs out, and the rows that it keeps for its next try."""

import json
import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from job_tools import PRETRAIN, SFT, make_spec
from rl_tools import make_chat_model, rl_spec

from nanochat_core.config.execution import Execution
from nanochat_core.config.job import ERROR_FILE, METRICS_FILE, OUTPUTS_FILE, JobSpec
from nanochat_core.distributed.ranks import Ranks
from nanochat_core.errors import ConfigError, DeviceMemoryError
from nanochat_core.jobs import pretrain, rl, sft
from nanochat_core.jobs.common import StopRequest
from nanochat_core.jobs.device_rows import (
    DEVICE_BATCH_FILE,
    DeviceRows,
    KeptBatch,
    evaluated_rows,
    find_rows,
    rows_of,
)
from nanochat_core.jobs.training_run import TrainingRun
from nanochat_core.tokenizer.tokenizer import Tokenizer
from nanochat_core.training.dial import plan_training
from tests.training.memory_tools import ProcessMemory

HERE = Path(__file__).parent
linux = pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA holds memory on Linux")

WIDE = PRETRAIN.model_copy(
    update={
        "n_embd": 128,
        "head_dim": 64,
        "sequence_len": 512,
        "tokens_per_step": 16 * 512,
        "num_iterations": 4,
        "compute_dtype": "float32",
        "data": PRETRAIN.data.model_copy(update={"max_epochs": 100.0}),
    }
)
"""A row takes about 17 MB for forward and backward, of which the weights are a small part."""


def job(folder: Path, **execution: Any) -> JobSpec:
    return make_spec(PRETRAIN, {}, folder, station="pretrain", **execution)


def settle(spec: JobSpec, choice: int, share: int = 0) -> int:
    return rows_of(DeviceRows(spec, Ranks.single()).settle(lambda: choice, share=share))


def kept(spec: JobSpec) -> dict[str, Any]:
    """The content of device_batch.json."""
    content: dict[str, Any] = json.loads((Path(spec.work_folder) / DEVICE_BATCH_FILE).read_bytes())
    return content


def run_out(spec: JobSpec, rows: int) -> None:
    """A job whose allocator has no more memory once it has settled on some rows."""
    device_rows = DeviceRows(spec, Ranks.single())
    with device_rows.told():
        device_rows.settle(lambda: rows)
        torch.empty(2**50)


def test_rows_are_chosen_once_and_kept_while_nobody_asks_for_others(tmp_path: Path) -> None:
    auto = job(tmp_path, device_batch_size="auto")
    assert settle(auto, 16) == 16
    assert settle(auto, 32) == 16
    assert kept(auto)["asked"] == "auto"
    assert settle(job(tmp_path, device_batch_size=4), 4) == 4
    assert settle(auto, 32) == 32, "another request in between is a new choice"
    checkpointing = job(tmp_path, device_batch_size="auto", activation_checkpointing=True)
    assert settle(checkpointing, 64) == 64


def test_kept_rows_divide_the_share_of_a_rank_in_another_world(tmp_path: Path) -> None:
    auto = job(tmp_path, device_batch_size="auto")
    assert settle(auto, 8, share=8) == 8
    assert settle(auto, 1, share=4) == 4


def test_a_damaged_file_means_that_the_rows_are_chosen_again(tmp_path: Path) -> None:
    auto = job(tmp_path, device_batch_size="auto")
    (tmp_path / "work" / DEVICE_BATCH_FILE).write_text('{"rows": ')
    assert settle(auto, 2) == 2
    assert kept(auto)["rows"] == 2


def test_ranks_that_keep_their_rows_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    # As processes of the same number on several machines.
    batch = KeptBatch.of(job(tmp_path).execution, 4)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: batch.save(tmp_path / "work"), range(200)))
    assert [path.name for path in (tmp_path / "work").glob("*batch*")] == [DEVICE_BATCH_FILE]


def test_memory_that_runs_out_halves_the_rows_of_the_next_try(tmp_path: Path) -> None:
    spec = job(tmp_path, device_batch_size=4)
    for rows, fewer in ((4, 2), (2, 1)):
        message = f"rank 0 ran out of memory with {rows} rows at a time; the next try takes {fewer}"
        with pytest.raises(DeviceMemoryError, match=message):
            run_out(spec, 4)
        assert kept(spec)["rows"] == fewer
        assert kept(spec)["asked"] == 4
    with pytest.raises(ConfigError, match=r"one row at a time.*activation_checkpointing=true"):
        run_out(spec, 4)


def test_a_model_that_does_not_fit_is_told_as_that(tmp_path: Path) -> None:
    device_rows = DeviceRows(job(tmp_path), Ranks.single())
    with pytest.raises(ConfigError, match="the model itself does not fit"), device_rows.told():
        torch.empty(2**50)
    assert not (tmp_path / "work" / DEVICE_BATCH_FILE).exists()


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    device_rows = DeviceRows(job(tmp_path), Ranks.single())
    with pytest.raises(RuntimeError, match="shapes"), device_rows.told():
        torch.ones(2, 3) @ torch.ones(2, 3)


def test_passes_without_gradients_take_what_is_asked_or_suits_the_device() -> None:
    assert evaluated_rows(Execution(), torch.device("cpu")) == 8
    assert evaluated_rows(Execution(), torch.device("cuda")) == 32
    assert evaluated_rows(Execution(device_batch_size=3), torch.device("cuda")) == 3


def test_jobs_on_a_cpu_choose_up_to_eight_rows(
    base: dict[str, str], tmp_path: Path, one_thread: None
) -> None:
    pretraining = make_spec(
        PRETRAIN.model_copy(update={"num_iterations": 1, "tokens_per_step": 32 * 64}),
        base,
        tmp_path / "pretrain",
        station="pretrain",
        device_batch_size="auto",
    )
    pretrain.main(pretraining, Ranks.single(), StopRequest())
    assert kept(pretraining)["rows"] == 8
    one_step = SFT.model_copy(update={"num_iterations": 1})
    tuning = make_spec(one_step, base, tmp_path / "sft", station="sft", device_batch_size="auto")
    sft.main(tuning, Ranks.single(), StopRequest())
    assert kept(tuning)["rows"] == 8


def test_reinforcement_on_a_cpu_chooses_up_to_eight_replies(
    tmp_path: Path, one_thread: None
) -> None:
    inputs = make_chat_model(tmp_path)
    spec = rl_spec(inputs, tmp_path / "rl", device_batch_size="auto", eval_every=-1)
    spec = spec.model_copy(update={"recipe": {**spec.recipe, "num_iterations": 1}})
    rl.main(spec, Ranks.single(), StopRequest())
    assert kept(spec)["rows"] == 8


@linux
def test_a_run_finds_its_rows_by_training_on_real_ones(
    line: dict[str, str], tmp_path: Path, one_thread: None, caplog: pytest.LogCaptureFixture
) -> None:
    spec = make_spec(PRETRAIN, line, tmp_path, station="pretrain", device_batch_size="auto")
    plan = plan_training(PRETRAIN, Tokenizer.load(Path(line["tokenizer"])).vocab_size)
    ranks = Ranks.single()
    state = pretrain.fresh_state(spec, PRETRAIN, plan, ranks)
    before = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    rows = pretrain.open_rows(spec, PRETRAIN, plan)
    run = TrainingRun(spec, ranks, pretrain.run_plan(plan, PRETRAIN), state)
    with caplog.at_level(logging.INFO):
        found = find_rows(
            run,
            24,
            lambda size: pretrain.read_batch(rows, 0, size, 1, ranks),
            ProcessMemory(limit_bytes=100 * 10**9),
        )
    assert found == 8, "the largest power of two that divides 24"
    assert "rows tried: 8 took" in caplog.text
    assert state.step == state.optimizer.steps == 0
    assert all(torch.equal(before[name], t) for name, t in state.model.state_dict().items())


@pytest.mark.distributed
def test_all_ranks_take_the_smallest_number_that_any_of_them_found(tmp_path: Path) -> None:
    spec = job(tmp_path, device_batch_size="auto", ranks=2)
    assert ranks_settle_on(spec) == [8, 8], "rank 0 found 16, rank 1 found 8"
    assert kept(spec)["rows"] == 8
    assert ranks_settle_on(spec) == [8, 8]


def ranks_settle_on(spec: JobSpec) -> list[int]:
    path = Path(spec.work_folder) / "job.json"
    spec.save(path)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    script = ["--nproc-per-node", "2", str(HERE / "rows_of_ranks.py"), str(path)]
    process = run([*torchrun, *script])
    assert process.returncode == 0, process.stderr[-3000:]
    return [int(line.split(": ")[1]) for line in process.stdout.splitlines()]


@pytest.mark.e2e
@linux
def test_a_job_that_runs_out_of_memory_halves_its_rows_resumes_and_finishes(
    line: dict[str, str], tmp_path: Path
) -> None:
    """Sixteen rows take 0.27 GB and eight 0.14; 0.11 GB are there, and half of the steps done."""
    spec = make_spec(WIDE, line, tmp_path, station="pretrain", device_batch_size=16)
    stopped = run([str(HERE / "stopped_pretrain.py"), str(saved(spec)), "2"])
    assert stopped.returncode == 0, stopped.stderr[-3000:]
    metrics = Path(spec.work_folder) / METRICS_FILE
    first_half = metrics.read_text().splitlines()
    assert (len(first_half), kept(spec)["rows"]) == (2, 16)
    limit = {"memory_limit_gb": int(stopped.stdout) / 1e9 + 0.11}
    limited = make_spec(WIDE, line, tmp_path, station="pretrain", device_batch_size=16, **limit)
    for rows, fewer in ((16, 8), (8, 4)):
        process = run_job(limited)
        assert process.returncode == 2, process.stderr[-3000:]
        error = json.loads((tmp_path / "work" / ERROR_FILE).read_bytes())
        assert error["type"] == "DeviceMemoryError", error
        assert f"with {rows} rows at a time; the next try takes {fewer}" in error["message"]
        assert kept(limited)["rows"] == fewer
    process = run_job(limited)
    assert process.returncode == 0, process.stderr[-3000:]
    assert "resumed after step 2" in process.stderr
    assert (tmp_path / "output" / OUTPUTS_FILE).exists()
    lines = metrics.read_text().splitlines()
    assert (len(lines), lines[:2]) == (4, first_half)
    assert kept(limited)["rows"] == 4


def saved(spec: JobSpec) -> Path:
    path = Path(spec.work_folder) / "job.json"
    spec.save(path)
    return path


def run_job(spec: JobSpec) -> subprocess.CompletedProcess[str]:
    return run(["-m", "nanochat_core.jobs.pretrain", str(saved(spec))])


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    # glibc gives what is freed back to the system only if it did not come from its heap.
    settings = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
