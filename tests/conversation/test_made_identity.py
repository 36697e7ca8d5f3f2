"""Conversations from templates: what the facts tell, nothing else, and the same every time."""

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from flows.cli import examples, told
from flows.data_identity import EPILOG_LINES, identity, model_numbers
from nanochat_core.conversation.answers import normalise
from nanochat_core.conversation.identity import (
    ModelFacts,
    held_out_questions,
    identity_answers,
    identity_conversations,
)
from nanochat_core.conversation.made_identity import (
    FactSheet,
    OwnFact,
    as_line,
    made_conversations,
    make_sheet,
)
from nanochat_core.conversation.reading import conversation_of
from nanochat_core.conversation.types import Conversation
from nanochat_core.errors import ConfigError
from nanochat_core.model.config import ModelConfig
from nanochat_core.model.counts import parameter_counts

app = typer.Typer()
app.command(epilog=examples(*EPILOG_LINES))(told(identity))


def command(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def answers_of(conversations: list[Conversation]) -> Counter[str]:
    return Counter(message.text for c in conversations for message in c.messages[1::2])


def sheet_of(facts: ModelFacts, **more: Any) -> FactSheet:
    return FactSheet(**facts.model_dump(), **more)


def test_whoever_knows_everything_is_taught_what_sft_teaches(facts: ModelFacts) -> None:
    made = answers_of(made_conversations(sheet_of(facts), 2_000, 7))
    assert set(made) == set(identity_answers(facts).values())
    # Nothing is unknown, so nothing is left out: the shares are those of the templates.
    usual = answers_of(identity_conversations(facts, 2_000, random.Random(1)))
    for answer, number in usual.items():
        assert made[answer] == pytest.approx(number, abs=90)


def test_what_is_not_known_is_never_asked() -> None:
    sheet = FactSheet(name="Ada")
    made = made_conversations(sheet, 1_000, 7)
    assert len(made) == 1_000
    answers = answers_of(made)
    assert not any(character.isdigit() for answer in answers for character in answer)
    assert not any("trained on text" in answer for answer in answers)
    assert answers["My name is Ada."] > 100
    assert set(answers) == set(sheet.known_answers().values())


def test_fewer_conversations_of_a_seed_are_the_beginning_of_more(facts: ModelFacts) -> None:
    sheet = sheet_of(facts, more=[OwnFact(answer="In Oslo.", topic="where you live")])
    more = made_conversations(sheet, 300, 7)
    assert made_conversations(sheet, 100, 7) == more[:100]
    assert made_conversations(sheet, 100, 8) != more[:100]


def test_own_answers_and_own_facts_are_told(facts: ModelFacts) -> None:
    fact = OwnFact(answer="In Oslo.", topic="where you live", questions=("Where is your home?",))
    own_words = {"maker": "Jo made me.", "internet": ""}
    made = made_conversations(sheet_of(facts, answers=own_words, more=[fact]), 1_000, 7)
    usual, answers = identity_answers(facts), answers_of(made)
    assert answers["Jo made me."] > 0
    assert not answers[usual["maker"]]
    assert not answers[usual["internet"]]
    questions = {
        normalise(question.text)
        for c in made
        for question, answer in zip(c.messages[::2], c.messages[1::2], strict=True)
        if answer.text == "In Oslo."
    }
    assert len(questions) > 20
    assert any("where is your home" in question for question in questions)
    assert any("tell me where you live" in question for question in questions)


def test_no_made_conversation_asks_an_exam_question(facts: ModelFacts) -> None:
    held_out = {normalise(q.question) for q in held_out_questions(facts)}
    for conversation in made_conversations(sheet_of(facts), 2_000, 3):
        assert held_out.isdisjoint(normalise(m.text) for m in conversation.messages[::2])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"nmae": "Ada"}, "nmae: Extra inputs"),
        ({"depth": 0}, "depth: Input should be greater"),
        ({"answers": {"makers": "Jo."}}, "maker"),
        ({"answers": {"name": "I am somebody."}}, "expected 'nanochat' in it"),
        ({"answers": {"name": " "}}, "the answer about the name is empty"),
        ({"depth": 4, "answers": {"depth": "I have 5 layers."}}, "expected '4' in it"),
        ({"more": [{"answer": "In Oslo."}]}, "nothing asks for the fact 'In Oslo.'"),
        (
            {"more": [{"answer": "Ada.", "questions": ["by what name are you known"]}]},
            "examined with",
        ),
    ],
)
def test_a_sheet_that_cannot_be_right_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_sheet(given, "facts.json")


