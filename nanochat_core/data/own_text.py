"""The user's own text and published shards, looked through and read as documents."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat_core.data.document_sketches import SeenDocuments
from nanochat_core.data.documents import Document, Side, SourceText, num_bytes
from nanochat_core.data.filters import DocumentFilter, FilterCounts, Verdict
from nanochat_core.data.recipes import FileDigest, FilesSource, HubSource
from nanochat_core.data.sources import (
    BLOCK_DOCUMENTS,
    SourceFile,
    check_enough,
    check_unchanged,
    held_out_blocks,
    list_source,
)
from nanochat_core.data.text_files import texts_of
from nanochat_core.errors import DataError
from nanochat_core.logs import Progress


@dataclass
class _Survey:
    """What the first reading of a source found: a byte a text, and a number a block."""

    verdicts: bytearray = field(default_factory=bytearray)
    block_bytes: "array[int]" = field(default_factory=lambda: array("Q"))
    kept: int = 0

    def add(self, verdict: Verdict, text: str) -> None:
        self.verdicts.append(verdict)
        if verdict is not Verdict.KEPT:
            return
        if self.kept % BLOCK_DOCUMENTS == 0:
            self.block_bytes.append(0)
        self.block_bytes[-1] += num_bytes(text)
        self.kept += 1

    def filtered(self) -> FilterCounts:
        return FilterCounts(
            empty=self.verdicts.count(Verdict.EMPTY),
            too_short=self.verdicts.count(Verdict.TOO_SHORT),
            near_duplicates=self.verdicts.count(Verdict.NEAR_DUPLICATE),
        )

    def side(self, blocks: frozenset[int]) -> Side:
        """Documents and bytes of these blocks."""
        sizes = (min(self.kept - block * BLOCK_DOCUMENTS, BLOCK_DOCUMENTS) for block in blocks)
        return Side(sum(sizes), sum(self.block_bytes[block] for block in blocks))


def _texts(source: FilesSource, files: Sequence[SourceFile]) -> Iterator[str]:
    for file in files:
        yield from texts_of(
            file.path,
            text_column=source.text_column,
            max_characters=source.max_document_characters,
        )


def _look_through(
    texts: Iterable[str], judge: DocumentFilter, limit: int, progress: Progress
) -> _Survey:
    """Judge every text, up to `limit` documents (0: all)."""
    survey, size = _Survey(), 0
    for text in texts:
        survey.add(judge.verdict(text), text)
        size += len(text)
        progress.update(min(size, progress.total - 1), f"looked through {size / 1e6:,.1f} MB")
        if limit and survey.kept == limit:
            break
    return survey


def _too_little(survey: _Survey, limit: int) -> None:
    """Refuse (DataError) a source with too few documents; say so when filters took them."""
    try:
        check_enough(survey.kept, limit)
    except DataError as error:
        counts = survey.filtered()
        if not counts.too_short and not counts.near_duplicates:
            raise
        raise DataError(
            f"{error}; the filters left out {counts.too_short:,} too short "
            f"(min_document_characters) and {counts.near_duplicates:,} near-duplicates "
            "(drop_near_duplicates)"
        ) from error


def open_files(
    source: FilesSource,
    paths: Sequence[str],
    *,
    validation_percent: float,
    max_documents: int,
    progress: Progress,
    seen: SeenDocuments | None = None,
) -> SourceText:
    """Documents of the planned files in order; whole blocks of neighbours are held out.

    The files are read once to judge and count, since what is held out depends on that, and again
    by every `read`. Near-duplicates are looked for among `seen`, too, where the source says so.
    """
    files = list_source(paths)
    check_unchanged(source, files)
    judge = DocumentFilter(source, seen or SeenDocuments())
    progress.total = sum(file.bytes for file in source.files)
    survey = _look_through(_texts(source, files), judge, max_documents, progress)
    _too_little(survey, max_documents)
    held_out = held_out_blocks(survey.kept, validation_percent)
    others = frozenset(range(len(survey.block_bytes))) - held_out

    def read(wanted: bool | None = None) -> Iterator[Document]:
        number = 0
        for text, verdict in zip(_texts(source, files), survey.verdicts, strict=False):
            if verdict != Verdict.KEPT:
                continue
            is_held_out = number // BLOCK_DOCUMENTS in held_out
            number += 1
            if wanted is None or wanted == is_held_out:
                yield Document(text, is_held_out)

    return SourceText(survey.side(others), survey.side(held_out), read, survey.filtered())


def _planned_size(path: Path, file: FileDigest, column: str) -> Side:
    if not path.is_file() or path.stat().st_size != file.bytes:
        raise DataError(
            f"{path} is not there or is no file of {file.bytes:,} bytes; fetch {file.name} again"
        )
    return shard_size(path, column)


def shard_size(path: Path, column: str) -> Side:
    """Rows, and about how many bytes of text, from the end of a parquet file."""
    try:
        described = pq.read_metadata(path)
    except pa.ArrowException as error:
        raise DataError(
            f"{path} is not a readable parquet file: {error}; fetch it again"
        ) from error
    names = [described.schema.column(i).path for i in range(len(described.schema))]
    if column not in names:
        raise DataError(
            f"{path} has no column {column!r}; it has {names}; name the column of text with "
            "text_column"
        )
    index = names.index(column)
    groups = [described.row_group(i).column(index) for i in range(described.num_row_groups)]
    return Side(described.num_rows, sum(group.total_uncompressed_size for group in groups))


def open_published(
    source: HubSource, folder: Path, *, validation_percent: float, max_documents: int
) -> SourceText:
    """Documents of published shards that lie in `folder` under their names; the last is held out.

    Of `max_documents` (0: all) the usual share comes from the last shard.
    """
    if len(source.files) < 2:
        raise DataError(
            f"{folder}: {len(source.files)} published shards; expected one or more to train on and "
            "one for validation"
        )
    sizes = [_planned_size(folder / f.name, f, source.text_column) for f in source.files]
    num_held_out = max(1, round(max_documents * validation_percent / 100))
    limits = {True: num_held_out, False: max(1, max_documents - num_held_out)}
    files = {True: source.files[-1:], False: source.files[:-1]}

    def texts(is_held_out: bool) -> Iterator[Document]:
        left = limits[is_held_out] if max_documents else -1
        for file in files[is_held_out]:
            path = str(folder / file.name)
            for text in texts_of(path, text_column=source.text_column, max_characters=1):
                if left == 0:
                    return
                if text.strip():
                    yield Document(text, is_held_out)
                    left -= 1

    def read(wanted: bool | None = None) -> Iterator[Document]:
        for is_held_out in (False, True):
            if wanted is None or wanted == is_held_out:
                yield from texts(is_held_out)

    def side(is_held_out: bool) -> Side:
        found = sizes[-1:] if is_held_out else sizes[:-1]
        documents, size = sum(s.documents for s in found), sum(s.bytes for s in found)
        kept = min(documents, limits[is_held_out]) if max_documents else documents
        return Side(kept, round(size * kept / max(1, documents)))

    return SourceText(side(False), side(True), read)
