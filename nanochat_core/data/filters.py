"""Which texts of a source become documents, and how many do not, and why."""

from dataclasses import dataclass
from enum import IntEnum

from nanochat_core.data.document_sketches import SeenDocuments
from nanochat_core.data.recipes import FilesSource


class Verdict(IntEnum):
    """What becomes of a text."""

    KEPT = 0
    EMPTY = 1
    TOO_SHORT = 2
    NEAR_DUPLICATE = 3


@dataclass(frozen=True)
class FilterCounts:
    """Texts of a source that are no documents, by reason."""

    empty: int = 0
    too_short: int = 0
    near_duplicates: int = 0


class DocumentFilter:
    """Judges the texts of one source in order; the same texts get the same verdicts.

    `seen` are documents of sources before this one, to which those that are kept are added: what
    is like a document of another part of a mixture is a near-duplicate too.
    """

    def __init__(self, source: FilesSource, seen: SeenDocuments) -> None:
        self._min_characters = source.min_document_characters
        self._seen = seen if source.drop_near_duplicates else None

    def verdict(self, text: str) -> Verdict:
        """What becomes of the next text; white space around it does not make it longer."""
        size = len(text.strip())
        if not size:
            return Verdict.EMPTY
        if size < self._min_characters:
            return Verdict.TOO_SHORT
        if self._seen is not None and not self._seen.keep_new(text):
            return Verdict.NEAR_DUPLICATE
        return Verdict.KEPT
