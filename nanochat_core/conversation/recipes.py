"""What goes into the conversations of SFT (torch-free)."""

from typing import Literal

from pydantic import Field

from nanochat_core.config.base import Recipe

ConversationKind = Literal["identity", "sums", "questions"]


class MixturePart(Recipe):
    """One source of conversations and how many it contributes."""

    kind: ConversationKind
    conversations: int = Field(ge=1)


class Mixture(Recipe):
    """The conversations of one SFT epoch.

    identity: the model's own name, depth, parameter count and data, from templates;
    sums: one- and two-digit sums through the calculator;
    questions: questions and answers cut from the documents (`qa.jsonl` of the shards).
    """

    parts: tuple[MixturePart, ...] = (
        MixturePart(kind="identity", conversations=6_000),
        MixturePart(kind="sums", conversations=1_000),
        MixturePart(kind="questions", conversations=13_000),
    )
    name: str = Field("nanochat", description="what the model calls itself")
    data: str = Field("text", description="completes: I was trained on ...")
    seed: int = Field(7, ge=0)
