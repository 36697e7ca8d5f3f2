"""Filters: what is left out is told, and only what is alike is alike."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from data_tools import no_progress
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat_core.data.document_sketches import (
    MIN_LIKENESS,
    NUMBERS,
    RUN_CHARACTERS,
    SeenDocuments,
    sketch,
)
from nanochat_core.data.documents import SourceText
from nanochat_core.data.own_text import open_files
from nanochat_core.data.recipes import FilesSource, ShardsRecipe
from nanochat_core.data.shards import build_shards
from nanochat_core.data.source_notes import load_notes
from nanochat_core.data.sources import resolve_files_source
from nanochat_core.errors import DataError

LATIN, CHINESE = "abcdefghijklmnoprstuvw", "".join(chr(0x4E00 + i) for i in range(3_000))


def english(source: random.Random, words: int) -> str:
    return " ".join("".join(source.choices(LATIN, k=source.randint(2, 9))) for _ in range(words))


def chinese(source: random.Random, characters: int) -> str:
    return "".join(source.choices(CHINESE, k=characters))


def likeness(first: str, second: str) -> float:
    """The exact share of runs of 16 characters that both have."""
    runs = [
        {text[i : i + RUN_CHARACTERS] for i in range(len(text) - RUN_CHARACTERS + 1)}
        for text in (first, second)
    ]
    return len(runs[0] & runs[1]) / len(runs[0] | runs[1])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.0, 1.0), st.integers(150, 400))
def test_sketches_agree_about_as_much_as_the_texts(seed: int, kept: float, words: int) -> None:
    source = random.Random(seed)
    first = english(source, words)
    cut = int(len(first) * kept)
    second = first[:cut] + english(source, words)[: len(first) - cut]
    agree = float((sketch(first) == sketch(second)).mean())
    # Five standard errors of a share out of 64.
    assert agree == pytest.approx(likeness(first, second), abs=5 * 0.5 / NUMBERS**0.5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([english, chinese]))
def test_a_text_with_one_change_is_a_near_duplicate_in_any_script(
    seed: int, write: Callable[[random.Random, int], str]
) -> None:
    source = random.Random(seed)
    text = write(source, 400)
    place = source.randrange(len(text))
    seen = SeenDocuments(1 << 10)
    assert seen.keep_new(text)
    assert not seen.keep_new(f"  {text[:place]}##{text[place + 2 :].upper()}\n")
    assert seen.keep_new(write(source, 400))
    half = text[: len(text) // 2]
    assert seen.keep_new(half + write(source, 200))
    assert not seen.keep_new(text)


def test_short_texts_are_alike_only_when_they_are_equal() -> None:
    seen = SeenDocuments(1 << 10)
    texts = ["", "a", "b", "Chapter 1", "Chapter 2", "yes", "Yes.", "\u597d"]
    assert [seen.keep_new(text) for text in texts] == [True] * len(texts)
    assert not any(seen.keep_new(text) for text in texts)


def test_memory_is_bounded_and_the_newest_documents_are_remembered() -> None:
    source, seen = random.Random(1), SeenDocuments(64)
    texts = [english(source, 60) for _ in range(1_000)]
    assert all(seen.keep_new(text) for text in texts)
    assert not any(seen.keep_new(text) for text in texts[-16:])
    assert seen.keep_new(texts[0])
    assert SeenDocuments().num_bytes == 192 * 2**20


def test_likeness_decides() -> None:
    source = random.Random(2)
    text = english(source, 2_000)
    wrong = 0
    for kept in (0.2, 0.4, 0.5, 0.6, 0.95, 0.97, 0.99):
        other = (
            text[: int(len(text) * kept)] + english(source, 2_000)[: int(len(text) * (1 - kept))]
        )
        seen = SeenDocuments(1 << 10)
        seen.keep_new(text)
        wrong += seen.keep_new(other) != (likeness(text, other) < MIN_LIKENESS)
    assert wrong == 0


def opened(path: Path, **fields: object) -> SourceText:
    source = resolve_files_source([str(path)]).model_copy(update=fields)
    return open_files(
        source, [str(path)], validation_percent=10, max_documents=0, progress=no_progress()
    )


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
    return path


KINDS = st.lists(st.sampled_from(["new", "short", "blank", "again"]), min_size=1, max_size=60)


@settings(max_examples=12, deadline=None)
@given(KINDS)
def test_every_text_is_a_document_or_counted(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[str]
) -> None:
    source = random.Random(len(kinds))
    texts = [english(source, 40) for _ in range(40)]
    for kind in kinds:
        made = {"new": english(source, 40), "short": "short", "blank": " \n"}
        texts.append(made.get(kind) or source.choice(texts[:40]))
    path = write_jsonl(tmp_path_factory.mktemp("texts") / "a.jsonl", texts)
    found = opened(path, min_document_characters=6, drop_near_duplicates=True)
    documents = list(found.read(None))
    assert found.filtered.empty == kinds.count("blank")
    assert found.filtered.too_short == kinds.count("short")
    assert found.filtered.near_duplicates == kinds.count("again")
    assert found.train.documents + found.held_out.documents == len(documents)
    assert len(documents) == 40 + kinds.count("new")
    for held_out, side in ((False, found.train), (True, found.held_out)):
        mine = [document.text for document in found.read(held_out)]
        assert (len(mine), sum(map(len, mine))) == (side.documents, side.bytes)
    assert [d.text for d in documents] == list(dict.fromkeys(t for t in texts if len(t) > 5))


def test_filters_are_off_until_asked_for(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["same"] * 50 + [""])
    found = opened(path)
    assert len(list(found.read(None))) == 50
    assert (found.filtered.empty, found.filtered.near_duplicates) == (1, 0)


def test_a_source_that_filters_empty_says_so(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["the same text in every line"] * 50 + ["x"] * 3)
    with pytest.raises(
        DataError, match=r"holds 1 document; .* left out 3 too short .* and 49 near-duplicates"
    ):
        opened(path, min_document_characters=2, drop_near_duplicates=True)


def test_what_filters_left_out_is_told_with_the_shards(tmp_path: Path) -> None:
    source = random.Random(3)
    texts = [english(source, 50) for _ in range(60)]
    path = write_jsonl(tmp_path / "a.jsonl", [*texts, *texts[:7], "no", "", "yes"])
    recipe = ShardsRecipe(
        source=FilesSource(
            files=resolve_files_source([str(path)]).files,
            min_document_characters=10,
            drop_near_duplicates=True,
        ),
        num_shards=2,
    )
    output = build_shards(recipe, [str(path)], tmp_path / "out", workers=1, progress=no_progress())
    (note,) = load_notes(tmp_path / "out")
    assert (note.empty, note.too_short, note.near_duplicates) == (1, 2, 7)
    assert note.documents + note.held_out_documents == 60 == output.metrics["documents"]
    told = {name: output.metrics[name] for name in ("empty", "too_short", "near_duplicates")}
    assert told == {"empty": 1, "too_short": 2, "near_duplicates": 7}
    assert "left_out_documents" not in output.metrics
