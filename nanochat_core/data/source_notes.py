"""`sources.json` of a shards artifact: what of every source is in the shards, and what is not."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import Field, TypeAdapter

from nanochat_core.config.base import Config
from nanochat_core.data.documents import num_bytes
from nanochat_core.data.mixing import Part
from nanochat_core.errors import DataError

SOURCES_FILE = "sources.json"
SAMPLE_BYTES = 200_000
_BETWEEN = "\n\n"


class SourceNote(Config):
    """One source. Bytes are those of the text in UTF-8; `documents` count every repetition."""

    name: str
    language: str = ""
    wanted_share: float = 1.0
    share: float = Field(1.0, description="of the bytes to train on")
    documents: int = 0
    bytes: int = 0
    epochs: float = Field(0.0, description="how often its documents come up, on average")
    held_out_documents: int = 0
    held_out_bytes: int = 0
    left_out_documents: int = Field(
        0, description="of both sides never in the shards, since another source had no more"
    )
    left_out_bytes: int = Field(0, description="their text; of published shards an estimate")
    empty: int = 0
    too_short: int = 0
    near_duplicates: int = 0
    sample: str = Field("", description="held-out documents from the start, up to 200 kB")


def sample_of(texts: Iterable[str]) -> str:
    """The first of some texts, up to 200 kB."""
    sample, left = [], SAMPLE_BYTES
    for text in texts:
        begin = text.encode()[:left].decode(errors="ignore")
        sample.append(begin)
        left -= len(begin.encode()) + len(_BETWEEN)
        if left <= 0:
            break
    return _BETWEEN.join(sample)


class NoteTaker:
    """Counts the documents of one source as they are written."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.bytes = self.documents = self.held_out_documents = self.held_out_bytes = 0
        self._sample: list[str] = []
        self._sample_bytes = 0

    def add(self, text: str, *, held_out: bool) -> None:
        """Count a document."""
        size = num_bytes(text)
        if not held_out:
            self.documents += 1
            self.bytes += size
            return
        self.held_out_documents += 1
        self.held_out_bytes += size
        if self._sample_bytes < SAMPLE_BYTES:
            self._sample.append(text)
            self._sample_bytes += size

    def note(self, train_bytes: int) -> SourceNote:
        """What was counted, beside `train_bytes` of all sources."""
        source = self.part.source
        train, held_out, filtered = source.train, source.held_out, source.filtered
        left_out = max(0, train.documents - self.documents)
        left_out += held_out.documents - self.held_out_documents
        left_out_bytes = max(0, train.bytes - self.bytes) + held_out.bytes - self.held_out_bytes
        return SourceNote(
            name=self.part.name,
            language=self.part.language,
            wanted_share=round(self.part.share, 6),
            share=round(self.bytes / max(1, train_bytes), 6),
            documents=self.documents,
            bytes=self.bytes,
            epochs=round(self.documents / max(1, train.documents), 4),
            held_out_documents=self.held_out_documents,
            held_out_bytes=self.held_out_bytes,
            left_out_documents=left_out,
            left_out_bytes=max(0, left_out_bytes) if left_out else 0,
            empty=filtered.empty,
            too_short=filtered.too_short,
            near_duplicates=filtered.near_duplicates,
            sample=sample_of(self._sample),
        )


def notes_of(takers: Sequence[NoteTaker]) -> list[SourceNote]:
    """The notes of all sources of some shards."""
    train_bytes = sum(taker.bytes for taker in takers)
    return [taker.note(train_bytes) for taker in takers]


def check_shares(notes: Sequence[SourceNote]) -> None:
    """Refuse (DataError) a mixture that ended before it came to one of its sources."""
    for note in notes:
        if not note.documents:
            raise DataError(
                f"the mixture ends before it comes to a document of {note.name}: another source "
                "has no more text for its share; give that one more text, a smaller weight or a "
                "larger max_epochs"
            )


def note_metrics(notes: Sequence[SourceNote]) -> dict[str, float | int | str]:
    """What was left out and, of a mixture, how much there is of each source."""
    filtered = {
        name: sum(getattr(note, name) for note in notes)
        for name in ("empty", "too_short", "near_duplicates", "left_out_documents")
    }
    metrics: dict[str, float | int | str] = {k: v for k, v in filtered.items() if v}
    if len(notes) > 1:
        for note in notes:
            metrics |= {f"bytes/{note.name}": note.bytes, f"share/{note.name}": note.share}
            metrics[f"epochs/{note.name}"] = note.epochs
    return metrics


_NOTES = TypeAdapter(list[SourceNote])


def save_notes(notes: Sequence[SourceNote], folder: Path) -> None:
    """Write `sources.json`."""
    text = json.dumps([note.model_dump() for note in notes], indent=1, ensure_ascii=False)
    (folder / SOURCES_FILE).write_text(text + "\n", encoding="utf-8")


def parse_notes(content: object) -> list[SourceNote]:
    """Notes from the content of `sources.json`; none from None, which older artifacts have."""
    return [] if content is None else _NOTES.validate_python(content)


def load_notes(folder: Path) -> list[SourceNote]:
    """Read `sources.json`; nothing where an older artifact has none."""
    path = folder / SOURCES_FILE
    return parse_notes(json.loads(path.read_bytes())) if path.is_file() else []
