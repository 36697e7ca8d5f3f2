"""What the evaluation stations compute (torch-free)."""

from pydantic import Field

from nanochat_core.config.base import ComputeDtype, Recipe

DEMO_PROMPTS = (
    "This function returns",
    "The class is used to",
    "If you want to",
    "When the file is",
    "Note that",
    "Python is",
    "The model",
    "A module that",
)


class BaseEvalRecipe(Recipe):
    """Bits per byte, the in-context tasks and samples of a base model."""

    validation_tokens: int = Field(80 * 524_288, ge=1, description="at most; one pass at most")
    max_per_task: int = Field(0, ge=0, description="examples kept of each task; 0 is all")
    sample_prompts: tuple[str, ...] = DEMO_PROMPTS
    sample_tokens: int = Field(32, ge=0)
    sample_temperature: float = Field(0.7, ge=0, description="of the second sample; 0 is none")
    sample_top_k: int = Field(40, ge=0, description="of the second sample; 0 is every token")
    compute_dtype: ComputeDtype = "auto"
    seed: int = Field(42, ge=0)


class ChatEvalRecipe(Recipe):
    """Held-out questions put to a chat model, answered greedily."""

    identity_questions: int = Field(30, ge=1, description="name, depth and parameter count")
    sums: int = Field(50, ge=0)
    max_new_tokens: int = Field(64, ge=1)
    compute_dtype: ComputeDtype = "auto"
    seed: int = Field(42, ge=0)
