"""One stage made by two hosts that share a bucket and a Prefect server, and nothing else."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from counting_host import count
from counting_trainer import state_after
from prefect import flow
from prefect.settings import PREFECT_API_URL
from s3_server import S3Server, with_s3

from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import ArtifactRef
from nanochat_core.config.base import Recipe
from nanochat_core.config.execution import Execution
from nanochat_core.config.job import StageOutput
from nanochat_core.errors import ConfigError
from tasks.listening import Listener
from tasks.stage import Run, StageCall, StageWork, stage
from tasks.stored_work import whole_steps

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("prefect_server")]
NUM_STEPS, TTL = 40, 3.0


class Host:
    """`counting_host.py` as a process with a cache folder of its own."""

    def __init__(self, server: S3Server, url: str, cache: Path, seconds: float) -> None:
        self.cache, self.log = cache, cache.with_suffix(".log")
        script = Path(__file__).with_name("counting_host.py")
        arguments = [url, str(cache), str(TTL), str(NUM_STEPS), str(seconds)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(script), *arguments],
                stdout=log,
                stderr=log,
                env={
                    **with_s3(os.environ, server),
                    "PREFECT_API_URL": str(PREFECT_API_URL.value()),
                },
                start_new_session=True,
            )

    def end(self) -> str:
        """What it has said until its end."""
        self.process.wait(60)
        return self.log.read_text()

    def newest_step(self) -> int:
        """The newest whole step on this host."""
        found = [whole_steps(path) for path in self.cache.rglob("checkpoints")]
        return max((step_of(path.name) for paths in found for path in paths), default=0)


@pytest.fixture
def ended() -> Iterator[list[Host]]:
    """Hosts that end with the test, however it ends."""
    hosts: list[Host] = []
    yield hosts
    for each in hosts:
        each.process.send_signal(signal.SIGCONT)
        each.process.kill()
        each.process.wait()


def step_of(name: str) -> int:
    return int(name.split("-")[1])


def store_of(url: str, cache: Path) -> ArtifactStore:
    return ArtifactStore(url, cache_folder=cache, lease_seconds=TTL)


def steps_in_store(store: ArtifactStore) -> list[int]:
    parts = [path.split("/") for path in store.files.infos("inprogress")]
    return sorted(step_of(path[-2]) for path in parts if path[-1] == "manifest.json")


def wait_until(condition: Callable[[], bool], host: Host, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert host.process.poll() is None, host.end()
        assert time.monotonic() < deadline, host.log.read_text()
        time.sleep(0.05)


def made_text(store: ArtifactStore, ref: ArtifactRef | None) -> str:
    assert ref is not None
    return (store.materialize(ref) / "state.txt").read_text()


@pytest.mark.s3
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_another_host_goes_on_where_the_first_one_ended(
    s3_server: S3Server, s3_url: str, tmp_path: Path, number: signal.Signals, ended: list[Host]
) -> None:
    first = Host(s3_server, s3_url, tmp_path / "a", 0.3)
    ended.append(first)
    store = store_of(s3_url, tmp_path / "b")
    wait_until(lambda: any(step >= 3 for step in steps_in_store(store)), first)
    first.process.send_signal(number)
    said = first.end()
    left = steps_in_store(store)[-1]
    if number == signal.SIGINT:
        assert left == first.newest_step(), said
    record = count(store, NUM_STEPS, 0.0)
    assert record.state == "resumed"
    assert record.metrics["started_at"] == left
    assert made_text(store, record.ref) == state_after(NUM_STEPS)
    assert store.files.infos("inprogress") == {}
    again = store_of(s3_url, tmp_path / "a")
    assert count(again, NUM_STEPS, 0.0).state == "cached"
    assert list(tmp_path.glob("a/*/inprogress/counting/*")) == []


@pytest.mark.s3
def test_a_host_that_was_frozen_publishes_nothing_and_leaves_nothing_whole(
    s3_server: S3Server, s3_url: str, tmp_path: Path, ended: list[Host]
) -> None:
    first = Host(s3_server, s3_url, tmp_path / "a", 0.3)
    ended.append(first)
    store = store_of(s3_url, tmp_path / "b")
    wait_until(lambda: bool(steps_in_store(store)), first)
    first.process.send_signal(signal.SIGSTOP)
    record = count(store, NUM_STEPS, 0.0)
    assert record.state == "resumed"
    first.process.send_signal(signal.SIGCONT)
    said = first.end()
    assert first.process.returncode != 0
    assert "LeaseLostError" in said
    assert "was taken over by process" in said
    assert steps_in_store(store) == []
    assert record.ref is not None
    assert [ref.manifest for ref in store.list("counting")] == [1]
    assert made_text(store, record.ref) == state_after(NUM_STEPS)


class HalfRecipe(Recipe):
    word: str = "a"


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_a_forced_stage_that_was_interrupted_resumes(tmp_path: Path, kind: str) -> None:
    url = str(tmp_path / "store") if kind == "local" else f"memory://{uuid4().hex}"
    store = ArtifactStore(url, cache_folder=tmp_path / "cache")
    found: list[list[str]] = []
    fails = [False]

    @stage("half", code_version=1)
    def half(work: StageWork) -> StageOutput:
        found.append([path.name for path in work.work.iterdir()])
        (work.work / "progress").touch()
        if fails[0]:
            raise ConfigError("stopped half-way")
        (work.output / "word.txt").write_text("a")
        return StageOutput(files={"word.txt": "result"})

    def make(*, force: bool, fail: bool) -> str:
        fails[0] = fail
        run = Run(store, Listener())

        @flow
        def alone() -> ArtifactRef:
            return half(StageCall(run, HalfRecipe(), Execution(), force=force), {})

        if fail:
            with pytest.raises(ConfigError, match="half-way"):
                alone()
        else:
            alone()
        return run.records["half"].state

    make(force=False, fail=True)
    # Nothing is published yet, so what is there may be of a run that nobody has forced.
    make(force=True, fail=True)
    assert make(force=False, fail=False) == "resumed"
    make(force=True, fail=True)
    assert make(force=True, fail=False) == "resumed"
    assert found == [[], [], ["progress"], [], ["progress"]]
    assert make(force=True, fail=False) == "made"
    assert [ref.manifest for ref in store.list()] == [3]
    assert make(force=False, fail=False) == "cached"
