"""Sweeps of the tiny preset: what is shared, what is made once, and what a stop or failure leaves.

A point is the run that `nanochat run tiny` with its values would be, to the last bit.
"""

import csv
import os
import re
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from line_tools import Command, Line, Uninterrupted, check_store_is_sound, states

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("tiny-line")]

POINT = re.compile(r"^\[\d+/\d+\] (.*?)  (cached|made|resumed|failed)( |$)", re.MULTILINE)
EVERY_STEP = ("--set", "pretrain.checkpoint_every=1")


@dataclass
class Sweep:
    """`nanochat run KIND` in one store."""

    line: Line
    kind: str = "miniseries"

    def start(self, *options: str) -> Command:
        store = str(self.line.store_folder)
        arguments = ["run", self.kind, "--preset", "tiny", "--store", store, *options]
        return Command(arguments, str(self.line.home))

    def run(self, *options: str, code: int = 0) -> Command:
        """Run to its end, which leaves no process."""
        command = self.start(*options)
        assert command.wait(300) == code, command.output
        command.seconds_until_gone()
        assert "Traceback" not in command.output
        return command

    def model(self, depth: int) -> str:
        """The digest of the one base model of a depth."""
        store = self.line.store
        (ref,) = [r for r in store.list("pretrain") if store.manifest(r).recipe["depth"] == depth]
        return ref.digest

    def result(self) -> Path:
        """The folder with the newest table."""
        store = self.line.store
        return store.materialize(store.resolve(self.kind))

    def rows(self) -> list[dict[str, str]]:
        """The newest table."""
        with (self.result() / "table.csv").open() as file:
            return list(csv.DictReader(file))


def went(command: Command) -> dict[str, str]:
    """Point -> how the output says that it ended."""
    return {match[1]: match[2] for match in POINT.finditer(command.output)}


