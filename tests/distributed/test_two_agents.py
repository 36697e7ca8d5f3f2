"""Two torchrun agents on loopback, as on two machines: one in `run_job`, one in `nanochat join`."""

import hashlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from host_tools import (
    FirstHost,
    Heard,
    environment,
    free_port,
    kill_all,
    rank_process,
    steps_done,
    wait_for,
)

from flows.by_hand.commands import EXIT_STOPPED
from flows.by_hand.folders import newest_step
from nanochat_core import supervise
from nanochat_core.config.job import LOG_FILE, JobSpec
from nanochat_core.errors import JobStoppedError, RanksLostError
from tasks.launches import DONE, JOB_FILE, Launch
from tasks.torchrun import mark_of, run_job
from tests.jobs.job_tools import BASE_FILES, PRETRAIN, make_line, make_spec, results, run_ranks

pytestmark = [pytest.mark.distributed, pytest.mark.xdist_group("two_agents")]

NUM_STEPS = 30
RECIPE = PRETRAIN.model_copy(
    update={
        "num_iterations": NUM_STEPS,
        "data": PRETRAIN.data.model_copy(update={"max_epochs": 100.0}),
    }
)
JOIN = "from flows.join_command import join; import typer; typer.run(join)"


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_line(tmp_path_factory.mktemp("line"))


@contextmanager
def joining(spec: JobSpec) -> Iterator[subprocess.Popen[str]]:
    """The command on the other machine; nothing of it outlives the block."""
    job_file = Path(spec.work_folder, JOB_FILE)
    command = [sys.executable, "-c", JOIN, str(job_file), "--rdzv-id", "two"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()
    ) as process:
        try:
            yield process
        finally:
            process.kill()
            kill_all(mark_of(spec, joins=True))


def train(spec: JobSpec) -> FirstHost:
    job = FirstHost(spec)

    def has_saved() -> bool:
        # Files are written beside the steps: the seventh may be done before the fifth is saved.
        return steps_done(spec) >= 7 and newest_step(Path(spec.work_folder)) is not None

    wait_for(lambda: has_saved() or job.error is not None, "the seventh step and a checkpoint")
    assert job.error is None, job.error
    return job


def digests(spec: JobSpec) -> dict[str, str]:
    files = results(spec, BASE_FILES)
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def two_machines(line: dict[str, str], folder: Path) -> JobSpec:
    return make_spec(
        RECIPE,
        line,
        folder,
        station="pretrain",
        nodes=2,
        rendezvous_endpoint=f"127.0.0.1:{free_port()}",
        rendezvous_id="two",
        collective_timeout_seconds=20.0,
        grace_seconds=2.0,
    )


def assert_nothing_is_left(spec: JobSpec) -> None:
    assert supervise.marked_processes(mark_of(spec)) == []
    assert supervise.marked_processes(mark_of(spec, joins=True)) == []


def test_two_agents_train_together_and_resume_to_the_same_bits_after_one_was_killed(
    line: dict[str, str], tmp_path: Path
) -> None:
    spec = two_machines(line, tmp_path / "two")
    mark, joined_mark = mark_of(spec), mark_of(spec, joins=True)
    with joining(spec) as second:
        job = train(spec)
        # Rank 0 is on the first machine, where people look at the log.
        assert rank_process(mark, 0).environ()["WORLD_SIZE"] == "2"
        assert rank_process(joined_mark, 1).environ()["LOCAL_RANK"] == "0"
        second.kill()
        kill_all(joined_mark)
        job.wait()
        assert isinstance(job.error, RanksLostError), repr(job.error)
        assert supervise.marked_processes(mark) == []
        launch = Launch.of(Path(spec.work_folder))
        assert launch is not None
        assert (launch.number, launch.ended) == (1, "RanksLostError")
        assert 7 <= steps_done(spec) < NUM_STEPS
    with joining(spec) as second:
        job = FirstHost(spec)
        job.wait()
        assert job.error is None, job.error
        output, _ = second.communicate(timeout=30)
        assert second.returncode == 0, output
        assert f"joining pretrain, start 2, in {spec.work_folder}" in output
    assert_nothing_is_left(spec)
    assert "resumed after step" in Path(spec.work_folder, LOG_FILE).read_text()
    launch = Launch.of(Path(spec.work_folder))
    assert launch is not None
    assert (launch.number, launch.ended) == (2, DONE)

    straight = make_spec(RECIPE, line, tmp_path / "straight", station="pretrain", ranks=2)
    process = run_ranks(straight)
    assert process.returncode == 0, process.stderr[-2000:]
    assert digests(spec) == digests(straight)


@pytest.mark.long
def test_a_stop_on_the_second_machine_stops_and_saves_on_both(
    line: dict[str, str], tmp_path: Path
) -> None:
    spec = two_machines(line, tmp_path)
    with joining(spec) as second:
        job = train(spec)
        second.terminate()
        job.wait()
        output, _ = second.communicate(timeout=30)
    assert isinstance(job.error, JobStoppedError), repr(job.error)
    assert second.returncode == EXIT_STOPPED, output
    assert_nothing_is_left(spec)
    newest = newest_step(Path(spec.work_folder))
    assert newest is not None
    assert newest == steps_done(spec), "the last step was saved"


@pytest.mark.long
def test_a_rank_that_hangs_on_the_first_machine_is_ended_because_the_second_says_so(
    line: dict[str, str], tmp_path: Path
) -> None:
    spec = two_machines(line, tmp_path)
    with joining(spec) as second:
        job = train(spec)
        rank_process(mark_of(spec), 0).send_signal(signal.SIGSTOP)
        started = time.monotonic()
        job.wait()
        execution = spec.execution
        limit = execution.collective_timeout_seconds + 2 * execution.grace_seconds + 10
        assert time.monotonic() - started < limit
        assert isinstance(job.error, RanksLostError), repr(job.error)
        assert "rank 1 has lost another rank" in str(job.error)
        assert "and the logs of other machines" in str(job.error)
        assert second.poll() is None, "it waits for another start"
    assert_nothing_is_left(spec)


TOO_LARGE_AT_FIRST = """
from pathlib import Path
from nanochat_core.config.job import StageOutput
from nanochat_core.distributed.collectives import barrier
from nanochat_core.errors import DeviceMemoryError
from nanochat_core.jobs.common import run_job_main

def main(spec, ranks, stop):
    barrier(ranks)
    smaller = Path(spec.work_folder, "smaller")
    if ranks.rank == 1 and not smaller.exists():
        smaller.touch()
        raise DeviceMemoryError("64 rows are too many")
    barrier(ranks)
    if ranks.rank == 0:
        StageOutput(files={}).save(Path(spec.output_folder))

run_job_main(main)
"""


@pytest.mark.long
def test_both_machines_start_again_when_memory_runs_out_on_the_second(
    line: dict[str, str], tmp_path: Path
) -> None:
    spec = two_machines(line, tmp_path)
    Path(spec.work_folder, "too_large_at_first.py").write_text(TOO_LARGE_AT_FIRST)
    with joining(spec) as second:
        heard = Heard()
        run_job("too_large_at_first", spec, report=heard)
        output, _ = second.communicate(timeout=30)
    assert "64 rows are too many; pretrain is started again" in heard.lines
    assert second.returncode == 0, output
    assert "joining pretrain, start 2" in output
    assert_nothing_is_left(spec)
