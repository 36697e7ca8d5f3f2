"""What a source hands to the shards."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from nanochat_core.data.filters import FilterCounts


class Document(NamedTuple):
    """A text, and whether it is held out for validation."""

    text: str
    held_out: bool


@dataclass(frozen=True)
class Question:
    """A question about a document and its answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Side:
    """How much a source has to train on, or held out."""

    documents: int
    bytes: int


@dataclass(frozen=True)
class SourceText:
    """A source that was looked through: how much it holds, and its documents, as often as wanted.

    `read()` gives all documents in order, `read(True)` those held out, `read(False)` the others.
    Bytes are those of the text in UTF-8; of published shards they are estimated.
    """

    train: Side
    held_out: Side
    read: Callable[[bool | None], Iterator[Document]]
    filtered: FilterCounts = field(default_factory=FilterCounts)
    questions: tuple[Question, ...] = ()


def num_bytes(text: str) -> int:
    """Size of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def in_memory(documents: list[Document], questions: tuple[Question, ...] = ()) -> SourceText:
    """A source whose documents are at hand."""

    def read(held_out: bool | None = None) -> Iterator[Document]:
        return (d for d in documents if held_out is None or d.held_out == held_out)

    def side(held_out: bool) -> Side:
        sizes = [num_bytes(document.text) for document in read(held_out)]
        return Side(len(sizes), sum(sizes))

    return SourceText(side(False), side(True), read, questions=questions)
