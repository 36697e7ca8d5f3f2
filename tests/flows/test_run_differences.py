"""Two runs are compared: where they part, why, and what became of times and numbers."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from made_line import make_line, publish, resolved_run
from rich.console import Console

from flows.dry_line import dry_run
from flows.parameters import parse_parameters
from flows.run_differences import RunComparison, compare_runs, number_pairs, run_record
from flows.run_page import print_comparison
from flows.why_command import diff_runs
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.errors import ArtifactNotFoundError, ConfigError
from tasks.listening import StageRecord

FIRST, SECOND, THIRD = (f"2026010{day}-120000-abcdef" for day in (1, 2, 3))
HARDWARE = {"cpus": 2, "machine": "x86_64"}


class Runs:
    """A store, and runs in it that made whatever was not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = ArtifactStore(str(folder / "store"))
        (folder / "text.txt").write_text("A river runs.\n\nA stone lies.\n")

    def run(self, run_id: str, *, scores: float = 0.5, cpus: int = 2, **values: Any) -> None:
        """Make the line and leave the record that a run leaves."""
        values = {"source": (str(self.folder / "text.txt"),), **values}
        resolved = resolved_run(self.folder / "store", **values)
        before = dry_run(resolved, self.store)
        make_line(self.store, resolved)
        stations = {}
        for name, planned in dry_run(resolved, self.store).items():
            is_eval = name.startswith("chat_eval")
            metrics = {"identity": scores, "identity/right": 100 * scores, "identity/asked": 100}
            stations[name] = StageRecord(
                station=name,
                state="cached" if before[name].state == "cached" else "made",
                seconds=0.1 if before[name].state == "cached" else 3.0,
                ref=planned.ref,
                metrics=metrics if is_eval else {"steps": 30},
            ).model_dump(mode="json")
        parameters = parse_parameters({"preset": "tiny", **values})
        record = {
            "run": run_id,
            "preset": "tiny",
            "parameters": parameters.model_dump(mode="json"),
            "state": "completed",
            "seconds": 12.5,
            "stations": stations,
            "hardware": {**HARDWARE, "cpus": cpus},
            "packages": {"torch": "2.13"},
        }
        self.store.save_run(run_id, record)


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def page(compared: RunComparison, width: int = 80) -> str:
    output = io.StringIO()
    print_comparison(compared, Console(file=output, width=width))
    return output.getvalue()


def test_the_first_station_that_differs_is_named_with_its_cause(runs: Runs) -> None:
    runs.run(FIRST)
    runs.run(SECOND, overrides={"sft.epochs": 2, "rl.problems": 41})
    found = compare_runs(runs.store, FIRST, SECOND)
    assert found.divergence is not None
    assert found.divergence.station == "sft"
    assert [cause.text for cause in found.divergence.causes] == ['sft.epochs: "auto" -> 2.0']
    own = {pair.station: [cause.text for cause in pair.own] for pair in found.stations if pair.own}
    assert own == {"sft": ['sft.epochs: "auto" -> 2.0'], "rl": ["rl.problems: 40 -> 41"]}
    same = {pair.station for pair in found.stations if pair.is_same_result}
    assert same == {"shards", "tokenizer", "tokens", "pretrain", "base_eval"}
    states = {pair.station: pair.states for pair in found.stations}
    assert states["pretrain"] == ("made", "cached")
    assert states["sft"] == ("made", "made")
    assert [change.text for change in found.parameters] == [
        "overrides.rl.problems: (absent) -> 41",
        "overrides.sft.epochs: (absent) -> 2",
    ]
    text = page(found)
    assert 'They part at sft:\n  sft.epochs: "auto" -> 2.0\n' in text
    assert "Asked otherwise, too:\n  rl.problems: 40 -> 41\n" in text


def test_runs_that_did_the_same_differ_in_nothing_but_place(runs: Runs) -> None:
    runs.run(FIRST)
    runs.run(SECOND, cpus=8)
    found = compare_runs(runs.store, "last~1", "last")
    assert (found.old.run, found.new.run) == (FIRST, SECOND)
    assert (found.divergence, found.parameters) == (None, ())
    assert [change.text for change in found.places] == ["hardware.cpus: 2 -> 8"]
    assert all(pair.is_same_result for pair in found.stations)
    assert "Both have the same artifacts." in page(found)


def test_the_same_request_with_another_result_is_where_runs_part(runs: Runs) -> None:
    runs.run(FIRST)
    before = runs.store.manifest(runs.store.list("pretrain")[0])
    publish(runs.store, before.request, before.input_refs, text="otherwise", force=True)
    runs.run(SECOND)
    divergence = compare_runs(runs.store, FIRST, SECOND).divergence
    assert divergence is not None
    (cause,) = divergence.causes
    assert (divergence.station, cause.station, cause.kind) == ("pretrain", "pretrain", "result")


