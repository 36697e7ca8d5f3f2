"""A rank that hangs or dies ends the job, with an error that says so, within the stated time."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from host_tools import (
    FirstHost,
    Heard,
    environment,
    free_port,
    rank_process,
    steps_done,
    wait_for,
)

from flows.by_hand.folders import newest_step
from nanochat_core import supervise
from nanochat_core.config.job import ERROR_FILE, LOG_FILE, JobSpec
from nanochat_core.errors import (
    ConfigError,
    DataError,
    JobLostError,
    JobStoppedError,
    NanochatError,
    RanksLostError,
)
from nanochat_core.jobs.common import EXIT_TOLD, JOIN_SPARE_SECONDS
from nanochat_core.jobs.error_file import write_error
from tasks.torchrun import mark_of, run_job, written_error
from tests.jobs.job_tools import PRETRAIN, make_line, make_spec

pytestmark = [pytest.mark.distributed, pytest.mark.xdist_group("hung_ranks")]

TIMEOUT_SECONDS, GRACE_SECONDS = 6.0, 2.0
"""Two ranks that start on a busy machine may be seconds apart."""
STATED_SECONDS = TIMEOUT_SECONDS + 2 * GRACE_SECONDS + 10
"""As the head of tasks/torchrun.py states it."""

MANY_EPOCHS = PRETRAIN.data.model_copy(update={"max_epochs": 1e6})
ONE_RANK_FAILS = """
from nanochat_core.distributed.collectives import barrier
from nanochat_core.errors import DataError
from nanochat_core.jobs.common import run_job_main

def main(spec, ranks, stop):
    barrier(ranks)
    if ranks.rank == 1:
        raise DataError("the text is no text")
    barrier(ranks)

run_job_main(main)
"""


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_line(tmp_path_factory.mktemp("line"))


def make_job(line: dict[str, str], folder: Path) -> JobSpec:
    """Two ranks that would train for minutes."""
    return make_spec(
        PRETRAIN.model_copy(update={"num_iterations": 5_000, "data": MANY_EPOCHS}),
        line,
        folder,
        station="pretrain",
        ranks=2,
        collective_timeout_seconds=TIMEOUT_SECONDS,
        grace_seconds=GRACE_SECONDS,
    )


def start(line: dict[str, str], folder: Path) -> FirstHost:
    """The job after its first steps."""
    spec = make_job(line, folder)
    job = FirstHost(spec)
    wait_for(lambda: steps_done(spec) >= 3 or job.error is not None, "the third step")
    assert job.error is None, job.error
    return job


def assert_ended_in_time(job: FirstHost, started: float) -> None:
    job.wait()
    assert time.monotonic() - started < STATED_SECONDS
    assert isinstance(job.error, RanksLostError), repr(job.error)
    assert supervise.marked_processes(mark_of(job.spec)) == []
    assert "run again to go on from the last checkpoint" in str(job.error)
    assert "the last lines of" in str(job.error)


def test_a_rank_that_hangs_ends_the_job_with_a_typed_error_in_time(
    line: dict[str, str], tmp_path: Path
) -> None:
    job = start(line, tmp_path)
    rank_process(mark_of(job.spec), 0).send_signal(signal.SIGSTOP)
    assert_ended_in_time(job, time.monotonic())
    assert "rank 1 has lost another rank" in str(job.error)
    assert f"did not answer for {TIMEOUT_SECONDS:g} s" in str(job.error)


def test_a_rank_that_is_killed_ends_the_job_with_a_typed_error_in_time(
    line: dict[str, str], tmp_path: Path
) -> None:
    job = start(line, tmp_path)
    rank_process(mark_of(job.spec), 1).kill()
    assert_ended_in_time(job, time.monotonic())


def test_a_killed_torchrun_is_a_lost_job_whose_ranks_have_saved(
    line: dict[str, str], tmp_path: Path
) -> None:
    job = start(line, tmp_path)
    torchrun = rank_process(mark_of(job.spec), 0).parent()
    assert torchrun is not None
    torchrun.kill()
    job.wait()
    assert type(job.error) is JobLostError, repr(job.error)
    assert supervise.marked_processes(mark_of(job.spec)) == []
    assert newest_step(Path(job.spec.work_folder)) == steps_done(job.spec)
    assert not (Path(job.spec.work_folder) / ERROR_FILE).exists()


def test_the_mistake_of_one_rank_is_told_and_not_that_the_others_lost_it(
    line: dict[str, str], tmp_path: Path
) -> None:
    spec = make_job(line, tmp_path)
    Path(spec.work_folder, "one_rank_fails.py").write_text(ONE_RANK_FAILS)
    with pytest.raises(DataError, match="the text is no text"):
        run_job("one_rank_fails", spec, report=Heard())
    log = Path(spec.work_folder, LOG_FILE).read_text()
    assert "RanksLostError: rank 0 has lost another rank" in log, "rank 0 had its say, too"


@pytest.mark.parametrize("late", [RanksLostError("a"), JobStoppedError("b")])
def test_what_follows_from_an_error_never_replaces_it(tmp_path: Path, late: NanochatError) -> None:
    write_error(tmp_path, late)
    assert json.loads((tmp_path / ERROR_FILE).read_bytes())["type"] == type(late).__name__
    write_error(tmp_path, ConfigError("the cause"))
    write_error(tmp_path, late)
    body = json.loads((tmp_path / ERROR_FILE).read_bytes())
    assert body == {"type": "ConfigError", "message": "the cause"}
    assert [path.name for path in tmp_path.iterdir()] == [ERROR_FILE]


def test_a_rank_that_nobody_joins_gives_up_in_time(tmp_path: Path) -> None:
    """As when a machine dies between the meeting and the first collective."""
    spec = make_spec(
        PRETRAIN, {}, tmp_path, station="pretrain", collective_timeout_seconds=1.0, ranks=2
    )
    spec.save(tmp_path / "job.json")
    alone = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-m", "nanochat_core.jobs.pretrain", str(tmp_path / "job.json")]
    started = time.monotonic()
    process = subprocess.run(command, env={**environment(), **alone, **place}, check=False)
    assert process.returncode == EXIT_TOLD
    assert time.monotonic() - started < 1.0 + JOIN_SPARE_SECONDS + 20
    error = written_error(Path(spec.work_folder) / ERROR_FILE)
    assert isinstance(error, RanksLostError)
    assert "did not answer for 1 s" in str(error)
