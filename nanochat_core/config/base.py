"""Base classes of every configuration: frozen, and closed to unknown fields."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

Auto = Literal["auto"]
"""A value that is worked out later by a stated rule; it is hashed as this word."""

ComputeDtype = Literal["auto", "float32", "bfloat16", "float16"]


class Config(BaseModel):
    """A frozen value object; an unknown field, NaN or infinity is refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True
    )


class Recipe(Config):
    """What is computed. Every field is part of the fingerprint of the artifact."""
