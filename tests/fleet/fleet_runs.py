"""One flow run of a fleet, from the first state to the last, as its page shows it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fleet_tools import PrefectServer

FINAL_STATES = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def until(condition: Callable[[], Any], seconds: float, what: Callable[[], str]) -> float:
    """Wait until something is true; returns the seconds, fails with `what()` after too many."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"in vain for {seconds:g} s: {what()}"
        time.sleep(0.1)
    return time.monotonic() - start


@dataclass(frozen=True)
class StateOf:
    """A state, and when it was entered (seconds since the epoch, by the server)."""

    type: str
    name: str
    message: str
    at: float


@dataclass(frozen=True)
class FlowRun:
    """One run of a deployment, as the server sees it."""

    server: "PrefectServer"
    id: str

    @property
    def values(self) -> dict[str, Any]:
        """All that the API tells of it."""
        found: dict[str, Any] = self.server.call("GET", f"/flow_runs/{self.id}")
        return found

    @property
    def state(self) -> StateOf:
        """Its present state."""
        return _state_of(self.values["state"])

    @property
    def states(self) -> list[StateOf]:
        """All its states, oldest first."""
        found = self.server.call("GET", f"/flow_run_states/?flow_run_id={self.id}")
        return sorted((_state_of(state) for state in found), key=lambda state: state.at)

    def wait(self, seconds: float, *types: str) -> StateOf:
        """The state once its type is one of these (default: any final one)."""
        wanted = types or FINAL_STATES
        until(lambda: self.state.type in wanted, seconds, self.story)
        return self.state

    def completed(self, seconds: float) -> "FlowRun":
        """This run, once it has ended well."""
        state = self.wait(seconds)
        assert state.type == "COMPLETED", self.story()
        return self

    @property
    def seconds_from_pick_up(self) -> float:
        """From the last time that a worker took it until its end."""
        states = self.states
        taken = max(state.at for state in states if state.type == "PENDING")
        return states[-1].at - taken

    def task_runs(self) -> dict[str, StateOf]:
        """Task name -> state; of several the one that was started last."""
        wanted = {"id": {"any_": [self.id]}}
        values = {"flow_runs": wanted, "sort": "EXPECTED_START_TIME_ASC"}
        found = self.server.call("POST", "/task_runs/filter", values)
        return {run["name"]: _state_of(run["state"]) for run in found if run["state"]}

    def subflow_runs(self) -> "list[FlowRun]":
        """Runs that this one has started, by `run_deployment`."""
        return self.server.flow_runs(parent_flow_run_id={"any_": [self.id]})

    def logs(self) -> list[str]:
        """Its log on the server, oldest first, the first 1,000 lines."""
        values: dict[str, Any] = {
            "logs": {"flow_run_id": {"any_": [self.id]}},
            "sort": "TIMESTAMP_ASC",
        }
        lines: list[str] = []
        for offset in range(0, 1_000, 200):
            page = self.server.call("POST", "/logs/filter", {**values, "offset": offset})
            lines += [entry["message"] for entry in page]
        return lines

    def cancel(self) -> None:
        """What the button of its page and `prefect flow-run cancel` ask of the server."""
        values = {"state": {"type": "CANCELLING", "name": "Cancelling"}, "force": False}
        self.server.call("POST", f"/flow_runs/{self.id}/set_state", values)

    def retry(self) -> None:
        """`prefect flow-run retry`."""
        self.server.prefect("flow-run", "retry", self.id)

    def story(self) -> str:
        """States, tasks and the last lines of the log, for a failure message."""
        states = [f"{state.name}: {state.message}" for state in self.states]
        tasks = [f"{name}: {state.name}" for name, state in self.task_runs().items()]
        return "\n".join([f"flow run {self.id}", *states, *tasks, *self.logs()[-30:]])


def _state_of(values: dict[str, Any]) -> StateOf:
    at = datetime.fromisoformat(values["timestamp"]).timestamp()
    return StateOf(values["type"], values["name"], values.get("message") or "", at)
