"""What people see of a run."""

import io
import logging

import pytest
from rich.console import Console

from flows.closing import chosen
from flows.terminal import LiveView, PlainView, StageView, make_view, summary
from flows.wording import duration, size
from tasks.listening import Listener, StageRecord


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (12.3, "12 s"), (185, "3 m 05 s"), (3599.7, "1 h 00 m"), (7800, "2 h 10 m")],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def run_a_stage(view: Listener, clock: Clock) -> None:
    view.planned(("shards", "pretrain"))
    view.started("pretrain")
    for _ in range(5):
        clock.now += 5
        view.progressed("pretrain", int(clock.now - 100) * 10, 1500, "steps", "train/loss 3.2")
    view.logged("pretrain", logging.INFO, "a detail")
    view.logged("pretrain", logging.WARNING, "a worry")
    view.ended(
        StageRecord(
            station="pretrain",
            state="made",
            seconds=150.2,
            metrics={"steps": 1500, "val/bpb": 1.51634, "train/loss": 3.1},
        )
    )


def test_away_from_a_terminal_there_is_a_line_about_every_ten_seconds() -> None:
    output, clock = io.StringIO(), Clock()
    run_a_stage(PlainView(output, clock), clock)
    assert output.getvalue().splitlines() == [
        "pretrain       started",
        "pretrain       100 of 1,500 steps (7%, about 2 m 20 s left); train/loss 3.2",
        "pretrain       200 of 1,500 steps (13%, about 2 m 10 s left); train/loss 3.2",
        "pretrain       a worry",
        "pretrain       made in 2 m 30 s  val/bpb 1.516, train/loss 3.1",
    ]


def test_on_a_terminal_there_is_a_table_of_all_stages() -> None:
    output, clock = io.StringIO(), Clock()
    console = Console(file=output, force_terminal=True, width=100, color_system=None)
    view = LiveView(console, clock)
    with view:
        run_a_stage(view, clock)
        console.print(view.table())
    text = output.getvalue()
    assert "a worry" in text
    assert "a detail" not in text
    assert "shards" in text
    assert "waiting" in text
    assert "val/bpb 1.516" in text


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_the_table_keeps_its_lines_and_leaves_room_for_an_echo_at_every_width(width: int) -> None:
    output, clock = io.StringIO(), Clock()
    console = Console(file=output, force_terminal=True, width=width, color_system=None)
    view = LiveView(console, clock)
    view.planned(("shards", "pretrain", "chat_eval_sft"))
    view.started("pretrain")
    view.progressed("pretrain", 0, 1500, "steps", "loss 3.2")
    clock.now += 5
    view.progressed("pretrain", 300, 1500, "steps", "loss 3.2 " * 9)
    console.print(view.table())
    lines = output.getvalue().splitlines()
    assert len(lines) == 4
    assert max(map(len, lines)) <= max(width - 3, 40)
    assert "━" in lines[2]
    assert ("20%" in lines[2]) == (width > 40)
    assert ("20 s left" in lines[2]) == (width > 60)


def test_a_stage_that_was_stopped_says_how_it_goes_on() -> None:
    record = StageRecord(station="sft", state="stopped", seconds=1, message="KeyboardInterrupt")
    assert summary(record) == "continues when the same command is run again"


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (3_400, "3.4 kB"), (999_600, "1 MB"), (3_100_000_000, "3.1 GB")],
)
def test_sizes_are_short(num_bytes: int, text: str) -> None:
    assert size(num_bytes) == text


def test_the_pace_of_a_resumed_stage_counts_from_where_it_resumed() -> None:
    stage = StageView("pretrain")
    stage.progress(1000, 1500, "steps", "", now=0.0)
    assert stage.seconds_left(0.0) is None
    stage.progress(1100, 1500, "steps", "", now=10.0)
    assert stage.seconds_left(10.0) == pytest.approx(40.0)


def test_a_file_is_no_terminal() -> None:
    assert isinstance(make_view(io.StringIO()), PlainView)


def test_the_questions_at_the_end_are_one_of_each_kind_first() -> None:
    kinds = ["name", "name", "depth", "name", "parameters", "sums"]
    answers = [{"kind": kind, "question": str(i), "answer": ""} for i, kind in enumerate(kinds)]
    assert [answer["question"] for answer in chosen(answers)] == ["0", "2", "4"]
    assert [answer["question"] for answer in chosen(answers[:4])] == ["0", "2", "1"]
    assert chosen([]) == []
