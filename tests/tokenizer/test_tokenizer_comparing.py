"""The comparison of tokenizers: right numbers, and files of known ones only as published."""

import base64
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tiktoken

from nanochat_core.errors import DataError
from nanochat_core.tokenizer.comparing import (
    ALL,
    KNOWN,
    OURS,
    SAMPLES_FILE,
    Comparison,
    Sample,
    compare,
    comparison_markdown,
    known_encodings,
    read_samples,
    tiktoken_cache,
)
from nanochat_core.tokenizer.tokenizer import Tokenizer

SAMPLES = [
    Sample(name="news", language="English", sample="a bad cafe"),
    Sample(name="tales", language="English", sample="abc abc abc" * 9),
    Sample(name="kid|s", language="French", sample="é" * 30),
]


def per_token(tokenizer: Tokenizer, *texts: str) -> float:
    size = sum(len(text.encode()) for text in texts)
    return round(size / sum(len(tokenizer.encode(text)) for text in texts), 3)


def test_bytes_per_token_are_counted_of_sources_languages_and_all(tokenizer: Tokenizer) -> None:
    comparison = compare(tokenizer, SAMPLES, None)
    texts = [one.sample for one in SAMPLES]
    expected = [
        ("news", "English", per_token(tokenizer, texts[0])),
        ("tales", "English", per_token(tokenizer, texts[1])),
        ("kid|s", "French", per_token(tokenizer, texts[2])),
        (ALL, "English", per_token(tokenizer, *texts[:2])),
        (ALL, "", per_token(tokenizer, *texts)),
    ]
    found = [(row.name, row.language, row.bytes_per_token[OURS]) for row in comparison.rows]
    assert found == expected
    assert comparison.rows[-1].sample_bytes == sum(len(text.encode()) for text in texts)
    assert comparison.split_pattern == "nanochat"


def test_one_source_has_one_row(tokenizer: Tokenizer) -> None:
    assert [row.name for row in compare(tokenizer, SAMPLES[:1], None).rows] == ["news"]


