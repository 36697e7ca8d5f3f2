"""What a run amounts to, as hashes: the proof that a killed run ended where another one did.

    python -m nanochat_core.jobs.verify_resume JOB.json

prints one JSON object: part -> name -> what it is. `nanochat verify-resume` compares two of them.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from nanochat_core.artifacts.sealed import unseal
from nanochat_core.config.job import METRICS_FILE, JobSpec, StageOutput
from nanochat_core.distributed.ranks import Ranks
from nanochat_core.errors import CheckpointError, DamagedFileError, NanochatError
from nanochat_core.jobs.pretrain import open_batches
from nanochat_core.jobs.training_run import CHECKPOINTS
from nanochat_core.tokenizer.tokenizer import Tokenizer
from nanochat_core.training.checkpoint_files import MANIFEST, Checkpoint, checkpoint_folders
from nanochat_core.training.dial import plan_training
from nanochat_core.training.recipes import PretrainRecipe
from nanochat_core.training.state import MOMENTS, WEIGHTS

NEXT_STEPS = 3
"""Steps after the last one whose batches are compared: those that a longer run would take."""
RUNNING_LOSS = "loss_watch"
OF_THE_CLOCK = "training_seconds"
"""The scalar that no two runs have in common."""

Parts = dict[str, dict[str, str]]


def describe_run(spec: JobSpec) -> Parts:
    """The newest whole checkpoint, the batches that follow, the losses and the published files.

    Raises CheckpointError when no checkpoint of the run is whole.
    """
    work = Path(spec.work_folder)
    checkpoint = last_checkpoint(work / CHECKPOINTS)
    counters = {name: json.dumps(value) for name, value in sorted(checkpoint.scalars.items())}
    del counters[OF_THE_CLOCK]
    running_loss = counters.pop(RUNNING_LOSS)
    return {
        "weights": dict(_tensor_hashes(checkpoint, WEIGHTS)),
        "moments": dict(_tensor_hashes(checkpoint, MOMENTS)),
        "counters": {"step": str(checkpoint.step), **counters},
        "next batches": _next_batches(spec, checkpoint.step),
        "metrics lines": _metrics(work / METRICS_FILE, "step"),
        "losses": {**_metrics(work / METRICS_FILE, "train/loss"), RUNNING_LOSS: running_loss},
        "published files": dict(_published_hashes(Path(spec.output_folder))),
    }


def last_checkpoint(folder: Path) -> Checkpoint:
    """The newest checkpoint of a run, every byte of it verified; it must not be damaged."""
    newest = next((path for _, path in checkpoint_folders(folder)), None)
    if newest is None:
        raise CheckpointError(f"{folder} holds no checkpoint")
    try:
        manifest = unseal((newest / MANIFEST).read_bytes(), f"{newest.name}/{MANIFEST}")
    except (OSError, DamagedFileError) as error:
        raise CheckpointError(f"the last checkpoint is not whole: {error}") from error
    return Checkpoint.open(newest, manifest["identity"])


def _tensor_hashes(checkpoint: Checkpoint, prefix: str) -> Iterator[tuple[str, str]]:
    for name in checkpoint.names:
        if name.startswith(prefix):
            yield name.removeprefix(prefix), tensor_hash(checkpoint.read(name))


def tensor_hash(tensor: torch.Tensor) -> str:
    """sha256 of a tensor's dtype, shape and bits."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _next_batches(spec: JobSpec, step: int) -> dict[str, str]:
    """Hashes of the rows that all ranks together would read in the next steps."""
    recipe = PretrainRecipe.model_validate(spec.recipe)
    plan = plan_training(recipe, Tokenizer.load(spec.input("tokenizer")).vocab_size)
    world_size = spec.execution.ranks
    worlds = [Ranks(rank, world_size, rank, torch.device("cpu")) for rank in range(world_size)]
    readers = [open_batches(spec, recipe, plan, ranks) for ranks in worlds]
    hashes = {}
    for number in range(step, step + NEXT_STEPS):
        batches = [batch for read in readers for batch in read(number)]
        rows = [torch.cat([b.inputs_BT, b.targets_BT], dim=1) for b in batches]
        hashes[f"step {number}"] = tensor_hash(torch.cat(rows))
    return hashes


def _metrics(path: Path, name: str) -> dict[str, str]:
    """Step -> every value of that name that the run has written down for it."""
    found: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        if name in values:
            found.setdefault(f"step {values['step']}", []).append(repr(values[name]))
    return {step: ", ".join(values) for step, values in found.items()}


def _published_hashes(output: Path) -> Iterator[tuple[str, str]]:
    for name, role in StageOutput.load(output).files.items():
        if role == "result":
            with (output / name).open("rb") as file:
                yield name, hashlib.file_digest(file, "sha256").hexdigest()


def main(arguments: list[str]) -> int:
    """Entry point."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m nanochat_core.jobs.verify_resume JOB.json\n")
        return 2
    try:
        parts = describe_run(JobSpec.load(Path(arguments[0])))
    except NanochatError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(json.dumps(parts) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
