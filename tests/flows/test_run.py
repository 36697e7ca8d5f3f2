"""The command `nanochat run` as people start it: a process, a server of its own, and signals."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.e2e

NUM_STEPS = 3_000
"""So many that training is still going on when the signal comes."""


class Command:
    """`nanochat run tiny` on a little text; all its processes share one PREFECT_HOME."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, folder / "store"
        self.home = str(folder / "prefect")
        self.text = folder / "text.txt"
        self.text.write_text(
            "\n\n".join(
                f"Paragraph {i} tells what {i * 7} and {i * 13} have in common, in {i} words."
                for i in range(2_000)
            )
        )

    def start(self, *options: str) -> subprocess.Popen[str]:
        arguments = ["run", "tiny", "--store", str(self.store), "--source", str(self.text)]
        settings = ["--set", "tokenizer.vocab_size=300", "--set", "pretrain.data.max_epochs=1000"]
        return subprocess.Popen(
            [sys.executable, "-m", "flows.cli", *arguments, *settings, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, "PREFECT_HOME": self.home},
        )

    def run(self, *options: str) -> tuple[int, str, float]:
        start = time.monotonic()
        with self.start(*options) as process:
            output, _ = process.communicate(timeout=120)
        return process.returncode, output, time.monotonic() - start

    def processes(self) -> list[int]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("PREFECT_HOME") == self.home:
                    found.append(process.pid)
            except psutil.Error:
                continue
        return found

    def checkpoints(self) -> set[Path]:
        return set(self.store.glob("inprogress/pretrain/*/*/work/checkpoints/*/manifest.json"))


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    made = Command(tmp_path_factory.mktemp("run"))
    yield made
    for pid in made.processes():
        psutil.Process(pid).kill()


def test_the_second_run_finds_everything_and_leaves_no_process(command: Command) -> None:
    code, output, _ = command.run("--stop-after", "tokens")
    assert code == 0, output
    assert output.count(" made in ") == 3
    code, output, seconds = command.run("--stop-after", "tokens")
    assert code == 0, output
    assert output.count(" cached in ") == 3
    assert seconds < 15
    assert command.processes() == []


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_signal_during_training_leaves_a_checkpoint_and_no_process(
    command: Command, number: signal.Signals, code: int
) -> None:
    before = command.checkpoints()
    # A number of steps of its own: nothing to resume from.
    steps = f"pretrain.num_iterations={NUM_STEPS + number}"
    with command.start("--set", steps, "--stop-after", "pretrain") as process:
        deadline = time.monotonic() + 60
        while command.checkpoints() == before:
            assert time.monotonic() < deadline, "no checkpoint was written"
            time.sleep(0.05)
        start = time.monotonic()
        # As a terminal does on Ctrl-C, and an unfriendly machine when memory is short.
        os.killpg(process.pid, number)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == code, output
    assert ("run the same command again" in output) == (number != signal.SIGKILL)
    while command.processes():
        assert time.monotonic() - start < 15, "a process was left"
        time.sleep(0.05)
    assert command.checkpoints() - before
    assert not (command.store / "pretrain").exists()