def test_a_run_that_ended_early_parts_where_it_ended(runs: Runs) -> None:
    runs.run(FIRST)
    runs.run(SECOND, stop_after="tokens")
    divergence = compare_runs(runs.store, FIRST, SECOND).divergence
    assert divergence is not None
    assert (divergence.station, divergence.causes[0].text) == (
        "pretrain",
        "the second run has no artifact of pretrain",
    )
    assert compare_runs(runs.store, SECOND, FIRST).divergence is not None


def test_artifacts_that_are_gone_are_said_to_be_gone(runs: Runs) -> None:
    runs.run(FIRST)
    runs.run(SECOND, overrides={"tokenizer.vocab_size": 600})
    gone = runs.store.list("tokenizer")[0]
    runs.store.files.remove(f"tokenizer/{gone.fingerprint}")
    divergence = compare_runs(runs.store, FIRST, SECOND).divergence
    assert divergence is not None
    assert (divergence.station, divergence.causes[0].kind) == ("tokenizer", "gone")


def test_a_change_of_a_score_within_its_noise_is_called_noise(runs: Runs) -> None:
    runs.run(FIRST, scores=0.5)
    runs.run(SECOND, scores=0.55, overrides={"rl.seed": 7})
    runs.run(THIRD, scores=0.9, overrides={"rl.seed": 8})
    small, large = (
        {pair.station: pair for pair in compare_runs(runs.store, FIRST, run).stations}
        for run in (SECOND, THIRD)
    )
    (number,) = small["chat_eval_rl"].numbers
    assert (number.name, number.change, number.is_noise) == ("identity", pytest.approx(0.05), True)
    # Of two shares of 100: sqrt(0.5 * 0.5 / 100 + 0.55 * 0.45 / 100).
    assert number.stderr == pytest.approx(0.0705, abs=1e-4)
    (number,) = large["chat_eval_rl"].numbers
    assert not number.is_noise
    assert "+0.05 ± 0.071 (noise)" in page(compare_runs(runs.store, FIRST, SECOND))
    assert "(noise)" not in page(compare_runs(runs.store, FIRST, THIRD))
    assert "(noise)" not in page(compare_runs(runs.store, FIRST, FIRST))


def test_an_equal_score_has_no_noise(runs: Runs) -> None:
    runs.run(FIRST)
    runs.run(SECOND, overrides={"rl.seed": 7})
    (line,) = re.findall("identity .*", page(compare_runs(runs.store, FIRST, SECOND)))
    assert line.split() == ["identity", "0.5", "0.5", "0"]


def test_numbers_that_only_one_run_has_or_that_are_words_have_no_difference() -> None:
    pairs = number_pairs("pretrain", {"train/loss": 2.0}, {"train/loss": 1.5, "val/bpb": 1.2})
    assert {pair.name: pair.change for pair in pairs} == {"train/loss": -0.5, "val/bpb": None}
    (pair,) = number_pairs("shards", {"kind": "files"}, {"kind": "harvest"})
    assert (pair.old, pair.new, pair.change) == ("files", "harvest", None)


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_the_page_fits_any_terminal(runs: Runs, width: int) -> None:
    runs.run(FIRST)
    runs.run(SECOND, overrides={"sft.epochs": 2})
    text = page(compare_runs(runs.store, FIRST, SECOND), width)
    assert max(map(len, text.splitlines())) <= width
    squeezed = re.sub(r"\s", "", text)
    assert all(name in squeezed for name in ("chat_eval_rl", "identity", "release", "base_eval"))


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("last~2", ArtifactNotFoundError, "holds only 2 runs"),
        ("2026", ConfigError, f"stands for 2 runs: {SECOND}, {FIRST}"),
        ("nothing", ArtifactNotFoundError, f"the newest are {SECOND}, {FIRST}"),
    ],
)
def test_a_run_that_is_not_there_is_refused_with_those_that_are(
    runs: Runs, name: str, kind: type[Exception], message: str
) -> None:
    runs.run(FIRST, stop_after="shards")
    runs.run(SECOND, stop_after="shards")
    with pytest.raises(kind, match=re.escape(message)):
        compare_runs(runs.store, name, "last")


def test_a_store_without_runs_says_how_to_make_one(runs: Runs) -> None:
    with pytest.raises(ArtifactNotFoundError, match="nanochat run demo"):
        compare_runs(runs.store, "last~1", "last")


def test_a_record_that_names_no_preset_leaves_no_gap(runs: Runs) -> None:
    runs.run(FIRST, stop_after="shards")
    record = run_record(runs.store, FIRST)
    del record["preset"]
    runs.store.save_run(SECOND, {**record, "run": SECOND})
    text = page(compare_runs(runs.store, FIRST, SECOND))
    assert f"A: run {FIRST}, tiny, completed in" in text
    assert f"B: run {SECOND}, completed in" in text


def test_the_command_prints_the_page_or_json(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.run(FIRST, stop_after="tokenizer")
    runs.run(SECOND, stop_after="tokenizer", overrides={"tokenizer.vocab_size": 600})
    diff_runs("20260101", "last", runs.store.url, as_json=False)
    assert "They part at tokenizer:" in capsys.readouterr().out
    diff_runs("20260101", "last", runs.store.url, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["divergence"]["station"] == "tokenizer"
