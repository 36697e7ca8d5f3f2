"""Stages against a real Prefect server and a real store, with a toy station of a few bytes."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect import flow

from nanochat_core import supervise
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import ArtifactRef
from nanochat_core.config.base import Recipe
from nanochat_core.config.execution import Execution
from nanochat_core.config.job import StageOutput
from nanochat_core.errors import ConfigError, JobLostError, StoreUnavailableError
from tasks.listening import Listener
from tasks.release import release
from tasks.stage import Run, Stage, StageCall, StageWork, disk_errors_told, stage
from tasks.torchrun import run_supervised

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("prefect_server")]


class ToyRecipe(Recipe):
    word: str = "a"
    note: str = ""


class Toy:
    """Two stations: `first` writes a word, `second` copies it; both count how often they ran."""

    def __init__(self, folder: Path) -> None:
        self.store = ArtifactStore(str(folder / "store"))
        self.made: list[str] = []
        self.first = stage("first", code_version=1)(self._first)
        self.second = stage("second", code_version=1)(self._second)

    def _first(self, work: StageWork) -> StageOutput:
        self.made.append("first")
        (work.output / "word.txt").write_text(work.recipe.model_dump()["word"])
        return StageOutput(files={"word.txt": "result"}, metrics={"letters": 1})

    def _second(self, work: StageWork) -> StageOutput:
        self.made.append("second")
        text = (work.inputs["first"] / "word.txt").read_text()
        (work.output / "copy.txt").write_text(text)
        return StageOutput(files={"copy.txt": "result"})

    def line(self, recipe: ToyRecipe | None = None, force: tuple[str, ...] = ()) -> Run:
        run = Run(self.store, Listener())
        recipe = recipe or ToyRecipe()

        @flow
        def toy_line() -> ArtifactRef:
            first = self.first(StageCall(run, recipe, Execution(), force="first" in force), {})
            call = StageCall(run, ToyRecipe(), Execution(), force="second" in force)
            return self.second(call, {"first": first})

        toy_line()
        return run


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path)


def states(run: Run) -> dict[str, str]:
    return {name: record.state for name, record in run.records.items()}


def test_the_second_time_every_stage_is_cached(toy: Toy) -> None:
    made = toy.line()
    again = toy.line()
    assert states(made) == {"first": "made", "second": "made"}
    assert states(again) == {"first": "cached", "second": "cached"}
    assert toy.made == ["first", "second"]
    assert again.records["second"].ref == made.records["second"].ref
    assert again.records["first"].metrics == {"letters": 1}


def test_a_forced_stage_with_an_unchanged_result_leaves_what_follows_cached(toy: Toy) -> None:
    toy.line()
    run = toy.line(force=("first",))
    assert states(run) == {"first": "made", "second": "cached"}
    assert toy.made == ["first", "second", "first"]
    assert run.records["first"].ref is not None
    assert run.records["first"].ref.manifest == 2


def test_another_recipe_with_the_same_result_leaves_what_follows_cached(toy: Toy) -> None:
    toy.line()
    assert states(toy.line(ToyRecipe(note="other"))) == {"first": "made", "second": "cached"}
    assert states(toy.line(ToyRecipe(word="b"))) == {"first": "made", "second": "made"}


def test_a_damaged_artifact_is_made_again_and_what_follows_stays(toy: Toy) -> None:
    run = toy.line()
    ref = run.records["first"].ref
    assert ref is not None
    path = toy.store.materialize(ref) / "word.txt"
    path.chmod(0o644)
    path.write_text("X")
    assert states(toy.line()) == {"first": "made", "second": "cached"}
    assert toy.made == ["first", "second", "first"]


def call_alone(made: Stage, run: Run, execution: Execution | None = None) -> ArtifactRef:
    @flow
    def alone() -> ArtifactRef:
        return made(StageCall(run, ToyRecipe(), execution or Execution()), {})

    return alone()


def test_a_mistake_of_the_user_is_not_tried_again(toy: Toy) -> None:
    tries = []

    @stage("mistaken", code_version=1, retries=2)
    def mistaken(work: StageWork) -> StageOutput:
        tries.append(1)
        raise ConfigError("no good")

    run = Run(toy.store, Listener())
    with pytest.raises(ConfigError, match="no good"):
        call_alone(mistaken, run)
    assert len(tries) == 1
    assert run.records["mistaken"].state == "failed"
    assert run.records["mistaken"].message == "no good"


# Counts its lives in a file: killed twice, it ends well in the third.
MORTAL = """
import os, pathlib, signal, sys
lives = pathlib.Path("lives")
lives.write_text((lives.read_text() if lives.exists() else "") + "x")
if len(lives.read_text()) <= int(sys.argv[2]):
    os.kill(os.getpid(), signal.SIGKILL)
