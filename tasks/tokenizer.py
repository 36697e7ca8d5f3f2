"""Station `tokenizer`: byte-level BPE learnt from the train shards."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from nanochat_core.artifacts.types import Manifest
from nanochat_core.config.job import Role, StageOutput
from nanochat_core.data.shards import ShardIndex
from nanochat_core.data.tokenizing import read_documents_of
from nanochat_core.tokenizer.comparing import (
    COMPARISON_FILE,
    OURS,
    Comparison,
    Sample,
    compare,
    comparison_markdown,
    read_samples,
    tiktoken_cache,
)
from nanochat_core.tokenizer.recipe import TokenizerRecipe
from nanochat_core.tokenizer.tokenizer import Tokenizer
from tasks.listening import StageRecord
from tasks.stage import StageCall, StageWork, stage, stage_page

CODE_VERSION = 1
SAMPLE_CHARACTERS = 200_000
HELD_OUT = "held-out documents"


def tokenizer_page(call: StageCall, record: StageRecord, manifest: Manifest) -> str:
    """Numbers, inputs and files, and how many bytes a token is of every source."""
    page = stage_page(call, record, manifest)
    if not any(file.path == COMPARISON_FILE for file in manifest.files):
        return page
    comparison = Comparison.load(call.run.store.materialize(manifest.ref))
    return f"{page}\n\n{comparison_markdown(comparison)}"


@stage("tokenizer", code_version=CODE_VERSION, page=tokenizer_page)
def tokenizer(work: StageWork) -> StageOutput:
    """Learn the merges from the documents of the train shards, in order."""
    recipe = TokenizerRecipe.model_validate(work.recipe)
    shards = work.inputs["shards"]
    made = Tokenizer.train(train_documents(shards), recipe)
    environ = os.environ  # noqa: TID251  an entry: where tiktoken keeps files, passed down
    cache = tiktoken_cache(environ, Path(tempfile.gettempdir()))
    comparison = compare(made, samples_of(shards), cache)
    files: dict[str, Role] = dict.fromkeys(made.save(work.output), "result")
    files[comparison.save(work.output)] = "record"
    metrics = {
        "vocab_size": made.vocab_size,
        "bytes_per_token": comparison.rows[-1].bytes_per_token[OURS],
    }
    return StageOutput(files=files, metrics=metrics)


def train_documents(shards_folder: Path) -> Iterator[str]:
    """Documents of the train shards, in shard order."""
    for name in ShardIndex.load(shards_folder).train:
        yield from read_documents_of(shards_folder / name)


def samples_of(shards_folder: Path) -> list[Sample]:
    """Held-out text of every source, else the first of the validation shard."""
    if samples := read_samples(shards_folder):
        return samples
    text, size = list[str](), 0
    for document in read_documents_of(shards_folder / ShardIndex.load(shards_folder).validation):
        text.append(document)
        size += len(document)
        if size >= SAMPLE_CHARACTERS:
            break
    return [Sample(name=HELD_OUT, sample="\n".join(text)[:SAMPLE_CHARACTERS])]
