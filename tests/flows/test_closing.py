"""The last lines of a run, from artifacts that a real store published."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.closing import change_lines, closing_lines
from flows.wording import key_numbers
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import Request
from nanochat_core.config.job import StageOutput
from tasks.listening import StageRecord

BEFORE = {"sums": 0.71, "sums/stderr": 0.032, "sums/asked": 200, "identity": 0.9, "demo_score": 0.8}
AFTER = {"sums": 0.95, "sums/stderr": 0.0154, "identity": 1.0, "demo_score": 0.9, "gsm8k": 0.1}


def record(
    store: ArtifactStore, folder: Path, station: str, files: dict[str, str], **metrics: Any
) -> StageRecord:
    """Publish these files; how the station's stage went."""
    work = folder / station
    work.mkdir()
    for name, text in files.items():
        (work / name).write_text(text, encoding="utf-8")
    ref = store.publish(
        Request(station=station, code_version=1, recipe={}),
        work,
        StageOutput(files=dict.fromkeys(files, "result")),
    )
    return StageRecord(station=station, state="made", seconds=1.0, ref=ref, metrics=metrics)


def answered(by: str) -> dict[str, str]:
    entries = [{"kind": "name", "question": "Who?", "answer": f"I am of {by}.", "right": True}]
    return {"answers.json": json.dumps(entries)}


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    url = str(tmp_path / "store") if request.param == "local" else f"memory://{tmp_path.name}"
    return ArtifactStore(url, cache_folder=tmp_path / "cache")


def whole_run(store: ArtifactStore, folder: Path) -> dict[str, StageRecord]:
    records = {
        "chat_eval_sft": record(store, folder, "chat_eval_sft", answered("SFT"), **BEFORE),
        "chat_eval_rl": record(store, folder, "chat_eval_rl", answered("RL"), **AFTER),
        "report": record(store, folder, "report", {"report.md": "# report"}),
    }
    release = StageRecord(
        station="release", state="made", seconds=0.1, ref=records["chat_eval_rl"].ref
    )
    return {**records, "release": release}


def test_a_run_ends_with_answers_changes_the_report_and_how_to_chat(
    store: ArtifactStore, tmp_path: Path
) -> None:
    records = whole_run(store, tmp_path)
    report = records["report"].ref
    assert report is not None
    is_local = store.url.startswith("/")
    path = store.materialize(report) / "report.md"
    place = str(path) if is_local else f"{report.short} in {store.url}"
    assert closing_lines(store, records, "nanochat chat") == [
        "",
        "you: Who?",
        "nanochat: I am of RL.",
        "",
        "sums      0.71 ± 0.03 -> 0.95 ± 0.02 through RL",
        "identity  0.90 -> 1.00 through RL",
        "",
        f"Report:  {place}",
        "Chat with it:  nanochat chat",
    ]
    assert path.is_file()


def test_without_rl_the_answers_are_those_after_sft(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "store"))
    records = whole_run(store, tmp_path)
    del records["chat_eval_rl"], records["report"]
    lines = closing_lines(store, records, "")
    assert lines[1:4] == ["you: Who?", "nanochat: I am of SFT.", ""]
    assert not any("through RL" in line or "Report" in line for line in lines)
    assert lines[-1] == "The store was in memory: this model ends with the command."


def test_a_run_that_releases_nothing_shows_its_report_or_nothing(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "store"))
    records = whole_run(store, tmp_path)
    del records["release"]
    (line,) = closing_lines(store, records, "nanochat chat")
    assert line.startswith("Report:  ")
    del records["report"]
    assert closing_lines(store, records, "nanochat chat") == []


def test_an_error_too_small_for_two_digits_gets_a_third(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "store"))
    records = {
        name: record(store, tmp_path, name, answered(name), sums=0.9, **{"sums/stderr": 0.0041})
        for name in ("chat_eval_sft", "chat_eval_rl")
    }
    assert change_lines(records) == ["sums  0.900 ± 0.004 -> 0.900 ± 0.004 through RL"]
    failed = StageRecord(station="chat_eval_rl", state="failed", seconds=1.0)
    assert change_lines({**records, "chat_eval_rl": failed}) == []


def test_the_numbers_that_people_look_for_come_first() -> None:
    rl = {"steps": 60, "rl/reward_start": 0.7, "rl/reward_end": 0.95, "pass@1": 0.9}
    assert key_numbers("rl", rl) == "rl/reward_start 0.7, rl/reward_end 0.95, pass@1 0.9"
    evaluated = {"sums": 0.71, "sums/stderr": 0.03, "identity/right": 29, "identity/asked": 30}
    shown = "identity/right 29, identity/asked 30, sums 0.71, sums/stderr 0.03"
    assert key_numbers("chat_eval_sft", evaluated) == shown
    assert key_numbers("chat_eval_rl", evaluated) == shown
    assert key_numbers("shards", {"a": 1, "b": 2, "c": 3, "d": 4}) == "a 1, b 2, c 3"
