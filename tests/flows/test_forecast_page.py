"""A forecast and what became of it, as people read them; and the command that prints it."""

import json
from pathlib import Path

import pytest
import typer
from finished_runs import finish, open_store
from typer.testing import CliRunner

from flows.forecast.page import (
    DESCRIPTIONS,
    WORDS,
    compared_lines,
    compared_markdown,
    forecast_lines,
    forecast_markdown,
    money,
    span,
)
from flows.forecast.types import ComparedRow, Forecast, Range, StationForecast, total
from flows.plan_command import plan
from nanochat_core.errors import ConfigError


def a_forecast(seconds: float, bytes_: int) -> Forecast:
    """With every kind of row, all of them large."""
    each = {"memory_bytes": bytes_, "disk_bytes": bytes_, "download_bytes": bytes_}
    times = Range.around(seconds, 2.0)
    cost = times.times(24 / 3600)
    rows = [
        StationForecast(station="shards", state="cached", seconds=Range.around(0.1, 2.0)),
        StationForecast(
            station="pretrain",
            state="resume",
            from_step=12_500,
            seconds=times,
            money=cost,
            source="store",
            **each,
        ),
        StationForecast(
            station="sft", state="run", seconds=times, money=cost, source="similar", **each
        ),
        StationForecast(
            station="chat_eval_sft",
            state="depends",
            seconds=times,
            money=cost,
            source="elsewhere",
            **each,
        ),
        StationForecast(station="release", state="run", seconds=Range.around(0.1, 2.0)),
    ]
    return Forecast(
        preset="research",
        machine="8 NVIDIA H100 80GB HBM3",
        price_per_hour=24.0,
        stations=tuple(rows),
        overhead_seconds=Range.around(8.0, 2.0),
        seconds=total(row.seconds for row in rows),
        money=total(row.money for row in rows if row.money),
        memory_bytes=bytes_,
        download_bytes=bytes_,
        disk_bytes=bytes_,
    )


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize(("seconds", "bytes_"), [(12.0, 56_700_000), (20_000.0, 71_400_000_000)])
def test_the_table_fits_the_terminal(width: int, seconds: float, bytes_: int) -> None:
    lines = forecast_lines(a_forecast(seconds, bytes_), width)
    assert max(map(len, lines)) <= width
    assert lines[0].split()[0] == "station"
    assert [line.split()[0] for line in lines[1:6]] == [
        "shards",
        "pretrain",
        "sft",
        "chat_eval_sft",
        "release",
    ]
    assert "from 12,500" in lines[2]
    text = "\n".join(lines)
    assert all(f"{WORDS[source]}: " in text for source in ("store", "similar", "elsewhere"))
    assert "depends: " in text


def test_a_busy_machine_is_said() -> None:
    quiet = a_forecast(12.0, 56_700_000)
    busy = quiet.model_copy(update={"busy": 9.0})
    assert "busy" not in "".join(forecast_lines(quiet))
    assert "9.0 processes for each core" in " ".join(forecast_lines(busy))


def test_every_source_has_a_word_and_a_description() -> None:
    assert WORDS.keys() == DESCRIPTIONS.keys()
    assert len(set(WORDS.values())) == len(WORDS)


def test_the_page_has_the_rows_of_the_table() -> None:
    found = a_forecast(12.0, 56_700_000)
    page = forecast_markdown(found)
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + len(found.stations) + 2
    assert len({row.count("|") for row in rows}) == 1
    assert "| in all |" in page


SPANS = {(0.04, 0.21): "0.0-0.2 s", (35, 88): "35-88 s", (132, 361): "2.2-6.0 m"}
SPANS |= {(1800, 8000): "0.5-2.2 h", (40_000, 90_000): "11-25 h"}


@pytest.mark.parametrize(("seconds", "text"), SPANS.items())
def test_a_range_is_in_one_unit(seconds: tuple[float, float], text: str) -> None:
    low, high = seconds
    assert span(Range(low=low, mid=(low + high) / 2, high=high)) == text


def test_money_has_as_many_digits_as_matter() -> None:
    assert [money(value) for value in (0.0123, 1.317, 1317.2)] == ["0.012", "1.32", "1,317"]


def test_predicted_against_actual_says_by_how_much_and_whether_it_was_in_range() -> None:
    predicted = Range.around(100.0, 1.5)
    rows = [
        ComparedRow(station="pretrain", predicted=predicted, actual_seconds=120.0, state="made"),
        ComparedRow(station="sft", predicted=predicted, actual_seconds=300.0, state="made"),
        ComparedRow(
            station="shards", predicted=Range.around(0.1, 2.0), actual_seconds=0.5, state="cached"
        ),
    ]
    lines = compared_lines(rows)
    assert lines[1].split()[-2:] == ["+20%", "yes"]
    assert lines[2].split()[-2:] == ["+200%", "no"]
    assert lines[3].split()[-2:] == ["s", "yes"]
    assert compared_markdown(rows).count("\n") == 4


app = typer.Typer()
app.command()(plan)


def test_the_command_prints_a_table_or_json(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    finish(store)
    asked = ["tiny", "--store", store.url, "--depth", "3", "--price-per-hour", "24"]
    shown = CliRunner().invoke(app, asked)
    assert shown.exit_code == 0, shown.output
    assert "pretrain" in shown.output
    assert "money" in shown.output
    told = CliRunner().invoke(app, [*asked, "--json"])
    found = Forecast.model_validate(json.loads(told.output))
    assert found.price_per_hour == 24
    pretrain, shards = found.station("pretrain"), found.station("shards")
    assert pretrain is not None
    assert shards is not None
    assert (pretrain.state, shards.state) == ("run", "cached")


def test_times_of_stations_on_other_pools_are_said_to_be_of_this_machine(tmp_path: Path) -> None:
    asked = ["tiny", "--store", str(tmp_path / "store"), "--pool", "pretrain=gpu"]
    shown = " ".join(CliRunner().invoke(app, asked).output.split())
    assert "Counted as if on that machine, too: pretrain (pool gpu)." in shown


def test_a_price_without_end_is_refused(tmp_path: Path) -> None:
    asked = ["tiny", "--store", str(tmp_path / "store"), "--price-per-hour", "inf"]
    with pytest.raises(ConfigError, match="expected an amount"):
        CliRunner().invoke(app, asked, catch_exceptions=False)


def test_another_machine_is_named_by_its_gpu(tmp_path: Path) -> None:
    asked = ["tiny", "--store", str(tmp_path / "store")]
    shown = CliRunner().invoke(app, [*asked, "--on", "h100"])
    assert "For H100." in shown.output
    wrong = CliRunner().invoke(app, [*asked, "--on", "abacus"])
    assert isinstance(wrong.exception, ConfigError)
    assert "H100" in str(wrong.exception)
    assert not (tmp_path / "store").exists()
