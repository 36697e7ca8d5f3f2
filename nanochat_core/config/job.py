"""What a torchrun job is told (`JobSpec`) and what a station hands back (`StageOutput`)."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from nanochat_core.config.base import Config
from nanochat_core.config.execution import Execution

Role = Literal["result", "record"]
"""`result` files make the digest; `record` files (logs, metrics, plots) stay outside it."""

OUTPUTS_FILE = "outputs.json"
METRICS_FILE = "metrics.jsonl"
PROGRESS_FILE = "progress.json"
ERROR_FILE = "error.json"
LOG_FILE = "job.log"


class StageOutput(Config):
    """The files that a station made, relative to its output folder, and its key numbers."""

    files: dict[str, Role]
    metrics: dict[str, float | int | str] = Field(default_factory=dict)
    provenance: dict[str, Any] = Field(default_factory=dict)

    def save(self, output_folder: Path) -> None:
        """Write `outputs.json`, the last file that a job writes."""
        path = output_folder / OUTPUTS_FILE
        path.write_text(json.dumps(self.model_dump(mode="json"), indent=1), encoding="utf-8")

    @classmethod
    def load(cls, output_folder: Path) -> "StageOutput":
        """Read `outputs.json` back."""
        return cls.model_validate_json((output_folder / OUTPUTS_FILE).read_bytes())


class JobSpec(Config):
    """Everything a job knows: paths, no store, no Prefect.

    `work_folder` outlives the process (checkpoints, `metrics.jsonl`, `progress.json`, `job.log`,
    `error.json`); `output_folder` starts empty and is what gets published.
    """

    station: str
    recipe: dict[str, Any]
    execution: Execution
    inputs: dict[str, str] = Field(description="input name -> folder of that artifact")
    work_folder: str
    output_folder: str

    def save(self, path: Path) -> None:
        """Write the spec as JSON."""
        path.write_text(json.dumps(self.model_dump(mode="json"), indent=1), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "JobSpec":
        """Read a spec back."""
        return cls.model_validate_json(path.read_bytes())

    def input(self, name: str) -> Path:
        """Folder of one input artifact."""
        return Path(self.inputs[name])
