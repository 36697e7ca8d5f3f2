"""Questions and answers cut from the documents: `qa.jsonl` of the shards."""

import random
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, ValidationError

from nanochat_core.config.base import Config
from nanochat_core.conversation.types import Conversation, exchange
from nanochat_core.errors import DataError


class QuestionAnswer(Config):
    """One item of the pool."""

    question: str = Field(min_length=1)
    answer: str = Field(min_length=1)


def read_questions(path: Path) -> list[QuestionAnswer]:
    """Items of a JSON lines file; `DataError` names the first line that is not one."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); make the shards again") from error
    items = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            items.append(QuestionAnswer.model_validate_json(line))
        except ValidationError as error:
            raise DataError(
                f"{path} line {number} is {line[:60]!r}; expected an object with the strings "
                "question and answer, neither empty: make the shards again"
            ) from error
    return items


def question_conversations(
    questions: Sequence[QuestionAnswer], count: int, rng: random.Random
) -> list[Conversation]:
    """`count` conversations; every item of the pool is used once before any is used again."""
    conversations: list[Conversation] = []
    while questions and len(conversations) < count:
        wanted = min(count - len(conversations), len(questions))
        drawn = rng.sample(range(len(questions)), wanted)
        conversations += [exchange(questions[i].question, questions[i].answer) for i in drawn]
    return conversations
