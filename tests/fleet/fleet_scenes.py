"""What can happen to a run on a fleet, and what is measured of it: the table of life and death."""

import json
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
from fleet_runs import FINAL_STATES, FlowRun, StateOf, until
from fleet_store import newest_step, saved_steps
from fleet_tools import Machines, PrefectServer, Worker, signal_each
from s3_server import S3Server

CHECKPOINT_EVERY = 25
TRAINING = {
    "pretrain.num_iterations": 200,
    "pretrain.tokens_per_step": 2_048,
    "pretrain.checkpoint_every": CHECKPOINT_EVERY,
    "pretrain.eval_every": -1,
}
"""Some twenty seconds on an idle machine, with a checkpoint every two or three."""
SERVER_DOWN_SECONDS = 5.0
STORE_DOWN_SECONDS = 60.0
PREEMPTION_SECONDS = 10.0
"""From the warning to the end of the machine."""
ORPHAN_SECONDS = 30.0
TABLE = (
    *("event", "checkpoint_step", "steps_lost", "checkpoint_age", "orphans", "gone_after"),
    *("state", "state_after", "how", "continued_from", "equal"),
)


@dataclass
class Row:
    """One line of the table."""

    event: str
    checkpoint_step: int = 0
    """Newest one in the bucket once all is over."""
    steps_lost: int = 0
    checkpoint_age: float = 0.0
    """Seconds from that checkpoint to the event."""
    orphans: int = 0
    """Processes that are left 30 s after the event."""
    gone_after: float = 0.0
    """Seconds until none was left."""
    state: str = ""
    state_after: float = 0.0
    """Seconds from the event to that state."""
    how: str = ""
    """How it was run again."""
    continued_from: int = 0
    equal: bool = False
    """Whether it came to what an uninterrupted run comes to."""
    notes: list[str] = field(default_factory=list)

    @property
    def line(self) -> str:
        """For a table in Markdown."""
        values = asdict(self)
        cells = [f"{v:.1f}" if isinstance(v := values[n], float) else str(v) for n in TABLE]
        return f"| {' | '.join(cells)} |"


HEAD = f"| {' | '.join(TABLE)} |\n|{'---|' * len(TABLE)}"


@dataclass
class Scene:
    """A machine that trains, and everything that can be taken from it."""

    server: PrefectServer
    store_server: S3Server
    machines: Machines
    url: str
    worker: Worker
    run: FlowRun

    def wait_for_step(self, step: int) -> None:
        """Until the bucket has a checkpoint of that step."""

        def has_it() -> bool:
            assert self.run.state.type not in FINAL_STATES, self.run.story()
            return newest_step(self.store_server, self.url) >= step

        until(has_it, 600, self.run.story)

    def trained_steps(self) -> int:
        """How far the training on this machine has come; steps are logged one by one."""
        pattern = "**/inprogress/pretrain/**/metrics.jsonl"
        last = [path.read_bytes().splitlines()[-1:] for path in self.worker.home.glob(pattern)]
        steps = [json.loads(line)["step"] for lines in last for line in lines]
        return max(steps, default=0)

    def left(self, event: "Event") -> list[psutil.Process]:
        """What the worker has started, and the worker itself when it is to be gone."""
        return self.worker.family() if event.ends_worker else self.worker.others()

    def again(self, how: str, parameters: dict[str, object]) -> FlowRun:
        """Run it again, by `how`."""
        if how == "retry":
            self.run.retry()
            return self.run
        return self.server.run("speedrun/speedrun", **parameters)

    def checkpoint(self, row: Row, at: float) -> None:
        """Note the newest checkpoint of the bucket; `at` is when the event was."""
        saved = saved_steps(self.store_server, self.url)[-1]
        row.checkpoint_step = saved.step
        row.checkpoint_age = max(at - saved.at, 0.0)
        row.steps_lost = max(self.trained_steps() - saved.step, 0)


@dataclass(frozen=True)
class Event:
    """What happens, and what the run has to come to within how many seconds."""

    name: str
    happen: Callable[[Scene], None]
    state: str
    within: float
    how: str
    """How it is run again."""
    ends_worker: bool = False
    survives: bool = False
    """Whether the run goes on by itself."""


