"""Token files are those of the simple way, however shards are cut and whoever works on them."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_tools import no_progress

from nanochat_core.config.job import StageOutput
from nanochat_core.data import tokenizing
from nanochat_core.data.recipes import TokensRecipe
from nanochat_core.data.shards import INDEX_FILE, ShardIndex
from nanochat_core.data.token_files import build_tokens
from nanochat_core.data.tokenizing import Work, enough_workers, read_texts, runs
from nanochat_core.errors import DataError
from nanochat_core.tokenizer.recipe import TokenizerRecipe
from nanochat_core.tokenizer.tokenizer import Tokenizer

STRANGE = [
    "",
    " ",
    "\n\n",
    "<|bos|>",
    "a<|bos|>b<|bo",
    "s|>",
    "<|user_start|>x",
    "é\u0301\U0001f469",
]
"""What a run of documents could get wrong where two of them meet."""


def words(number: int) -> str:
    return " ".join(f"word{number * k % 97} of {k}," for k in range(number % 40)) + "\n"


DOCUMENTS = [*STRANGE, *map(words, range(300)), *STRANGE, words(3000), "", *STRANGE[::-1]]


def write_shard(path: Path, documents: Sequence[str | None], row_group: int = 50) -> None:
    table = pa.table({"id": range(len(documents)), "text": pa.array(documents, pa.string())})
    pq.write_table(table, path, row_group_size=row_group)


def write_artifact(folder: Path, shards: Sequence[Sequence[str]]) -> Path:
    """A shards artifact; the last one is the validation shard."""
    folder.mkdir()
    names = [f"shard_{number:05d}.parquet" for number in range(len(shards))]
    for number, (name, documents) in enumerate(zip(names, shards, strict=True)):
        write_shard(folder / name, documents, row_group=(1000, 50, 7)[number % 3])
    index = ShardIndex(train=tuple(names[:-1]), validation=names[-1], documents=0, characters=0)
    (folder / INDEX_FILE).write_text(index.model_dump_json())
    return folder


SHARDS = [DOCUMENTS, DOCUMENTS[::-1], [words(9)] * 60, DOCUMENTS[::7]]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(tmp_path_factory.mktemp("text") / "shards", SHARDS)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    Tokenizer.train(DOCUMENTS, TokenizerRecipe(vocab_size=300)).save(folder)
    return folder


def simple_files(tokenizer: Tokenizer, dtype: str) -> dict[str, bytes]:
    """One document after the other, as lists of numbers."""
    files, counts = {}, {}
    for number, documents in enumerate(SHARDS):
        encoded = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in documents]
        flat = [token for ids in encoded for token in ids]
        name = f"shard_{number:05d}"
        files[f"{name}.tokens.bin"] = np.array(flat, dtype).tobytes()
        files[f"{name}.lengths.bin"] = np.array([len(ids) for ids in encoded], "<u4").tobytes()
        counts[name] = {"documents": len(encoded), "tokens": len(flat)}
    told = {
        "dtype": "uint16" if dtype == "<u2" else "uint32",
        "vocab_size": tokenizer.vocab_size,
        "bos_id": tokenizer.bos_id,
        "train": list(counts)[:-1],
        "validation": list(counts)[-1],
        "counts": counts,
    }
    return {**files, "tokens.json": json.dumps(told, indent=1).encode()}


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def make(shards: Path, tokenizer: Path, output: Path, workers: int = 1) -> StageOutput:
    return build_tokens(
        TokensRecipe(), shards, tokenizer, output, workers=workers, progress=no_progress()
    )


@pytest.mark.parametrize("most_bytes", [300, 10_000, 2**25])
def test_files_are_those_of_the_simple_way_however_shards_are_cut(
    shards: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_bytes: int
) -> None:
    monkeypatch.setattr(tokenizing, "MOST_BYTES", most_bytes)
    monkeypatch.setattr(tokenizing, "LEAST_BYTES", min(most_bytes, tokenizing.LEAST_BYTES))
    output = make(shards, tokenizer, tmp_path)
    expected = simple_files(Tokenizer.load(tokenizer), "<u2")
    assert files_of(tmp_path) == expected
    assert sorted(output.files) == sorted(expected)
    assert set(output.files.values()) == {"result"}


def test_ids_beyond_two_bytes_are_stored_in_four(shards: Path, tmp_path: Path) -> None:
    ranks = [bytes([i]) for i in range(256)]
    ranks += [bytes([a, b]) for a in range(256) for b in range(256)][: 2**16 - 256]
    large = Tokenizer(ranks, TokenizerRecipe(vocab_size=300).split_pattern)
    large.save(tmp_path / "tokenizer")
    make(shards, tmp_path / "tokenizer", tmp_path / "tokens")
    assert files_of(tmp_path / "tokens") == simple_files(large, "<u4")


@pytest.mark.distributed
def test_two_processes_share_one_shard_and_make_the_same_files(
    shards: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizing, "LEAST_BYTES", 3000)
    monkeypatch.setattr(tokenizing, "ALONE_BYTES", 3000)
    make(shards, tokenizer, tmp_path, workers=2)
    assert files_of(tmp_path) == simple_files(Tokenizer.load(tokenizer), "<u2")


def test_metrics_count_the_text_itself(shards: Path, tokenizer: Path, tmp_path: Path) -> None:
    metrics = make(shards, tokenizer, tmp_path).metrics
    texts = [text for documents in SHARDS for text in documents]
    tokens = metrics["train_tokens"] + metrics["validation_tokens"]  # type: ignore[operator]
    assert metrics["characters_per_token"] == round(sum(map(len, texts)) / tokens, 3)
    assert metrics["bytes_per_token"] == round(sum(len(t.encode()) for t in texts) / tokens, 3)


@pytest.mark.parametrize("row_group", [7, 50, 10_000])
@pytest.mark.parametrize(("first", "end"), [(0, 0), (0, 1), (49, 51), (128, 300), (13, 325)])
def test_rows_are_read_whatever_row_groups_they_are_in(
    tmp_path: Path, row_group: int, first: int, end: int
) -> None:
    write_shard(tmp_path / "a.parquet", DOCUMENTS, row_group)
    batches = list(read_texts(tmp_path / "a.parquet", first, end))
    assert [text for batch in batches for text in batch.to_pylist()] == DOCUMENTS[first:end]
    assert max(map(len, batches), default=0) <= tokenizing.ROWS_AT_A_TIME


def test_pieces_hold_every_row_once_and_are_enough_for_all_workers(
    shards: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizing, "LEAST_BYTES", 100)
    work = Work(tokenizer, "", tmp_path)
    for workers in (1, 2, 5):
        pieces = work.pieces([shards / "shard_00000.parquet"], workers=workers)
        assert len(pieces) >= workers * tokenizing.PIECES_PER_WORKER
        assert [piece.first for piece in pieces[1:]] == [piece.end for piece in pieces[:-1]]
        assert (pieces[0].first, pieces[-1].end) == (0, len(DOCUMENTS))
        assert len({piece.file("tokens") for piece in pieces}) == len(pieces)


def test_processes_are_started_only_for_as_much_text_as_they_are_worth(
    shards: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = Work(tokenizer, "", tmp_path).pieces([shards / "shard_00000.parquet"], workers=8)
    assert enough_workers(pieces, 8) == 1
    size = sum(piece.text_bytes for piece in pieces)
    monkeypatch.setattr(tokenizing, "ALONE_BYTES", size // 2)
    assert [enough_workers(pieces, workers) for workers in (1, 2, 8)] == [1, 2, 3]


def test_no_piece_is_longer_than_seconds_of_work(
    shards: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizing, "MOST_BYTES", 2000)
    monkeypatch.setattr(tokenizing, "LEAST_BYTES", 100)
    pieces = Work(tokenizer, "", tmp_path).pieces([shards / "shard_00000.parquet"], workers=1)
    assert max(piece.text_bytes for piece in pieces) <= 2000


def test_runs_are_long_but_not_longer_than_a_document_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tokenizing, "RUN_CHARACTERS", 10)
    assert list(runs(["aaaa", "bbbb", "cccc", "d" * 30, "e"])) == [
        ["aaaa", "bbbb", "cccc"],
        ["d" * 30],
        ["e"],
    ]


def test_a_shard_that_cannot_be_read_is_named(tokenizer: Path, tmp_path: Path) -> None:
    path = tmp_path / "shard_00000.parquet"
    path.write_bytes(b"no parquet at all, but long enough for a footer")
    with pytest.raises(DataError, match=r"shard_00000\.parquet is no parquet file"):
        list(read_texts(path))
    pq.write_table(pa.table({"body": ["a"]}), path)
    with pytest.raises(DataError, match="has no column 'text', only body"):
        list(read_texts(path))
    pq.write_table(pa.table({"text": [1]}), path)
    with pytest.raises(DataError, match=r"holds int64; expected text"):
        list(read_texts(path))
    write_shard(path, ["a", None, "b"])
    with pytest.raises(DataError, match=r"1 documents without text in rows 0 to 3"):
        list(read_texts(path))


GROWTH = """
import sys
from pathlib import Path
from nanochat_core.data.recipes import TokensRecipe
from nanochat_core.data.token_files import build_tokens
from nanochat_core.logs import Progress

folders = [Path(name) for name in sys.argv[1:]]
build_tokens(TokensRecipe(), *folders, workers=1, progress=Progress(None, 0, ""))
# Not getrusage: its peak begins with that of the process that started this one.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(peak.split()[1])
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize("row_group", [1000, 10**9])
def test_memory_does_not_depend_on_the_size_of_a_shard(
    tokenizer: Path, tmp_path: Path, row_group: int
) -> None:
    document = " ".join(map(words, range(12)))
    peaks = []
    for megabytes in (8, 64):
        folder = write_artifact(tmp_path / str(megabytes), [[document], [document]])
        count = megabytes * 10**6 // len(document)
        distinct = [f"{number} {document}" for number in range(count)]
        write_shard(folder / "shard_00000.parquet", distinct, row_group)
        arguments = [str(folder), str(tokenizer), str(tmp_path / f"{megabytes} tokens")]
        told = subprocess.run(
            [sys.executable, "-c", GROWTH, *arguments], capture_output=True, check=True, text=True
        )
        peaks.append(int(told.stdout) * 1024)
    assert peaks[1] - peaks[0] < 16 * 2**20, f"{peaks[0]:,} bytes, then {peaks[1]:,}"