@pytest.fixture(scope="module")
def series(uninterrupted: Uninterrupted, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Depths 1, 2 and 3, of which the ordinary line had made depth 2."""
    sweep = Sweep(uninterrupted.line.copy_until("sft", tmp_path_factory.mktemp("series")))
    first = sweep.run("--depths", "1,2,3")
    assert went(first) == {"depth=1": "made", "depth=2": "cached", "depth=3": "made"}
    return sweep


def fresh(uninterrupted: Uninterrupted, folder: Path, kind: str = "miniseries") -> Sweep:
    """A sweep in a store that has the data and no model."""
    return Sweep(uninterrupted.line.copy_until("pretrain", folder), kind)


def test_a_second_sweep_finds_everything_and_one_more_depth_is_one_more_model(
    series: Sweep, uninterrupted: Uninterrupted
) -> None:
    before = {ref.fingerprint for ref in series.line.store.list()}
    start = time.monotonic()
    again = series.run("--depths", "1,2,3")
    assert time.monotonic() - start < 90
    assert went(again) == dict.fromkeys(("depth=1", "depth=2", "depth=3"), "cached")
    assert {ref.fingerprint for ref in series.line.store.list()} == before
    more = series.run("--depths", "1,2,3,4")
    assert went(more) == {**went(again), "depth=4": "made"}
    new = [ref for ref in series.line.store.list() if ref.fingerprint not in before]
    assert sorted(r.station for r in new if r.station != "score") == [
        *("base_eval", "pretrain", "sweep"),
    ]
    assert series.model(2) == uninterrupted.digests["pretrain"]
    assert [row["depth"] for row in series.rows()] == ["1", "2", "3", "4"]
    assert list(series.result().glob("*.png"))
    assert series.line.store.aliases() == {"miniseries": series.line.store.list("sweep")[-1]}
    check_store_is_sound(series.line)


def test_a_point_is_what_the_ordinary_run_makes(series: Sweep) -> None:
    ordinary = series.line.run("--depth", "3", "--stop-after", "base_eval")
    assert {*states(ordinary.output).values()} == {"cached"}


def wait_for_step(sweep: Sweep, command: Command, step: int, count: int = 1) -> None:
    """Until `count` trainings have saved so many steps."""

    def are_there() -> bool:
        folders = sweep.line.checkpoint_folders("pretrain")
        far = {path.parent for path in folders if int(path.name[5:13]) >= step}
        return len(far) >= count

    assert command.wait_for(are_there, 180), command.output


def test_a_killed_depth_goes_on_when_the_command_is_run_again(
    series: Sweep, uninterrupted: Uninterrupted, tmp_path: Path
) -> None:
    sweep = fresh(uninterrupted, tmp_path)
    first = sweep.start("--depths", "3", *EVERY_STEP)
    wait_for_step(sweep, first, 5)
    assert first.kill("group"), first.output
    assert first.wait(90) == -signal.SIGKILL
    check_store_is_sound(sweep.line)
    again = sweep.run("--depths", "3", *EVERY_STEP)
    assert went(again) == {"depth=3": "resumed"}
    assert sweep.model(3) == series.model(3)


def test_a_point_that_fails_stops_no_other_and_is_said_at_the_end(
    uninterrupted: Uninterrupted, tmp_path: Path
) -> None:
    sweep = Sweep(uninterrupted.line.copy_until("sft", tmp_path), "sweep")
    # So little text has no sixty thousand merges, which only training the tokenizer tells.
    values = ("--set", "tokenizer.vocab_size=60000,512")
    command = sweep.run(*values, code=1)
    failed, made = "tokenizer.vocab_size=60000", "tokenizer.vocab_size=512"
    assert went(command) == {failed: "failed", made: "cached"}
    assert f"error: 1 of 2 points failed:\n  {failed}: " in command.output
    assert len(sweep.rows()) == 1
    # With jobs it is no different, and a sweep of which nothing was made has no table.
    assert went(sweep.run(*values, "--jobs", "2", code=1)) == went(command)
    alone = replace(sweep, line=fresh(uninterrupted, tmp_path / "alone").line)
    nothing = alone.run("--set", "tokenizer.vocab_size=60000,50000", code=1)
    assert "error: 2 of 2 points failed" in nothing.output
    assert alone.line.store.list("sweep") == []


def test_points_side_by_side_are_the_same_and_stop_together(
    series: Sweep, uninterrupted: Uninterrupted, tmp_path: Path
) -> None:
    sweep = fresh(uninterrupted, tmp_path)
    options = ("--depths", "1,3", "--jobs", "2", *EVERY_STEP)
    first = sweep.start(*options)
    wait_for_step(sweep, first, 3, count=2)
    # As a terminal does on Ctrl-C: to the whole group.
    os.killpg(first.process.pid, signal.SIGINT)
    assert first.wait(60) == 130, first.output
    first.seconds_until_gone()
    assert "run the same command again" in first.output
    assert "Traceback" not in first.output
    again = sweep.run(*options)
    assert went(again) == dict.fromkeys(("depth=1", "depth=3"), "resumed")
    assert [sweep.model(depth) for depth in (1, 3)] == [series.model(depth) for depth in (1, 3)]
    check_store_is_sound(sweep.line)


def test_lengths_share_their_beginnings_and_come_out_the_same(
    uninterrupted: Uninterrupted, tmp_path: Path
) -> None:
    decay = ("--set", "pretrain.schedule.warmdown_fraction=0.2")
    sweep = fresh(uninterrupted, tmp_path / "shared", "sweep")
    command = sweep.run("--set", "pretrain.num_iterations=20,30,40", *decay)
    assert "so 50 steps are made instead of 90" in command.output
    store = sweep.line.store
    manifests = {m.metrics["steps"]: m for m in map(store.manifest, store.list("pretrain"))}
    started = {n: m.provenance.get("started_from_step", 0) for n, m in manifests.items()}
    assert started == {16: 0, 20: 16, 24: 16, 30: 24, 40: 24}
    apart = fresh(uninterrupted, tmp_path / "apart").line
    apart.run(
        *("--set", "pretrain.num_iterations=40", *decay),
        *("--set", "pretrain.share_beginnings=false", "--stop-after", "pretrain"),
    )
    assert apart.digests()["pretrain"] == manifests[40].digest
