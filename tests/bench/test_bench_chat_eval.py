"""The benchmark of written answers: one line, and every token of the batch accounted for."""

import json
import os
import shutil
from pathlib import Path

import pytest

from nanochat_core.bench.chat_eval import main


def test_a_batch_says_what_whole_forward_passes_say(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--benchmarks", "sums", "--problems", "6", "--rows", "6", "--new", "12")
    assert main([*asked, "--rounds", "1", "--sequence-len", "64", "--device", "cpu"]) == 0
    report = json.loads(capsys.readouterr().out)
    found = report["benchmarks"]["sums"]
    assert found["problems"] == 6
    assert 0 < found["picks"] <= found["reply_tokens"]
    assert found["wrong"] == 0
    assert found["ratio_min"] > 0


@pytest.mark.e2e
def test_real_problems_are_answered_in_a_batch_as_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(os.environ.get("NANOCHAT_TEST_DATA", "nowhere"))
    files = {
        "gsm8k_test.jsonl": "gsm8k-test.jsonl",
        "HumanEval.jsonl.gz": "humaneval-test.jsonl.gz",
    }
    if not all((data / name).is_file() for name in files):
        pytest.skip("NANOCHAT_TEST_DATA names no folder with gsm8k_test and HumanEval")
    for name, official in files.items():
        shutil.copyfile(data / name, tmp_path / official)
    asked = ("--benchmarks", "gsm8k,humaneval", "--data", str(tmp_path), "--problems", "12")
    limits = ("--rows", "12", "--new", "96", "--rounds", "1", "--device", "cpu")
    assert main([*asked, *limits, "--allow-weak-sandbox"]) == 0
    for found in json.loads(capsys.readouterr().out)["benchmarks"].values():
        assert found["problems"] == 12
        assert found["wrong"] == 0
        assert found["near_ties"] < found["picks"] / 200
        assert found["ratio_min"] > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--benchmarks", "mmlu"], "give some of sums"),
        (["--rows", "0"], "give 1 or more"),
        (["--tokenizer", "here"], "belongs to --model"),
        (["--benchmarks", "gsm8k"], "gsm8k-test"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
