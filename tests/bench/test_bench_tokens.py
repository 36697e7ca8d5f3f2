"""The benchmark of tokenizing measures the real station: figures that agree with each other."""

import json
from pathlib import Path

import pytest

from nanochat_core.bench.tokens import main, repeated
from nanochat_core.data.documents import Document
from nanochat_core.data.mixing import Dealt
from nanochat_core.data.shards import INDEX_FILE, write_shards
from nanochat_core.tokenizer.recipe import TokenizerRecipe
from nanochat_core.tokenizer.tokenizer import Tokenizer

TEXTS = [f"the {number} words of a document, and some more" for number in range(400)]


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    shards, tokenizer = tmp_path / "shards", tmp_path / "tokenizer"
    shards.mkdir()
    dealt = [Dealt(int(number == 0), 0, text) for number, text in enumerate(TEXTS)]
    index = write_shards(dealt, shards, 1)
    (shards / INDEX_FILE).write_text(index.model_dump_json())
    Tokenizer.train(TEXTS, TokenizerRecipe(vocab_size=300)).save(tokenizer)
    return [shards, tokenizer]


@pytest.mark.distributed
def test_one_line_says_how_fast_one_process_and_several_are(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "line.json"
    options = ["--shards", str(folders[0]), "--tokenizer", str(folders[1]), "--rounds", "2"]
    assert main([*options, "--out", str(out)]) == 0
    line = capsys.readouterr().out
    assert line == out.read_text()
    told = json.loads(line)
    assert told["text_bytes"] == sum(len(text.encode()) for text in TEXTS)
    assert told["train_documents"] == len(TEXTS) - 1
    assert told["megabytes_per_second"] > 0
    assert told["megabytes_per_cpu_second"] > 0
    assert len(told["ratios"]) == told["rounds"] == told["processes"] == 2
    assert min(told["ratios"]) <= told["ratio"] <= max(told["ratios"])
    assert 2**20 < told["peak_memory_bytes"] < 2**31
    assert 0 <= told["memory_growth_bytes"] < told["peak_memory_bytes"]
    assert told["vocab_size"] == 300


@pytest.mark.parametrize("options", [("--processes", "1"), ("--rounds", "0"), ("--megabytes", "0")])
def test_numbers_that_measure_nothing_are_refused(
    options: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(options) == 2
    assert f"error: {options[0]} {options[1]}" in capsys.readouterr().err.replace(".0;", ";")


def test_a_folder_that_holds_no_shards_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--shards", str(tmp_path)]) == 1
    assert "holds no shards.json" in capsys.readouterr().err


def test_made_up_text_is_as_long_as_asked_for_and_repeats_in_mixed_order() -> None:
    documents = [Document(text, number == 0) for number, text in enumerate(TEXTS)]
    made = list(repeated(documents, 100_000))
    assert [one for one in made if one.held_out] == [documents[0]]
    train = [one.text for one in made if not one.held_out]
    assert 100_000 <= sum(len(text.encode()) for text in train) < 100_000 + 60
    first, second = train[: len(TEXTS) - 1], train[len(TEXTS) - 1 : 2 * (len(TEXTS) - 1)]
    assert sorted(first) == sorted(second) == sorted(TEXTS[1:])
    assert first != second
