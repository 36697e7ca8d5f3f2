import gzip
import io
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_tools import no_progress
from fsspec import AbstractFileSystem, register_implementation
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat_core.data.documents import Document
from nanochat_core.data.own_text import open_files
from nanochat_core.data.sources import (
    BLOCK_DOCUMENTS,
    check_first_documents,
    expand,
    held_out_blocks,
    list_source,
    num_text_bytes,
    resolve_files_source,
)
from nanochat_core.data.text_files import BLOCK_BYTES, LONG_LINE, documents_of, split_text
from nanochat_core.errors import DataError


def read(paths: list[Path], *, column: str = "text", max_documents: int = 0) -> list[Document]:
    given_paths = [str(path) for path in paths]
    source = resolve_files_source(given_paths, text_column=column)
    opened = open_files(
        source,
        given_paths,
        validation_percent=10,
        max_documents=max_documents,
        progress=no_progress(),
    )
    return list(opened.read(None))


def documents(path: Path, *, column: str = "text") -> list[str]:
    return list(documents_of(str(path), text_column=column, max_characters=100))


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
    return path


PROSE = st.lists(st.text(alphabet="ab \n", max_size=60), max_size=12).map("\n\n".join)


def cut_at(text: str, places: list[int]) -> list[str]:
    """The text in blocks that end at these places."""
    ends = sorted({min(place, len(text)) for place in places} | {len(text)})
    return [text[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


@settings(deadline=None)
@given(PROSE, st.integers(1, 40), st.lists(st.integers(0, 400), max_size=5))
def test_splitting_text_loses_nothing_but_white_space(
    text: str, limit: int, places: list[int]
) -> None:
    parts = list(split_text([text], limit))
    assert "".join("".join(parts).split()) == "".join(text.split())
    assert all(0 < len(part) <= limit for part in parts)
    assert list(split_text(cut_at(text, places), limit)) == parts


def cut_whole(text: str, limit: int) -> list[str]:
    """Every paragraph by itself, cut as long as it is over the limit: what streaming must equal."""
    paragraphs: list[list[str]] = [[]]
    for line in text.split("\n"):
        if line.strip():
            paragraphs[-1].append(line.rstrip())
        else:
            paragraphs.append([])
    parts = []
    for rest in ("\n".join(lines) for lines in paragraphs if lines):
        while len(rest) > limit:
            ends = [rest.rfind(sign, 1, limit + 1) for sign in "\n "]
            end = next((end for end in ends if end > 0), limit)
            parts.append(rest[:end].rstrip())
            rest = rest[end:].lstrip()
        parts.append(rest)
    return [part for part in parts if part]


@settings(deadline=None)
@given(PROSE, st.integers(1, 40))
def test_text_that_streams_is_cut_as_whole_paragraphs_are(text: str, limit: int) -> None:
    parts = [part for document in split_text([text], limit) for part in document.split("\n\n")]
    assert parts == cut_whole(text, limit)


def test_a_line_as_long_as_the_file_is_cut_piece_by_piece() -> None:
    text = "word " * (LONG_LINE // 2)
    whole = list(split_text([text], 100))
    assert " ".join(whole) == text.rstrip()
    assert {len(part) for part in whole[:-1]} == {99}
    assert list(split_text([text[i : i + 777] for i in range(0, len(text), 777)], 100)) == whole


def test_a_paragraph_without_end_is_never_held_whole() -> None:
    block = "some words that make a line\n" * 5_000
    tracemalloc.start()
    try:
        sizes = [len(part) for part in split_text((block for _ in range(20)), 2_000)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(block) * 20 * 0.98 < sum(sizes) < len(block) * 20
    assert peak < 8 * len(block)


def test_text_is_the_same_across_the_blocks_in_which_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    lines = ["\u00e4\u20ac\U0001f600 " * 20 + str(i) for i in range(BLOCK_BYTES // 180)]
    path.write_text("\n\n".join(lines), encoding="utf-8")
    assert path.stat().st_size > BLOCK_BYTES
    assert documents(path) == lines


def test_a_mistake_far_into_a_file_is_told_by_its_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * (BLOCK_BYTES - 1) + "\u20ac".encode() + b"\n\xff\n")
    with pytest.raises(DataError, match=f"byte {BLOCK_BYTES + 3} is 0xff"):
        documents(path)
    path.write_bytes("\u20ac".encode() * BLOCK_BYTES + b"\0")
    with pytest.raises(DataError, match=f"NUL byte at {3 * BLOCK_BYTES}"):
        documents(path)
    path.write_bytes(b"good\n" + "\u20ac".encode()[:2])
    with pytest.raises(DataError, match="byte 5 is 0xe2"):
        documents(path)


def test_documents_end_at_blank_lines_when_paragraphs_fit(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeff".encode() + b"one\r\ntwo\r\n\r\n" + b"x" * 95 + b"\n \nlast\n")
    assert documents(path) == ["one\ntwo", "x" * 95, "last"]


def test_rows_of_jsonl_and_parquet_are_documents(tmp_path: Path) -> None:
    texts = ["one\n\ntwo", "x" * 300, " ", "three"]
    jsonl = write_jsonl(tmp_path / "a.jsonl", texts)
    parquet = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [*texts, None]}), parquet)
    assert documents(jsonl) == documents(parquet) == ["one\n\ntwo", "x" * 300, "three"]


def test_folders_globs_and_files_are_expanded_in_a_stable_order(tmp_path: Path) -> None:
    for name in ("b/2.txt", "b/1.md", "a.jsonl", "c.py", ".hidden/x.txt", "b/.y.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x", encoding="utf-8")
    names = ["a.jsonl", "b/1.md", "b/2.txt"]
    assert expand([str(tmp_path)]) == [f"file://{tmp_path}/{name}" for name in names]
    assert expand([f"{tmp_path}/b/*.txt"]) == [f"file://{tmp_path}/b/2.txt"]
    both = [str(tmp_path / "b/2.txt"), str(tmp_path)]
    assert expand(both) == [f"file://{tmp_path}/{n}" for n in ("b/2.txt", "a.jsonl", "b/1.md")]


def test_a_source_is_its_content_and_not_its_place(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder / "in").mkdir(parents=True)
        (tmp_path / folder / "in" / "a.txt").write_text("same", encoding="utf-8")
    first, second = (resolve_files_source([str(tmp_path / folder)]) for folder in ("x", "y"))
    assert first == second
    assert first.files[0].name == "in/a.txt"
    (tmp_path / "y/in/a.txt").write_text("other", encoding="utf-8")
    assert resolve_files_source([str(tmp_path / "y")]) != first


def test_text_in_memory_is_a_source_by_url() -> None:
    import fsspec

    with fsspec.open("memory://texts/a.txt", "w") as file:
        file.write("one\n\ntwo")
    assert expand(["memory://texts"]) == ["memory:///texts/a.txt"]
    assert resolve_files_source(["memory://texts"]).files[0].name == "a.txt"
    assert list(documents_of("memory:///texts/a.txt", text_column="", max_characters=3)) == [
        "one",
        "two",
    ]


def test_whole_blocks_of_neighbours_are_held_out(tmp_path: Path) -> None:
    found = read([write_jsonl(tmp_path / "a.jsonl", [f"text {i}" for i in range(205)])])
    assert [document.text for document in found] == [f"text {i}" for i in range(205)]
    blocks = [found[i : i + BLOCK_DOCUMENTS] for i in range(0, 205, BLOCK_DOCUMENTS)]
    held_out = [{document.held_out for document in block} for block in blocks]
    assert sum(kinds == {True} for kinds in held_out) == 1
    assert sum(kinds == {False} for kinds in held_out) == len(blocks) - 1


def test_the_share_of_blocks_that_is_held_out_is_the_one_asked_for() -> None:
    assert len(held_out_blocks(20_000, 2.0)) == 20
    assert len(held_out_blocks(40, 2.0)) == 1


def test_the_first_documents_alone_can_be_used(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [f"text {i}" for i in range(205)])
    assert len(read([path], max_documents=60)) == 60


def bad_text(tmp_path: Path) -> Path:
    path = tmp_path / "bad.txt"
    path.write_bytes(b"fine\nnot \xff utf-8\n")
    return path


def bad_json(tmp_path: Path) -> Path:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "a"}\n{"text": \n', encoding="utf-8")
    return path


def damaged_parquet(tmp_path: Path) -> Path:
    path = tmp_path / "bad.parquet"
    texts = [f"text {number} " * 20 for number in range(2_000)]
    pq.write_table(pa.table({"text": texts}), path, compression="snappy")
    content = bytearray(path.read_bytes())
    content[1_000:3_000] = bytes(2_000)
    path.write_bytes(content)
    return path


def other_column(tmp_path: Path) -> Path:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "a"}\n\n{"body": "a", "id": 1}\n', encoding="utf-8")
    return path


def number_column(tmp_path: Path) -> Path:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": 5}\n', encoding="utf-8")
    return path


def other_parquet(tmp_path: Path) -> Path:
    path = tmp_path / "bad.parquet"
    pq.write_table(pa.table({"body": ["a"], "id": [1]}), path)
    return path


def no_parquet(tmp_path: Path) -> Path:
    path = tmp_path / "bad.parquet"
    path.write_bytes(b"this is not parquet at all")
    return path


def half_a_pair(tmp_path: Path) -> Path:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "a"}\n{"text": "ab\\ud83d"}\n', encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (half_a_pair, r"bad\.jsonl:2: character 2 .* half of a surrogate pair \(.ud83d\)"),
        (bad_text, r"bad\.txt is not UTF-8: byte 9 is 0xff"),
        (bad_json, r"bad\.jsonl:2: not JSON"),
        (other_column, r"bad\.jsonl:3: no column 'text'; the line has \['body', 'id'\]"),
        (number_column, r"bad\.jsonl:1: column 'text' holds int; expected a string"),
        (other_parquet, r"bad\.parquet has no column 'text'; it has \['body', 'id'\]"),
        (damaged_parquet, r"(reading .*bad\.parquet broke off|bad\.parquet is not a readable)"),
        (no_parquet, r"bad\.parquet is not a readable parquet file"),
    ],
)
def test_a_malformed_file_is_named_with_its_place(
    tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        documents(make(tmp_path))


@pytest.mark.parametrize(
    ("given_path", "message"),
    [
        ("missing.txt", r"no such file or folder: .*missing\.txt"),
        ("*.txt", r"nothing matches .*\*\.txt: expected \.txt, \.md"),
        ("code.py", r"cannot read .*code\.py: .* ends in one of \.txt, \.md"),
        ("folder", r"nothing matches .*folder"),
        ("empty.md", r"every file of .*empty\.md is empty"),
    ],
)
def test_a_source_that_gives_no_text_is_refused_when_planned(
    tmp_path: Path, given_path: str, message: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "code.py").write_text("x", encoding="utf-8")
    (tmp_path / "empty.md").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match=message):
        resolve_files_source([str(tmp_path / given_path)])


