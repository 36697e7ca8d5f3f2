"""What is looked at while a base model is trained (torch-free).

No part of the recipe: it changes nothing of what comes out. `nanochat train` leaves it in the work
folder; without it the defaults hold.
"""

from pathlib import Path

from pydantic import Field

from nanochat_core.config.base import Config

LOOKS_FILE = "looks.json"

LOOK_PROMPTS = (
    "The capital of France is",
    "The chemical symbol of gold is",
    "If yesterday was Friday, then tomorrow will be",
    "The opposite of hot is",
    "The planets of the solar system are:",
    "My favorite color is",
    "If 5*x + 3 = 13, then x is",
)


class TrainingLooks(Config):
    """How much of it; how often is a matter of the execution."""

    validation_tokens: int = Field(65_536, ge=1, description="of each val/bpb, at most")
    max_per_task: int = Field(500, ge=0, description="examples of each task; 0 is all")
    prompts: tuple[str, ...] = LOOK_PROMPTS
    sample_tokens: int = Field(16, ge=1, description="of each sample, picked greedily")

    def save(self, work: Path) -> None:
        """Leave it for the job that works in this folder."""
        (work / LOOKS_FILE).write_text(self.model_dump_json(indent=1), encoding="utf-8")

    @classmethod
    def of(cls, work: Path) -> "TrainingLooks":
        """What was left for the job in this folder, or the defaults."""
        path = work / LOOKS_FILE
        return cls.model_validate_json(path.read_bytes()) if path.is_file() else cls()
