"""ARC and MMLU: prompts, letters and answers out of the rows."""

from pathlib import Path

import pytest
from benchmark_tools import ARC_ROWS, MMLU_ROWS, write_rows

from nanochat_core.benchmarks.base import CategoricalBenchmark, GenerativeBenchmark
from nanochat_core.benchmarks.multiple_choice import ArcRow, MmluRow, MultipleChoice
from nanochat_core.benchmarks.open import open_benchmark, open_generative
from nanochat_core.errors import ConfigError

ARC = MultipleChoice("arc-easy", [ArcRow(**row).choice_question() for row in ARC_ROWS])


def test_the_prompt_lists_the_choices_with_their_letters() -> None:
    question, answer = ARC.conversation(0).messages
    assert question.text == (
        "Multiple Choice question: What is hot?\n"
        "- ice=A\n- the sun=B\n- snow=C\n- rain=D\n"
        "\n"
        "Respond only with the letter of the correct answer."
    )
    assert answer.text == "B"


def test_letters_are_those_of_the_row() -> None:
    assert [ARC.letters(i) for i in range(3)] == [tuple("ABCD"), tuple("1234"), tuple("ABCDE")]
    assert [ARC.answer(i) for i in range(3)] == ["B", "1", "E"]
    assert "- a fish=1\n" in ARC.conversation(1).messages[0].text


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_mmlu_rows_may_be_wrapped_in_their_split(tmp_path: Path, split: str, suffix: str) -> None:
    rows = [{"train": row} for row in MMLU_ROWS] if split == "train" else MMLU_ROWS
    write_rows(tmp_path / f"mmlu-{split}{suffix}", rows)
    benchmark = open_benchmark("mmlu", split, folder=tmp_path)
    assert isinstance(benchmark, CategoricalBenchmark)
    assert (benchmark.letters(0), benchmark.answer(0)) == (tuple("ABCD"), "B")
    assert benchmark.conversation(0) == (
        MultipleChoice("mmlu", [MmluRow(**MMLU_ROWS[0]).choice_question()]).conversation(0)
    )


def test_letters_are_no_text_to_learn_from(tmp_path: Path) -> None:
    write_rows(tmp_path / "arc-challenge-test.jsonl", ARC_ROWS)
    assert not isinstance(ARC, GenerativeBenchmark)
    with pytest.raises(ConfigError, match="letter"):
        open_generative("arc-challenge", "test", folder=tmp_path)
