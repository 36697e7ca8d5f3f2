"""What `nanochat plan` says before, beside what `nanochat run` takes: real commands, real times."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from flows.forecast.comparing import WHOLE, compared
from flows.forecast.page import compared_lines
from flows.forecast.types import ComparedRow, Forecast
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import Request
from nanochat_core.config.job import StageOutput
from tasks.listening import StageRecord

pytestmark = [pytest.mark.long, pytest.mark.timeout(1_800)]

TRAINED = ("pretrain", "sft", "rl")
MANY, FEW = 10_000, 10


def nanochat(home: Path, *arguments: str) -> str:
    """What a command of a user with this home prints."""
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments],
        env={**os.environ, "HOME": str(home), "PREFECT_HOME": str(home / "prefect")},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def planned(home: Path, store: Path, *arguments: str) -> Forecast:
    told = nanochat(home, "plan", "tiny", "--store", str(store), *arguments, "--json")
    return Forecast.model_validate_json(told)


def took(store: Path) -> dict[str, StageRecord]:
    """How the stages of the newest run went."""
    stages: dict[str, Any] = list(ArtifactStore(str(store)).runs().values())[-1]["stations"]
    return {name: StageRecord.model_validate(stage) for name, stage in stages.items()}


def tell(text: str) -> None:
    """Figures for LOG.md; pytest shows them with -rP."""
    print(text)  # noqa: T201


def shown(rows: list[ComparedRow]) -> str:
    return "\n".join(compared_lines(rows))


def test_after_one_record_of_depth_2_depth_3_is_predicted_within_twice(tmp_path: Path) -> None:
    home, store = tmp_path / "home", tmp_path / "store"
    home.mkdir()
    blind = planned(home, store)
    nanochat(home, "run", "tiny", "--store", str(store), "--depth", "2")
    first = compared(blind, took(store))
    tell(f"depth 2, without a record:\n{shown(first)}\n")
    found = planned(home, store, "--depth", "3")
    nanochat(home, "run", "tiny", "--store", str(store), "--depth", "3")
    rows = {row.station: row for row in compared(found, took(store))}
    tell(f"depth 3, after one record of depth 2:\n{shown(list(rows.values()))}")
    for name in (*TRAINED, WHOLE):
        row = rows[name]
        assert 0.5 < row.actual_seconds / row.predicted.mid < 2, shown([row])
        assert row.is_inside, shown([row])
    # Without a record only the region is known.
    assert 1 / 3 < first[-1].actual_seconds / first[-1].predicted.mid < 3
    _disk_is_as_predicted(found, ArtifactStore(str(store)), rows)


def _disk_is_as_predicted(
    found: Forecast, store: ArtifactStore, rows: dict[str, ComparedRow]
) -> None:
    newest = {ref.station: store.manifest(ref) for ref in store.list()}
    for name in TRAINED:
        station = found.station(name)
        assert station is not None
        assert rows[name].state == "made"
        assert station.disk_bytes == pytest.approx(newest[name].bytes, rel=0.2)


def test_ten_thousand_artifacts_and_runs_do_not_slow_the_plan(tmp_path: Path) -> None:
    home, store = tmp_path / "home", tmp_path / "store"
    home.mkdir()
    nanochat(home, "run", "tiny", "--store", str(store), "--stop-after", "tokens")
    fill(ArtifactStore(str(store)), range(FEW), tmp_path)
    few = _seconds(home, store)
    fill(ArtifactStore(str(store)), range(FEW, MANY), tmp_path)
    many = _seconds(home, store)
    tell(f"plan with {FEW} artifacts and runs {few:.2f} s, with {MANY:,} {many:.2f} s")
    assert many < 3 * few


def _seconds(home: Path, store: Path) -> float:
    """Of the fastest of three."""
    times = []
    for _ in range(3):
        start = time.monotonic()
        planned(home, store)
        times.append(time.monotonic() - start)
    return min(times)


def fill(store: ArtifactStore, numbers: range, folder: Path) -> None:
    """Publish so many small artifacts, each with the record of a run that has made it."""
    runs = store.runs()
    (name,) = (name for name in runs if "stations" in runs[name] and name < "3")
    stations = runs[name]["stations"]
    (folder / "x.txt").write_text("x")
    output = StageOutput(files={"x.txt": "result"})
    told = store.manifest(store.list("tokens")[0]).provenance
    for number in numbers:
        request = Request(station="tokens", code_version=1, recipe={"number": number})
        ref = store.publish(request, folder, output, provenance=told)
        made = {**stations["tokens"], "ref": ref.model_dump(mode="json")}
        store.save_run(f"30000101-{number:06d}", {"stations": {**stations, "tokens": made}})


def test_the_plan_is_json_for_programs(tmp_path: Path) -> None:
    told = nanochat(tmp_path, "plan", "tiny", "--store", str(tmp_path / "store"), "--json")
    assert json.loads(told)["preset"] == "tiny"
    assert not (tmp_path / "store").exists()