def test_an_unknown_kind_of_url_is_refused() -> None:
    with pytest.raises(DataError, match="cannot open the source nothing://x"):
        expand(["nothing://x"])


class BreakingFile(io.BytesIO):
    """A file on a network that goes away after two megabytes."""

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() >= 2 * BLOCK_BYTES:
            raise ConnectionError("the server is gone")
        return super().read(size)


class BreakingFileSystem(AbstractFileSystem):
    """Names are files of three megabytes."""

    protocol = "breaking"
    cachable = False

    def info(self, path: str, **_: object) -> dict[str, object]:
        return {"name": path, "size": 3 * BLOCK_BYTES, "type": "file"}

    def _open(self, path: str, mode: str = "rb", **_: object) -> BreakingFile:
        return BreakingFile(b"some words in a line\n" * (3 * BLOCK_BYTES // 21))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
def test_reading_that_breaks_off_is_one_message(name: str) -> None:
    register_implementation("breaking", BreakingFileSystem, clobber=True)
    message = rf"reading breaking://{name} broke off: the server is gone; .*the network or the disk"
    with pytest.raises(DataError, match=message):
        resolve_files_source([f"breaking://{name}"])
    if name != "a.jsonl":
        with pytest.raises(DataError, match=message):
            list(documents_of(f"breaking://{name}", text_column="", max_characters=100))


def test_too_little_text_says_how_much_is_needed(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["text"] * 39)
    with pytest.raises(DataError, match="holds 39 documents; 40 or more are needed"):
        read([path])


def test_a_file_that_changed_since_the_plan_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["text"] * 50)
    source = resolve_files_source([str(tmp_path)])
    write_jsonl(path, ["other"] * 50)
    arguments = {"validation_percent": 2.0, "max_documents": 0, "progress": no_progress()}
    with pytest.raises(DataError, match=r"a\.jsonl changed since it was planned"):
        open_files(source, [str(tmp_path)], **arguments)
    write_jsonl(tmp_path / "b.jsonl", ["more"])
    with pytest.raises(DataError, match=r"changed since it was planned: b\.jsonl"):
        open_files(source, [str(tmp_path)], **arguments)


def test_documents_too_short_do_not_count_in_the_first_look(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["long enough"] * 39 + ["short"] * 39)
    files = list_source([str(path)])
    check_first_documents(files, text_column="text", max_characters=100)
    with pytest.raises(DataError, match="holds 39 documents"):
        check_first_documents(files, text_column="text", max_characters=100, min_characters=6)


TEXT = "\n\n".join(f"Paragraph {i} of a text that is packed, \u00e4\u20ac." for i in range(30_000))
"""More than a block of it."""
PACKED: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}


