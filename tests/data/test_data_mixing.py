"""Mixtures: shares hold everywhere, nothing is lost uncounted, the same text, the same bytes."""

import json
import os
import random
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_tools import no_progress
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat_core.config.job import StageOutput
from nanochat_core.data.documents import Document, in_memory
from nanochat_core.data.mixing import (
    Dealt,
    Part,
    deal_held_out,
    deal_train,
    expected_train_bytes,
    shares,
)
from nanochat_core.data.recipes import (
    FileDigest,
    FilesSource,
    HubSource,
    MixturePart,
    MixtureSource,
    ShardsRecipe,
)
from nanochat_core.data.shards import ShardIndex, build_shards, read_documents
from nanochat_core.data.source_notes import SAMPLE_BYTES, load_notes
from nanochat_core.data.sources import resolve_files_source
from nanochat_core.errors import DataError


def part(sizes: Sequence[int], share: float, *, epochs: float = 1.0, name: str = "a") -> Part:
    """A source whose documents have these sizes; every tenth is held out."""
    texts = [f"{i} ".ljust(size, name) for i, size in enumerate(sizes)]
    documents = [Document(text, i % 10 == 0) for i, text in enumerate(texts)]
    return Part(name, in_memory(documents), share, epochs)


SIZES = st.lists(st.integers(4, 300), min_size=2, max_size=40)
WEIGHTED = st.tuples(SIZES, st.floats(0.05, 1.0), st.floats(0.3, 3.0))


@st.composite
def mixtures(draw: st.DrawFn) -> list[Part]:
    drawn = draw(st.lists(WEIGHTED, min_size=2, max_size=5))
    wanted = shares([weight for _, weight, _ in drawn])
    return [
        part(sizes, share, epochs=epochs, name="abcde"[i])
        for i, ((sizes, _, epochs), share) in enumerate(zip(drawn, wanted, strict=True))
    ]


def check_shares_everywhere(dealt: Sequence[Dealt], wanted: Sequence[float]) -> None:
    """After every document: nobody above its share by a document, nor far below."""
    longest = max((len(document.text) for document in dealt), default=0)
    has = [0] * len(wanted)
    for document in dealt:
        has[document.part] += len(document.text)
        for share, size in zip(wanted, has, strict=True):
            assert size - share * sum(has) <= longest * (1 - share) + 1e-6
            assert share * sum(has) - size <= longest * (len(wanted) - 1) + 1e-6


@settings(deadline=None, max_examples=50)
@given(mixtures(), st.integers(1, 4))
def test_shares_hold_in_every_shard_and_at_every_document(
    parts: list[Part], num_shards: int
) -> None:
    dealt, wanted = list(deal_train(parts, num_shards)), [p.share for p in parts]
    assert list(deal_train(parts, num_shards)) == dealt
    shards = [[d for d in dealt if d.shard == shard] for shard in range(num_shards)]
    for documents in shards:
        check_shares_everywhere(documents, wanted)
    check_shares_everywhere(list(deal_held_out(parts)), wanted)
    # No shard is ahead of another by more than a document.
    sizes = [sum(len(d.text) for d in documents) for documents in shards]
    assert max(sizes) - min(sizes) <= max((len(d.text) for d in dealt), default=0)


@settings(deadline=None, max_examples=50)
@given(mixtures(), st.integers(1, 4))
def test_a_mixture_ends_only_when_a_part_that_is_owed_text_has_no_more(
    parts: list[Part], num_shards: int
) -> None:
    dealt = list(deal_train(parts, num_shards))
    counts = Counter(document.part for document in dealt)
    assert any(counts[number] == p.train_quota for number, p in enumerate(parts))
    for number, one in enumerate(parts):
        texts = [d.text for d in one.source.read(False)]
        mine = [d.text for d in dealt if d.part == number]
        # In the order of the source, from the start again after the last one.
        assert mine == (texts * 4)[: len(mine)]
        assert len(mine) <= one.train_quota <= max(1, one.max_epochs * len(texts))


