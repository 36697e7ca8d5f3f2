"""How a chat model is asked, and what the scores say."""

import json
import math
import random
import string
from functools import cache

import pytest
import torch
from eval_tools import make_model, make_tokenizer

from nanochat_core.benchmarks.base import prompt
from nanochat_core.benchmarks.multiple_choice import ChoiceQuestion, MultipleChoice
from nanochat_core.benchmarks.names import OFFICIAL_TEST_ROWS
from nanochat_core.benchmarks.open import open_benchmark
from nanochat_core.conversation.identity import ModelFacts
from nanochat_core.distributed.ranks import Ranks
from nanochat_core.errors import DataError, TrainingError
from nanochat_core.evals.chat import evaluate_chat
from nanochat_core.evals.chat_answers import pick_letters, write_replies
from nanochat_core.evals.chat_results import (
    BenchmarkResult,
    ChatResult,
    ProblemResult,
    chat_lines,
)
from nanochat_core.inference.engine import EngineSettings, InferenceEngine
from nanochat_core.inference.settings import GREEDY
from nanochat_core.tokenizer.chat_format import render_prompt, visible_text

FACTS = ModelFacts(
    name="Ada",
    depth=2,
    num_parameters=1_180_000,
    n_embd=128,
    n_head=1,
    vocab_size=2048,
    sequence_len=256,
)
TOKENIZER = make_tokenizer()
ENGINE = InferenceEngine(make_model(), TOKENIZER)


def make_choices(count: int = 12) -> MultipleChoice:
    """Questions of very different lengths, with letters from the whole alphabet."""
    questions, rng = [], random.Random(0)
    for i in range(count):
        letters = tuple(rng.sample(string.ascii_uppercase + string.digits, 3 + i % 3))
        choices = tuple(f"the sky {k} is blue" for k in range(len(letters)))
        question = "Is the sea green? " * (i * 7 % 5) + "Yes?"
        questions.append(ChoiceQuestion(question, choices, letters, letters[i % len(letters)]))
    return MultipleChoice("arc-easy", questions)


def plain_logits(benchmark: MultipleChoice, index: int) -> torch.Tensor:
    """The restatement: one whole forward pass of one prompt, without cache and padding."""
    ids = render_prompt(TOKENIZER, prompt(benchmark.conversation(index)))
    with torch.no_grad():
        return ENGINE.model(torch.tensor([ids]))[0, -1]


def plain_letter(benchmark: MultipleChoice, index: int) -> str:
    last_V, letters = plain_logits(benchmark, index), benchmark.letters(index)
    scores = [float(last_V[TOKENIZER.encode(letter)[0]]) for letter in letters]
    return letters[scores.index(max(scores))]


@pytest.mark.parametrize("batch_tokens", [1, 700, 10_000])
def test_letters_are_those_of_plain_forward_passes(batch_tokens: int) -> None:
    benchmark = make_choices()
    told: list[int] = []
    answers = pick_letters(
        ENGINE, benchmark, range(12), batch_tokens=batch_tokens, on_done=told.append
    )
    found = {answer.index: answer.reply for answer in answers}
    expected = {index: plain_letter(benchmark, index) for index in range(12)}
    assert found == expected
    assert len(set(expected.values())) > 4
    right = {answer.index for answer in answers if answer.score == 1.0}
    assert right == {index for index in range(12) if expected[index] == benchmark.answer(index)}
    assert told == sorted(told)
    assert told[-1] == 12


def test_padding_does_not_change_the_logits() -> None:
    benchmark = make_choices(5)
    prompts = [render_prompt(TOKENIZER, prompt(benchmark.conversation(i))) for i in range(5)]
    assert len(set(map(len, prompts))) > 3
    together_BV = ENGINE.last_logits(prompts)
    alone_BV = torch.stack([plain_logits(benchmark, i) for i in range(5)])
    assert torch.allclose(together_BV, alone_BV, rtol=1e-4, atol=1e-4)


def test_a_letter_of_two_tokens_is_refused_by_name() -> None:
    question = ChoiceQuestion("Which?", ("one", "two"), ("A", "BQ"), "A")
    with pytest.raises(DataError, match=r"arc-easy offers the letter 'BQ', which is 2 tokens"):
        pick_letters(ENGINE, MultipleChoice("arc-easy", [question]), [0], batch_tokens=1)