def test_the_comparison_reads_back_and_is_told_as_a_table(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    comparison = compare(tokenizer, SAMPLES, tmp_path / "nothing here")
    assert comparison.save(tmp_path) == "comparison.json"
    assert Comparison.load(tmp_path) == comparison
    page = comparison_markdown(comparison)
    assert "| source | language | sample | this one (400) |\n| --- | --- | ---: | ---: |\n" in page
    assert (
        f"| kid\\|s | French | 60 bytes | {comparison.rows[2].bytes_per_token[OURS]:.2f} |" in page
    )
    assert page.endswith(
        "Left out: GPT-2, GPT-4, GPT-4o (not in nothing here, where tiktoken keeps files)."
    )


def write_merges(path: Path) -> None:
    """GPT-2's way to write the merges `a`+`b`, ` `+`ab`, `é` of its two bytes."""
    path.write_text("#version: 0.2\na b\nĠ ab\nÃ ©\n", encoding="utf-8")


def write_ranks(path: Path) -> None:
    tokens = [*(bytes([i]) for i in range(256)), b"ab", b" ab", "é".encode()]
    lines = [f"{base64.b64encode(token).decode()} {i}\n" for i, token in enumerate(tokens)]
    path.write_text("".join(lines))


@pytest.mark.parametrize(("number", "write"), [(0, write_merges), (1, write_ranks)])
def test_tokens_of_known_ones_are_read_from_either_file(
    tmp_path: Path, number: int, write: Callable[[Path], None]
) -> None:
    path = KNOWN[number].file(tmp_path)
    write(path)
    known = replace(KNOWN[number], sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    found, skipped = known_encodings(tmp_path, [known])
    assert skipped == {}
    assert found["GPT-2"].n_vocab == 259
    ids = found["GPT-2"].encode_ordinary("ab abé\x00é")
    assert [found["GPT-2"].decode_single_token_bytes(i).decode() for i in ids] == [
        "ab", " ab", "é", "\x00", "é"
    ]  # fmt: skip


def test_another_file_under_a_known_name_is_left_alone_and_told(tmp_path: Path) -> None:
    path = KNOWN[0].file(tmp_path)
    write_merges(path)
    found, skipped = known_encodings(tmp_path)
    assert found == {}
    assert skipped["GPT-2"].endswith("is not the published file")
    assert skipped["GPT-4"].startswith("not in")
    assert path.exists(), "tiktoken itself would remove it, and fetch another"


def test_names_of_cached_files_are_those_of_tiktoken() -> None:
    # As tiktoken computes them; packages that ship these files have them under these names.
    assert KNOWN[0].file(Path()).name == "6d1cbeee0f20b3d9449abfede4726ed8212e3aee"
    assert KNOWN[2].file(Path()).name == "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"


def test_addresses_and_digests_are_those_that_tiktoken_asks_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import tiktoken_ext.openai_public as published

    asked: dict[str, str] = {}

    def ranks(url: str, expected_hash: str) -> dict[bytes, int]:
        asked[url] = expected_hash
        return {}

    def merges(vocab_bpe_file: str, vocab_bpe_hash: str, **_: str) -> dict[bytes, int]:
        asked[vocab_bpe_file] = vocab_bpe_hash
        return {}

    monkeypatch.setattr(published, "load_tiktoken_bpe", ranks)
    monkeypatch.setattr(published, "data_gym_to_mergeable_bpe_ranks", merges)
    for name in ("gpt2", "r50k_base", "cl100k_base", "o200k_base"):
        getattr(published, name)()
    assert {one.url: one.sha256 for one in KNOWN} == asked


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"TIKTOKEN_CACHE_DIR": "/a", "DATA_GYM_CACHE_DIR": "/b"}, Path("/a")),
        ({"DATA_GYM_CACHE_DIR": "/b"}, Path("/b")),
        ({"TIKTOKEN_CACHE_DIR": ""}, None),
        ({}, Path("/t/data-gym-cache")),
    ],
)
def test_the_cache_is_where_tiktoken_has_it(environ: dict[str, str], folder: Path | None) -> None:
    assert tiktoken_cache(environ, Path("/t")) == folder


@pytest.mark.parametrize("wrapped", [False, True])
def test_samples_are_read_from_the_notes_on_sources(tmp_path: Path, wrapped: bool) -> None:
    assert read_samples(tmp_path) == []
    notes = [
        {"name": "a", "language": "Thai", "sample": "x", "documents": 3},
        {"name": "b", "sample": ""},
        {"name": "c", "sample": "y"},
    ]
    (tmp_path / SAMPLES_FILE).write_text(json.dumps({"sources": notes} if wrapped else notes))
    assert read_samples(tmp_path) == [
        Sample(name="a", language="Thai", sample="x"),
        Sample(name="c", sample="y"),
    ]


@pytest.mark.parametrize("text", ["", "{}", "3", '["a"]', '[{"name": 3, "sample": "x"}]'])
def test_notes_that_are_something_else_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / SAMPLES_FILE).write_text(text)
    with pytest.raises(DataError, match=r"sources\.json cannot be read as notes on sources"):
        read_samples(tmp_path)


@pytest.mark.parametrize(
    ("name", "published"),
    [("GPT-2", "r50k_base"), ("GPT-4", "cl100k_base"), ("GPT-4o", "o200k_base")],
)
def test_known_ones_give_the_ids_of_tiktoken_where_their_files_are_at_hand(
    name: str, published: str
) -> None:
    cache = tiktoken_cache(os.environ, Path("/nowhere"))
    by_file = {one.file(cache).exists(): one for one in KNOWN if cache and one.name == name}
    if True not in by_file:
        pytest.skip(f"no file of {name} in TIKTOKEN_CACHE_DIR")
    ours = by_file[True].encoding(cache)
    theirs = tiktoken.get_encoding(published)  # reads the same file
    for text in (
        "It's 12,345 great DAYS!\r\n\n  x\t",
        "हिन्दी 中文 é\u0301 camelCase",
        "a" * 99 + " \n ",
    ):
        assert ours.encode_ordinary(text) == theirs.encode_ordinary(text)