@settings(deadline=None, max_examples=50)
@given(mixtures())
def test_no_document_that_is_held_out_is_trained_on_nor_comes_twice(parts: list[Part]) -> None:
    held_out = [document.text for document in deal_held_out(parts)]
    assert len(set(held_out)) == len(held_out)
    assert not set(held_out) & {document.text for document in deal_train(parts, 2)}


def test_shares_hold_however_different_the_documents_are() -> None:
    parts = [part([10] * 5_000, 0.3, name="a"), part([1_000] * 200, 0.7, name="b")]
    dealt = list(deal_train(parts, 3))
    for shard in range(3):
        documents = [document for document in dealt if document.shard == shard]
        has = Counter[int]()
        for document in documents:
            has[document.part] += len(document.text)
        assert has[0] / has.total() == pytest.approx(0.3, abs=0.02)
    assert expected_train_bytes(parts) == pytest.approx(sum(len(d.text) for d in dealt), rel=0.05)


def test_a_part_of_an_epoch_is_the_beginning_and_more_of_them_repeat() -> None:
    small, large = part([20] * 21, 0.5, epochs=2.5, name="a"), part([20] * 210, 0.5, name="b")
    mine = [d.text for d in deal_train([small, large], 1) if d.part == 0]
    assert Counter(Counter(mine).values()) == {3: 9, 2: 9}


