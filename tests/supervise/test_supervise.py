"""The supervisor, with real processes: nothing that it started may outlive its reason to run."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from nanochat_core import supervise

# Says where it is, saves on SIGTERM, would otherwise run for a minute.
POLITE = """
import os, signal, sys, time
def save(*_):
    open(sys.argv[1] + ".saved", "w").close()
    sys.exit(1)  # as torchrun does
signal.signal(signal.SIGTERM, save)
print("line from the job", flush=True)
open(sys.argv[1], "w").write(str(os.getpid()))
time.sleep(60)
"""
DEAF = POLITE.replace("signal.signal(signal.SIGTERM, save)", "signal.signal(signal.SIGTERM, 1)")
# Like torchrun: the rank gets a session of its own, which no signal to the group reaches.
LAUNCHER = f"""
import subprocess, sys
rank = subprocess.Popen([sys.executable, "-c", {POLITE!r}, sys.argv[1]], start_new_session=True)
open(sys.argv[1] + ".launcher", "w").write(str(__import__("os").getpid()))
rank.wait()
"""


def wait_for(condition: Callable[[], bool], seconds: float = 8.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def read_pid(path: Path) -> int:
    wait_for(lambda: path.exists() and path.read_text() != "")
    return int(path.read_text())


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Started:
    def __init__(self, folder: Path, script: str, grace_seconds: float) -> None:
        self.pid_file, self.log, self.mark = folder / "pid", folder / "log", str(folder)
        command = [sys.executable, "-c", script, str(self.pid_file)]
        self.process = subprocess.Popen(
            supervise.command_line(
                command, log=self.log, grace_seconds=grace_seconds, mark=self.mark
            ),
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        self.job_pid = read_pid(self.pid_file)

    @property
    def saved(self) -> bool:
        return self.pid_file.with_suffix(".saved").exists()

    def close_stdin(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Started]]:
    started: list[Started] = []

    def _start(script: str, grace_seconds: float = 5.0) -> Started:
        started.append(Started(tmp_path, script, grace_seconds))
        return started[-1]

    yield _start
    for one in started:
        one.close_stdin()
        one.process.kill()
        one.process.wait()
        supervise.end_marked(one.mark, 0.0)


def run_to_the_end(tmp_path: Path, script: str) -> tuple[int, str]:
    log = tmp_path / "log"
    command = supervise.command_line(
        [sys.executable, "-c", script], log=log, grace_seconds=1.0, mark=str(tmp_path)
    )
    with subprocess.Popen(command, stdin=subprocess.PIPE) as supervisor:
        code = supervisor.wait(20)
    return code, log.read_text()


def test_the_end_of_stdin_lets_the_job_save_and_end(start: Callable[..., Started]) -> None:
    running = start(POLITE)
    running.close_stdin()
    assert running.process.wait(8) == 143
    assert running.saved
    assert not is_alive(running.job_pid)
    assert "line from the job" in running.log.read_text()
    assert "the parent is gone" in running.log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_supervisor_is_passed_on(
    start: Callable[..., Started], number: signal.Signals
) -> None:
    running = start(POLITE)
    running.process.send_signal(number)
    assert running.process.wait(8) == 143
    assert running.saved


def test_a_job_that_ignores_the_request_is_killed_after_the_grace(
    start: Callable[..., Started],
) -> None:
    running = start(DEAF, grace_seconds=0.3)
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(8) == 143
    assert not is_alive(running.job_pid)


def test_a_rank_in_its_own_session_ends_when_its_launcher_is_killed(
    start: Callable[..., Started],
) -> None:
    running = start(LAUNCHER)
    os.kill(read_pid(running.pid_file.with_suffix(".launcher")), signal.SIGKILL)
    assert running.process.wait(8) == 128 + signal.SIGKILL
    assert running.saved
    assert not is_alive(running.job_pid)
    assert "ended 1 process(es)" in running.log.read_text()


def test_a_killed_parent_takes_the_job_with_it(tmp_path: Path) -> None:
    command = supervise.command_line(
        [sys.executable, "-c", POLITE, str(tmp_path / "pid")],
        log=tmp_path / "log",
        grace_seconds=5.0,
        mark=str(tmp_path),
    )
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys; "
            "subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, start_new_session=True).wait()",
            *command,
        ]
    )
    job_pid = read_pid(tmp_path / "pid")
    parent.kill()
    parent.wait()
    wait_for(lambda: not is_alive(job_pid))
    assert (tmp_path / "pid.saved").exists()


def test_what_a_killed_supervisor_leaves_is_found_by_its_mark(
    start: Callable[..., Started],
) -> None:
    running = start(POLITE)
    running.process.kill()
    running.process.wait()
    assert [process.pid for process in supervise.marked_processes(running.mark)] == [
        running.job_pid
    ]
    assert supervise.end_marked(running.mark, 5.0) == 1
    assert running.saved
    # A process that is being torn down by the kernel has lost its environment already.
    wait_for(lambda: not is_alive(running.job_pid))


def test_the_job_knows_its_supervisor(tmp_path: Path) -> None:
    script = "import os; print(os.environ['NANOCHAT_SUPERVISOR_PID'] == str(os.getppid()))"
    assert run_to_the_end(tmp_path, script) == (0, "True\n")


@pytest.mark.parametrize(
    ("script", "code"),
    [("raise SystemExit(2)", 2), ("import os; os.kill(os.getpid(), 9)", 137)],
)
def test_the_exit_code_is_that_of_the_job(tmp_path: Path, script: str, code: int) -> None:
    assert run_to_the_end(tmp_path, script)[0] == code


def test_supervising_needs_neither_torch_nor_prefect() -> None:
    script = (
        "import sys, nanochat_core.supervise; "
        "raise SystemExit(bool({'torch', 'prefect'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
