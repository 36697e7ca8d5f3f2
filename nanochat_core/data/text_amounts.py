"""How much a small text of one's own comes to in training: the stations themselves, in a hurry."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from nanochat_core.data.packing import Packing
from nanochat_core.data.recipes import ShardsRecipe, TokensRecipe
from nanochat_core.data.rows import TrainRows
from nanochat_core.data.shards import ShardIndex, build_shards, read_documents
from nanochat_core.data.token_files import build_tokens
from nanochat_core.logs import Progress
from nanochat_core.tokenizer.recipe import TokenizerRecipe
from nanochat_core.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Rows:
    """How tokens become rows: as `training.recipes` says it, which this module does not import."""

    sequence_len: int
    packing: Packing
    block_shards: int


@dataclass(frozen=True)
class TextAmount:
    """What one pass over a text is."""

    train_tokens: int
    train_rows: int


def measure_text(
    shards: ShardsRecipe, paths: Sequence[str], tokenizer: TokenizerRecipe, rows: Rows
) -> TextAmount:
    """Train tokens and rows of the files of a recipe, exactly as the stations will make them.

    A megabyte takes about a second. Raises DataError where the stations would.
    """
    with TemporaryDirectory(prefix="nanochat-text-") as name:
        text, words, ids = (Path(name) / part for part in ("shards", "tokenizer", "tokens"))
        # In this process: others would take longer to start than the work.
        build_shards(shards, paths, text, workers=1, progress=_silent())
        documents = (
            document
            for shard in ShardIndex.load(text).train
            for document in read_documents(text / shard)
        )
        words.mkdir()
        Tokenizer.train(documents, tokenizer).save(words)
        build_tokens(TokensRecipe(), text, words, ids, workers=1, progress=_silent())
        found = TrainRows(
            ids,
            sequence_len=rows.sequence_len,
            packing=rows.packing,
            block_shards=rows.block_shards,
            seed=0,
        )
        tokens = found.index.total(found.index.train).tokens
        return TextAmount(tokens, found.num_rows)


def _silent() -> Progress:
    return Progress(None, 0, "")
