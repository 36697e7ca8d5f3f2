"""Documents as parquet shards: train shards first, the validation shard last."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat_core.config.base import Config
from nanochat_core.config.job import Role, StageOutput
from nanochat_core.data.documents import Question, SourceText, num_bytes
from nanochat_core.data.mixing import (
    Dealt,
    Part,
    deal_held_out,
    deal_train,
    expected_train_bytes,
)
from nanochat_core.data.opening import Opener
from nanochat_core.data.recipes import ShardsRecipe
from nanochat_core.data.source_notes import (
    SOURCES_FILE,
    NoteTaker,
    check_shares,
    note_metrics,
    notes_of,
    save_notes,
)
from nanochat_core.errors import DataError
from nanochat_core.logs import Progress

TEXT_COLUMN = "text"
INDEX_FILE = "shards.json"
QUESTIONS_FILE = "qa.jsonl"
ROW_GROUP_DOCUMENTS = 1_000
_SCHEMA = pa.schema([(TEXT_COLUMN, pa.string())])


class ShardIndex(Config):
    """`shards.json`: the shards in order, and how much they hold together."""

    train: tuple[str, ...]
    validation: str
    documents: int
    characters: int

    @classmethod
    def load(cls, folder: Path) -> "ShardIndex":
        """Read `shards.json` of a shards artifact."""
        path = folder / INDEX_FILE
        if not path.is_file():
            raise DataError(f"{folder} holds no {INDEX_FILE}; expected the output of shards")
        return cls.model_validate_json(path.read_bytes())


class ShardWriter:
    """One parquet file; the same documents make the same bytes."""

    def __init__(self, path: Path) -> None:
        self.path, self.documents, self.characters = path, 0, 0
        self._waiting: list[str] = []
        self._file = pq.ParquetWriter(
            path,
            _SCHEMA,
            compression="zstd",
            use_dictionary=False,
            write_statistics=False,
            store_schema=False,
        )

    def add(self, text: str) -> None:
        """Append one document."""
        self._waiting.append(text)
        self.documents += 1
        self.characters += len(text)
        if len(self._waiting) == ROW_GROUP_DOCUMENTS:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._file.write_table(pa.table([self._waiting], schema=_SCHEMA))
            self._waiting = []

    def close(self) -> None:
        """Write what waits and the footer."""
        self._flush()
        self._file.close()


def read_documents(shard: Path) -> Iterable[str]:
    """Documents of one shard in order, one row group at a time in memory."""
    with pq.ParquetFile(shard) as file:
        for group in range(file.num_row_groups):
            yield from file.read_row_group(group, columns=[TEXT_COLUMN]).column(0).to_pylist()


def shard_name(number: int) -> str:
    """File name of a shard, as in the published data sets."""
    return f"shard_{number:05d}.parquet"


def write_shards(dealt: Iterable[Dealt], output: Path, num_shards: int) -> ShardIndex:
    """Write documents into the shards that they were dealt to; `num_shards` is validation."""
    names = [shard_name(number) for number in range(num_shards + 1)]
    writers = [ShardWriter(output / name) for name in names]
    try:
        for document in dealt:
            writers[document.shard].add(document.text)
    finally:
        for writer in writers:
            writer.close()
    *train, validation = (writer.documents for writer in writers)
    if not all((*train, validation)):
        raise DataError(
            f"{sum(train)} train and {validation} validation documents cannot fill "
            f"{num_shards} train shards and one for validation; add text or make fewer shards"
        )
    return ShardIndex(
        train=tuple(names[:-1]),
        validation=names[-1],
        documents=sum(writer.documents for writer in writers),
        characters=sum(writer.characters for writer in writers),
    )


def deal_in_turn(source: SourceText, num_shards: int, progress: Progress) -> Iterator[Dealt]:
    """Train documents of one source to the shards in turn: each is a sample of the whole."""
    num_train = 0
    progress.total = source.train.documents + source.held_out.documents
    for done, document in enumerate(source.read(None), start=1):
        yield Dealt(num_shards if document.held_out else num_train % num_shards, 0, document.text)
        num_train += not document.held_out
        progress.update(done, f"{done:,} of {progress.total:,} documents")


def deal_mixture(parts: Sequence[Part], num_shards: int, progress: Progress) -> Iterator[Dealt]:
    """Documents of several sources in their shares; those held out come first."""
    for held_out in deal_held_out(parts):
        yield held_out._replace(shard=num_shards)
    progress.total, done = expected_train_bytes(parts), 0
    for document in deal_train(parts, num_shards):
        yield document
        done += num_bytes(document.text)
        told = f"{done / 1e6:,.1f} of about {progress.total / 1e6:,.1f} MB"
        progress.update(min(done, progress.total - 1), told)
    progress.update(progress.total, f"{done / 1e6:,.1f} MB")


def _counted(
    dealt: Iterable[Dealt], takers: Sequence[NoteTaker], num_shards: int
) -> Iterator[Dealt]:
    for document in dealt:
        takers[document.part].add(document.text, held_out=document.shard == num_shards)
        yield document


def _write_questions(questions: Iterable[Question], path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for item in questions:
            file.write(json.dumps({"question": item.question, "answer": item.answer}) + "\n")


def build_shards(
    recipe: ShardsRecipe,
    source_paths: Sequence[str] | Mapping[str, Sequence[str]],
    output: Path,
    *,
    workers: int,
    progress: Progress,
) -> StageOutput:
    """Write parquet shards, `qa.jsonl`, `shards.json` and `sources.json` into `output`.

    `source_paths` are the user's own files, as they were given when the recipe was planned; a
    harvest takes none. A mixture takes a mapping from the names of its parts to theirs; the path
    of published shards is the folder in which they lie. Raises DataError for a source that is
    unreadable, too small, or not what was planned.
    """
    output.mkdir(parents=True, exist_ok=True)
    opener = Opener(recipe, workers, progress)
    parts = opener.parts(source_paths)
    takers = [NoteTaker(part) for part in parts]
    if len(parts) == 1:
        dealt = deal_in_turn(parts[0].source, recipe.num_shards, progress)
    else:
        dealt = deal_mixture(parts, recipe.num_shards, progress)
    index = write_shards(_counted(dealt, takers, recipe.num_shards), output, recipe.num_shards)
    questions = [question for part in parts for question in part.source.questions]
    _write_questions(questions, output / QUESTIONS_FILE)
    text = json.dumps(index.model_dump(mode="json"), indent=1)
    (output / INDEX_FILE).write_text(text, encoding="utf-8")
    notes = notes_of(takers)
    check_shares(notes)
    save_notes(notes, output)
    files: dict[str, Role] = dict.fromkeys(
        (*index.train, index.validation, QUESTIONS_FILE, INDEX_FILE), "result"
    )
    files[SOURCES_FILE] = "record"
    metrics = {
        "documents": index.documents,
        "characters": index.characters,
        "questions": len(questions),
        **note_metrics(notes),
    }
    return StageOutput(files=files, metrics=metrics, provenance=opener.provenance)
