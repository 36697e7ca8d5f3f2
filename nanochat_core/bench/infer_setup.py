"""The model that answers in the benchmark: that of the demo, of the depth dial, or of a folder."""

import random
from dataclasses import dataclass
from pathlib import Path

import torch

from nanochat_core.bench.train_setup import DEMO, DEMO_VOCAB_SIZE, VOCAB_SIZE
from nanochat_core.errors import ConfigError
from nanochat_core.inference.engine import EngineSettings, InferenceEngine
from nanochat_core.inference.loading import load_pair
from nanochat_core.inference.requests import Request
from nanochat_core.inference.settings import SamplingSettings
from nanochat_core.model.config import ModelConfig
from nanochat_core.model.gpt import GPT
from nanochat_core.tokenizer.recipe import SPLIT_PATTERN
from nanochat_core.tokenizer.tokenizer import NUM_BYTES, SPECIAL_TOKENS, Tokenizer
from nanochat_core.training.dial import model_config
from nanochat_core.training.recipes import PretrainRecipe

LETTERS = b"abcdefghijklmnopqrstuvwxyz .,!?:"
"""As many as make every vocabulary up to 33,033 tokens, three of them to a token."""


@dataclass(frozen=True)
class Subject:
    """A model with its tokenizer, and the shape of what is asked of it."""

    model: GPT
    tokenizer: Tokenizer
    prompt: int
    new: int
    settings: SamplingSettings
    is_exact: bool = False
    wants_text: bool = True

    def __post_init__(self) -> None:
        if min(self.prompt, self.new) < 1:
            raise ConfigError(f"--prompt {self.prompt} --new {self.new}; give 1 or more of each")
        if self.prompt + self.new > self.model.max_positions:
            raise ConfigError(
                f"--prompt {self.prompt} and --new {self.new} are more than the "
                f"{self.model.max_positions:,} positions of this model; give less"
            )

    def engine(self, num_rows: int) -> InferenceEngine:
        """An engine with room for so many at once, and nothing in its cache."""
        settings = EngineSettings(
            num_rows=num_rows, max_length=self.prompt + self.new, is_exact=self.is_exact
        )
        return InferenceEngine(self.model, self.tokenizer, settings)

    def requests(self, count: int, seed: int, *, new: int | None = None) -> list[Request]:
        """Prompts of random tokens; other seeds have none in common, so nothing is read before."""
        rng = random.Random(seed)
        ordinary = range(self.tokenizer.vocab_size - len(SPECIAL_TOKENS))
        return [
            Request(
                prompt=tuple(rng.choices(ordinary, k=self.prompt)),
                settings=self.settings,
                max_new_tokens=new or self.new,
                max_reply_tokens=new or self.new,
                ignores_stop_tokens=True,
                wants_text=self.wants_text,
            )
            for _ in range(count)
        ]


def shape_of(depth: int | None, sequence_len: int | None, vocab_size: int | None) -> ModelConfig:
    """The demo's model, or with a depth that of the dial; the other two if not theirs."""
    base = DEMO if depth is None else PretrainRecipe(depth=depth)
    recipe = base.model_copy(update={"sequence_len": sequence_len} if sequence_len else {})
    return model_config(recipe, vocab_size or (DEMO_VOCAB_SIZE if depth is None else VOCAB_SIZE))


def made_up(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> GPT:
    """A model of a shape with the weights that training starts from: as fast as a trained one."""
    with torch.device(device):
        model = GPT(config, dtype)
    model.init_weights(0)
    return model


def made_up_tokenizer(vocab_size: int) -> Tokenizer:
    """Bytes, then words of three letters; it only has to have text for every token."""
    num_words = vocab_size - NUM_BYTES - len(SPECIAL_TOKENS)
    if not 0 <= num_words <= len(LETTERS) ** 3:
        least = NUM_BYTES + len(SPECIAL_TOKENS)
        raise ConfigError(
            f"--vocab-size {vocab_size}; give {least:,} to {least + len(LETTERS) ** 3:,}"
        )
    words = [
        bytes(LETTERS[i // len(LETTERS) ** place % len(LETTERS)] for place in (2, 1, 0))
        for i in range(num_words)
    ]
    return Tokenizer([*(bytes([i]) for i in range(NUM_BYTES)), *words], SPLIT_PATTERN)


def loaded(
    folder: Path, tokenizer_folder: Path | None, device: torch.device, dtype: torch.dtype
) -> tuple[GPT, Tokenizer]:
    """A model that was trained; its tokenizer is where it says, or in the folder beside it."""
    model, _, tokenizer = load_pair(folder, tokenizer_folder or folder / "tokenizer", device, dtype)
    return model, tokenizer
