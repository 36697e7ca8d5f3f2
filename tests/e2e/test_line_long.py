"""The whole matrix: three kinds of kill at five random moments each, and once each on the demo."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from line_tools import (
    END,
    JOB_STATIONS,
    KINDS,
    STATIONS,
    TRAINED,
    Line,
    Moment,
    Uninterrupted,
    check_store_is_sound,
    flip_file,
    random_moment,
    states,
    tell,
)

pytestmark = [pytest.mark.long, pytest.mark.timeout(1_800)]

EVERY_STEP = tuple(word for name in TRAINED for word in ("--set", f"{name}.checkpoint_every=1"))
MOMENTS = ("any 1", "any 2", "any 3", "checkpointing", "publishing")


def kill_and_run_again(
    uninterrupted: Uninterrupted, folder: Path, kind: str, moment: Moment, *options: str
) -> None:
    """Kill at the moment, run again; all that is made is as if nothing had been killed."""
    line = uninterrupted.line.copy_until(moment.station, folder)
    first = line.start(*options)
    assert moment.wait(line, first), first.output
    assert first.wait_for(lambda: first.kill(kind), 60), first.output
    # A lost trainer is started again by the run that has lost it.
    assert first.wait(1_200) == (0 if kind == "trainer" else -signal.SIGKILL), first.output
    check_store_is_sound(line)
    second = line.run(*options, seconds=1_200)
    first.seconds_until_gone()
    assert "Traceback" not in first.output + second.output
    assert set(states(second.output)) == {*STATIONS, "release"}
    check_store_is_sound(line)
    assert line.digests() == uninterrupted.digests
    # What a kill during publishing leaves is swept by the next run that finds the artifact.
    line.run(*options)
    assert list(line.store_folder.glob("inprogress/*/*")) == []
    named = {f"{line.store.manifest(ref).attempt}" for ref in line.store.list()}
    assert {path.name for path in line.store_folder.glob("*/*/2*-*")} == named


@pytest.mark.parametrize("when", MOMENTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_anywhere_changes_nothing(
    uninterrupted: Uninterrupted, tmp_path: Path, kind: str, when: str
) -> None:
    seed = int.from_bytes(os.urandom(4))
    stations = JOB_STATIONS if kind == "trainer" else STATIONS
    moment = random_moment(random.Random(seed), uninterrupted.seconds, stations, when.split()[0])
    tell(f"seed {seed}: {kind} killed {moment}")
    kill_and_run_again(uninterrupted, tmp_path, kind, moment, *EVERY_STEP)


def test_the_demo_keeps_its_promises(uninterrupted_demo: Uninterrupted) -> None:
    line = uninterrupted_demo.line
    numbers = {ref.station: line.store.manifest(ref).metrics for ref in line.store.list()}
    assert float(numbers["base_eval"]["val/bpb"]) <= 1.6
    assert numbers["chat_eval_sft"]["identity/asked"] == 30
    assert int(numbers["chat_eval_sft"]["identity/right"]) >= 24
    before, after = numbers["chat_eval_sft"], numbers["chat_eval_rl"]
    assert float(after["sums"]) - float(before["sums"]) >= 0.1
    assert sum(uninterrupted_demo.seconds.values()) <= 10 * 60
    start = time.monotonic()
    second = line.run()
    assert time.monotonic() - start <= 15
    assert set(states(second.output).values()) == {"cached"}
    assert second.output.count("nanochat: ") == 3
    assert "nanochat chat" in second.output.splitlines()[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_of_the_demo_changes_nothing(
    uninterrupted_demo: Uninterrupted, tmp_path: Path, kind: str
) -> None:
    seed = int.from_bytes(os.urandom(4))
    choose = random.Random(seed)
    # While it trains: all but the start and the end of the station.
    seconds = uninterrupted_demo.seconds["pretrain"] * choose.uniform(0.2, 0.9)
    moment = Moment("pretrain", seconds)
    tell(f"seed {seed}: {kind} killed {moment}")
    kill_and_run_again(uninterrupted_demo, tmp_path, kind, moment)


@pytest.mark.parametrize(
    ("place", "made"),
    [
        ("shards/*/2*/shard_00000.parquet", "shards"),
        ("tokenizer/*/2*/tokenizer.json", "tokenizer"),
        ("tokens/*/2*/shard_00001.tokens.bin", "tokens"),
        ("pretrain/*/manifest-000001.json", "pretrain"),
        ("sft/*/2*/model.safetensors", "sft"),
        ("sft/*/2*/job.log", "sft"),
        ("rl/*/2*/model.safetensors", "rl"),
        ("report/*/2*/report.md", "report"),
        ("aliases/latest.json", "release"),
    ],
)
def test_what_is_damaged_is_made_again_and_nothing_else(
    uninterrupted: Uninterrupted, tmp_path: Path, place: str, made: str
) -> None:
    line: Line = uninterrupted.line.copy_until(END, tmp_path, records=True)
    (path,) = line.store_folder.glob(place)
    flip_file(path, random.Random(4))
    second = line.run()
    assert path.relative_to(line.store_folder).as_posix() in second.output
    assert "Traceback" not in second.output
    expected = {**dict.fromkeys((*STATIONS, "release"), "cached"), made: "made"}
    # A repaired model has a new number, which the names have to learn.
    assert states(second.output) == {**expected, **({"release": "made"} if made == "rl" else {})}
    assert line.digests() == uninterrupted.digests
    chat = line.chat("-p", "Who are you?")
    assert chat.wait(60) == 0, chat.output
    verify = line.verify()
    assert verify.wait(60) == 0, verify.output
