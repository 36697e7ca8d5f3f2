"""Sums, documentation questions, and the mixture of all kinds."""

import hashlib
import json
import random
import re
from pathlib import Path

import pytest

from nanochat_core.conversation.identity import ModelFacts
from nanochat_core.conversation.mixture import build_mixture
from nanochat_core.conversation.questions import (
    QuestionAnswer,
    question_conversations,
    read_questions,
)
from nanochat_core.conversation.recipes import Mixture, MixturePart
from nanochat_core.conversation.sums import held_out_sums, is_held_out, sum_conversations
from nanochat_core.errors import ConfigError, DataError
from nanochat_core.sandbox.calculator import calculate

POOL = [QuestionAnswer(question=f"What is item {n}?", answer=f"Thing {n}.") for n in range(30)]
MIXTURE = Mixture(
    parts=(
        MixturePart(kind="identity", conversations=30),
        MixturePart(kind="sums", conversations=5),
        MixturePart(kind="questions", conversations=65),
    )
)


def pair_of(text: str) -> frozenset[int]:
    a, b = re.findall(r"\d+", text)
    return frozenset((int(a), int(b)))


def test_a_sum_goes_through_the_calculator_and_is_right() -> None:
    for conversation in sum_conversations(300, random.Random(0)):
        code, output, answer = conversation.messages[1].parts
        assert [part.kind for part in (code, output, answer)] == ["python", "python_output", "text"]
        assert calculate(code.text) == output.text
        assert answer.text.endswith(f"= {output.text}")
        assert pair_of(conversation.messages[0].text) == pair_of(code.text)


def test_held_out_sums_are_never_trained_in_either_order() -> None:
    trained = {
        pair_of(conversation.messages[0].text)
        for conversation in sum_conversations(2000, random.Random(0))
    }
    held_out = held_out_sums(200, seed=1)
    assert len({s.expression for s in held_out}) == 200
    assert trained.isdisjoint(pair_of(s.expression) for s in held_out)
    assert all(calculate(s.expression) == s.answer for s in held_out)
    assert all(is_held_out(a, b) == is_held_out(b, a) for a in range(20) for b in range(20))


def test_held_out_sums_have_one_and_two_digits_and_repeat_for_a_seed() -> None:
    sums = held_out_sums(60, seed=1)
    assert sums == held_out_sums(60, seed=1)
    assert sums != held_out_sums(60, seed=2)
    numbers = [int(n) for s in sums for n in s.expression.split("+")]
    assert min(numbers) < 10 <= max(numbers) <= 99
    assert sums[0].is_answered_by(f"{sums[0].expression} = {sums[0].answer}.")
    assert not sums[0].is_answered_by(f"{sums[0].answer}0")
    with pytest.raises(ConfigError, match="at most 1000"):
        held_out_sums(1001, seed=1)


def test_every_question_of_the_pool_is_used_before_any_is_used_again() -> None:
    drawn = question_conversations(POOL, 75, random.Random(0))
    asked = [conversation.messages[0].text for conversation in drawn]
    everything = {item.question for item in POOL}
    assert set(asked[:30]) == set(asked[30:60]) == everything
    assert asked[:30] != asked[30:60]
    assert len(set(asked[60:])) == 15
    assert drawn[0].messages[1].text == asked[0].replace("What is item", "Thing").replace("?", ".")


def test_questions_are_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "qa.jsonl"
    path.write_text("".join(item.model_dump_json() + "\n" for item in POOL))
    assert read_questions(path) == POOL
    path.write_text("")
    assert read_questions(path) == []


@pytest.mark.parametrize(
    "line", ['{"question": "a"}', '{"question": "a", "answer": ""}', "[1]", "no json"]
)
def test_a_line_that_is_no_question_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "qa.jsonl"
    path.write_text(POOL[0].model_dump_json() + "\n\n" + line + "\n")
    with pytest.raises(DataError, match="line 3 is"):
        read_questions(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_questions(tmp_path / "absent.jsonl")


def test_a_mixture_holds_what_its_parts_ask_for(facts: ModelFacts) -> None:
    built = build_mixture(MIXTURE, facts, POOL)
    assert built.counts == {"identity": 30, "sums": 5, "questions": 65}
    assert len(built.conversations) == 100
    is_sum = [c.messages[1].parts[0].kind == "python" for c in built.conversations]
    is_question = ["item" in c.messages[0].text for c in built.conversations]
    assert sum(is_sum) == 5
    assert sum(is_question) == 65
    assert 0 < sum(is_question[:50]) < 65


def test_a_mixture_is_a_pure_function_of_its_arguments(facts: ModelFacts) -> None:
    built = build_mixture(MIXTURE, facts, POOL)
    assert build_mixture(MIXTURE, facts, POOL) == built
    other = build_mixture(MIXTURE.model_copy(update={"seed": 8}), facts, POOL)
    assert other.conversations != built.conversations


def test_without_documentation_questions_that_part_is_left_out_and_counted(
    facts: ModelFacts,
) -> None:
    built = build_mixture(MIXTURE, facts, [])
    assert built.counts == {"identity": 30, "sums": 5, "questions": 0}
    with_pool = set(map(repr, build_mixture(MIXTURE, facts, POOL).conversations))
    assert with_pool.issuperset(map(repr, built.conversations))


def test_a_mixture_of_nothing_is_refused(facts: ModelFacts) -> None:
    only_questions = Mixture(parts=(MixturePart(kind="questions", conversations=5),))
    with pytest.raises(DataError, match="add a part of identity or sums"):
        build_mixture(only_questions, facts, [])


def test_facts_of_another_name_are_refused(facts: ModelFacts) -> None:
    with pytest.raises(ConfigError, match="'nanochat' but the mixture says 'bob'"):
        build_mixture(MIXTURE.model_copy(update={"name": "bob"}), facts, POOL)


def test_the_drawn_conversations_do_not_drift_unnoticed(facts: ModelFacts) -> None:
    built = build_mixture(MIXTURE, facts, POOL)
    conversations = ",".join(each.model_dump_json() for each in built.conversations)
    counts = json.dumps(built.counts, separators=(",", ":"))
    text = f'{{"conversations":[{conversations}],"counts":{counts}}}'
    digest = hashlib.sha256(text.encode()).hexdigest()
    # Another value means that an equal recipe now makes other conversations: when that is meant,
    # raise the CODE_VERSION of sft with it.
    assert digest[:16] == "d79e31de3a12f0ed"
