"""The whole harness against a plain restatement of its rules, with a real model."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from eval_tools import TEXT, WORDS, choice_rows, make_model, make_tokenizer, write_bundle
from plain_core import accuracy

from nanochat_core.distributed.ranks import Ranks
from nanochat_core.errors import TrainingError
from nanochat_core.evals.bundle import OFFICIAL_TASKS, Bundle, read_bundle
from nanochat_core.evals.core import evaluate_core
from nanochat_core.evals.core_results import CoreResult, TaskResult, example_rows
from nanochat_core.model.gpt import GPT
from nanochat_core.tokenizer.tokenizer import Tokenizer


def schema_rows(count: int) -> list[dict[str, Any]]:
    return [
        {
            "context_options": [f"The {WORDS[i % 13]} of", f"A {WORDS[(i * 5 + 1) % 13]} in"],
            "continuation": f"the {WORDS[(i * 3) % 13]}.",
            "gold": i % 2,
        }
        for i in range(count)
    ]


def language_rows(model: GPT, tokenizer: Tokenizer, count: int) -> list[dict[str, Any]]:
    """Contexts and, for every other one, just what the model says next, so that some are right."""
    rows = []
    for i in range(count):
        context = f" {WORDS[i % 13]} {WORDS[(i * 2) % 13]}"
        continuation = WORDS[(i * 7) % 13]
        if i % 2:
            ids = [tokenizer.bos_id, *tokenizer.encode(context.strip() + ": ")]
            with torch.no_grad():
                continuation = tokenizer.decode([int(model(torch.tensor([ids]))[0, -1].argmax())])
        rows.append({"context": context, "continuation": continuation})
    return rows


@pytest.fixture
def model() -> GPT:
    return make_model()


@pytest.fixture
def tokenizer() -> Tokenizer:
    return make_tokenizer()


def run(model: GPT, tokenizer: Tokenizer, folder: Path, **changes: Any) -> CoreResult:
    settings = {"max_per_task": 12, "batch_tokens": 256, **changes}
    return evaluate_core(model, tokenizer, read_bundle(folder), Ranks.single(), **settings)


CASES = [("multiple_choice", choice_rows, 0), ("multiple_choice", choice_rows, 3)]
CASES += [("schema", schema_rows, 0), ("schema", schema_rows, 2)]


@pytest.mark.parametrize(("kind", "make_rows", "num_fewshot"), CASES)
def test_options_are_judged_as_the_plain_rules_judge_them(
    tmp_path: Path,
    model: GPT,
    tokenizer: Tokenizer,
    kind: str,
    make_rows: Callable[[int], list[dict[str, Any]]],
    num_fewshot: int,
) -> None:
    rows = make_rows(15)
    entry = {"label": "t", "rows": rows, "icl_task_type": kind, "num_fewshot": [num_fewshot]}
    write_bundle(tmp_path, [entry])
    (result,) = run(model, tokenizer, tmp_path).tasks
    expected, scores = accuracy(
        model, tokenizer, kind, rows,
        max_per_task=12, num_fewshot=num_fewshot, delimiter=" ", max_tokens=640,
    )  # fmt: skip
    assert result.accuracy == expected
    assert 0 < expected < 1
    for example, plain in zip(result.examples, scores, strict=True):
        assert example.scores == pytest.approx(plain, rel=1e-5)


def test_stories_asked_about_again_are_judged_as_the_plain_rules_judge_them(
    tmp_path: Path, model: GPT, tokenizer: Tokenizer
) -> None:
    """Long contexts in common, and windows that reach back into them only in part."""
    story = TEXT * 3
    rows = [
        {
            "context": story[: 380 + 5 * (i % 3)] + f" {WORDS[i]} is",
            "continuation": WORDS[3 * i % 13],
        }
        for i in range(12)
    ]
    rows += language_rows(model, tokenizer, 6)
    answers = [word + " it is" * 3 * k for k, word in enumerate(WORDS)]
    choices = [
        {"query": f"{story} {WORDS[i % 2]}", "choices": answers, "gold": i} for i in range(3)
    ]
    kinds = {"language_modeling": rows, "multiple_choice": choices}
    write_bundle(
        tmp_path,
        [{"label": k, "rows": r, "icl_task_type": k, "continuation_delimiter": ": "}
         for k, r in kinds.items()],
    )  # fmt: skip
    rules = {"num_fewshot": 0, "delimiter": ": ", "max_per_task": 99, "max_tokens": 640}
    plain_scores = {
        kind: accuracy(model, tokenizer, kind, rows, **rules)[1] for kind, rows in kinds.items()
    }
    for batch_tokens in (1, 900, 9000):
        result = run(model, tokenizer, tmp_path, max_per_task=99, batch_tokens=batch_tokens)
        for task in result.tasks:
            scores = plain_scores[task.task.task_type]
            for example, plain in zip(task.examples, scores, strict=True):
                assert example.scores == pytest.approx(plain, rel=1e-5)


def test_continuations_are_judged_as_the_plain_rules_judge_them(
    tmp_path: Path, model: GPT, tokenizer: Tokenizer
) -> None:
    rows = language_rows(model, tokenizer, 15)
    rules = {"num_fewshot": 0, "delimiter": ": "}
    entry = {"label": "t", "rows": rows, "icl_task_type": "language_modeling"}
    write_bundle(tmp_path, [{**entry, "continuation_delimiter": ": "}])
    (result,) = run(model, tokenizer, tmp_path).tasks
    expected, scores = accuracy(
        model, tokenizer, "language_modeling", rows, max_per_task=12, max_tokens=640, **rules
    )
    assert result.accuracy == expected
    assert [list(example.scores) for example in result.examples] == scores


def test_long_prompts_lose_their_head_and_perhaps_their_span(
    tmp_path: Path, model: GPT, tokenizer: Tokenizer
) -> None:
    rows = choice_rows(9)
    entry = {"label": "t", "rows": rows, "icl_task_type": "multiple_choice", "num_fewshot": [1]}
    write_bundle(tmp_path, [entry])
    limit = 10
    model.max_positions = limit
    (result,) = run(model, tokenizer, tmp_path).tasks
    expected, scores = accuracy(
        model, tokenizer, "multiple_choice", rows,
        max_per_task=12, num_fewshot=1, delimiter=" ", max_tokens=limit,
    )  # fmt: skip
    assert result.num_cropped > 0
    assert result.accuracy == expected
    flat = [score for example in result.examples for score in example.scores]
    assert flat == pytest.approx([score for row in scores for score in row], rel=1e-5)
    assert math.inf in flat


def test_the_batch_size_does_not_change_the_scores(
    tmp_path: Path, model: GPT, tokenizer: Tokenizer
) -> None:
    write_bundle(
        tmp_path,
        [
            {"label": "c", "rows": choice_rows(10), "icl_task_type": "multiple_choice"},
            {
                "label": "l",
                "rows": language_rows(model, tokenizer, 10),
                "icl_task_type": "language_modeling",
                "continuation_delimiter": ": ",
            },
        ],
    )
    alone, together = (run(model, tokenizer, tmp_path, batch_tokens=n) for n in (1, 10_000))
    assert alone.score == together.score
    for one, other in zip(alone.tasks, together.tasks, strict=True):
        for a, b in zip(one.examples, other.examples, strict=True):
            assert a.scores == pytest.approx(b.scores, rel=1e-5)
            assert a.predicted == b.predicted


def test_ties_and_empty_spans_go_to_the_first_option(
    tmp_path: Path, model: GPT, tokenizer: Tokenizer
) -> None:
    rows = [{"query": "The sky is", "choices": ["blue", "blue"], "gold": gold} for gold in (0, 1)]
    write_bundle(tmp_path, [{"label": "t", "rows": rows, "icl_task_type": "multiple_choice"}])
    (result,) = run(model, tokenizer, tmp_path).tasks
    assert [example.predicted for example in result.examples] == [0, 0]
    assert all(example.scores == (math.inf, math.inf) for example in result.examples)
    assert result.accuracy == 0.5


def test_a_prefix_of_another_choice_loses(tmp_path: Path, model: GPT, tokenizer: Tokenizer) -> None:
    rows = [{"query": "The sky is", "choices": ["blue", "blue and green"], "gold": 1}]
    write_bundle(tmp_path, [{"label": "t", "rows": rows, "icl_task_type": "multiple_choice"}])
    (result,) = run(model, tokenizer, tmp_path).tasks
    assert result.accuracy == 1.0


def test_scores_are_centered_averaged_and_given_an_error(
    tmp_path: Path, model: GPT, tokenizer: Tokenizer
) -> None:
    tasks = [
        {"label": "c", "rows": choice_rows(12), "icl_task_type": "multiple_choice", "baseline": 30},
        {"label": "s", "rows": schema_rows(12), "icl_task_type": "schema", "baseline": 50},
    ]
    write_bundle(tmp_path, tasks)
    result = run(model, tokenizer, tmp_path)
    c, s = result.tasks
    assert c.centered == pytest.approx((c.accuracy - 0.3) / 0.7)
    assert result.score == pytest.approx((c.centered + s.centered) / 2)
    variances = [r.accuracy * (1 - r.accuracy) / 12 / (1 - r.task.baseline) ** 2 for r in (c, s)]
    assert result.score_stderr == pytest.approx(math.sqrt(sum(variances)) / 2)
    assert result.metric_name == "demo_score"
    rows = list(example_rows(result))
    assert len(rows) == 1 + 24
    assert all(len(row) == len(rows[0]) for row in rows)


def test_only_the_official_tasks_make_the_core_metric(tmp_path: Path) -> None:
    rows = schema_rows(1)
    entries = [{"label": label, "rows": rows, "icl_task_type": "schema"}
               for label in sorted(OFFICIAL_TASKS)]  # fmt: skip
    write_bundle(tmp_path, entries)
    bundle = read_bundle(tmp_path)
    assert len(OFFICIAL_TASKS) == 22
    assert bundle.is_official
    assert CoreResult((), is_official=True).metric_name == "core_metric"
    assert not Bundle(bundle.tasks[1:]).is_official


def test_progress_counts_examples_up_to_the_last(
    tmp_path: Path, model: GPT, tokenizer: Tokenizer
) -> None:
    tasks = [
        {"label": "c", "rows": choice_rows(7), "icl_task_type": "multiple_choice"},
        {"label": "s", "rows": schema_rows(5), "icl_task_type": "schema"},
    ]
    write_bundle(tmp_path, tasks)
    seen = []
    run(model, tokenizer, tmp_path, batch_tokens=1, on_progress=lambda n, task: seen.append(n))
    assert seen == sorted(seen)
    assert seen[-1] == 12


def test_a_model_that_answers_nan_is_refused(
    tmp_path: Path, model: GPT, tokenizer: Tokenizer
) -> None:
    write_bundle(tmp_path, [{"label": "s", "rows": schema_rows(3), "icl_task_type": "schema"}])
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    with pytest.raises(TrainingError, match="NaN"):
        run(model, tokenizer, tmp_path)


def test_known_tasks_are_taken_and_the_rest_is_asked(
    tmp_path: Path, model: GPT, tokenizer: Tokenizer
) -> None:
    tasks = [
        {"label": label, "rows": schema_rows(5 + i), "icl_task_type": "schema"}
        for i, label in enumerate("abc")
    ]
    write_bundle(tmp_path, tasks)
    whole = run(model, tokenizer, tmp_path)
    kept = {"b": TaskResult(whole.tasks[1].task, whole.tasks[1].examples[:2], 7)}
    asked, progress = [], []
    result = run(
        model, tokenizer, tmp_path,
        known=kept, on_task=asked.append, on_progress=lambda n, _: progress.append(n),
    )  # fmt: skip
    assert result.tasks == (whole.tasks[0], kept["b"], whole.tasks[2])
    assert asked == [whole.tasks[0], whole.tasks[2]]
    assert progress[-1] == 5 + 7
    all_known = {task.task.label: task for task in whole.tasks}
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    assert run(model, tokenizer, tmp_path, known=all_known) == whole
