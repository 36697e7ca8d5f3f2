"""The rules of CORE once more, as plainly as they can be said: one prompt at a time, lists only."""

import math
import random
from typing import Any

import torch
import torch.nn.functional as F

from nanochat_core.model.gpt import GPT
from nanochat_core.tokenizer.tokenizer import Tokenizer


def prompts_of(
    kind: str, item: dict[str, Any], shots: list[dict[str, Any]], delimiter: str
) -> tuple[list[str], str | None]:
    """(texts of the options, text of the question alone or None)."""
    stem = ""
    for shot in shots:
        if kind == "multiple_choice":
            stem += shot["query"] + delimiter + shot["choices"][shot["gold"]]
        elif kind == "schema":
            stem += shot["context_options"][shot["gold"]] + delimiter + shot["continuation"]
        else:
            stem += shot["context"].strip() + delimiter + shot["continuation"]
        stem += "\n\n"
    if kind == "multiple_choice":
        return [stem + item["query"] + delimiter + choice for choice in item["choices"]], None
    if kind == "schema":
        texts = [stem + c + delimiter + item["continuation"] for c in item["context_options"]]
        return texts, None
    question = stem + item["context"].strip() + delimiter
    return [question + item["continuation"]], question.strip()


def spans_of(
    kind: str, sequences: list[list[int]], question_ids: list[int] | None
) -> list[tuple[int, int]]:
    """[start, end) of each sequence."""
    if kind == "language_modeling":
        assert sequences[0][: len(question_ids)] == question_ids
        return [(len(question_ids), len(sequences[0]))]
    shared = 0
    shortest = min(map(len, sequences))
    if kind == "multiple_choice":
        while shared < shortest and len({s[shared] for s in sequences}) == 1:
            shared += 1
        return [(shared, len(s)) for s in sequences]
    while shared < shortest and len({s[-1 - shared] for s in sequences}) == 1:
        shared += 1
    return [(len(s) - shared, len(s)) for s in sequences]


def judge(
    model: GPT,
    tokenizer: Tokenizer,
    kind: str,
    rows: list[dict[str, Any]],
    row: int,
    *,
    num_fewshot: int,
    delimiter: str,
    max_tokens: int,
) -> tuple[list[float], bool]:
    """(scores, is_right) of one row of the kept rows."""
    others = [i for i in range(len(rows)) if i != row]
    shots = [rows[i] for i in random.Random(1234 + row).sample(others, num_fewshot)]
    texts, question = prompts_of(kind, rows[row], shots, delimiter)
    sequences = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in texts]
    question_ids = None if question is None else [tokenizer.bos_id, *tokenizer.encode(question)]
    scores = []
    spans = spans_of(kind, sequences, question_ids)
    for ids, (start, end) in zip(sequences, spans, strict=True):
        cut = max(0, len(ids) - max_tokens)
        ids, start, end = ids[cut:], start - cut, end - cut
        scores.append(score(model, kind, ids, start, end))
    if kind == "language_modeling":
        return scores, scores[0] == 1.0
    best = min(range(len(scores)), key=lambda i: (scores[i], i))
    return scores, best == rows[row]["gold"]


@torch.no_grad()
def score(model: GPT, kind: str, ids: list[int], start: int, end: int) -> float:
    """Mean loss of the span, or 1.0 when every likeliest token is right."""
    if start < 1 or end <= start:
        return 0.0 if kind == "language_modeling" else math.inf
    logits = model(torch.tensor([ids]))[0].double()
    wanted = torch.tensor(ids[start:end])
    if kind == "language_modeling":
        return float((logits[start - 1 : end - 1].argmax(-1) == wanted).all())
    return float(F.cross_entropy(logits[start - 1 : end - 1], wanted))


def accuracy(
    model: GPT,
    tokenizer: Tokenizer,
    kind: str,
    rows: list[dict[str, Any]],
    *,
    max_per_task: int,
    **rules: Any,
) -> tuple[float, list[list[float]]]:
    """(share right, scores of each kept row)."""
    rows = list(rows)
    random.Random(1337).shuffle(rows)
    rows = rows[:max_per_task]
    results = [judge(model, tokenizer, kind, rows, i, **rules) for i in range(len(rows))]
    return sum(right for _, right in results) / len(rows), [scores for scores, _ in results]
