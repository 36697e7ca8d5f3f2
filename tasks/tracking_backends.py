"""Where metrics can be sent: W&B and trackio, each imported only when it is used."""

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

PROJECT = "nanochat"
INIT_SECONDS = 20.0
UPLOAD_SECONDS = 15.0

Values = dict[str, bool | int | float | str]


@dataclass(frozen=True)
class TrackedRun:
    """One run at a tracker; `id` is the same after every resume."""

    id: str
    name: str
    station: str
    config: dict[str, Any]


class Tracker(Protocol):
    """One open run at a tracker; opening it is the constructor's work."""

    def log(self, step: int, values: Values) -> None:
        """Send the values of a step; steps only grow, and start anew after a resume."""

    def finish(self) -> None:
        """Send what is still waiting, and leave no process behind."""


def settle_environment(tracker: str, environ: MutableMapping[str, str], cache_folder: Path) -> None:
    """Fill in what the user has not set, so that nothing leaves this machine unasked.

    Both packages read the environment, trackio when it is imported. Files go to the cache folder
    of the user: W&B's tell of the host, so they must never be in an artifact.
    """
    if tracker == "wandb":
        environ.setdefault("WANDB_MODE", "offline")
        environ.setdefault("WANDB_PROJECT", PROJECT)
        environ.setdefault("WANDB_DIR", str(cache_folder))
        environ.setdefault("WANDB_ERROR_REPORTING", "false")
        # W&B turns to the temporary folder when this one does not exist.
        Path(environ["WANDB_DIR"]).mkdir(parents=True, exist_ok=True)
    if tracker == "trackio":
        environ.setdefault("TRACKIO_DIR", str(cache_folder / "trackio"))
        for remote in ("SPACE_ID", "SERVER_URL", "BUCKET_ID", "DATASET_ID", "WEBHOOK_URL"):
            environ.pop(f"TRACKIO_{remote}", None)
        # It asks the hub for the user's name whenever a token lies around.
        environ["HF_HUB_OFFLINE"] = "1"


def open_tracker(tracker: str, run: TrackedRun) -> Tracker:
    """The run at the tracker of this name, new or continued."""
    backends: dict[str, Callable[[TrackedRun], Tracker]] = {
        "wandb": WandbTracker,
        "trackio": TrackioTracker,
    }
    return backends[tracker](run)


class WandbTracker:
    """Offline, every process writes a folder of its own; each holds the history from step one."""

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        self._run = wandb.init(
            id=run.id,
            name=run.name,
            job_type=run.station,
            config=run.config,
            resume="allow",
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                save_code=False,
                init_timeout=INIT_SECONDS,
                finish_timeout=UPLOAD_SECONDS,
                # This process is not the job: its command line, packages and load tell nothing.
                x_disable_meta=True,
                x_disable_stats=True,
                x_disable_machine_info=True,
                x_save_requirements=False,
            ),
        )
        # W&B's own counter goes on after a resume; ours says which step it was.
        self._run.define_metric("*", step_metric="step")
        self._next_step = self._run.step

    def log(self, step: int, values: Values) -> None:
        """Send a step, unless the server has it from before a resume."""
        if step < self._next_step:
            return
        self._run.log({"step": step, **values}, step=step, commit=True)

    def finish(self) -> None:
        """Close the files, or upload, for a bounded time."""
        self._run.finish()


class TrackioTracker:
    """One local database for all runs; a resume goes on where it ends."""

    def __init__(self, run: TrackedRun) -> None:
        import trackio

        # It knows a run again by its name, which others may have, too.
        self._name = f"{run.name}-{run.id}"
        self._known = {row["step"]: set(row) for row in self._rows()}
        self._last_step = -1
        self._run: Any = trackio.init(
            project=PROJECT,
            name=self._name,
            group=run.station,
            config=run.config,
            resume="allow",
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )

    def log(self, step: int, values: Values) -> None:
        """Send what the database does not have of this step."""
        known = self._known.get(step, set())
        if fresh := {name: value for name, value in values.items() if name not in known}:
            self._run.log(fresh, step=step)
            self._last_step = step

    def finish(self) -> None:
        """Wait for the database; trackio only prints what goes wrong, so look."""
        self._run.finish()
        if self._last_step >= 0 and all(row["step"] != self._last_step for row in self._rows()):
            raise OSError(f"step {self._last_step} did not reach the database of trackio")

    def _rows(self) -> list[dict[str, Any]]:
        from trackio.sqlite_storage import SQLiteStorage

        rows: list[dict[str, Any]] = SQLiteStorage.get_logs(PROJECT, run=self._name)
        return rows
