"""What a source hands to the shards."""

from dataclasses import dataclass
from typing import NamedTuple


class Document(NamedTuple):
    """A text, and whether it is held out for validation."""

    text: str
    held_out: bool


@dataclass(frozen=True)
class Question:
    """A question about a document and its answer."""

    question: str
    answer: str
