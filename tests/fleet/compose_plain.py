"""The services of docker-compose.yml as plain processes, with the same commands and environment.

Only names of hosts, ports and folders are replaced by those of this machine.
"""

import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

from compose_tools import CHECKOUT, Compose, Service, image_environment
from fleet_tools import MEMBER, family, signal_each, told

APP, HOME = "/app", "/home/nanochat"
POSTGRES = "postgres"
COMMANDS = ("postgres", "initdb", "pg_isready", "wget")
GRPC_OFFSET = 10_000
"""SeaweedFS listens so far above each of its ports, too."""
JOB_SECONDS = 120.0


def missing_commands() -> list[str]:
    """What the images have and this machine has not."""
    return [name for name in COMMANDS if shutil.which(name) is None]


@dataclass
class Plain:
    """One service."""

    service: Service
    folder: Path
    others: Mapping[str, "Plain"]
    mark: str = field(default_factory=lambda: uuid4().hex)
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        """What it has written so far."""
        path = self.folder / "log"
        return path.read_text("utf-8", "replace") if path.exists() else ""

    @cached_property
    def ports(self) -> dict[int, int]:
        """Port in the container -> free port of this machine."""
        return {port: _free_port() for port in sorted(self.service.ports)}

    @cached_property
    def folders(self) -> dict[str, Path]:
        """Folder in the container -> folder of this machine."""
        found = {HOME: self.folder / "home"} if self.service.is_ours else {}
        found |= {inside: self.folder / name for name, inside in self.service.volumes.items()}
        for path in found.values():
            path.mkdir(exist_ok=True)
        return {**found, **({APP: CHECKOUT} if self.service.is_ours else {})}

    def here(self, text: str) -> str:
        """A part of a command or an environment, with what differs on this machine replaced."""
        for name, other in self.others.items():
            for port, free in other.ports.items():
                text = re.sub(rf"\b{re.escape(name)}:{port}\b", f"127.0.0.1:{free}", text)
        for port, free in self.ports.items():
            text = re.sub(rf"(?<!\w){port}(?!\w)", str(free), text)
        for inside, outside in self.folders.items():
            text = re.sub(rf"(?<![\w/]){re.escape(inside)}(?!\w)", str(outside), text)
        return text.replace("0.0.0.0", "127.0.0.1")

    @property
    def environment(self) -> dict[str, str]:
        """As in the container, and nothing of this process."""
        image = image_environment() if self.service.is_ours else {}
        given = {**image, **self.service.environment}
        return {
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
            "LANG": "C.UTF-8",
            "OMP_NUM_THREADS": "1",
            MEMBER: self.mark,
            **{name: self.here(value) for name, value in given.items()},
        }

    def options(self) -> dict[str, Any]:
        """How its processes are started."""
        user = _postgres_user() if self.service.name == POSTGRES else {}
        folder = CHECKOUT if self.service.is_ours else self.folder
        return {"cwd": folder, "env": self.environment, "stdin": subprocess.DEVNULL, **user}

    def start(self) -> None:
        """Start its command."""
        if self.service.name == POSTGRES and not self.log:
            make_database(self)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.here(word) for word in self.service.command],
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self.options(),
            )

    def run(self, command: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
        """Another command in its place, as `docker compose exec` does it."""
        return subprocess.run(
            [self.here(word) for word in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
            **self.options(),
        )

    def is_healthy(self) -> bool:
        """What its health check says."""
        return self.run(self.service.health, 30).returncode == 0

    def wait_until_ready(self) -> None:
        """Return once those that wait for it may start; fails as docker compose would."""
        assert self.process is not None
        is_job = self.service.is_job
        deadline = time.monotonic() + (JOB_SECONDS if is_job else self.service.startup_seconds)
        while time.monotonic() < deadline:
            ended = self.process.poll()
            assert ended in ((None, 0) if is_job else (None,)), self.story()
            if ended == 0 or (not is_job and self.is_healthy()):
                return
            time.sleep(0.5)
        raise AssertionError(f"not ready in time\n{self.story()}")

    def stop(self) -> float:
        """Ask it to end as Docker does; returns seconds, fails when its grace is over."""
        assert self.process is not None
        start = time.monotonic()
        self.process.send_signal(signal.Signals[self.service.stop_signal])
        try:
            self.process.wait(self.service.grace_seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still there after its grace\n{self.story()}") from None
        return time.monotonic() - start

    def left(self) -> list[Any]:
        """What is alive of it: Docker would kill it once the first process has ended."""
        return family(self.mark)

    def remove(self) -> None:
        """End all of it, for cleaning up."""
        while left := self.left():
            signal_each(left, signal.SIGKILL)
            time.sleep(0.05)
        if self.process is not None:
            self.process.wait()

    def story(self) -> str:
        """For a failure message."""
        code = None if self.process is None else self.process.poll()
        alive = f"exit code {code}, alive:\n{told(self.left())}"
        return f"{self.service.name}: {alive}\n{self.log[-4000:]}"


class Stack:
    """Services and what they need, started in the order that the file asks for."""

    def __init__(self, compose: Compose, names: Sequence[str]) -> None:
        # Not a folder of pytest: those are closed to others, and Postgres refuses to be root.
        self.folder = Path(tempfile.mkdtemp(prefix="compose-"))
        self.folder.chmod(0o711)
        self.members: dict[str, Plain] = {}
        for name in start_order(compose, names):
            folder = self.folder / name
            folder.mkdir()
            self.members[name] = Plain(compose.services[name], folder, self.members)

    def up(self) -> None:
        """Start one after the other, each once what it needs is ready, until all are."""
        waited: set[str] = set()
        for plain in self.members.values():
            for name in set(plain.service.needs) - waited:
                self.members[name].wait_until_ready()
                waited.add(name)
            plain.start()
        for name in set(self.members) - waited:
            self.members[name].wait_until_ready()

    @property
    def services(self) -> list[Plain]:
        """Those that go on, in order of their start."""
        return [plain for plain in self.members.values() if not plain.service.is_job]

    def down(self) -> dict[str, float]:
        """Stop all, those that need others first; service -> seconds."""
        return {plain.service.name: plain.stop() for plain in reversed(self.services)}

    def logs(self) -> str:
        """Everything that all have written."""
        return "\n".join(plain.log for plain in self.members.values())

    def remove(self) -> None:
        """Leave nothing."""
        for plain in self.members.values():
            plain.remove()
        shutil.rmtree(self.folder, ignore_errors=True)


def start_order(compose: Compose, names: Sequence[str]) -> list[str]:
    """These services and all that they need, each after what it needs; fails on a circle."""
    order: list[str] = []

    def add(name: str, before: tuple[str, ...]) -> None:
        assert name not in before, f"they wait for each other: {(*before, name)}"
        for needed in compose.services[name].needs:
            add(needed, (*before, name))
        if name not in order:
            order.append(name)

    for name in names:
        add(name, ())
    return order


def make_database(plain: Plain) -> None:
    """What the entry script of the Postgres image does with an empty folder."""
    environment, user = plain.environment, _postgres_user()
    for path in (plain.folder, *plain.folders.values()):
        if user:
            shutil.chown(path, user["user"], user["group"])
    password = plain.folder / "password"
    password.write_text(environment["POSTGRES_PASSWORD"])
    if user:
        shutil.chown(password, user["user"])
    initdb = ["initdb", "--username", environment["POSTGRES_USER"], "--pwfile", str(password)]
    done = plain.run([*initdb, *environment.get("POSTGRES_INITDB_ARGS", "").split()], 60)
    assert done.returncode == 0, done.stdout
    password.unlink()
    data = Path(environment["PGDATA"])
    with (data / "pg_hba.conf").open("a") as rules:
        rules.write("host all all all scram-sha-256\n")
    rules_of_initdb = (data / "pg_hba.conf").read_text().replace("trust\n", "scram-sha-256\n")
    (data / "pg_hba.conf").write_text(rules_of_initdb)
    with (data / "postgresql.conf").open("a") as settings:
        # Its folder of sockets is one of the system here; nobody asks there.
        settings.write("unix_socket_directories = ''\n")
    subprocess.run(
        ["postgres", "--single", "-D", str(data), "postgres"],
        **{**plain.options(), "stdin": None},
        input=f"CREATE DATABASE {environment['POSTGRES_DB']};\n".encode(),
        check=True,
        stdout=subprocess.DEVNULL,
    )


def until_true(condition: Callable[[], bool], seconds: float, what: Callable[[], str]) -> float:
    """Wait for something with pauses; returns the seconds."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, what()
        time.sleep(0.5)
    return time.monotonic() - start


def _postgres_user() -> dict[str, Any]:
    """Postgres refuses to be root; whoever is somebody else stays so."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise AssertionError("this machine has no user that Postgres could run as")


def _free_port() -> int:
    """A port that is free, and free where SeaweedFS listens for gRPC."""
    while True:
        port = random.SystemRandom().randrange(12_000, 20_000)
        if _is_free(port) and _is_free(port + GRPC_OFFSET):
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
