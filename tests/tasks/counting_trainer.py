"""A trainer without torch that obeys the layout of step checkpoints, to test what is around it.

Its state is a chain of hashes, so the last one tells whether each step was made once, in order,
from the state before.

    python counting_trainer.py OUTPUT_FOLDER NUM_STEPS SECONDS_PER_STEP
"""

import hashlib
import json
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from nanochat_core.artifacts.filesystems import Files
from nanochat_core.artifacts.sealed import seal, unseal
from nanochat_core.errors import DamagedFileError
from nanochat_core.training.durable_files import make_folder_durably, write_durably
from tasks.stored_work import MANIFEST, step_files, whole_steps

PLACE = "inprogress/pretrain/ab/000001-001/work"
"""Where in a store tests copy its work folder to."""
KEEP = 2
START = "0" * 64
STATE, WEIGHTS, METRICS = "rank-000-of-001.json", "rank-000-of-001.safetensors", "metrics.jsonl"


def state_after(num_steps: int) -> str:
    """What the chain is after so many steps."""
    state = START
    for _ in range(num_steps):
        state = hashlib.sha256(state.encode()).hexdigest()
    return state


def read_step(folder: Path) -> tuple[int, str]:
    """Step and state of a whole checkpoint; DamagedFileError for any that is not."""
    try:
        records = step_files((folder / MANIFEST).read_bytes(), folder.name)
        for record in records:
            data = (folder / record.path).read_bytes()
            if hashlib.sha256(data).hexdigest() != record.sha256:
                raise DamagedFileError(f"{folder.name}/{record.path}")
    except FileNotFoundError as error:
        raise DamagedFileError(str(error)) from error
    body = unseal((folder / STATE).read_bytes(), STATE)
    return body["step"], body["state"]


def steps_in_store(files: Files) -> list[str]:
    """Step folders below PLACE that have a manifest."""
    parts = [path.split("/") for path in files.infos(f"{PLACE}/checkpoints")]
    return sorted(step for step, *rest in parts if rest == [MANIFEST])


def numbers(steps: list[str]) -> list[int]:
    return [int(step.split("-")[1]) for step in steps]


class CountingTrainer:
    """From the newest whole checkpoint of a work folder to the last step."""

    def __init__(self, work: Path, seconds: float, num_bytes: int = 20_000) -> None:
        self.work, self.seconds, self.num_bytes = work, seconds, num_bytes
        self.checkpoints = work / "checkpoints"
        self.token = f"{secrets.randbits(31):08x}"
        self.step, self.state = 0, START
        steps = whole_steps(self.checkpoints)
        if steps:
            self.step, self.state = read_step(steps[0])
        self.started_at = self.step

    def train(self, num_steps: int, stop: Callable[[], bool] = lambda: False) -> None:
        """Save after each step; the best one is the fifth."""
        while self.step < num_steps and not stop():
            time.sleep(self.seconds)
            self.step, self.state = self.step + 1, hashlib.sha256(self.state.encode()).hexdigest()
            self.save()

    def save(self) -> None:
        """A step folder, its manifest last; then all but the newest two and the best go."""
        folder = self.checkpoints / f"step-{self.step:08d}-{self.token}"
        make_folder_durably(folder)
        metrics = f'{{"step": {self.step}}}\n'
        (self.work / METRICS).write_text(metrics)
        weights = (self.state.encode() * (self.num_bytes // 64 + 1))[: self.num_bytes]
        files = [
            write_durably(folder / WEIGHTS, [weights]),
            write_durably(folder / STATE, [seal({"step": self.step, "state": self.state})]),
            write_durably(folder / METRICS, [metrics.encode()]),
        ]
        write_durably(folder / MANIFEST, [seal({"step": self.step, "files": files})])
        if self.step == 5:
            write_durably(self.checkpoints / "best.json", [seal({"folder": folder.name})])
        best = self.checkpoints / "best.json"
        kept = unseal(best.read_bytes(), "best")["folder"] if best.exists() else ""
        for old in whole_steps(self.checkpoints)[KEEP:]:
            if old.name != kept:
                (old / MANIFEST).unlink()
                shutil.rmtree(old)


def main(output: str, num_steps: str, seconds: str) -> None:
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stopped.append(number))
    trainer = CountingTrainer(Path.cwd(), float(seconds))
    trainer.train(int(num_steps), lambda: bool(stopped))
    if trainer.step < int(num_steps):
        sys.exit(143)
    (Path(output) / "state.txt").write_text(trainer.state)
    metrics = {"started_at": trainer.started_at}
    outputs = {"files": {"state.txt": "result"}, "metrics": metrics}
    (Path(output) / "outputs.json").write_text(json.dumps(outputs))


if __name__ == "__main__":
    main(*sys.argv[1:])
