"""What people see of a sweep."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from flows.sweeps.listening import Recorder, SweepListener, Told, sweep_listener
from flows.sweeps.side_by_side import with_log
from flows.sweeps.view import LiveSweepView, PlainSweepView, make_sweep_view
from tasks.listening import Listener, StageRecord, listening


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def record(station: str, state: str, **metrics: float) -> StageRecord:
    return StageRecord.model_validate(
        {"station": station, "state": state, "seconds": 2.5, "metrics": metrics}
    )


def make_two_points(view: SweepListener, clock: Clock) -> None:
    view.sweep_planned(2, "2 points", 40.0)
    view.point_started("depth=1")
    recorder = Recorder(view)
    recorder.planned(("shards", "pretrain"))
    recorder.started("shards")
    recorder.ended(record("shards", "cached"))
    recorder.started("pretrain")
    for _ in range(3):
        clock.now += 5
        recorder.progressed("pretrain", int(clock.now - 100), 30, "steps", "")
    recorder.ended(record("pretrain", "made", **{"val/bpb": 2.5}))
    view.point_ended(Told("depth=1", 15.0, recorder.records, seconds_left=22.0))
    view.point_started("depth=2")
    view.point_ended(Told("depth=2", 3.0, error="no memory\nand more"))


def test_away_from_a_terminal_there_are_lines_of_points_and_of_stages_with_work() -> None:
    output, clock = io.StringIO(), Clock()
    make_two_points(PlainSweepView(output, clock), clock)
    assert output.getvalue().splitlines() == [
        "2 points; about 40 s",
        "[1/2] depth=1",
        "pretrain       started",
        "pretrain       15 of 30 steps (50%, about 15 s left)",
        "pretrain       made in 2.5 s  val/bpb 2.5",
        "[1/2] depth=1  made in 15 s  val/bpb 2.5; about 22 s left",
        "[2/2] depth=2  failed in 3.0 s  no memory",
    ]


def test_on_a_terminal_the_table_is_of_the_point_under_way() -> None:
    output, clock = io.StringIO(), Clock()
    console = Console(file=output, force_terminal=True, width=100, color_system=None)
    view = LiveSweepView(console, clock)
    console.print(view.table())
    assert "looking at what is there" in output.getvalue()
    view.sweep_planned(2, "2 points", 40.0)
    view.point_started("depth=2")
    view.planned(("shards", "pretrain"))
    view.started("pretrain")
    console.print(view.table())
    shown = output.getvalue()
    assert "[1/2] depth=2\n" in shown
    assert "waiting" in shown
    view.point_ended(Told("depth=2", 15.0, {"pretrain": record("pretrain", "made")}))
    assert "[1/2] depth=2  made in 15 s" in output.getvalue()
    assert view.table().renderables == []


def test_points_side_by_side_have_a_row_each() -> None:
    output, clock = io.StringIO(), Clock()
    console = Console(file=output, force_terminal=True, width=100, color_system=None)
    view = LiveSweepView(console, clock)
    view.sweep_planned(2, "2 points", None)
    for label in ("depth=1", "depth=2"):
        view.point_started_aside(label, "/tmp/log")
    view.point_progressed("depth=2", 15, 30, "steps", "pretrain")
    console.print(view.table())
    assert "side by side" in output.getvalue()
    assert "50%" in output.getvalue()
    view.point_ended(Told("depth=2", 15.0, error="lost"))
    console.print(view.table())
    rest = output.getvalue().partition("failed in 15 s  lost")[2]
    assert "depth=1" in rest
    assert "depth=2" not in rest


@pytest.mark.parametrize("is_live", [False, True])
def test_the_line_of_a_point_that_failed_elsewhere_says_where_its_log_is(is_live: bool) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=100, color_system=None)
    view = LiveSweepView(console) if is_live else PlainSweepView(output)
    view.sweep_planned(1, "1 point", None)
    view.point_started_aside("depth=1", "elsewhere")
    error = with_log("no memory\nand more", Path("/tmp/000/log"))
    view.point_ended(Told("depth=1", 3.0, error=error))
    assert "failed in 3.0 s  no memory (log: /tmp/000/log)\n" in output.getvalue()
    assert error.endswith("\nand more")


def test_how_a_point_went_follows_from_its_stages() -> None:
    cached, made, resumed = (record("pretrain", state) for state in ("cached", "made", "resumed"))
    assert Told("x", 1.0, {"a": cached}).state == "cached"
    assert Told("x", 1.0, {"a": cached, "b": made}).state == "made"
    assert Told("x", 1.0, {"a": made, "b": resumed}).state == "resumed"
    assert Told("x", 1.0, {"a": cached}, "lost").state == "failed"


def test_who_knows_nothing_of_sweeps_is_told_nothing_of_points() -> None:
    with listening(Listener()):
        sweep_listener().point_started("depth=1")
    view = PlainSweepView(io.StringIO())
    with listening(view):
        assert sweep_listener() is view
    assert isinstance(make_sweep_view(io.StringIO()), PlainSweepView)
