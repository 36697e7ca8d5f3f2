"""What goes into the conversations of SFT (torch-free)."""

from typing import Any, Literal, get_args

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from nanochat_core.config.base import Recipe
from nanochat_core.errors import ConfigError

MadeKind = Literal["identity", "sums", "questions"]
SetKind = Literal["smoltalk", "mmlu", "gsm8k", "arc-easy", "arc-challenge"]
ConversationKind = Literal[MadeKind, SetKind, "jsonl"]

MADE_KINDS: tuple[MadeKind, ...] = get_args(MadeKind)
"""Made here, as many as are asked for."""
SET_KINDS: tuple[SetKind, ...] = get_args(SetKind)
"""Train rows of published sets, from the files of the station `benchmarks`."""


class MixturePart(Recipe):
    """One source of conversations: a number of made ones, or the rows of a file."""

    kind: ConversationKind
    conversations: int = Field(
        0, ge=0, description="how many; of a file 0 is all, and else at most so many of its rows"
    )
    epochs: float = Field(1.0, gt=0, description="how often those rows are in the mixture")
    file: str = Field("", description="own conversations (jsonl): the name of their file")

    @model_validator(mode="after")
    def _fields_fit_the_kind(self) -> "MixturePart":
        if self.is_made and not self.conversations:
            raise ConfigError(
                f"conversations=0 of kind {self.kind}, which are made: expected 1 or more"
            )
        if self.is_made and self.epochs != 1.0:
            raise ConfigError(
                f"epochs={self.epochs:g} of kind {self.kind}, which are made: ask for more of them "
                "with conversations"
            )
        if bool(self.file) != (self.kind == "jsonl"):
            raise ConfigError(
                f"file={self.file!r} of kind {self.kind}: jsonl takes its conversations from the "
                "file of that name, and no other kind names one"
            )
        return self

    @model_serializer(mode="wrap")
    def _only_fields_of_the_kind(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A recipe is hashed: what a kind cannot have is no part of what is asked for.
        values: dict[str, Any] = dump(self)
        unused = {"epochs", "file"} if self.is_made else set()
        unused |= {"file"} if self.kind != "jsonl" else set()
        return {name: value for name, value in values.items() if name not in unused}

    @property
    def is_made(self) -> bool:
        """Whether its conversations come from no file."""
        return self.kind in MADE_KINDS

    @property
    def label(self) -> str:
        """As counts name it: its kind, or the file of own conversations."""
        return self.file or self.kind


class Mixture(Recipe):
    """The conversations of one SFT epoch.

    identity: the model's own name, depth, parameter count and data, from templates;
    sums: one- and two-digit sums through the calculator;
    questions: questions and answers cut from the documents (`qa.jsonl` of the shards);
    smoltalk, mmlu, gsm8k, arc-easy, arc-challenge: train rows of those sets, each set shuffled
    once and for all, and taken `epochs` times;
    jsonl: own conversations.

    All of them are listed in this order and shuffled together by `random.Random(seed)`. With
    smoltalk, mmlu x3 and gsm8k x4 and the seed 42 that is the order of RECIPE section 6.
    """

    parts: tuple[MixturePart, ...] = (
        MixturePart(kind="identity", conversations=6_000),
        MixturePart(kind="sums", conversations=1_000),
        MixturePart(kind="questions", conversations=13_000),
    )
    name: str = Field("nanochat", description="what the model calls itself")
    data: str = Field("text", description="completes: I was trained on ...")
    seed: int = Field(7, ge=0)

    @property
    def read_parts(self) -> tuple[MixturePart, ...]:
        """Those that are read from files."""
        return tuple(part for part in self.parts if not part.is_made)