@pytest.mark.parametrize("suffix", PACKED)
@pytest.mark.parametrize("kind", [".txt", ".md", ".jsonl"])
def test_compressed_text_is_read_as_what_it_was(tmp_path: Path, kind: str, suffix: str) -> None:
    data = TEXT.encode() if kind != ".jsonl" else f"{json.dumps({'text': TEXT})}\n\n".encode() * 2
    plain, packed = tmp_path / f"a{kind}", tmp_path / f"b{kind.upper()}{suffix}"
    plain.write_bytes(data)
    # Those who append to a compressed file leave several streams in it.
    half = len(data) // 2 - 1
    packed.write_bytes(b"".join(map(PACKED[suffix], (data[:half], data[half:]))))
    assert documents(packed) == documents(plain)
    (file,) = resolve_files_source([str(packed)]).files
    assert (file.name, file.bytes) == (packed.name, packed.stat().st_size)
    assert num_text_bytes(list_source([str(packed)])) is None


@pytest.mark.parametrize("suffix", PACKED)
def test_damaged_compressed_text_is_named(tmp_path: Path, suffix: str) -> None:
    data = PACKED[suffix](TEXT.encode())
    damages = {"cut": data[: len(data) // 2], "else": b"no such stream"}
    if suffix == ".gz":  # which has a checksum
        damages["changed"] = data[:-8] + bytes(byte ^ 255 for byte in data[-8:])
    for name, damaged in damages.items():
        path = tmp_path / f"{name}.txt{suffix}"
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"{name}\.txt\{suffix} cannot be unpacked: .* write"):
            documents(path)


def test_of_a_file_and_its_compressed_copy_one_is_read(tmp_path: Path) -> None:
    for name in ("a.txt", "a.txt.gz", "a.txt.zst", "b.jsonl.gz", "c.gz", "d.parquet.gz"):
        (tmp_path / name).write_bytes(b"x")
    names = [file.name for file in list_source([str(tmp_path)])]
    assert names == ["a.txt", "b.jsonl.gz"]
    assert [file.name for file in list_source([str(tmp_path / "a.*")])] == ["a.txt"]
    with pytest.raises(DataError, match=r"c\.gz: .* of the first three with \.gz or \.zst"):
        list_source([str(tmp_path / "c.gz")])
