"""What a source hands to the shards: documents, already split into train and validation."""

from dataclasses import dataclass, field

from nanochat_core.data.near_duplicates import stable_hash


@dataclass(frozen=True)
class Question:
    """A question about a document and its answer."""

    question: str
    answer: str


@dataclass
class DocumentSet:
    """Texts in the order in which they go into the shards, and questions about the train ones."""

    train: list[str] = field(default_factory=list)
    validation: list[str] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    provenance: dict[str, object] = field(default_factory=dict)

    def first(self, count: int) -> "DocumentSet":
        """The first `count` documents, at least one of each kind; 0 keeps all."""
        total = len(self.train) + len(self.validation)
        if not count or count >= total:
            return self
        validation = max(1, round(count * len(self.validation) / total))
        return DocumentSet(
            self.train[: max(1, count - validation)],
            self.validation[:validation],
            [],
            self.provenance,
        )


def is_held_out(name: str, percent: float) -> bool:
    """Whether the hash of a name falls into the lowest `percent` of all hashes."""
    return stable_hash(name) % 1_000_000 < percent * 10_000
