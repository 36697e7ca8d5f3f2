"""Byte-level BPE: rustbpe learns the merges, tiktoken applies them (RECIPE section 3)."""

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import rustbpe
import tiktoken
from pydantic import Field, ValidationError

from nanochat_core.config.base import Config
from nanochat_core.errors import DataError, UnknownNameError
from nanochat_core.tokenizer.recipe import TokenizerRecipe
from nanochat_core.tokenizer.split_patterns import fast_spelling, pattern_error

SPECIAL_TOKENS = (
    "<|bos|>",
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
)
"""In the order of their ids, which follow those of the merges."""

NUM_BYTES = 256
RANKS_FILE = "ranks.tiktoken"
INFO_FILE = "tokenizer.json"


class _Info(Config):
    """`tokenizer.json`: all but the merges."""

    format: Literal[1] = 1
    vocab_size: int = Field(gt=NUM_BYTES)
    split_pattern: str
    special_tokens: tuple[str, ...]
    token_bytes: tuple[int, ...] = Field(description="length of each token; 0 for specials")


class Tokenizer:
    """Text to token ids and back; ids are ranks of the merges, then the nine specials.

    `ranks[i]` holds the bytes of token i. `encode*` never yield a special id: text that looks
    like a special token is plain text.
    """

    def __init__(self, ranks: Sequence[bytes], split_pattern: str) -> None:
        self.ranks = tuple(ranks)
        self.split_pattern = split_pattern
        self.special_ids = {name: len(ranks) + i for i, name in enumerate(SPECIAL_TOKENS)}
        try:
            self._encoding = tiktoken.Encoding(
                "nanochat",
                pat_str=fast_spelling(split_pattern),
                mergeable_ranks={token: rank for rank, token in enumerate(ranks)},
                special_tokens=self.special_ids,
            )
        except ValueError as error:
            raise pattern_error(split_pattern, error) from error

    @classmethod
    def train(cls, documents: Iterable[str], recipe: TokenizerRecipe) -> "Tokenizer":
        """Learn merges from documents, cut and counted as the recipe says.

        Raises `DataError` when the text has too few distinct words for `vocab_size`, and
        `ConfigError` for a split pattern that is no regular expression.
        """
        num_ranks = recipe.vocab_size - len(SPECIAL_TOKENS)
        trainer = _new_trainer(recipe.split_pattern)
        trainer.train_from_iterator(
            _training_text(documents, recipe), num_ranks, pattern=recipe.split_pattern
        )
        ranks = [bytes(token) for token, _ in trainer.get_mergeable_ranks()]
        if len(ranks) < num_ranks:
            raise DataError(
                f"the text allows {len(ranks) - NUM_BYTES:,} merges but vocab_size="
                f"{recipe.vocab_size:,} asks for {num_ranks - NUM_BYTES:,}; give more text or a "
                f"vocab_size of at most {len(ranks) + len(SPECIAL_TOKENS):,}"
            )
        return cls(ranks, recipe.split_pattern)

    @property
    def vocab_size(self) -> int:
        """Number of ids, specials included."""
        return len(self.ranks) + len(SPECIAL_TOKENS)

    @cached_property
    def identity(self) -> str:
        """sha256 over pattern and tokens: it ties a model to the tokenizer it was trained with."""
        digest = hashlib.sha256(self.split_pattern.encode())
        for token in self.ranks:
            digest.update(len(token).to_bytes(4, "little") + token)
        return digest.hexdigest()

    @cached_property
    def texts(self) -> tuple[str | None, ...]:
        """Text of every token but the specials; None for bytes that are no whole characters."""
        return tuple(map(_text_or_none, self.ranks))

    @property
    def bos_id(self) -> int:
        """Id of the token that starts every document and conversation."""
        return self.special_ids["<|bos|>"]

    @property
    def dtype(self) -> type[np.uint16] | type[np.uint32]:
        """The smallest of the two token file types that holds every id."""
        return np.uint16 if self.vocab_size <= 2**16 else np.uint32

    @cached_property
    def token_bytes(self) -> npt.NDArray[np.int64]:
        """Byte length of each token, shape (vocab_size,); 0 for specials."""
        lengths = [len(token) for token in self.ranks] + [0] * len(SPECIAL_TOKENS)
        return np.array(lengths, dtype=np.int64)

    def special_id(self, name: str) -> int:
        """Id of a special token, as `<|bos|>` or `bos`."""
        full_name = name if name.startswith("<|") else f"<|{name}|>"
        if full_name not in self.special_ids:
            raise UnknownNameError(
                f"no special token {name!r}; there are {', '.join(SPECIAL_TOKENS)}"
            )
        return self.special_ids[full_name]

    def is_special(self, token_id: int) -> bool:
        """Whether an id is one of the nine specials."""
        return len(self.ranks) <= token_id < self.vocab_size

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without any special."""
        return self._encoding.encode_ordinary(text)

    def encode_document(self, text: str) -> npt.NDArray[np.uint16 | np.uint32]:
        """BOS and the ids of a text, shape (tokens,), in the token file type."""
        return self.encode_documents([text])[0]

    def encode_documents(
        self, texts: Sequence[str]
    ) -> tuple[npt.NDArray[np.uint16 | np.uint32], npt.NDArray[np.uint32]]:
        """Texts one after the other, BOS before each, in the token file type; and their lengths.

        Lengths count BOS. All are encoded in one call, which has no list of Python numbers.
        """
        bos = SPECIAL_TOKENS[0]
        # A text's BOS is never allowed to be one: then each of them is encoded by itself.
        if any(bos in text for text in texts):
            parts = [[self.bos_id, *self._numbers(text, frozenset())] for text in texts]
            lengths = np.array([len(part) for part in parts], np.uint32)
            return np.concatenate(parts).astype(self.dtype), lengths
        ids = self._numbers("".join(bos + text for text in texts), frozenset({bos}))
        starts = np.flatnonzero(ids == self.bos_id)
        return ids.astype(self.dtype), np.diff(starts, append=len(ids)).astype(np.uint32)

    def _numbers(self, text: str, specials: frozenset[str]) -> npt.NDArray[np.uint32]:
        """Ids of a text, in which these specials stand for themselves."""
        encode = partial(
            self._encoding.encode_to_numpy, allowed_special=specials, disallowed_special=()
        )
        try:
            return encode(text)
        except UnicodeEncodeError:
            return encode(_well_formed(text))

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Raw bytes of ids; a special gives its name. `DataError` for ids that do not exist."""
        try:
            return self._encoding.decode_bytes(list(ids))
        except (KeyError, OverflowError) as error:
            wrong = [i for i in ids if not 0 <= i < self.vocab_size]
            raise DataError(
                f"token ids {wrong[:5]} do not exist; this tokenizer has ids 0 to "
                f"{self.vocab_size - 1}: use the tokenizer that the model was trained with"
            ) from error

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; bytes that are not UTF-8 (half a character) become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def save(self, folder: Path) -> list[str]:
        """Write the tokenizer as two text files and return their names."""
        folder.mkdir(parents=True, exist_ok=True)
        lines = [
            f"{base64.b64encode(token).decode('ascii')} {rank}\n"
            for rank, token in enumerate(self.ranks)
        ]
        (folder / RANKS_FILE).write_text("".join(lines), encoding="ascii", newline="\n")
        info = _Info(
            vocab_size=self.vocab_size,
            split_pattern=self.split_pattern,
            special_tokens=SPECIAL_TOKENS,
            token_bytes=tuple(self.token_bytes.tolist()),
        )
        text = json.dumps(info.model_dump(mode="json"), ensure_ascii=False) + "\n"
        (folder / INFO_FILE).write_text(text, encoding="utf-8", newline="\n")
        return [RANKS_FILE, INFO_FILE]

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Read a saved tokenizer; `DataError` says what is missing or does not fit together."""
        ranks = read_ranks(folder / RANKS_FILE)
        path = folder / INFO_FILE
        try:
            info = _Info.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise DataError(
                f"{path} cannot be read as a tokenizer description ({error}); give a folder that "
                "Tokenizer.save wrote"
            ) from error
        _check_info(path, info, ranks)
        return cls(ranks, info.split_pattern)


def _new_trainer(pattern: str) -> rustbpe.Tokenizer:
    trainer = rustbpe.Tokenizer()
    try:
        # Reading no text tells a wrong pattern from an error of the caller's iterator.
        trainer.train_from_iterator(iter(()), NUM_BYTES, pattern=pattern)
    except ValueError as error:
        raise pattern_error(pattern, error) from error
    return trainer


def _text_or_none(token: bytes) -> str | None:
    try:
        return token.decode()
    except UnicodeDecodeError:
        return None


def _well_formed(text: str) -> str:
    # A lone surrogate has no UTF-8 form; rustbpe and encode_to_numpy refuse it, encode does not.
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _training_text(documents: Iterable[str], recipe: TokenizerRecipe) -> Iterator[str]:
    # One document an item: an item's end always ends a word, so other chunks give other merges.
    num_characters = 0
    for document in documents:
        text = _well_formed(document[: recipe.max_document_characters])
        yield text
        num_characters += len(text)
        if num_characters > recipe.max_characters:
            return


def read_ranks(path: Path) -> list[bytes]:
    """Bytes of every token of a file in tiktoken's format, by rank; it is checked."""
    ranks: list[bytes] = []
    try:
        for line in path.read_text(encoding="ascii").splitlines():
            token, rank = line.split(" ")
            if int(rank) != len(ranks):
                raise ValueError(f"rank {rank} on line {len(ranks) + 1}, expected {len(ranks)}")
            ranks.append(base64.b64decode(token, validate=True))
        if len(set(ranks)) != len(ranks) or b"" in ranks:
            raise ValueError("a token is empty or there twice")
        if sorted(ranks[:NUM_BYTES]) != [bytes([i]) for i in range(NUM_BYTES)]:
            raise ValueError(f"the first {NUM_BYTES} tokens are not the single bytes")
    except (OSError, ValueError, binascii.Error) as error:
        raise DataError(
            f"{path} cannot be read as merges ({error}); expected one line `base64 rank` a token, "
            "ranks from 0: make the tokenizer again"
        ) from error
    return ranks


def _check_info(path: Path, info: _Info, ranks: Sequence[bytes]) -> None:
    if info.special_tokens != SPECIAL_TOKENS:
        raise DataError(
            f"{path} has the special tokens {', '.join(info.special_tokens)}; expected "
            f"{', '.join(SPECIAL_TOKENS)}: make the tokenizer again"
        )
    lengths = (*(len(token) for token in ranks), *(0 for _ in SPECIAL_TOKENS))
    if info.vocab_size != len(lengths) or info.token_bytes != lengths:
        raise DataError(
            f"{path} describes {info.vocab_size:,} tokens, but {RANKS_FILE} beside it and the "
            f"specials make {len(lengths):,} or differ in byte lengths; the two files are not of "
            "one tokenizer: make it again"
        )
