"""ARC and MMLU: questions with lettered choices (arXiv:1803.05457, arXiv:2009.03300)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nanochat_core.benchmarks.files import Row
from nanochat_core.conversation.types import Conversation, exchange

MMLU_LETTERS = ("A", "B", "C", "D")


@dataclass(frozen=True)
class ChoiceQuestion:
    """A question, its choices, a letter for each, and the right letter."""

    question: str
    choices: tuple[str, ...]
    letters: tuple[str, ...]
    answer: str

    def prompt(self) -> str:
        """The question as the model gets it (RECIPE section 6)."""
        lines = [f"Multiple Choice question: {self.question}"]
        lines += [
            f"- {choice}={letter}"
            for choice, letter in zip(self.choices, self.letters, strict=True)
        ]
        return "\n".join([*lines, "", "Respond only with the letter of the correct answer."])


class ArcChoices(BaseModel):
    """Texts and labels of the choices, side by side."""

    model_config = ConfigDict(frozen=True, strict=True)
    text: list[str]
    label: list[str]


class ArcRow(Row):
    """A row of allenai/ai2_arc; labels are letters, in some rows 1 to 4, in some up to E."""

    question: str
    choices: ArcChoices
    answerKey: str

    @model_validator(mode="after")
    def _labels_fit(self) -> "ArcRow":
        labels = self.choices.label
        if len(labels) != len(self.choices.text) or len(set(labels)) != len(labels):
            raise ValueError("choices.text and choices.label do not go together")
        if self.answerKey not in labels:
            raise ValueError(f"answerKey={self.answerKey!r} is none of {labels}")
        return self

    def choice_question(self) -> ChoiceQuestion:
        """With the letters of the row."""
        choices = self.choices
        return ChoiceQuestion(
            self.question, tuple(choices.text), tuple(choices.label), self.answerKey
        )


class MmluRow(Row):
    """A row of cais/mmlu `all`; `answer` is the position of the right choice."""

    question: str
    choices: list[str] = Field(min_length=4, max_length=4)
    answer: int = Field(ge=0, le=3)

    @model_validator(mode="before")
    @classmethod
    def _unwrap(cls, value: Any) -> Any:
        # The hub wraps the rows of the config auxiliary_train in a column `train`.
        if isinstance(value, dict) and isinstance(value.get("train"), dict):
            return value["train"]
        return value

    def choice_question(self) -> ChoiceQuestion:
        """With the letters A to D."""
        return ChoiceQuestion(
            self.question, tuple(self.choices), MMLU_LETTERS, MMLU_LETTERS[self.answer]
        )


class MultipleChoice:
    """Questions that are answered with one letter."""

    baseline = 0.25

    def __init__(self, name: str, questions: Sequence[ChoiceQuestion]) -> None:
        self.name = name
        self._questions = questions

    def __len__(self) -> int:
        return len(self._questions)

    def conversation(self, index: int) -> Conversation:
        """The question with its choices, and the right letter."""
        question = self._questions[index]
        return exchange(question.prompt(), question.answer)

    def letters(self, index: int) -> tuple[str, ...]:
        """The letters of the row."""
        return self._questions[index].letters

    def answer(self, index: int) -> str:
        """The right letter."""
        return self._questions[index].answer
