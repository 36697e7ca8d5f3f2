"""A fleet on one machine: a real Prefect server, real workers with homes of their own, a bucket."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil
from fleet_runs import FlowRun, until
from s3_server import S3Server

CHECKOUT = Path(__file__).resolve().parents[2]
MEMBER = "FLEET_MEMBER"
"""Environment variable: what all processes of one server, worker or command have in common."""
START_SECONDS = 300.0
BUSY_TRIES = 10
WORKER_QUERY_SECONDS = 2
POOLS = ("cpu", "gpu")
DEPLOYMENT = "speedrun/speedrun"
_OTHERS = ("PREFECT_", "NANOCHAT_", "XDG_", "AWS_", "PYTEST_", MEMBER)

SETTINGS = {
    "DO_NOT_TRACK": "1",
    "OMP_NUM_THREADS": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_SERVER_UI_API_URL": "/api",
    "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    "PREFECT_CLI_COLORS": "false",
    "PREFECT_CLI_WRAP_LINES": "false",
}


def plain_environment() -> dict[str, str]:
    """What a process of another machine would find: nothing of the settings of this one."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_OTHERS)}


def family(member: str, variable: str = MEMBER) -> list[psutil.Process]:
    """Every live process that inherited this value, in whatever session it is."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            is_ours = process.environ().get(variable) == member
            if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def signal_each(processes: list[psutil.Process], number: signal.Signals) -> None:
    """Send a signal; whoever has ended meanwhile is left out."""
    for process in processes:
        with suppress(psutil.Error):
            process.send_signal(number)


class Member:
    """One long-lived process of the fleet, with a folder, a log and a mark of its own."""

    def __init__(self, name: str, folder: Path, environment: Mapping[str, str]) -> None:
        self.name, self.folder = name, folder
        self.home, self.log_path = folder / "home", folder / f"{name}.log"
        self.home.mkdir(parents=True, exist_ok=True)
        self.mark = f"{name}-{uuid4().hex[:8]}"
        self.environment = {
            **plain_environment(),
            **SETTINGS,
            **environment,
            "HOME": str(self.home),
            "PREFECT_HOME": str(self.home / ".prefect"),
            MEMBER: self.mark,
        }
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        """Everything that it has written so far."""
        return self.log_path.read_text("utf-8", "replace") if self.log_path.exists() else ""

    def launch(self, *arguments: str) -> None:
        """Start `python -m …` in its own folder and session."""
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=self.environment,
                start_new_session=True,
            )

    def family(self) -> list[psutil.Process]:
        """It and all that it has started."""
        return family(self.mark)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal the process itself; what it has started is left to find out."""
        assert self.process is not None
        self.process.send_signal(number)
        if number == signal.SIGKILL:
            self.process.wait()

    def kill_family(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal it and all that it has started, as when the machine goes."""
        # Listed again: who was just forking shows up only in a later listing.
        for _ in range(20):
            signal_each(self.family(), number)
            if number != signal.SIGKILL or not self.family():
                break
            time.sleep(0.05)
        if number == signal.SIGKILL and self.process is not None:
            self.process.wait()

    def remove(self) -> None:
        """End everything; for cleaning up."""
        self.kill_family()


class PrefectServer(Member):
    """`prefect server start`; its database and port survive `kill` and `start`."""

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        super().__init__("prefect-server", folder, environment or {})
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.api_url = f"{self.url}/api"
        self._client = httpx.Client(base_url=self.api_url, timeout=30)

    def start(self) -> None:
        """Start it and return once it is healthy."""
        self.launch("prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port))
        until(self.is_healthy, START_SECONDS, lambda: self.log[-3000:])

    def is_healthy(self) -> bool:
        """Whether it answers."""
        with suppress(httpx.HTTPError):
            return self._client.get("/health", timeout=2).status_code == 200
        return False

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """As when its container ends; its helpers go with it."""
        self.kill_family(number)
        if self.process is not None:
            self.process.wait()

    def remove(self) -> None:
        super().remove()
        self._client.close()

    def call(self, method: str, path: str, values: Any = None) -> Any:
        """One call of its API, as its pages do it."""
        for _ in range(BUSY_TRIES):
            answer = self._client.request(method, path, json=values)
            # Its SQLite database is locked by another writer; Prefect's own client asks again, too.
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                break
            time.sleep(1)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text[:2000]}"
        return answer.json() if answer.content else None

    @property
    def client_environment(self) -> dict[str, str]:
        """For commands that talk to it."""
        return {**self.environment, "PREFECT_API_URL": self.api_url}

    def command(
        self,
        *arguments: str,
        seconds: float = 120,
        environment: Mapping[str, str] | None = None,
        folder: Path = CHECKOUT,
    ) -> str:
        """Run `python -m …` as a user of this server would; returns what it says."""
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            env={**self.client_environment, **(environment or {})},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(arguments)}: {done.returncode}\n{done.stdout}"
        return done.stdout

    def prefect(self, *arguments: str, **options: Any) -> str:
        """The command `prefect`."""
        return self.command("prefect", "--no-prompt", *arguments, **options)

    def nanochat(self, *arguments: str, **options: Any) -> str:
        """The command `nanochat`."""
        return self.command("flows.cli", *arguments, **options)

    def bootstrap(self) -> None:
        """Pools, limit, zombie automation and every deployment, by the command of the README."""
        if (CHECKOUT / "flows" / "bootstrap_command.py").exists():
            self.nanochat("bootstrap")
            return
        for pool in POOLS:
            self.prefect("work-pool", "create", pool, "--type", "process")
        self.prefect("deploy", "-n", "speedrun", "--prefect-file", "deploy/prefect.yaml")

    def run(self, deployment: str = DEPLOYMENT, **parameters: Any) -> FlowRun:
        """Start a run of a deployment, as its page does."""
        found = self.call("GET", f"/deployments/name/{deployment}")
        values = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        run = self.call("POST", f"/deployments/{found['id']}/create_flow_run", values)
        return FlowRun(self, run["id"])

    def run_by_command(self, *options: str, deployment: str = DEPLOYMENT) -> FlowRun:
        """`prefect deployment run`, with options as in `-p preset=tiny`."""
        said = self.prefect("deployment", "run", deployment, *options)
        found = re.search(r"UUID:\s*([0-9a-f-]{36})", said)
        assert found, said
        return FlowRun(self, found[1])

    def flow_runs(self, **conditions: Any) -> list[FlowRun]:
        """All flow runs, newest first; conditions as in the API's filter of flow runs."""
        values = {"sort": "START_TIME_DESC", "flow_runs": conditions or None}
        return [FlowRun(self, run["id"]) for run in self.call("POST", "/flow_runs/filter", values)]


class Worker(Member):
    """`prefect worker start` on a machine of its own: another home, another working folder."""

    def __init__(
        self,
        server: PrefectServer,
        pool: str,
        folder: Path,
        environment: Mapping[str, str],
        *,
        name: str = "",
    ) -> None:
        settings = {
            "PREFECT_API_URL": server.api_url,
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
            "PREFECT_WORKER_QUERY_SECONDS": str(WORKER_QUERY_SECONDS),
            "PREFECT_LOGGING_EXTRA_LOGGERS": "nanochat_core,tasks",
        }
        name = name or f"{pool}-{uuid4().hex[:4]}"
        super().__init__(name, folder, {**settings, **environment})
        self.pool = pool

    def start(self, *options: str) -> "Worker":
        """Start it and return once it looks for work."""
        arguments = ("worker", "start", "--pool", self.pool, "--name", self.name, *options)
        self.launch("prefect", *arguments)
        until(lambda: "started!" in self.log, START_SECONDS, lambda: self.log[-3000:])
        return self

    def flow_processes(self) -> list[psutil.Process]:
        """The processes that run flows: what the worker itself has started."""
        assert self.process is not None
        return [process for process in self.family() if _parent(process) == self.process.pid]

    def job_processes(self) -> list[psutil.Process]:
        """Supervisors, torchrun and ranks."""
        found = []
        for process in self.family():
            with suppress(psutil.Error, OSError):
                words = process.cmdline()
                is_job = any(
                    "nanochat_core." in word or "torch.distributed" in word for word in words
                )
                if is_job:
                    found.append(process)
        return found

    def seconds_until_idle(self, seconds: float) -> float:
        """Wait until nothing but the worker itself is left; fails when something stays."""
        return until(lambda: not self.others(), seconds, lambda: told(self.others()))

    def lose(self) -> None:
        """The machine and its disk are gone; its log is kept."""
        self.kill_family(signal.SIGKILL)
        shutil.rmtree(self.home)

    def others(self) -> list[psutil.Process]:
        """Everything of this machine but the worker."""
        pid = self.process.pid if self.process else 0
        return [process for process in self.family() if process.pid != pid]


class Machines:
    """Starts workers that see the server and the bucket, and nothing of each other."""

    def __init__(self, server: PrefectServer, store_server: S3Server, folder: Path) -> None:
        self.server, self.store_server, self.folder = server, store_server, folder
        self.workers: list[Worker] = []

    def start(self, name: str, pool: str = "cpu") -> Worker:
        """A worker that looks for work."""
        worker = Worker(
            self.server, pool, self.folder / name, self.store_server.environment, name=name
        )
        self.workers.append(worker)
        return worker.start()

    def remove(self) -> None:
        """End them all."""
        for worker in self.workers:
            worker.remove()


def told(processes: list[psutil.Process]) -> str:
    """Process ids and command lines, for a failure message."""
    lines = []
    for process in processes:
        with suppress(psutil.Error):
            lines.append(f"{process.pid}: {' '.join(process.cmdline())[:200]}")
    return "\n".join(lines)


def free_port() -> int:
    """A port of loopback that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _parent(process: psutil.Process) -> int:
    with suppress(psutil.Error):
        parent: int = process.ppid()
        return parent
    return 0


def options_of(parameters: Mapping[str, Any]) -> list[str]:
    """Parameters as options of `prefect deployment run`."""
    texts = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in parameters.items()
    }
    return [word for name, text in texts.items() for word in ("-p", f"{name}={text}")]


def tell(text: str) -> None:
    """Say what was measured; pytest shows it with -rP, and when the test fails."""
    print(text, flush=True)  # noqa: T201