def test_a_broken_model_is_not_scored() -> None:
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight[0] = float("nan")
    with pytest.raises(TrainingError, match="arc-easy"):
        pick_letters(InferenceEngine(model, TOKENIZER), make_choices(2), range(2), batch_tokens=999)


@pytest.mark.parametrize("num_rows", [1, 3, 100])
def test_replies_are_those_of_one_question_at_a_time(num_rows: int) -> None:
    benchmark = open_benchmark("sums", "test", count=5, seed=1)
    engine = InferenceEngine(ENGINE.model, TOKENIZER, EngineSettings(num_rows=num_rows))
    answers = write_replies(engine, benchmark, range(5), max_new_tokens=8)
    assert sorted(answer.index for answer in answers) == list(range(5))
    for answer in answers:
        asked = render_prompt(TOKENIZER, prompt(benchmark.conversation(answer.index)))
        (alone,) = ENGINE.generate_batch([asked], GREEDY, max_new_tokens=8)
        assert answer.reply == visible_text(TOKENIZER, alone)
        assert answer.score == benchmark.score(answer.index, answer.reply)
    assert len({answer.reply for answer in answers}) > 1


def test_code_and_tool_output_are_not_part_of_the_visible_text() -> None:
    start, end, out, out_end, stop = (
        TOKENIZER.special_id(name)
        for name in ("python_start", "python_end", "output_start", "output_end", "assistant_end")
    )
    code, result = TOKENIZER.encode("3+4"), TOKENIZER.encode("7")
    said, unseen = TOKENIZER.encode("3 + 4 = 9."), TOKENIZER.encode("never seen")
    reply = [start, *code, end, out, *result, out_end, *said, stop, *unseen]
    assert visible_text(TOKENIZER, reply) == "3 + 4 = 9."


def test_what_raises_while_a_batch_is_written_ends_it() -> None:
    told = []

    def stop(count: int) -> None:
        told.append(count)
        raise InterruptedError

    benchmark = open_benchmark("sums", "test", count=2, seed=1)
    with pytest.raises(InterruptedError):
        write_replies(ENGINE, benchmark, range(2), max_new_tokens=400, on_done=stop)
    assert told == [0]


def test_problems_are_kept_in_order_with_what_was_said() -> None:
    asked = [
        open_benchmark("identity", "test", count=6, facts=FACTS),
        make_choices(3),
        open_benchmark("sums", "test", count=4, seed=1),
    ]
    told = []
    result = evaluate_chat(
        ENGINE,
        asked,
        Ranks.single(),
        batch_tokens=200,
        max_new_tokens=3,
        on_progress=lambda done, name: told.append((done, name)),
    )
    assert [part.name for part in result.benchmarks] == ["identity", "arc-easy", "sums"]
    for benchmark, part in zip(asked, result.benchmarks, strict=True):
        assert [problem.index for problem in part.problems] == list(range(len(benchmark)))
        for problem in part.problems:
            question, reference = benchmark.conversation(problem.index).messages
            assert (problem.question, problem.reference) == (question.text, reference.text)
            assert not problem.is_cropped
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (13, "sums")
    records = result.records()
    assert [record["kind"] for record in records] == [
        *["name", "depth", "parameters"] * 2, *["arc-easy"] * 3, *["sums"] * 4,
    ]  # fmt: skip
    assert set(records[0]) == {
        "benchmark", "index", "kind", "question", "answer", "reference", "score", "right",
    }  # fmt: skip


def test_a_question_that_is_too_long_is_cut_and_counted() -> None:
    short = ChoiceQuestion("Is it?", ("yes", "no"), ("A", "B"), "A")
    long = ChoiceQuestion("Is the sky blue? " * 200, ("yes", "no"), ("A", "B"), "A")
    result = evaluate_chat(
        ENGINE,
        [MultipleChoice("mmlu", [short, long])],
        Ranks.single(),
        batch_tokens=1,
        max_new_tokens=1,
    )
    assert [problem.is_cropped for problem in result.benchmarks[0].problems] == [False, True]
    assert result.scores()["benchmarks"]["mmlu"]["cropped_prompts"] == 1


