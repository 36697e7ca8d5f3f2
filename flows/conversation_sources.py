"""What people name to look at: a file of conversations, a kind, a tokenizer, a context."""

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from flows.looking import open_store, resolve_model
from flows.overrides import one_of
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.benchmarks.pools import open_pool
from nanochat_core.conversation.identity import ModelFacts, identity_conversations
from nanochat_core.conversation.pools import Drawn, Pool
from nanochat_core.conversation.recipes import SET_KINDS, MixturePart
from nanochat_core.conversation.sums import sum_conversations
from nanochat_core.conversation.types import Conversation
from nanochat_core.data.benchmark_files import OwnFile
from nanochat_core.data.conversation_files import Line, read_lines
from nanochat_core.errors import ArtifactNotFoundError, ConfigError, DataError
from nanochat_core.inference.by_hand import by_hand_base
from nanochat_core.tokenizer.tokenizer import RANKS_FILE, Tokenizer

MADE = ("identity", "sums")
MADE_COUNT = 1_000
DEFAULT_CONTEXT = 2048
EXAMPLE_FACTS = ModelFacts(
    name="nanochat",
    depth=2,
    num_parameters=1_179_690,
    n_embd=128,
    n_head=1,
    vocab_size=2048,
    sequence_len=256,
)
"""Of which the sample of identity conversations tells where no model is named."""


@dataclass(frozen=True)
class Words:
    """A tokenizer, and the model that it was named with, if there was one."""

    tokenizer: Tokenizer
    context: int
    facts: ModelFacts


def find_words(name: str, store_url: str, environ: Mapping[str, str]) -> Words:
    """The tokenizer of a folder, of an artifact or of a model by any of its names."""
    folder = Path(name).expanduser()
    if (folder / RANKS_FILE).is_file():
        return Words(Tokenizer.load(folder), DEFAULT_CONTEXT, EXAMPLE_FACTS)
    store = open_store(store_url, environ)
    if tokenizer := _tokenizer_artifact(store, name):
        return Words(Tokenizer.load(tokenizer), DEFAULT_CONTEXT, EXAMPLE_FACTS)
    model, tokenizer = resolve_model(store, name, by_hand_base(environ))
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    facts = ModelFacts.model_validate(config["facts"]) if "facts" in config else EXAMPLE_FACTS
    return Words(Tokenizer.load(tokenizer), int(config["model"]["sequence_len"]), facts)


def _tokenizer_artifact(store: ArtifactStore, name: str) -> Path | None:
    try:
        ref = store.resolve(name)
    except ArtifactNotFoundError:
        return None
    return store.materialize(ref) if ref.station == "tokenizer" else None


def lines_of(source: str, benchmarks: str, facts: ModelFacts) -> Iterator[Line]:
    """Every line of a file, or the conversations of a kind."""
    if source in MADE:
        return _numbered(Drawn(_made(source, facts)))
    if source in SET_KINDS:
        if not benchmarks:
            raise ConfigError(
                f"the conversations of {source} are in a file; name its folder with --benchmarks"
            )
        part = MixturePart.model_validate({"kind": source})
        return _numbered(open_pool(part, Path(benchmarks).expanduser()))
    if "." not in Path(source).name:
        one_of("kind of conversations", source, [*MADE, *SET_KINDS])
    return read_lines(OwnFile.parse(source).place)


def chosen(lines: Iterator[Line], source: str, *, first: int, count: int) -> Iterator[Line]:
    """`count` lines from the line number `first` on; DataError when there are none."""
    found = 0
    for line in lines:
        if line.number >= first and found < count:
            found += 1
            yield line
        if found == count:
            return
    if not found:
        raise DataError(f"{source} has no conversation from line {first} on")


def _made(kind: str, facts: ModelFacts) -> list[Conversation]:
    rng = random.Random(0)
    if kind == "identity":
        return identity_conversations(facts, MADE_COUNT, rng)
    return sum_conversations(MADE_COUNT, rng)


def _numbered(pool: Pool) -> Iterator[Line]:
    return (Line(row + 1, row, each) for row, each in pool.pick(range(len(pool))))