def cancel(scene: Scene) -> None:
    """The button of the page."""
    scene.run.cancel()


def cancel_by_command(scene: Scene) -> None:
    scene.server.prefect("flow-run", "cancel", scene.run.id)


def terminate_worker(scene: Scene) -> None:
    """As `docker stop` and systemd do."""
    scene.worker.kill(signal.SIGTERM)


def kill_worker(scene: Scene) -> None:
    scene.worker.kill(signal.SIGKILL)


def kill_flow(scene: Scene) -> None:
    flows = scene.worker.flow_processes()
    assert len(flows) == 1, flows
    signal_each(flows, signal.SIGKILL)


def restart_server(scene: Scene) -> None:
    scene.server.kill()
    time.sleep(SERVER_DOWN_SECONDS)
    scene.server.start()


def lose_store(scene: Scene) -> None:
    scene.store_server.kill()
    time.sleep(STORE_DOWN_SECONDS)
    scene.store_server.start()


def preempt(scene: Scene) -> None:
    """SIGTERM to all, and after some seconds the machine is gone."""
    scene.worker.kill_family(signal.SIGTERM)
    time.sleep(PREEMPTION_SECONDS)
    scene.worker.kill_family(signal.SIGKILL)


def kill_machine(scene: Scene) -> None:
    scene.worker.kill_family(signal.SIGKILL)


SILENT = 90.0 + 60.0
"""The watch of bootstrap, and what the server takes to look and to act."""
EVENTS = (
    Event("cancel in the UI", cancel, "CANCELLED", 40, "run"),
    Event("cancel by command", cancel_by_command, "CANCELLED", 40, "retry"),
    Event("worker SIGTERM", terminate_worker, "CRASHED", SILENT, "retry", ends_worker=True),
    Event("worker SIGKILL", kill_worker, "CRASHED", SILENT, "run", ends_worker=True),
    Event("flow SIGKILL", kill_flow, "CRASHED", 40, "retry"),
    Event("machine gone", kill_machine, "CRASHED", SILENT, "retry", ends_worker=True),
    Event("pre-emption", preempt, "CRASHED", SILENT, "run", ends_worker=True),
    Event("server restart", restart_server, "COMPLETED", 300, "run", survives=True),
    Event("store outage", lose_store, "COMPLETED", 300, "run", survives=True),
)


def watch(scene: Scene, event: Event) -> Row:
    """Let it happen, and note what becomes of processes, checkpoint and state."""
    row, began = Row(event.name), time.time()
    at = began
    event.happen(scene)
    if event.survives:
        scene.run.wait(event.within)
        at = time.time()
    row.gone_after = _seconds_until_gone(scene, event, at, row)
    if not event.survives:
        scene.checkpoint(row, at)
    state: StateOf = scene.run.wait(event.within + ORPHAN_SECONDS)
    row.state, row.state_after = state.type, round(state.at - began, 1)
    return row


def _seconds_until_gone(scene: Scene, event: Event, at: float, row: Row) -> float:
    """Wait for the end of all processes, at most twice the time that they have."""
    gone_at = 0.0
    while time.time() - at < 2 * ORPHAN_SECONDS:
        left = scene.left(event)
        if not left:
            gone_at = gone_at or time.time()
            break
        if time.time() - at < ORPHAN_SECONDS:
            row.orphans = 0
        elif not row.orphans:
            row.orphans = len(left)
            row.notes += [" ".join(process.cmdline())[:200] for process in left]
        time.sleep(0.1)
    return round((gone_at or time.time()) - at, 1)


def write_table(rows: list[Row], folder: Path) -> str:
    """Keep the table as JSON and as Markdown; returns the latter."""
    table = "\n".join([HEAD, *(row.line for row in rows)])
    (folder / "life_and_death.json").write_text(json.dumps([asdict(row) for row in rows], indent=1))
    (folder / "life_and_death.md").write_text(table + "\n")
    return table