def make_result(name: str, right: int, asked: int, baseline: float = 0.0) -> BenchmarkResult:
    problems = tuple(
        ProblemResult(name, i, name, "?", "", "", float(i < right), False) for i in range(asked)
    )
    return BenchmarkResult(name, baseline, problems)


GENERATED = ("gsm8k", "humaneval")


@cache
def official(right_share: float = 0.5) -> list[BenchmarkResult]:
    return [
        make_result(name, round(right_share * rows), rows, 0.0 if name in GENERATED else 0.25)
        for name, rows in OFFICIAL_TEST_ROWS.items()
    ]


def test_scores_have_counts_and_standard_errors() -> None:
    result = ChatResult((make_result("sums", 3, 12), make_result("mmlu", 40, 100, 0.25)))
    metrics = result.metrics()
    assert metrics["sums"] == 0.25
    assert metrics["sums/stderr"] == pytest.approx(math.sqrt(0.25 * 0.75 / 12))
    assert (metrics["sums/right"], metrics["sums/asked"]) == (3, 12)
    assert metrics["demo_score"] == pytest.approx((0.25 + 0.15 / 0.75) / 2)
    of_mmlu = math.sqrt(0.4 * 0.6 / 100) / 0.75
    assert metrics["demo_score/stderr"] == pytest.approx(
        math.hypot(metrics["sums/stderr"], of_mmlu) / 2
    )
    assert "chatcore_metric" not in metrics
    summary = result.scores()["benchmarks"]["mmlu"]
    assert summary["centered"] == pytest.approx(0.2)
    assert summary["accuracy_stderr"] == pytest.approx(of_mmlu * 0.75)


def test_the_table_has_a_standard_error_beside_every_score() -> None:
    result = ChatResult((make_result("sums", 3, 12), make_result("mmlu", 40, 100, 0.25)))
    _, *rows = (line.split() for line in chat_lines(result.scores()))
    assert rows == [
        ["sums", "12", "3", "0.2500", "0.1250", "0.2500", "0.1250"],
        ["mmlu", "100", "40", "0.4000", "0.0490", "0.2000", "0.0653"],
        ["demo_score", "0.2250", "0.0705"],
    ]


def test_a_result_comes_back_from_its_record() -> None:
    result = evaluate_chat(
        ENGINE,
        [open_benchmark("identity", "test", count=4, facts=FACTS), make_choices(3)],
        Ranks.single(),
        batch_tokens=200,
        max_new_tokens=3,
    )
    for part in result.benchmarks:
        record = json.loads(json.dumps(part.record()))
        assert BenchmarkResult.from_record(record) == part


def test_chatcore_is_the_mean_over_the_whole_official_five_and_nothing_else() -> None:
    exact = ChatResult((make_result("identity", 30, 30), *official(), make_result("sums", 0, 5)))
    metrics = exact.metrics()
    assert "demo_score" not in metrics
    expected = [(r.accuracy - r.baseline) / (1 - r.baseline) for r in official()]
    assert metrics["chatcore_metric"] == pytest.approx(sum(expected) / 5)
    assert metrics["chatcore_metric"] == pytest.approx((3 * (0.25 / 0.75) + 2 * 0.5) / 5, abs=1e-3)


@pytest.mark.parametrize("missing", OFFICIAL_TEST_ROWS)
def test_four_of_the_five_or_one_row_less_is_a_demo_score(missing: str) -> None:
    four = [result for result in official() if result.name != missing]
    assert ChatResult(tuple(four)).metric_name == "demo_score"
    fewer = [*four, make_result(missing, 0, OFFICIAL_TEST_ROWS[missing] - 1)]
    assert ChatResult(tuple(fewer)).metric_name == "demo_score"


def test_scores_of_identity_are_also_told_by_kind() -> None:
    problems = tuple(
        ProblemResult("identity", i, kind, "?", "", "", float(kind == "name"), False)
        for i, kind in enumerate(["name", "depth", "parameters", "name"])
    )
    result = ChatResult((BenchmarkResult("identity", 0.0, problems),))
    assert result.metrics()["identity"] == 0.5
    scores = result.scores()
    assert (scores["name"], scores["name/right"], scores["name/asked"]) == (1.0, 2, 2)
    assert (scores["depth"], scores["depth/right"], scores["depth/asked"]) == (0.0, 0, 1)
    assert "name" not in result.metrics()
