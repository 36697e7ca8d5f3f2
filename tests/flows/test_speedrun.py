"""The flow itself against a real server, as far as the stations that need no torch."""

from pathlib import Path
from typing import Any

import pytest

from flows.parameters import RunParameters
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.errors import BatchSizeError, DataError, UnknownNameError
from tasks.listening import Listener, StageRecord, listening

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("prefect_server")]

WORDS = ("river", "stone", "cloud", "lantern", "winter", "paper", "engine", "garden", "silver")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text of 200 paragraphs, all different."""
    path = tmp_path / "text.txt"
    paragraphs = [
        " ".join(WORDS[(i * k + k) % len(WORDS)] + str(i * k) for k in range(1, 40)).capitalize()
        for i in range(1, 201)
    ]
    path.write_text(".\n\n".join(paragraphs) + ".\n")
    return path


class Recorder(Listener):
    def __init__(self) -> None:
        self.states: dict[str, str] = {}

    def ended(self, record: StageRecord) -> None:
        self.states[record.station] = record.state


def run(tmp_path: Path, **values: Any) -> dict[str, str]:
    from flows.running import run_line

    recorder = Recorder()
    # So little text has no more merges to learn.
    overrides = {"tokenizer.vocab_size": 320, **values.pop("overrides", {})}
    parameters = RunParameters(
        preset="tiny", store=str(tmp_path / "store"), overrides=overrides, **values
    )
    with listening(recorder):
        run_line(parameters)
    return recorder.states


def test_the_first_stations_run_and_are_cached_the_next_time(tmp_path: Path, text: Path) -> None:
    values = {"source": (str(text),), "stop_after": "tokens"}
    first = run(tmp_path, **values)
    again = run(tmp_path, **values)
    other = run(tmp_path, **values, overrides={"tokenizer.vocab_size": 400})
    forced = run(tmp_path, **values, force=("tokenizer",))
    assert first == dict.fromkeys(("shards", "tokenizer", "tokens"), "made")
    assert again == dict.fromkeys(first, "cached")
    assert other == {"shards": "cached", "tokenizer": "made", "tokens": "made"}
    assert forced == {"shards": "cached", "tokenizer": "made", "tokens": "cached"}
    records = list(ArtifactStore(str(tmp_path / "store")).runs().values())
    assert [record["state"] for record in records] == ["completed"] * 4
    assert records[0]["stations"]["shards"]["state"] == "made"
    assert records[0]["parameters"]["stop_after"] == "tokens"


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({"overrides": {"sft.epoch": 2}}, UnknownNameError),
        ({"overrides": {"pretrain.device_batch_size": 3}}, BatchSizeError),
        ({"source": ("/no/such/text.txt",)}, DataError),
    ],
)
def test_a_mistake_ends_the_run_before_its_first_task(
    tmp_path: Path, values: dict[str, Any], kind: type[Exception]
) -> None:
    with pytest.raises(kind):
        run(tmp_path, **values)
    assert not (tmp_path / "store").exists()


def test_a_run_that_fails_is_recorded_too(tmp_path: Path, text: Path) -> None:
    with pytest.raises(DataError):
        run(tmp_path, source=(str(text),), overrides={"tokenizer.vocab_size": 60_000})
    (record,) = ArtifactStore(str(tmp_path / "store")).runs().values()
    assert record["state"].startswith("DataError")
    assert record["stations"]["tokenizer"]["state"] == "failed"


def test_a_run_does_not_end_for_want_of_a_forecast(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("a record of another version")

    monkeypatch.setattr("flows.predicted.forecast", fail)
    assert run(tmp_path, source=(str(text),), stop_after="shards") == {"shards": "made"}
