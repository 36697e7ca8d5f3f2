"""Documents as parquet shards: train shards first, the validation shard last."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat_core.config.base import Config
from nanochat_core.config.job import Role, StageOutput
from nanochat_core.data.documents import Document, Question
from nanochat_core.data.harvest import harvest
from nanochat_core.data.recipes import HarvestSource, ShardsRecipe
from nanochat_core.data.sources import read_source
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


def write_shards(documents: Iterable[Document], output: Path, num_shards: int) -> ShardIndex:
    """Deal train documents to the shards in turn, so that each is a sample of the whole."""
    names = [shard_name(number) for number in range(num_shards + 1)]
    writers = [ShardWriter(output / name) for name in names]
    dealt = 0
    try:
        for document in documents:
            if document.held_out:
                writers[-1].add(document.text)
            else:
                writers[dealt % num_shards].add(document.text)
                dealt += 1
    finally:
        for writer in writers:
            writer.close()
    if dealt < num_shards or not writers[-1].documents:
        raise DataError(
            f"{dealt} train and {writers[-1].documents} validation documents cannot fill "
            f"{num_shards} train shards and one for validation; add text or make fewer shards"
        )
    return ShardIndex(
        train=tuple(names[:-1]),
        validation=names[-1],
        documents=sum(writer.documents for writer in writers),
        characters=sum(writer.characters for writer in writers),
    )


def _write_questions(questions: Sequence[Question], path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for item in questions:
            file.write(json.dumps({"question": item.question, "answer": item.answer}) + "\n")


def build_shards(
    recipe: ShardsRecipe,
    source_paths: Sequence[str],
    output: Path,
    *,
    workers: int,
    progress: Progress,
) -> StageOutput:
    """Write parquet shards, `qa.jsonl` and `shards.json` into `output`.

    `source_paths` are the user's own files, as they were given when the recipe was planned; a
    harvest takes none. Raises DataError for a source that is unreadable, too small, or not what
    was planned.
    """
    output.mkdir(parents=True, exist_ok=True)
    questions: list[Question] = []
    provenance: dict[str, object] = {}
    documents: Iterable[Document]
    if isinstance(recipe.source, HarvestSource):
        found = harvest(
            recipe.source,
            validation_percent=recipe.validation_percent,
            max_documents=recipe.max_documents,
            workers=workers,
            progress=progress,
        )
        documents, questions = found.documents, found.questions
        provenance = {"bytes_by_distribution": found.bytes_by_distribution}
    else:
        documents = read_source(
            recipe.source,
            source_paths,
            validation_percent=recipe.validation_percent,
            max_documents=recipe.max_documents,
            progress=progress,
        )
    index = write_shards(documents, output, recipe.num_shards)
    _write_questions(questions, output / QUESTIONS_FILE)
    text = json.dumps(index.model_dump(mode="json"), indent=1)
    (output / INDEX_FILE).write_text(text, encoding="utf-8")
    files: dict[str, Role] = dict.fromkeys(
        (*index.train, index.validation, QUESTIONS_FILE, INDEX_FILE), "result"
    )
    metrics = {
        "documents": index.documents,
        "characters": index.characters,
        "questions": len(questions),
    }
    return StageOutput(files=files, metrics=metrics, provenance=provenance)
