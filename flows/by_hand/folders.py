"""The folder of a run by hand: `<base>/<kind>/<tag>` with work/, run.json and numbered results."""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from flows.by_hand.inputs import RECORD_FILE
from flows.looking import flat
from nanochat_core.config.base import Config
from nanochat_core.errors import ConfigError, StationBusyError
from nanochat_core.inference.by_hand import newest_result, numbered_results, result_number

if sys.platform != "win32":
    import fcntl

WORK = "work"
CHECKPOINTS = "checkpoints"
LOCK_FILE = "lock"


class RunRecord(Config):
    """`run.json`: what a run was asked for; equal ones continue each other."""

    station: str
    recipe: dict[str, Any]
    inputs: dict[str, str] = Field(description="input name -> what tells its content from others")
    places: dict[str, str] = Field(description="input name -> folder, of its lineage too")
    result: str = Field("", description="name of the folder that the run writes into")

    def differences(self, other: "RunRecord") -> list[str]:
        """What `other` asks for differently, as lines."""
        own, new = dict(flat(self.recipe)), dict(flat(other.recipe))
        lines = [
            f"{name}: {own.get(name, 'absent')} there, {new.get(name, 'absent')} now"
            for name in sorted(own.keys() | new.keys())
            if own.get(name) != new.get(name)
        ]
        return lines + [
            f"{name}: made from another one ({self.places.get(name)})"
            for name in sorted(self.inputs.keys() | other.inputs.keys())
            if self.inputs.get(name) != other.inputs.get(name)
        ]


@dataclass(frozen=True)
class RunFolder:
    """One folder; at most one process works in it."""

    path: Path

    @property
    def work(self) -> Path:
        """Checkpoints, metrics and logs, which outlive a process."""
        return self.path / WORK

    def hold(self) -> int:
        """Be the only one that works here, until this process (or what it becomes) ends."""
        self.work.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
        if sys.platform != "win32":
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(descriptor)
                raise StationBusyError(
                    f"another process works in {self.path} right now; wait for it, stop it, or "
                    "choose another --model-tag or --output"
                ) from error
            os.set_inheritable(descriptor, True)
        return descriptor

    def finished(self, asked: RunRecord) -> Path | None:
        """The result of an equal run, if it was brought to its end."""
        record, newest = self.record(), newest_result(self.path)
        is_same = record is not None and not record.differences(asked)
        return newest if is_same and newest and record and newest.name == record.result else None

    def begin(self, asked: RunRecord, *, overwrite: bool) -> RunRecord:
        """Make ready for a run: the record as it will be written, with the result's name.

        An equal run that was interrupted is continued; ConfigError when another one has left
        something here, unless `overwrite`. Changes nothing on disk.
        """
        record = self.record()
        if record is not None and not overwrite and record.differences(asked):
            self._refuse_other(record, asked)
        numbers = [result_number(path) for path in numbered_results(self.path)]
        if record is not None and self._continues(record, asked, overwrite=overwrite):
            return asked.model_copy(update={"result": record.result})
        prefix = "model" if asked.station in ("pretrain", "sft", "rl") else "result"
        name = f"{prefix}-{max(numbers, default=0) + 1:06d}"
        return asked.model_copy(update={"result": name})

    def prepare(self, record: RunRecord, tokenizer: Path, *, fresh: bool) -> Path:
        """Write the record and make the folder of the result, with the tokenizer beside the model.

        `fresh` forgets the checkpoints of an earlier run; finished results before the newest go.
        """
        before, newest = self.record(), newest_result(self.path)
        if fresh or (before is not None and before.differences(record)):
            shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True, exist_ok=True)
        for path in numbered_results(self.path):
            if path != newest:
                shutil.rmtree(path)
        result = self.path / record.result
        (result / "tokenizer").parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(tokenizer, result / "tokenizer", copy_function=shutil.copyfile)
        temporary = self.path / f"{RECORD_FILE}.tmp"
        temporary.write_text(record.model_dump_json(indent=1), encoding="utf-8")
        os.replace(temporary, self.path / RECORD_FILE)
        return result

    def clear_older(self) -> None:
        """Remove results that a newer finished one has replaced."""
        newest = newest_result(self.path)
        for path in numbered_results(self.path):
            if newest is not None and result_number(path) < result_number(newest):
                shutil.rmtree(path, ignore_errors=True)

    def record(self) -> RunRecord | None:
        """What was asked for here before."""
        path = self.path / RECORD_FILE
        if not path.is_file():
            return None
        try:
            return RunRecord.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise ConfigError(
                f"{path} cannot be read as the record of a run ({error.error_count()} problems); "
                f"remove {self.path}, or choose another --model-tag"
            ) from error

    def has_progress(self) -> bool:
        """Whether there is anything here that another run would destroy."""
        checkpoints = self.work / CHECKPOINTS
        has_steps = checkpoints.is_dir() and any(checkpoints.iterdir())
        return has_steps or newest_result(self.path) is not None

    def _continues(self, record: RunRecord, asked: RunRecord, *, overwrite: bool) -> bool:
        if overwrite or record.differences(asked):
            return False
        newest = newest_result(self.path)
        return newest is None or newest.name != record.result

    def _refuse_other(self, record: RunRecord, asked: RunRecord) -> None:
        if not self.has_progress():
            return
        lines = "\n".join(f"  {line}" for line in record.differences(asked))
        raise ConfigError(
            f"{self.path} holds another run; what differs:\n{lines}\n"
            "Give the result another name with --model-tag, or start over with --overwrite"
        )


def flat_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values by their dotted names."""
    return dict(flat(values))


def newest_step(work: Path) -> int | None:
    """The step of the newest whole checkpoint in a work folder."""
    folder = work / CHECKPOINTS
    names: Sequence[Path] = list(folder.iterdir()) if folder.is_dir() else []
    steps = [_step(path) for path in names if (path / "manifest.json").is_file()]
    return max(steps, default=None)


def _step(path: Path) -> int:
    digits = "".join(c if c.isdigit() else " " for c in path.name).split()
    return int(digits[0]) if digits else -1