output = pathlib.Path(sys.argv[1])
(output / "lives.txt").write_text(lives.read_text())
(output / "outputs.json").write_text('{"files": {"lives.txt": "result"}}')
"""


def mortal_stage(deaths: int) -> Stage:
    @stage("mortal", code_version=1, retries=2)
    def mortal(work: StageWork) -> StageOutput:
        command = [sys.executable, "-c", MORTAL, str(work.output), str(deaths)]
        return run_supervised(command, work.job_spec(), report=work.report)

    return mortal


def test_a_lost_job_is_started_again_in_the_same_folder(toy: Toy) -> None:
    run = Run(toy.store, Listener())
    ref = call_alone(mortal_stage(deaths=2), run)
    assert (toy.store.materialize(ref) / "lives.txt").read_text() == "xxx"
    assert run.records["mortal"].state == "resumed"


def test_a_job_that_is_lost_three_times_is_given_up_and_kept_for_the_next_run(toy: Toy) -> None:
    run = Run(toy.store, Listener())
    with pytest.raises(JobLostError, match="exit code 137"):
        call_alone(mortal_stage(deaths=3), run)
    assert toy.store.list() == []
    ref = call_alone(mortal_stage(deaths=3), Run(toy.store, Listener()))
    assert (toy.store.materialize(ref) / "lives.txt").read_text() == "xxxx"


PATIENT = """
import pathlib, signal, sys, time
def save(*_):
    pathlib.Path("saved").touch()
    sys.exit(1)
signal.signal(signal.SIGTERM, save)
pathlib.Path("ready").touch()
time.sleep(60)
"""


@pytest.fixture
def sigterm_survived() -> Iterator[None]:
    """Prefect, once it has cleaned up, hands SIGTERM on to the handler that was there before."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_flow_reaches_the_child_in_time_to_save(
    toy: Toy, number: signal.Signals, sigterm_survived: None
) -> None:
    folders: list[Path] = []

    @stage("patient", code_version=1, retries=2)
    def patient(work: StageWork) -> StageOutput:
        folders.append(work.work)
        command = [sys.executable, "-c", PATIENT]
        return run_supervised(command, work.job_spec(), report=work.report)

    def send_when_ready() -> None:
        while not (folders and (folders[0] / "ready").exists()):
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send_when_ready)
    thread.start()
    run = Run(toy.store, Listener())
    with pytest.raises(BaseException) as caught:  # noqa: PT011  two kinds, neither an Exception
        call_alone(patient, run, Execution(grace_seconds=5.0))
    thread.join()
    assert not isinstance(caught.value, Exception)
    assert (folders[0] / "saved").exists()
    assert len(folders) == 1
    assert supervise.marked_processes(str(folders[0].resolve())) == []
    assert run.records["patient"].state == "stopped"


def test_releasing_twice_moves_the_names_once(toy: Toy) -> None:
    ref = toy.line().records["second"].ref
    assert ref is not None
    runs = [Run(toy.store, Listener()) for _ in range(2)]

    @flow
    def let_go(run: Any) -> ArtifactRef:
        return release(run, "demo", ref)

    assert [let_go(run) for run in runs] == [ref, ref]
    assert [run.records["release"].state for run in runs] == ["made", "cached"]
    assert toy.store.aliases() == {"demo": ref, "latest": ref}


def test_a_full_disk_is_one_clear_error(toy: Toy) -> None:
    with (
        pytest.raises(StoreUnavailableError, match="free some space"),
        disk_errors_told(toy.store),
    ):
        raise OSError(28, "No space left on device", "/somewhere")


def test_every_stage_hears_who_listens(toy: Toy) -> None:
    heard: list[str] = []

    class Ear(Listener):
        def started(self, station: str) -> None:
            heard.append(f"started {station}")

        def ended(self, record: Any) -> None:
            heard.append(f"ended {record.station} {record.state}")

    call_alone(toy.first, Run(toy.store, Ear()))
    assert heard == ["started first", "ended first made"]


def test_two_runs_at_once_do_not_make_the_same_thing_twice(
    toy: Toy, tmp_path: Path, wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    held = subprocess.Popen(
        [sys.executable, "-c", HOLD, toy.store.url, str(tmp_path / "held")], stdin=subprocess.PIPE
    )
    wait_until((tmp_path / "held").exists)
    call = StageCall(Run(toy.store, Listener()), ToyRecipe(), Execution())
    with pytest.raises(Exception, match=str(held.pid)):
        call_alone(toy.first, call.run)
    held.communicate()


HOLD = """
import pathlib, sys
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import Request
request = Request(
    station="first", code_version=1, recipe={"word": "a", "note": ""}, inputs={}
)
with ArtifactStore(sys.argv[1]).lock("first", request.fingerprint):
    pathlib.Path(sys.argv[2]).touch()
    sys.stdin.read()
"""


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], None]:
    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    return wait
