"""Benchmarks that need no files: sums, spelling, questions about the model itself."""

import pytest

from nanochat_core.benchmarks.base import GenerativeBenchmark, Split, prompt
from nanochat_core.benchmarks.names import BENCHMARKS, MADE
from nanochat_core.benchmarks.open import open_benchmark, open_generative
from nanochat_core.benchmarks.spelling import SpellingProblem, is_held_out, make_spelling
from nanochat_core.benchmarks.sums import Sums
from nanochat_core.benchmarks.words import WORDS
from nanochat_core.conversation.identity import ModelFacts
from nanochat_core.conversation.sums import sum_conversation
from nanochat_core.errors import ConfigError, UnknownNameError
from nanochat_core.sandbox.calculator import calculate

FACTS = ModelFacts(
    name="Ada",
    depth=2,
    num_parameters=1_180_000,
    n_embd=128,
    n_head=1,
    vocab_size=2048,
    sequence_len=256,
)
SPLITS = [("sums", "train"), ("sums", "test"), ("spelling", "train"), ("spelling", "test"),
          ("identity", "test")]  # fmt: skip


def make(name: str, split: Split, count: int = 30, seed: int = 1) -> GenerativeBenchmark:
    benchmark = open_benchmark(name, split, count=count, seed=seed, facts=FACTS)
    assert isinstance(benchmark, GenerativeBenchmark)
    return benchmark


def questions(benchmark: GenerativeBenchmark) -> list[str]:
    return [benchmark.conversation(i).messages[0].text for i in range(len(benchmark))]


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_references_are_right_and_silence_is_not(name: str, split: Split) -> None:
    benchmark = make(name, split)
    assert len(benchmark) == 30
    for index in range(30):
        conversation = benchmark.conversation(index)
        assert benchmark.score(index, conversation.messages[-1].text) == 1.0
        assert benchmark.score(index, "") == 0.0
        if name != "sums":  # 9 stands in "9+0", and is right
            assert benchmark.score(index, prompt(conversation).messages[-1].text) == 0.0


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_tools_say_what_the_calculator_says(name: str, split: Split) -> None:
    for index in range(30):
        parts = make(name, split).conversation(index).messages[-1].parts
        codes = [part.text for part in parts if part.kind == "python"]
        outputs = [part.text for part in parts if part.kind == "python_output"]
        assert [calculate(code) for code in codes] == outputs


@pytest.mark.parametrize("name", ["sums", "spelling"])
def test_problems_depend_on_the_seed_alone(name: str) -> None:
    for split in ("train", "test"):
        first = questions(make(name, split, seed=1))
        assert questions(make(name, split, seed=1)) == first
        assert questions(make(name, split, seed=2)) != first
        assert questions(make(name, split, seed=1, count=10)) != []


def test_nothing_is_trained_with_that_is_tested() -> None:
    def pair(question: str) -> frozenset[str]:
        return frozenset("".join(c if c.isdigit() else " " for c in question).split())

    trained = {pair(question) for question in questions(make("sums", "train", count=1000))}
    tested = {pair(question) for question in questions(make("sums", "test", count=500))}
    assert trained.isdisjoint(tested)
    trained_words = {word for word in WORDS if not is_held_out(word)}
    for question in questions(make("spelling", "test", count=400)):
        words = set("".join(c if c.isalpha() else " " for c in question).split())
        asked = words & set(WORDS) - {"word", "letter", "spell"}
        assert asked
        assert asked.isdisjoint(trained_words)


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("0 + 7 = 7.", 1.0),
        ("0 + 7 = 9.", 0.0),
        ("It is 7", 1.0),
        ("17", 0.0),
        ("-7", 0.0),
        ("7.5", 0.0),
    ],
)
def test_a_sum_is_what_stands_behind_the_last_equals_sign(reply: str, score: float) -> None:
    assert Sums([sum_conversation("0+7", 0, 7)]).score(0, reply) == score


@pytest.mark.parametrize(
    ("letter", "reply", "is_right"),
    [
        ("", "berry: b, e, r, r, y", True),
        ("", "B-E-R-R-Y.", True),
        ("", "b e r r y", True),
        ("", "berry", False),
        ("", "berry: berry", False),
        ("", "b, e, r, y", False),
        ("", "b, e, r, r, y, y", False),
        ("r", "berry has r this often: 2", True),
        ("r", "2", True),
        ("r", "There are 2 r in it.", True),
        ("r", "I have 2 layers.", False),
        ("r", "berry has r this often: 12", False),
        ("r", "2 r in berry: 3", False),
        ("z", "berry has z this often: 0", True),
    ],
)
def test_letters_are_spelled_one_by_one_and_counted(
    letter: str, reply: str, is_right: bool
) -> None:
    problem = SpellingProblem("count" if letter else "spell", "?", "berry", letter)
    assert problem.is_answered_by(reply) is is_right


def test_held_out_problems_are_all_different_and_run_out() -> None:
    asked = questions(make_spelling("test", 400, 3))
    assert len(set(asked)) == 400
    assert any(question.startswith("How many") for question in asked)
    with pytest.raises(ConfigError, match="spelling=401"):
        make_spelling("test", 401, 3)
    with pytest.raises(ConfigError, match="1000"):
        make("sums", "test", count=1001)


def test_identity_asks_for_name_depth_and_parameters_in_turn() -> None:
    benchmark = open_benchmark("identity", "test", count=30, facts=FACTS)
    kinds = [benchmark.kind(i) for i in range(30)]
    assert kinds == ["name", "depth", "parameters"] * 10
    with pytest.raises(ConfigError, match="identity_questions=1000"):
        open_benchmark("identity", "test", count=1000, facts=FACTS)
    with pytest.raises(ConfigError, match="facts"):
        open_benchmark("identity", "test")
    with pytest.raises(ConfigError, match="only a test split"):
        open_benchmark("identity", "train", facts=FACTS)


@pytest.mark.parametrize(
    ("kind", "reply", "score"),
    [
        ("name", "I am ada!", 1.0),
        ("name", "I am Adam.", 0.0),
        ("depth", "I have 2 layers.", 1.0),
        ("depth", "I have 12 layers and 1.2 million parameters.", 0.0),
        ("parameters", "I have 1.2 million parameters.", 1.0),
        ("parameters", "I have 1,180,000 parameters.", 1.0),
        ("parameters", "I have 11.2 million parameters.", 0.0),
    ],
)
def test_an_answer_counts_when_it_states_the_value(kind: str, reply: str, score: float) -> None:
    benchmark = open_benchmark("identity", "test", count=3, facts=FACTS)
    index = ["name", "depth", "parameters"].index(kind)
    assert benchmark.score(index, reply) == score


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    with pytest.raises(UnknownNameError) as caught:
        open_benchmark("gsm9k", "test")
    assert all(name in str(caught.value) for name in BENCHMARKS)
    assert {open_generative(name, "test").name for name in MADE if name != "identity"} == {
        "sums", "spelling",
    }  # fmt: skip
