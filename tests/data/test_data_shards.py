import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from data_tools import no_progress

from nanochat_core.config.job import StageOutput
from nanochat_core.data.eval_bundle import META_COLUMNS, build_heldout_bundle
from nanochat_core.data.recipes import ShardsRecipe, TokensRecipe
from nanochat_core.data.shards import (
    ShardIndex,
    build_shards,
    read_documents,
)
from nanochat_core.data.source_notes import load_notes
from nanochat_core.data.sources import resolve_files_source
from nanochat_core.data.token_files import TokenIndex, TokenShard, build_tokens
from nanochat_core.errors import DataError
from nanochat_core.tokenizer.recipe import TokenizerRecipe
from nanochat_core.tokenizer.tokenizer import Tokenizer

SUBJECTS = ("The old king", "A young sailor", "The quiet baker", "My neighbour")
VERBS = ("went down to the harbour", "sat in front of the fire", "looked out of the window")
ENDS = ("because it was already late", "and did not say a single word", "to wait for the ship")


def sentence(number: int) -> str:
    parts = SUBJECTS[number % 4], VERBS[number // 4 % 3], ENDS[number // 12 % 3]
    return f"{' '.join(parts)} on day {number} of the year."


@pytest.fixture(scope="module")
def source_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "a.jsonl"
    lines = [json.dumps({"text": f"{sentence(2 * i)} {sentence(2 * i + 1)}"}) for i in range(200)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def make_shards(source_file: Path, output: Path, *, num_shards: int = 3) -> StageOutput:
    recipe = ShardsRecipe(
        source=resolve_files_source([str(source_file)]),
        num_shards=num_shards,
        validation_percent=10,
    )
    return build_shards(recipe, [str(source_file)], output, workers=1, progress=no_progress())


@pytest.fixture(scope="module")
def shards(source_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    make_shards(source_file, folder)
    return folder


def test_shards_hold_every_document_once(source_file: Path, shards: Path) -> None:
    index = ShardIndex.load(shards)
    names = (*index.train, index.validation)
    assert names == tuple(f"shard_{number:05d}.parquet" for number in range(4))
    stored = sorted(text for name in names for text in read_documents(shards / name))
    lines = source_file.read_text(encoding="utf-8").splitlines()
    assert stored == sorted(json.loads(line)["text"] for line in lines)
    assert index.documents == 200
    assert index.characters == sum(map(len, stored))
    sizes = [len(list(read_documents(shards / name))) for name in names]
    assert sizes == [60, 60, 60, 20]


def test_the_same_text_makes_the_same_bytes(source_file: Path, tmp_path: Path) -> None:
    first = make_shards(source_file, tmp_path / "one")
    assert make_shards(source_file, tmp_path / "two") == first
    for name in first.files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert sorted(first.files) == sorted(path.name for path in (tmp_path / "one").iterdir())


def test_one_source_is_told_whole_with_a_sample_of_what_is_held_out(shards: Path) -> None:
    index = ShardIndex.load(shards)
    (note,) = load_notes(shards)
    assert (note.name, note.epochs, note.share) == ("a.jsonl", 1.0, 1.0)
    assert (note.documents, note.held_out_documents, note.left_out_documents) == (180, 20, 0)
    assert note.bytes + note.held_out_bytes == index.characters
    assert note.sample == "\n\n".join(read_documents(shards / index.validation))


def test_more_shards_than_documents_are_refused(source_file: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"180 train and 20 .* cannot fill 181 train shards"):
        make_shards(source_file, tmp_path, num_shards=181)


@pytest.fixture(scope="module")
def tokenizer(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = [t for name in ShardIndex.load(shards).train for t in read_documents(shards / name)]
    Tokenizer.train(texts, TokenizerRecipe(vocab_size=300)).save(folder)
    return folder


def make_tokens(shards: Path, tokenizer: Path, output: Path, workers: int = 1) -> StageOutput:
    return build_tokens(
        TokensRecipe(), shards, tokenizer, output, workers=workers, progress=no_progress()
    )


def test_token_files_decode_to_the_documents(shards: Path, tokenizer: Path, tmp_path: Path) -> None:
    output = make_tokens(shards, tokenizer, tmp_path)
    index, loaded = TokenIndex.load(tmp_path), Tokenizer.load(tokenizer)
    assert sorted(output.files) == sorted(path.name for path in tmp_path.iterdir())
    for name in (*index.train, index.validation):
        shard = TokenShard(tmp_path, name, index.dtype)
        documents = np.split(shard.tokens, np.cumsum(shard.lengths)[:-1])
        assert all(document[0] == loaded.bos_id for document in documents)
        texts = [loaded.decode(document[1:].tolist()) for document in documents]
        assert texts == list(read_documents(shards / f"{name}.parquet"))
        assert index.counts[name].tokens == len(shard.tokens)


@pytest.mark.distributed
def test_token_files_do_not_depend_on_the_number_of_workers(
    shards: Path, tokenizer: Path, tmp_path: Path
) -> None:
    first = make_tokens(shards, tokenizer, tmp_path / "1", workers=1)
    assert make_tokens(shards, tokenizer, tmp_path / "2", workers=2) == first
    for name in first.files:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_the_heldout_bundle_has_the_layout_of_core(shards: Path, tmp_path: Path) -> None:
    build_heldout_bundle(shards, tmp_path, seed=1)
    tasks = yaml.safe_load((tmp_path / "core.yaml").read_text(encoding="utf-8"))["icl_tasks"]
    kinds = [task["icl_task_type"] for task in tasks]
    assert kinds == ["multiple_choice", "schema", "language_modeling"]
    meta = (tmp_path / "eval_meta_data.csv").read_text(encoding="utf-8").splitlines()
    assert meta[0] == ",".join(META_COLUMNS)
    assert [line.split(",")[5] for line in meta[1:]] == ["25", "50", "0"]
    fields = {
        "multiple_choice": {"query", "choices", "gold"},
        "schema": {"context_options", "continuation", "gold"},
        "language_modeling": {"context", "continuation"},
    }
    for task in tasks:
        text = (tmp_path / "eval_data" / task["dataset_uri"]).read_text(encoding="utf-8")
        items = [json.loads(line) for line in text.splitlines()]
        assert items
        assert all(set(item) == fields[task["icl_task_type"]] for item in items)


def test_right_answers_of_the_heldout_bundle_are_sentences_of_held_out_documents(
    shards: Path, tmp_path: Path
) -> None:
    build_heldout_bundle(shards, tmp_path, seed=1)
    text = " ".join(read_documents(shards / ShardIndex.load(shards).validation))

    def items(label: str) -> list[dict]:
        path = tmp_path / "eval_data" / "heldout" / f"{label}.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    for item in items("heldout_rest"):
        joined = [f"{item['query']} {choice}" in text for choice in item["choices"]]
        assert joined[item["gold"]]
        assert len(set(item["choices"])) == 4
    for item in items("heldout_start"):
        assert f"{item['context_options'][item['gold']]} {item['continuation']}" in text
    for item in items("heldout_word"):
        assert f"{item['context']} {item['continuation']}" in text


def test_the_heldout_bundle_follows_from_its_seed(shards: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        build_heldout_bundle(shards, tmp_path / name, seed=seed)
    first, second, other = (
        (tmp_path / name / "eval_data/heldout/heldout_start.jsonl").read_bytes() for name in "abc"
    )
    assert first == second != other


def test_text_without_sentences_makes_no_bundle(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(['{"text": "too short"}'] * 60), encoding="utf-8")
    make_shards(path, tmp_path / "shards")
    with pytest.raises(DataError, match="hold no sentences of 12 to 40 words"):
        build_heldout_bundle(tmp_path / "shards", tmp_path / "bundle", seed=1)