def write_jsonl(path: Path, name: str, count: int, size: int) -> FilesSource:
    lines = [json.dumps({"text": f"{name} {i} ".ljust(size, name[0])}) for i in range(count)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return resolve_files_source([str(path)])


def write_published(folder: Path, name: str, counts: Sequence[int]) -> HubSource:
    folder.mkdir()
    digests = []
    for number, count in enumerate(counts):
        path = folder / f"shard_{number:05d}.parquet"
        texts = [f"{name} {number} {i} ".ljust(50, name[0]) for i in range(count)]
        pq.write_table(pa.table({"id": list(range(count)), "content": texts}), path)
        size = path.stat().st_size
        digests.append(FileDigest(name=path.name, sha256="0" * 64, bytes=size))
    return HubSource(files=tuple(digests), text_column="content")


Inputs = tuple[MixtureSource, dict[str, tuple[str, ...]]]


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    """Three parts, one of them published shards: 50, 30 and 20 percent."""
    (tmp_path / "in").mkdir()
    first = write_jsonl(tmp_path / "in/x.jsonl", "x", 600, 100)
    second = write_jsonl(tmp_path / "in/y.jsonl", "y", 200, 40)
    published = write_published(tmp_path / "in/z", "z", (300, 300, 50))
    source = MixtureSource(
        parts=(
            MixturePart(name="x", source=first, weight=50, language="en"),
            MixturePart(name="y", source=second, weight=30, max_epochs=3),
            MixturePart(name="z", source=published, weight=20),
        )
    )
    paths = {"x": "x.jsonl", "y": "y.jsonl", "z": "z"}
    return source, {name: (str(tmp_path / "in" / path),) for name, path in paths.items()}


def build(inputs: Inputs, output: Path, *, max_documents: int = 0) -> StageOutput:
    recipe = ShardsRecipe(
        source=inputs[0], num_shards=3, validation_percent=10, max_documents=max_documents
    )
    return build_shards(recipe, inputs[1], output, workers=1, progress=no_progress())


def bytes_by_part(shard: Path) -> Counter[str]:
    found: Counter[str] = Counter()
    for text in read_documents(shard):
        found[text[0]] += len(text)
    return found


def test_every_shard_of_a_mixture_has_the_stated_shares(inputs: Inputs, tmp_path: Path) -> None:
    build(inputs, tmp_path / "out")
    index = ShardIndex.load(tmp_path / "out")
    for name in (*index.train, index.validation):
        found = bytes_by_part(tmp_path / "out" / name)
        for letter, share in (("x", 0.5), ("y", 0.3), ("z", 0.2)):
            assert abs(found[letter] - share * found.total()) <= 200, (name, letter)


def test_what_is_told_of_a_mixture_adds_up(inputs: Inputs, tmp_path: Path) -> None:
    output = build(inputs, tmp_path / "out")
    x, y, z = load_notes(tmp_path / "out")
    # y has least for its share: 180 documents of 40 bytes, three times, of 72 kB.
    assert (y.documents, y.bytes, y.epochs) == (540, 21_600, 3.0)
    assert (x.wanted_share, x.language, y.language) == (0.5, "en", "")
    assert x.epochs == pytest.approx(36_000 / 54_000, abs=0.01)
    assert [note.share for note in (x, y, z)] == pytest.approx([0.5, 0.3, 0.2], abs=0.01)
    for note, of_both in ((x, 600), (z, 650)):
        assert note.documents + note.held_out_documents + note.left_out_documents == of_both
    total = sum(note.bytes + note.held_out_bytes for note in (x, y, z))
    texts = [
        t for path in sorted((tmp_path / "out").glob("*.parquet")) for t in read_documents(path)
    ]
    assert total == sum(map(len, texts)) == output.metrics["characters"]
    assert output.metrics["bytes/y"] == 21_600
    assert output.metrics["left_out_documents"] == x.left_out_documents + z.left_out_documents
    assert output.files["sources.json"] == "record"
    index = ShardIndex.load(tmp_path / "out")
    held_out = list(read_documents(tmp_path / "out" / index.validation))
    assert x.sample == "\n\n".join(text for text in held_out if text[0] == "x")
    assert len(held_out) == sum(note.held_out_documents for note in (x, y, z))


def test_the_same_mixture_makes_the_same_bytes(inputs: Inputs, tmp_path: Path) -> None:
    first = build(inputs, tmp_path / "one")
    assert build(inputs, tmp_path / "two") == first
    for name in first.files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert sorted(first.files) == sorted(path.name for path in (tmp_path / "one").iterdir())


def test_of_every_part_the_first_documents_alone_can_be_used(
    inputs: Inputs, tmp_path: Path
) -> None:
    build(inputs, tmp_path / "out", max_documents=60)
    notes = load_notes(tmp_path / "out")
    for note in notes:
        used = note.documents / max(1.0, note.epochs) + note.held_out_documents
        assert used <= 60, note


def test_two_parts_of_one_name_are_refused(inputs: Inputs, tmp_path: Path) -> None:
    source, paths = inputs
    twice = MixtureSource(parts=(*source.parts, source.parts[0]))
    with pytest.raises(DataError, match="two parts of the mixture are called x; give"):
        build((twice, paths), tmp_path / "out")


def test_what_another_part_has_is_a_near_duplicate_too(tmp_path: Path) -> None:
    source = random.Random(1)
    texts = [" ".join(source.choices(string.ascii_letters, k=200)) for _ in range(150)]
    parts, paths = [], {}
    for name, mine in (("x", texts[:100]), ("y", texts[50:])):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": t}) + "\n" for t in mine), encoding="utf-8")
        files = resolve_files_source([str(path)])
        filtered = files.model_copy(update={"drop_near_duplicates": True})
        parts.append(MixturePart(name=name, source=filtered))
        paths[name] = (str(path),)
    recipe = ShardsRecipe(source=MixtureSource(parts=tuple(parts)), num_shards=2)
    build_shards(recipe, paths, tmp_path / "out", workers=1, progress=no_progress())
    x, y = load_notes(tmp_path / "out")
    assert (x.near_duplicates, y.near_duplicates) == (0, 50)
    written = [t for shard in (tmp_path / "out").glob("*.parquet") for t in read_documents(shard)]
    assert len(set(written)) == len(written)


def test_a_mistake_in_one_part_names_it_and_its_field(inputs: Inputs, tmp_path: Path) -> None:
    source, paths = inputs
    other = resolve_files_source(paths["y"], text_column="body")
    parts = list(source.parts)
    parts[1] = parts[1].model_copy(update={"source": other})
    message = (
        r"part y of the mixture: .*y\.jsonl:1: no column 'body'; .* "
        r"--set shards\.source\.parts\.1\.source\.text_column=NAME"
    )
    with pytest.raises(DataError, match=message):
        build((MixtureSource(parts=tuple(parts)), paths), tmp_path / "out")


def test_a_published_shard_that_is_not_there_is_named(inputs: Inputs, tmp_path: Path) -> None:
    (tmp_path / "in/z/shard_00001.parquet").unlink()
    with pytest.raises(DataError, match=r"part z of the mixture: .*shard_00001\.parquet is not"):
        build(inputs, tmp_path / "out")


def test_a_mixture_that_ends_before_it_begins_is_refused(tmp_path: Path) -> None:
    sizes, weights, epochs = (50, 4_000, 50), (50, 50, 0.001), (0.01, 1, 1)
    parts = tuple(
        MixturePart(
            name=name,
            source=write_jsonl(tmp_path / f"{name}.jsonl", name, 80, size),
            weight=weight,
            max_epochs=max_epochs,
        )
        for name, size, weight, max_epochs in zip("xyz", sizes, weights, epochs, strict=True)
    )
    source = MixtureSource(parts=parts)
    paths = {name: (str(tmp_path / f"{name}.jsonl"),) for name in "xyz"}
    recipe = ShardsRecipe(source=source, num_shards=1, validation_percent=10)
    with pytest.raises(DataError, match="ends before it comes to a document of z"):
        build_shards(recipe, paths, tmp_path / "out", workers=1, progress=no_progress())


def test_a_sample_ends_at_a_whole_character(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": "\u20ac" * 5_000}) for _ in range(400)]
    path.write_text("\n".join(lines), encoding="utf-8")
    recipe = ShardsRecipe(source=resolve_files_source([str(path)]), validation_percent=20)
    build_shards(recipe, [str(path)], tmp_path / "out", workers=1, progress=no_progress())
    (note,) = load_notes(tmp_path / "out")
    assert note.name == "a.jsonl"
    assert note.held_out_documents == 80
    assert SAMPLE_BYTES - 10 <= len(note.sample.encode()) <= SAMPLE_BYTES
    assert set(note.sample) == {"\u20ac", "\n"}


def test_real_text_of_two_sources_is_mixed_30_to_70(tmp_path: Path) -> None:
    data = os.environ.get("NANOCHAT_TEST_DATA")
    if not data:
        pytest.skip("NANOCHAT_TEST_DATA names no folder of real data")
    play, problems = Path(data, "tinyshakespeare.txt"), Path(data, "gsm8k_train_head.jsonl")
    parts = (
        MixturePart(name="play", source=resolve_files_source([str(play)]), weight=30),
        MixturePart(
            name="problems",
            source=resolve_files_source([str(problems)], text_column="question"),
            weight=70,
        ),
    )
    recipe = ShardsRecipe(source=MixtureSource(parts=parts), num_shards=4)
    paths = {"play": (str(play),), "problems": (str(problems),)}
    build_shards(recipe, paths, tmp_path / "out", workers=1, progress=no_progress())
    asked = {json.loads(line)["question"] for line in problems.read_text("utf-8").splitlines()}
    for path in sorted((tmp_path / "out").glob("*.parquet")):
        size: Counter[bool] = Counter()
        for text in read_documents(path):
            size[text in asked] += len(text.encode())
            # No document of either is longer than 2,000 characters.
            assert abs(size[False] - 0.3 * size.total()) <= 2_000, path.name


def test_rows_without_text_do_not_let_the_others_come_up_more_often() -> None:
    documents = [Document(f"document {i}", False) for i in range(10)]
    whole = in_memory(documents)
    # As of a parquet file with as many empty rows: they are counted, and yield nothing.
    counted = replace(whole, train=replace(whole.train, documents=20))
    given = [d.text for d in deal_train([Part("a", counted, 1.0, 2.0)], 1)]
    assert Counter(given) == Counter({document.text: 2 for document in documents})
