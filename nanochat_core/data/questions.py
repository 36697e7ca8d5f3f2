"""Questions about documented names, answered by the first sentence of their documentation."""

import re
from collections.abc import Iterable

from nanochat_core.data.documents import Question
from nanochat_core.data.near_duplicates import stable_hash

FUNCTION_TEMPLATES = (
    "What does {name} do?",
    "What is {name} for?",
    "Explain {name} in one sentence.",
    "Tell me what {name} does.",
)
CLASS_TEMPLATES = (
    "What is {name}?",
    "What is {name} for?",
    "Explain {name} in one sentence.",
    "Describe {name}.",
)
MAX_NAME_CHARACTERS = 60
MIN_ANSWER_CHARACTERS, MAX_ANSWER_CHARACTERS = 25, 160

_SENTENCE_END = re.compile(r"(?<!\be\.g)(?<!\bi\.e)(?<!\bvs)(?<!\betc)[.!?](?=\s+[A-Z(]|$)")


def first_sentence(text: str) -> str:
    """The text up to the first full stop that ends a sentence."""
    end = _SENTENCE_END.search(text)
    return text[: end.end()] if end else text


def ask(name: str, *, is_class: bool, text: str) -> Question | None:
    """A question about a public name; None when the name or the answer makes a poor one."""
    answer = first_sentence(text)
    is_public = not any(part.startswith("_") for part in name.split("."))
    fits = MIN_ANSWER_CHARACTERS <= len(answer) <= MAX_ANSWER_CHARACTERS
    if not (is_public and fits and len(name) <= MAX_NAME_CHARACTERS):
        return None
    templates = CLASS_TEMPLATES if is_class else FUNCTION_TEMPLATES
    template = templates[stable_hash(f"question about {name}") % len(templates)]
    return Question(template.format(name=name), answer)


def distinct(questions: Iterable[Question | None]) -> list[Question]:
    """One question for every answer, and one answer for every question; the first ones win."""
    seen: set[str] = set()
    kept = []
    for question in questions:
        if question and question.question not in seen and question.answer not in seen:
            seen |= {question.question, question.answer}
            kept.append(question)
    return kept
