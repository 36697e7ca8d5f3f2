"""The benchmark of the in-context tasks: the other way gives the same scores, figures agree."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from nanochat_core.bench.core import differences, main, margin
from nanochat_core.bench.core_padded import ask_padded
from nanochat_core.distributed.ranks import Ranks
from nanochat_core.evals.bundle import read_bundle
from nanochat_core.evals.core import evaluate_core
from nanochat_core.inference.loading import save_model
from tests.evals.eval_tools import choice_rows, make_model, make_tokenizer, write_bundle


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    rows = [{"context": f"q {i}", "continuation": "the sea"} for i in range(6)]
    lost = {"query": "same", "choices": ["a", "a"], "gold": 0}
    tasks: list[dict[str, Any]] = [
        {"label": "c", "rows": [*choice_rows(9), lost], "icl_task_type": "multiple_choice"},
        {"label": "l", "rows": rows, "icl_task_type": "language_modeling", "num_fewshot": [2]},
    ]
    found = {name: tmp_path / name for name in ("bundle", "model", "tokenizer")}
    write_bundle(found["bundle"], tasks)
    save_model(make_model(), found["model"], {})
    make_tokenizer().save(found["tokenizer"])
    return found


def arguments(folders: dict[str, Path], *more: str) -> list[str]:
    given = [word for name, folder in folders.items() for word in (f"--{name}", str(folder))]
    return [*given, "--device", "cpu", "--dtype", "float32", "--rounds", "1", *more]


def test_one_padded_batch_an_example_gives_the_same_scores(folders: dict[str, Path]) -> None:
    model, tokenizer, bundle = make_model(), make_tokenizer(), read_bundle(folders["bundle"])
    result = evaluate_core(
        model, tokenizer, bundle, Ranks.single(), max_per_task=0, batch_tokens=300
    )
    padded = ask_padded(model, tokenizer, bundle, 0)
    assert len(padded) == len(result.tasks) == 2
    for task, (seconds, scores) in zip(result.tasks, padded, strict=True):
        assert seconds > 0
        assert differences(task, scores) == []
        for example, others in zip(task.examples, scores, strict=True):
            assert example.scores == pytest.approx(others, rel=1e-5)


def test_the_line_has_ratios_and_says_what_differs(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "line.json"
    assert main(arguments(folders, "--against", "padded", "--out", str(out))) == 0
    text = capsys.readouterr().out
    assert text == out.read_text()
    line = json.loads(text)
    assert line["examples"] == sum(task["examples"] for task in line["tasks"]) == 16
    assert line["num_differing"] == 0
    assert line["ratio_median"] == pytest.approx(
        line["against_seconds"] / line["seconds"], rel=0.01
    )
    assert [task["task"] for task in line["tasks"]] == ["c", "l"]


def test_some_tasks_can_be_chosen(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(folders, "--tasks", "l", "--max-per-task", "4")) == 0
    line = json.loads(capsys.readouterr().out)
    assert [task["examples"] for task in line["tasks"]] == [4]
    assert "against_seconds" not in line


@pytest.mark.parametrize(
    ("options", "told"), [(["--tasks", "x"], "c, l"), (["--rounds", "0"], "1 or more")]
)
def test_what_cannot_be_measured_is_refused(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str], options: list[str], told: str
) -> None:
    assert main(arguments(folders, *options)) == 2
    assert told in capsys.readouterr().err


def test_margins_are_between_the_two_best() -> None:
    assert margin((3.0, 1.0, 1.25)) == 0.25
    assert margin((1.0,)) is None
    assert margin((2.0, math.inf)) is None
    assert margin((math.inf, math.inf)) is None
