"""A small tokenizer, trained once on generated words."""

import random

import pytest

from nanochat_core.tokenizer.recipe import TokenizerRecipe
from nanochat_core.tokenizer.tokenizer import Tokenizer


def generated_documents(num_documents: int = 40, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghié", k=rng.randint(2, 8))) for _ in range(300)]
    words += [str(n) for n in range(200)]
    return [" ".join(rng.choices(words, k=100)) + "." for _ in range(num_documents)]


@pytest.fixture(scope="session")
def documents() -> list[str]:
    return generated_documents()


@pytest.fixture(scope="session")
def tokenizer(documents: list[str]) -> Tokenizer:
    return Tokenizer.train(documents, TokenizerRecipe(vocab_size=400))
