"""Which examples are asked, how they read, and which tokens are scored."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eval_tools import TEXT, make_tokenizer, write_bundle

from nanochat_core.errors import DataError
from nanochat_core.evals.bundle import Task, read_bundle
from nanochat_core.evals.core_prompts import (
    build_prompts,
    crop,
    few_shots,
    keep_examples,
    share_rows,
)
from nanochat_core.tokenizer.recipe import TokenizerRecipe
from nanochat_core.tokenizer.split_patterns import SPLIT_PATTERNS
from nanochat_core.tokenizer.tokenizer import Tokenizer

TOKENIZER = make_tokenizer()
LIMIT = 640


def only_task(tmp_path: Path, rows: list[dict[str, Any]], **fields: Any) -> Task:
    write_bundle(tmp_path, [{"label": "t", "rows": rows, **fields}])
    (task,) = read_bundle(tmp_path).tasks
    return task


def texts_and_spans(
    task: Task, row: int = 0, max_per_task: int = 100
) -> tuple[list[str], list[str]]:
    kept = keep_examples(task, task.read_examples(), max_per_task)
    prompts = build_prompts(task, kept, row, TOKENIZER, LIMIT)
    assert all(prompt.tokens[0] == TOKENIZER.bos_id for prompt in prompts)
    texts = [TOKENIZER.decode(prompt.tokens[1:].tolist()) for prompt in prompts]
    spans = [
        TOKENIZER.decode(prompt.tokens[prompt.start : prompt.end].tolist()) for prompt in prompts
    ]
    return texts, spans


def test_multiple_choice_scores_what_follows_the_common_prefix(tmp_path: Path) -> None:
    rows = [{"query": "The sky is", "choices": ["the sea", "the sun", "blue"], "gold": 2}]
    task = only_task(tmp_path, rows, icl_task_type="multiple_choice")
    texts, spans = texts_and_spans(task)
    assert texts == ["The sky is the sea", "The sky is the sun", "The sky is blue"]
    assert spans == [" the sea", " the sun", " blue"]


def test_schema_scores_the_common_suffix(tmp_path: Path) -> None:
    rows = [{"context_options": ["The cat", "A big dog"], "continuation": "was old.", "gold": 1}]
    task = only_task(tmp_path, rows, icl_task_type="schema")
    texts, spans = texts_and_spans(task)
    assert texts == ["The cat was old.", "A big dog was old."]
    assert spans == [" was old.", " was old."]


def test_language_modeling_strips_contexts_and_scores_the_continuation(tmp_path: Path) -> None:
    rows = [
        {"context": " op 1 ", "continuation": "11"},
        {"context": "\top 2\n", "continuation": "22"},
    ]
    task = only_task(
        tmp_path,
        rows,
        icl_task_type="language_modeling",
        num_fewshot=[1],
        continuation_delimiter="\nAnswer: ",
    )
    texts, spans = texts_and_spans(task)
    golden = {
        "op 1\nAnswer: 11\n\nop 2\nAnswer: 22": " 22",
        "op 2\nAnswer: 22\n\nop 1\nAnswer: 11": " 11",
    }
    assert spans == [golden[texts[0]]]


def test_few_shots_show_the_gold_choice_and_a_blank_line(tmp_path: Path) -> None:
    rows = [{"query": f"q{i}", "choices": ["no", "yes"], "gold": 1} for i in range(3)]
    task = only_task(tmp_path, rows, icl_task_type="multiple_choice", num_fewshot=[2])
    (text, _), _ = texts_and_spans(task)
    shots = text.split("\n\n")
    assert len(shots) == 3
    assert [shot.split(" ")[1] for shot in shots] == ["yes", "yes", "no"]


def test_rows_and_shots_are_drawn_with_the_published_seeds(tmp_path: Path) -> None:
    rows = [{"query": f"q{i}", "choices": ["no", "yes"], "gold": 1} for i in range(30)]
    task = only_task(tmp_path, rows, icl_task_type="multiple_choice", num_fewshot=[4])
    kept = keep_examples(task, task.read_examples(), 20)
    shuffled = list(rows)
    random.Random(1337).shuffle(shuffled)
    queries = [item.example.options[0].context for item in kept]
    assert queries == [row["query"] for row in shuffled[:20]]
    assert [rows[item.source_row]["query"] for item in kept] == queries
    shots = random.Random(1234 + 7).sample([i for i in range(20) if i != 7], 4)
    drawn = [shot.options[0].context for shot in few_shots(task, kept, 7)]
    assert drawn == [queries[i] for i in shots]


QUERIES = (
    "The sky is blue and the sea",
    "\n\n  starts with blanks and goes on",
    "'s old and the cat was young",
    "123456789012345678901234",
    "...!?;:...!?;:...!?;:...\n\n",
    " " * 30 + "sun",
    "\n" * 30,
    "天空是蓝色的大海是绿色的太阳很热猫很小",
    "ที่นี่มีคำถามและคำตอบมากมายสำหรับทุกคน",
    "e\u0301" * 12,
    "<|bos|> is text, <|bos|> is text",
    "short",
    "",
)
CHOICES = ("the sea", "x", " y\n", "'s", "天", "\n\n9")
PATTERNS = (*SPLIT_PATTERNS, r"\s*\S+|\s+", r"[^a-m]+|.")


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("delimiter", [" ", "\nAnswer: ", ""])
@pytest.mark.parametrize("kind", ["multiple_choice", "schema", "language_modeling"])
def test_stems_that_are_encoded_once_give_the_tokens_of_whole_texts(
    tmp_path: Path, kind: str, delimiter: str, pattern: str
) -> None:
    """Whatever the split pattern does at the place where the few shots end."""
    text = "".join(f"{query}{end}{delimiter}\n\n" for query in QUERIES for end in CHOICES)
    recipe = TokenizerRecipe(vocab_size=400, split_pattern=pattern)
    tokenizer = Tokenizer.train([text], recipe)
    if kind == "multiple_choice":
        rows = [{"query": query, "choices": list(CHOICES), "gold": 1} for query in QUERIES]
    elif kind == "schema":
        contexts = [[f"{query}{word}" for word in CHOICES] for query in QUERIES]
        rows = [{"context_options": c, "continuation": "old and hot", "gold": 2} for c in contexts]
    else:
        rows = [{"context": query, "continuation": "green 12"} for query in QUERIES]
    fields = {"continuation_delimiter": delimiter, "num_fewshot": [3], "icl_task_type": kind}
    task = only_task(tmp_path, rows, **fields)
    kept = keep_examples(task, task.read_examples(), 0)
    for item in kept:
        shown = (shot.answer for shot in few_shots(task, kept, item.row))
        stem = "".join(f"{shot.context}{delimiter}{shot.continuation}\n\n" for shot in shown)
        try:
            prompts = build_prompts(task, kept, item.row, tokenizer, 1 << 20)
        except DataError:  # the pattern joins a question with its answer
            assert kind == "language_modeling"
            continue
        for option, prompt in zip(item.example.options, prompts, strict=True):
            text = stem + option.context + delimiter + option.continuation
            assert prompt.tokens.tolist() == [tokenizer.bos_id, *tokenizer.encode(text)]


class CountingTokenizer(Tokenizer):
    """Counts the characters that it encodes."""

    num_characters = 0

    def encode(self, text: str) -> list[int]:
        self.num_characters += len(text)
        return super().encode(text)


def test_few_shots_are_encoded_once_for_all_options(tmp_path: Path) -> None:
    rows = [{"query": f"{i} {TEXT}", "choices": ["a", "b", "c", "d"], "gold": 1} for i in range(9)]
    task = only_task(tmp_path, rows, icl_task_type="multiple_choice", num_fewshot=[8])
    kept = keep_examples(task, task.read_examples(), 0)
    tokenizer = CountingTokenizer(TOKENIZER.ranks, TOKENIZER.split_pattern)
    build_prompts(task, kept, 0, tokenizer, LIMIT)
    assert tokenizer.num_characters < (9 + 4 + 1) * len(TEXT)


@pytest.mark.parametrize("num_shares", [1, 2, 3, 8])
def test_shares_are_even_and_keep_those_together_that_begin_alike(
    tmp_path: Path, num_shares: int
) -> None:
    stories = [f"{word} " * 40 for word in "abcdefghijklmnop"]
    rows = [{"context": f"{stories[i % 16]}{i}", "continuation": "x"} for i in range(160)]
    task = only_task(tmp_path, rows, icl_task_type="language_modeling")
    kept = keep_examples(task, task.read_examples(), 0)
    shares = share_rows(task, kept, num_shares)
    assert sorted(row for share in shares for row in share) == list(range(160))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 2
    told = [{kept[row].example.options[0].context[:1] for row in share} for share in shares]
    assert sum(map(len, told)) <= 16 + num_shares - 1


def test_more_ranks_than_examples_leave_some_without_work(tmp_path: Path) -> None:
    rows = [{"context": "a", "continuation": "x"}] * 2
    task = only_task(tmp_path, rows, icl_task_type="language_modeling")
    kept = keep_examples(task, task.read_examples(), 0)
    assert sorted(map(len, share_rows(task, kept, 5))) == [0, 0, 0, 1, 1]


def test_more_shots_than_other_examples_are_refused(tmp_path: Path) -> None:
    rows = [{"query": "q", "choices": ["no", "yes"], "gold": 1}] * 3
    task = only_task(tmp_path, rows, icl_task_type="multiple_choice", num_fewshot=[3])
    with pytest.raises(DataError, match="keep at least 4"):
        keep_examples(task, task.read_examples(), 100)


def test_equal_options_leave_an_empty_span(tmp_path: Path) -> None:
    rows = [{"query": "q", "choices": ["a", "a"], "gold": 1}]
    task = only_task(tmp_path, rows, icl_task_type="multiple_choice")
    kept = keep_examples(task, task.read_examples(), 1)
    prompts = build_prompts(task, kept, 0, TOKENIZER, LIMIT)
    assert [prompt.is_scored for prompt in prompts] == [False, False]


def test_a_continuation_that_changes_the_tokens_before_it_is_refused(tmp_path: Path) -> None:
    rows = [{"context": "th", "continuation": "e is"}]
    task = only_task(tmp_path, rows, icl_task_type="language_modeling", continuation_delimiter="")
    kept = keep_examples(task, task.read_examples(), 1)
    with pytest.raises(DataError, match="delimiter"):
        build_prompts(task, kept, 0, TOKENIZER, LIMIT)


def test_a_long_prompt_keeps_its_last_tokens_and_may_lose_its_span() -> None:
    tokens = np.arange(10, dtype=np.int32)
    whole = crop(tokens, 4, 10)
    assert (whole.start, whole.end, whole.is_cropped) == (4, 10, False)
    cropped = crop(tokens, 7, 4)
    assert cropped.tokens.tolist() == [6, 7, 8, 9]
    assert (cropped.start, cropped.end, cropped.is_cropped) == (1, 4, True)
    assert cropped.is_scored
    # Position 0 has nothing before it that could predict it.
    assert not crop(tokens, 6, 4).is_scored


BAD_FILES = [
    ({"query": "q", "choices": ["a", "b"], "gold": 2}, "gold=2"),
    ({"query": "q", "choices": ["a", "b"], "gold": "1"}, "gold='1'"),
    ({"query": "q", "gold": 0}, "choices"),
    ({"query": None, "choices": ["a"], "gold": 0}, "expected text"),
    ({"query": "q", "choices": [], "gold": 0}, "gold=0"),
]


@pytest.mark.parametrize(("row", "reason"), BAD_FILES)
def test_a_malformed_example_is_named_by_its_line(
    tmp_path: Path, row: dict[str, Any], reason: str
) -> None:
    good = {"query": "q", "choices": ["a", "b"], "gold": 0}
    task = only_task(tmp_path, [good, row], icl_task_type="multiple_choice")
    with pytest.raises(DataError, match=r"line 2.*" + reason):
        task.read_examples()


def test_a_bundle_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*core\.yaml"):
        read_bundle(tmp_path)
    entry = {"label": "t", "rows": [{"context": "a", "continuation": "b"}]}
    write_bundle(tmp_path, [{**entry, "icl_task_type": "essay"}])
    with pytest.raises(DataError, match="'essay'; known are multiple_choice"):
        read_bundle(tmp_path)
    write_bundle(tmp_path, [{**entry, "icl_task_type": "schema", "dataset_uri": "../../x.jsonl"}])
    with pytest.raises(DataError, match="outside the bundle"):
        read_bundle(tmp_path)
    write_bundle(tmp_path, [{**entry, "icl_task_type": "schema", "baseline": 100}])
    with pytest.raises(DataError, match="below 100"):
        read_bundle(tmp_path)
    write_bundle(tmp_path, [{**entry, "icl_task_type": "schema"}])
    (tmp_path / "eval_meta_data.csv").write_text("Eval Task,Random baseline\nother,25\n")
    with pytest.raises(DataError, match="no row in eval_meta_data"):
        read_bundle(tmp_path)
    (tmp_path / "core.yaml").write_text(json.dumps({"icl_tasks": [{"label": "t"}]}))
    with pytest.raises(DataError, match="dataset_uri"):
        read_bundle(tmp_path)
