"""Station `tokenizer`: byte-level BPE learnt from the train shards."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from nanochat_core.config.job import StageOutput
from nanochat_core.data.shards import TEXT_COLUMN, ShardIndex
from nanochat_core.tokenizer.recipe import TokenizerRecipe
from nanochat_core.tokenizer.tokenizer import Tokenizer
from tasks.stage import StageWork, stage

CODE_VERSION = 1


@stage("tokenizer", code_version=CODE_VERSION)
def tokenizer(work: StageWork) -> StageOutput:
    """Learn the merges from the documents of the train shards, in order."""
    recipe = TokenizerRecipe.model_validate(work.recipe)
    made = Tokenizer.train(train_documents(work.inputs["shards"]), recipe)
    names = made.save(work.output)
    return StageOutput(
        files=dict.fromkeys(names, "result"), metrics={"vocab_size": made.vocab_size}
    )


def train_documents(shards_folder: Path) -> Iterator[str]:
    """Documents of the train shards, in shard order."""
    for name in ShardIndex.load(shards_folder).train:
        with pq.ParquetFile(shards_folder / name) as shard:
            for batch in shard.iter_batches(columns=[TEXT_COLUMN]):
                yield from batch.column(TEXT_COLUMN).to_pylist()
