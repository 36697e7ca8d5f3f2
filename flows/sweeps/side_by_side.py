"""Points made side by side: each in a process of its own, with its own log file and GPUs.

Each runs under the supervisor, so it ends with this process, however that ends, and saves first.
What they have made is found in the store afterwards.
"""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import uuid4

from prefect.settings import get_current_settings

from flows.presets import MAKING_STATIONS
from flows.sweeps.gpus import VARIABLE
from flows.sweeps.listening import SweepListener, Told
from flows.sweeps.planning import PlannedPoint
from nanochat_core import supervise
from nanochat_core.config.execution import Execution
from tasks.listening import StageRecord
from tasks.torchrun import LogTail

POLL_SECONDS = 0.2
LAST_LINES = 5
POINT_FILE, EVENTS_FILE, LOG_FILE = "point.json", "events.jsonl", "log"
MORE_GRACE_SECONDS = 15.0
"""A job takes up to twice its grace and 10 s to save and end what is left of it."""


class SideBySide:
    """Processes of points, as many at a time as there are slots; all end with its block."""

    def __init__(
        self,
        points: Mapping[int, PlannedPoint],
        slots: Sequence[tuple[str, ...]],
        environ: Mapping[str, str],
        listener: SweepListener,
    ) -> None:
        self._waiting, self._free = dict(points), list(slots)
        self._environ, self._listener = _without_this_run(environ), listener
        self._running: dict[int, _Process] = {}
        self._folder = Path(tempfile.mkdtemp(prefix="nanochat-sweep-"))
        self._logs_matter = False

    def __enter__(self) -> "SideBySide":
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        for process in self._running.values():
            process.ask_to_stop()
        for process in self._running.values():
            process.wait()
        if not self._logs_matter:
            shutil.rmtree(self._folder, ignore_errors=True)

    def ended(self) -> Iterator[tuple[int, Told]]:
        """The places of points as they end, each with how it went."""
        while self._waiting or self._running:
            self._start_what_can()
            for place, process in list(self._running.items()):
                process.look()
                if (told := process.told()) is not None:
                    del self._running[place]
                    self._free.append(process.gpus)
                    self._logs_matter |= bool(told.error)
                    yield place, told
            time.sleep(POLL_SECONDS)

    def _start_what_can(self) -> None:
        for place, planned in list(self._waiting.items()):
            is_begun = not any(i in self._waiting or i in self._running for i in planned.after)
            if self._free and is_begun:
                del self._waiting[place]
                folder = self._folder / f"{place:03d}"
                gpus = self._free.pop(0)
                self._running[place] = _Process(
                    planned, folder, gpus, self._environ, self._listener
                )


class _Process:
    """One point that is being made elsewhere on this machine."""

    def __init__(
        self,
        planned: PlannedPoint,
        folder: Path,
        gpus: tuple[str, ...],
        environ: Mapping[str, str],
        listener: SweepListener,
    ) -> None:
        self.label, self.gpus = planned.point.label, gpus
        self._listener, self._log = listener, folder / LOG_FILE
        folder.mkdir()
        (folder / EVENTS_FILE).touch()
        # Data that points share is made by the first that comes to it, and the others wait.
        parameters = planned.point.parameters.model_copy(update={"wait": True})
        told = {"label": self.label, "parameters": parameters.model_dump(mode="json")}
        (folder / POINT_FILE).write_text(json.dumps(told), encoding="utf-8")
        self._events = LogTail(folder / EVENTS_FILE)
        self._records: dict[str, StageRecord] = {}
        self._start, self._error = time.monotonic(), ""
        self._process = subprocess.Popen(
            supervise.command_line(
                [sys.executable, "-m", "flows.sweeps.one_point", str(folder)],
                log=self._log,
                grace_seconds=2 * _grace(planned) + MORE_GRACE_SECONDS,
                mark=uuid4().hex,
            ),
            stdin=subprocess.PIPE,
            # A Ctrl-C is for this process, which passes it on.
            start_new_session=True,
            env={**environ, **({VARIABLE: ",".join(gpus)} if gpus else {})},
        )
        listener.point_started_aside(self.label, str(self._log))

    def look(self) -> None:
        """Pass on what is new."""
        for line in self._events.new_lines():
            self._take(json.loads(line))

    def _take(self, event: dict[str, Any]) -> None:
        if "record" in event:
            record = StageRecord.model_validate(event["record"])
            self._records[record.station] = record
        elif "done" in event:
            message = f"{event['station']} {event['message']}".rstrip()
            self._listener.point_progressed(
                self.label, event["done"], event["total"], event["unit"], message
            )
        else:
            self._error = event["error"]

    def told(self) -> Told | None:
        """How it went; None while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        self.wait()
        self.look()
        error = self._error
        if code and not error:
            lines = self._log.read_text("utf-8", "replace").splitlines()[-LAST_LINES:]
            error = f"its process ended with exit code {code}: {' / '.join(lines)}"
        if error:
            error = with_log(error, self._log)
        return Told(self.label, time.monotonic() - self._start, self._records, error)

    def ask_to_stop(self) -> None:
        """Let it save and end."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def wait(self) -> None:
        """Until it has ended."""
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()


def with_log(error: str, log: Path) -> str:
    """An error with where to read more, in its first line: often no other is shown."""
    first, newline, rest = error.partition("\n")
    return f"{first} (log: {log}){newline}{rest}"


def _grace(planned: PlannedPoint) -> float:
    executions = planned.run.preset.executions
    every: list[Execution] = [getattr(executions, name) for name in MAKING_STATIONS]
    return max(each.grace_seconds for each in every)


def _without_this_run(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for other flow runs: the same server, but nothing of this flow run."""
    own = {name: value for name, value in environ.items() if not name.startswith("PREFECT__")}
    return {**own, **get_current_settings().to_environment_variables(exclude_unset=True)}
