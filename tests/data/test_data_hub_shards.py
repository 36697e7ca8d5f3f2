"""What is found in a published shard, and how it becomes one of ours."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat_core.data.hub_shards import (
    ShardContents,
    characters_of,
    examine,
    index_of,
    put_shard,
    usual_characters,
)
from nanochat_core.data.recipes import FileDigest, HubSource
from nanochat_core.data.shards import ShardIndex, ShardWriter, read_documents
from nanochat_core.errors import DataError

TEXTS = ["First document.", "Naïve 東京", "x" * 500]


def write(path: Path, texts: Sequence[str | None], column: str = "text", **options: str) -> Path:
    kind = options.pop("kind", "string")
    array = pa.array(texts, type=getattr(pa, kind)())
    pq.write_table(pa.table({column: array}), path, row_group_size=2)
    return path


def file_of(path: Path) -> FileDigest:
    return FileDigest(name=path.name, sha256="0" * 64, bytes=path.stat().st_size)


def test_documents_characters_and_bytes_are_counted(tmp_path: Path) -> None:
    found = examine(write(tmp_path / "a.parquet", TEXTS), "text", "a")
    assert found.documents == 3
    assert found.characters == sum(map(len, TEXTS))
    assert found.bytes == sum(len(text.encode()) for text in TEXTS)
    assert found.is_plain


@pytest.mark.parametrize(
    ("texts", "column", "kind"),
    [
        ([*TEXTS, None], "text", "string"),
        (TEXTS, "body", "string"),
        (TEXTS, "text", "large_string"),
    ],
)
def test_a_shard_unlike_ours_is_written_again(
    texts: list[str | None], column: str, kind: str, tmp_path: Path
) -> None:
    shard = write(tmp_path / "a.parquet", texts, column, kind=kind)
    found = examine(shard, column, "a")
    assert not found.is_plain
    assert found.documents == 3
    put_shard(shard, tmp_path / "ours.parquet", found, as_ours=True)
    assert list(read_documents(tmp_path / "ours.parquet")) == TEXTS
    put_shard(shard, tmp_path / "same.parquet", found, as_ours=False)
    assert (tmp_path / "same.parquet").samefile(shard)


def test_our_own_shards_need_no_rewrite(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "a.parquet")
    for text in TEXTS:
        writer.add(text)
    writer.close()
    found = examine(tmp_path / "a.parquet", "text", "a")
    put_shard(tmp_path / "a.parquet", tmp_path / "b.parquet", found, as_ours=True)
    assert (tmp_path / "b.parquet").samefile(tmp_path / "a.parquet")


def test_what_is_no_shard_of_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 or so")
    with pytest.raises(DataError, match="the shard set/7 is no readable parquet file"):
        examine(tmp_path / "a.parquet", "text", "set/7")
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="holds int64 in column 'text'; expected text"):
        examine(tmp_path / "b.parquet", "text", "b")
    with pytest.raises(DataError, match=r"no column 'body'; it has \['text'\]"):
        examine(tmp_path / "b.parquet", "body", "b")


def test_what_an_artifact_says_counts_for_its_own_column_only() -> None:
    found = ShardContents(documents=1, characters=2, bytes=3, column="text", is_plain=True)
    assert ShardContents.kept(found.metrics(), "text") == found
    assert ShardContents.kept(found.metrics(), "body") is None
    assert ShardContents.kept({"documents": 1, "column": "text"}, "text") is None


def test_the_last_shard_is_validation(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.parquet", TEXTS) for name in "abc"]
    source = HubSource(files=tuple(map(file_of, paths)))
    contents = {path.name: examine(path, "text", path.name) for path in paths}
    assert index_of(source, contents) == ShardIndex(
        train=("a.parquet", "b.parquet"),
        validation="c.parquet",
        documents=9,
        characters=3 * sum(map(len, TEXTS)),
    )
    alone = HubSource(files=source.files[:1])
    with pytest.raises(DataError, match="0 train shards"):
        index_of(alone, contents)


def test_text_of_a_set_is_estimated_by_its_bytes_unless_it_is_known() -> None:
    files = [FileDigest(name=str(size), sha256="0" * 64, bytes=size) for size in (100, 300)]
    assert characters_of(files) == 500
    assert usual_characters("hf://datasets/karpathy/climbmix-400b-shuffle@main/") == 250e6
    assert usual_characters("hf://datasets/some/other") is None
