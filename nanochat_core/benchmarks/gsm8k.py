"""GSM8K: grade-school problems with worked answers (openai/gsm8k `main`; arXiv:2110.14168)."""

import re
from collections.abc import Sequence

from pydantic import field_validator

from nanochat_core.benchmarks.files import Row
from nanochat_core.conversation.types import Conversation, Part, exchange, python, python_output

_TOOL_CALL = re.compile(r"<<([^>]*)>>")
_ANSWER = re.compile(r"#### (\-?[0-9\.\,]+)")  # RECIPE section 6


class Gsm8kRow(Row):
    """A row of the hub; the answer ends with `#### NUMBER`."""

    question: str
    answer: str

    @field_validator("answer")
    @classmethod
    def _ends_with_a_number(cls, answer: str) -> str:
        if final_number(answer) is None:
            raise ValueError("no `#### NUMBER` at the end")
        return answer


class Gsm8k:
    """Word problems; a reply is right when it ends in the right number."""

    name = "gsm8k"
    baseline = 0.0

    def __init__(self, rows: Sequence[Gsm8kRow]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def conversation(self, index: int) -> Conversation:
        """The question, and its answer with the calculator's part in brackets of their own."""
        row = self._rows[index]
        return exchange(row.question, *answer_parts(row.answer))

    def score(self, index: int, reply: str) -> float:
        """1.0 when the reply's number is the reference's, letter for letter."""
        return float(final_number(reply) == final_number(self._rows[index].answer))


def final_number(text: str) -> str | None:
    """The number behind the first `####`, without commas; None when there is none."""
    match = _ANSWER.search(text)
    return match.group(1).replace(",", "") if match else None


def answer_parts(answer: str) -> list[Part]:
    """An answer as text and tool calls: `<<6*7=42>>` is code and what the calculator says."""
    parts: list[Part] = []
    # Text and the insides of calls, in turn.
    for position, piece in enumerate(_TOOL_CALL.split(answer)):
        if position % 2 == 1:
            expression, equals, result = piece.rpartition("=")
            # Without a result there is nothing that the calculator could have said.
            parts += [python(expression), python_output(result)] if equals else [python(result)]
        elif piece:
            parts.append(Part(text=piece))
    return parts
