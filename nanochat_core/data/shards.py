"""stub"""
from collections.abc import Sequence
from pathlib import Path

from nanochat_core.config.base import Config
from nanochat_core.config.job import StageOutput
from nanochat_core.data.recipes import ShardsRecipe
from nanochat_core.errors import DataError
from nanochat_core.logs import Progress

TEXT_COLUMN = "text"
INDEX_FILE = "shards.json"
QA_FILE = "qa.jsonl"


class ShardIndex(Config):
    """`shards.json`: the shards in order, and how much they hold."""

    train: tuple[str, ...]
    validation: str
    documents: int
    characters: int

    @classmethod
    def load(cls, folder: Path) -> "ShardIndex":
        """Read `shards.json` of a shards artifact."""
        path = folder / INDEX_FILE
        if not path.is_file():
            raise DataError(f"{folder} holds no {INDEX_FILE}; expected the output of shards")
        return cls.model_validate_json(path.read_bytes())


def build_shards(
    recipe: ShardsRecipe,
    source_paths: Sequence[str],
    output: Path,
    *,
    workers: int,
    progress: Progress,
) -> StageOutput:
    """Write parquet shards, `qa.jsonl` and `shards.json` into `output`."""
    raise NotImplementedError
