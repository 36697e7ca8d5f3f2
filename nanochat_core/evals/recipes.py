"""What the evaluation stations compute (torch-free)."""

from pydantic import Field, field_validator

from nanochat_core.benchmarks.names import BenchmarkName
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
    core_bundle: str = Field(
        "", description="zip of the CORE tasks among the benchmarks; none: tasks of held-out text"
    )
    sample_prompts: tuple[str, ...] = DEMO_PROMPTS
    sample_tokens: int = Field(32, ge=0)
    sample_temperature: float = Field(0.7, ge=0, description="of the second sample; 0 is none")
    sample_top_k: int = Field(40, ge=0, description="of the second sample; 0 is every token")
    compute_dtype: ComputeDtype = "auto"
    seed: int = Field(42, ge=0)


class ChatEvalRecipe(Recipe):
    """Benchmarks put to a chat model, answered greedily."""

    benchmarks: tuple[BenchmarkName, ...] = ("identity", "sums")
    identity_questions: int = Field(
        30, ge=1, le=36, description="held-out ones on name, depth and parameter count"
    )
    sums: int = Field(200, ge=0, le=1000, description="held-out ones; 0 is none")
    spelling: int = Field(200, ge=0, le=400, description="held-out words to spell; 0 is none")
    max_problems: int = Field(0, ge=0, description="kept of each benchmark; 0 is all")
    max_new_tokens: int = Field(512, ge=1, description="of a reply in words")
    compute_dtype: ComputeDtype = "auto"
    seed: int = Field(42, ge=0, description="draws sums and words")

    @field_validator("benchmarks")
    @classmethod
    def _ask_each_once(cls, names: tuple[BenchmarkName, ...]) -> tuple[BenchmarkName, ...]:
        if not names or len(set(names)) < len(names):
            raise ValueError(f"{list(names)}; name at least one benchmark, and each only once")
        return names

    def count(self, name: BenchmarkName) -> int | None:
        """How many problems of a benchmark are asked; None is all of its rows."""
        made = {"identity": self.identity_questions, "sums": self.sums, "spelling": self.spelling}
        limits = [n for n in (made.get(name), self.max_problems or None) if n is not None]
        return min(limits, default=None)