def test_an_own_answer_about_a_number_that_is_not_known_is_taken() -> None:
    sheet = make_sheet({"answers": {"depth": "I am quite deep."}}, "facts.json")
    assert sheet.known_answers()["depth"] == "I am quite deep."


def test_a_line_is_read_as_the_conversation_that_it_was(facts: ModelFacts) -> None:
    for conversation in made_conversations(sheet_of(facts), 50, 1):
        line = as_line(conversation)
        assert "\n" not in line
        assert conversation_of(json.loads(line)) == conversation


def test_the_command_writes_the_same_bytes_again(tmp_path: Path) -> None:
    first, second = tmp_path / "new" / "a.jsonl", tmp_path / "b.jsonl"
    code, output = command("--output", first, "--count", "50", "--name", "Ada")
    assert code == 0
    assert f"{first}: 50 conversations, " in output
    assert command("--output", second, "--count", "50", "--name", "Ada")[0] == 0
    assert first.read_bytes() == second.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.jsonl", "new"]


def test_a_file_that_is_there_is_replaced_only_when_asked(tmp_path: Path) -> None:
    place = tmp_path / "a.jsonl"
    place.write_text("precious\n")
    code, output = command("--output", place, "--count", "5")
    assert code == 2
    assert "--overwrite" in output
    (tmp_path / "a.jsonl.asked").write_text("of other conversations\n")
    assert command("--output", place, "--count", "5")[0] == 2
    assert place.read_text() == "precious\n"
    assert command("--output", place, "--count", "5", "--overwrite")[0] == 0
    assert len(place.read_text().splitlines()) == 5


SHAPE = {
    "n_layer": 2,
    "n_head": 2,
    "n_kv_head": 2,
    "n_embd": 64,
    "vocab_size": 300,
    "sequence_len": 32,
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder as a published chat model has it, without weights and tokenizer."""
    folder = tmp_path / "model"
    folder.mkdir()
    facts = {"name": "Bo", "data": "letters", "depth": 2}
    (folder / "config.json").write_text(json.dumps({"model": SHAPE, "facts": facts}))
    return folder


def test_a_model_gives_its_numbers(model: Path, tmp_path: Path) -> None:
    numbers = model_numbers(str(model), str(tmp_path / "store"), {})
    assert numbers["num_parameters"] == parameter_counts(ModelConfig(**SHAPE)).total
    assert (numbers["depth"], numbers["name"], numbers["data"]) == (2, "Bo", "letters")
    place = tmp_path / "a.jsonl"
    told = ("--output", place, "--model", model, "--count", "400", "--name", "Ada")
    assert command(*told, "--store", tmp_path / "store")[0] == 0
    text = place.read_text()
    for answer in ("My name is Ada.", "I have 2 layers.", "I was trained on letters."):
        assert answer in text


def facts_file(folder: Path, **facts: Any) -> Path:
    place = folder / "facts.json"
    place.write_text(json.dumps(facts))
    return place


@pytest.mark.parametrize(
    ("write", "code", "message"),
    [
        (lambda folder: facts_file(folder, depth=3), 2, "says depth=3, but the model has 2"),
        (lambda folder: facts_file(folder, deep=3), 2, "deep: Extra inputs"),
        (lambda folder: folder / "none.json", 1, "none.json cannot be read"),
        (lambda folder: folder, 1, "cannot be read"),
    ],
)
def test_wrong_facts_are_one_message(
    write: Callable[[Path], Path], code: int, message: str, model: Path, tmp_path: Path
) -> None:
    place = tmp_path / "new" / "a.jsonl"
    arguments = ("--output", place, "--model", model, "--store", tmp_path / "s")
    exit_code, output = command(*arguments, "--facts", write(tmp_path))
    assert exit_code == code
    assert message in output
    assert output.startswith("error: ")
    assert not place.parent.exists()


def test_facts_of_a_file_are_told(tmp_path: Path) -> None:
    sheet = facts_file(tmp_path, name="Eva", depth=6, answers={"maker": "Jo made me."})
    place = tmp_path / "a.jsonl"
    assert command("--output", place, "--facts", sheet, "--count", "300")[0] == 0
    text = place.read_text()
    for answer in ("My name is Eva.", "I have 6 layers.", "Jo made me."):
        assert answer in text
    assert "parameters." not in text
