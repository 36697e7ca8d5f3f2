"""The command `nanochat run tiny` as a process: started, watched, killed, and looked at after."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from nanochat_core.artifacts.store import ArtifactStore

BASE_STATIONS = ("shards", "tokenizer", "tokens", "pretrain", "base_eval")
CHAT_STATIONS = ("sft", "chat_eval_sft", "rl", "chat_eval_rl", "report")
STATIONS = (*BASE_STATIONS, *CHAT_STATIONS)
END = "end"
JOB_STATIONS = ("pretrain", "base_eval", "sft", "chat_eval_sft", "rl", "chat_eval_rl")
TRAINED = ("pretrain", "sft", "rl")
KINDS = ("group", "flow", "trainer")
GONE_SECONDS = 20.0
"""The grace of a job, the time of its supervisor to notice, and some for a busy machine."""


COMMANDS: list["Command"] = []
"""Those that the running test has started."""


class Command:
    """One `nanochat` process, and everything that it has started, in whatever session."""

    def __init__(self, arguments: list[str], home: str) -> None:
        self.home = home
        COMMANDS.append(self)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, "PREFECT_HOME": home},
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.lines.append(line)

    @property
    def output(self) -> str:
        return "".join(self.lines)

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def wait(self, seconds: float) -> int:
        """Its exit code; fails with its output when it takes longer than `seconds`."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill_all()
            raise AssertionError(f"still running after {seconds} s:\n{self.output}") from None
        # What a killed flow leaves behind has the same output, and may live on for a while.
        self._reader.join(1.0)
        return code

    def wait_for(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Whether the condition came true before the command ended."""
        deadline = time.monotonic() + seconds
        while not condition():
            if not self.is_running:
                return False
            assert time.monotonic() < deadline, f"waited in vain:\n{self.output}"
            time.sleep(0.002)
        return True

    def has_started(self, station: str) -> bool:
        return any(line.split() == [station, "started"] for line in list(self.lines))

    def family(self) -> list[psutil.Process]:
        """Every live process that inherited the PREFECT_HOME of this command."""
        found = []
        for process in psutil.process_iter():
            try:
                is_ours = process.environ().get("PREFECT_HOME") == self.home
                if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found

    def ranks(self) -> list[psutil.Process]:
        """The processes that train or evaluate: neither torchrun nor the supervisor."""
        found = []
        for process in self.family():
            try:
                words, environ = process.cmdline(), process.environ()
            except (psutil.Error, OSError):
                continue
            if "LOCAL_RANK" in environ and any("nanochat_core.jobs." in word for word in words):
                found.append(process)
        return found

    def kill(self, kind: str) -> bool:
        """SIGKILL; False when there was nothing of that kind to kill."""
        if kind == "trainer":
            ranks = self.ranks()
            for rank in ranks:
                kill_one(rank)
            return bool(ranks)
        if not self.is_running:
            return False
        if kind == "flow":
            self.process.kill()
        else:
            others = self.family()
            os.killpg(self.process.pid, signal.SIGKILL)
            for process in others:
                kill_one(process)
        return True

    def kill_all(self) -> None:
        """End everything; for cleaning up."""
        for process in self.family():
            kill_one(process)
        self.process.wait()

    def seconds_until_gone(self) -> float:
        """Wait until no process is left; fails when one stays."""
        start = time.monotonic()
        while left := self.family():
            if time.monotonic() - start > GONE_SECONDS:
                names = [" ".join(process.cmdline())[:200] for process in left]
                self.kill_all()
                raise AssertionError(f"left behind: {names}")
            time.sleep(0.05)
        self._reader.join()
        return time.monotonic() - start


def tell(text: str) -> None:
    """Say which moment was drawn; pytest shows it when the test fails, and with -rP always."""
    print(text)  # noqa: T201


def kill_one(process: psutil.Process) -> None:
    with suppress(psutil.Error):
        process.kill()


@dataclass
class Line:
    """`nanochat run PRESET` with fixed settings in one store."""

    store_folder: Path
    home: Path
    settings: tuple[str, ...] = ()
    preset: str = "tiny"

    @property
    def store(self) -> ArtifactStore:
        return ArtifactStore(str(self.store_folder))

    def start(self, *options: str) -> Command:
        arguments = ["run", self.preset, "--store", str(self.store_folder)]
        return Command([*arguments, *self.settings, *options], str(self.home))

    def chat(self, *options: str) -> Command:
        return Command(["chat", "--store", str(self.store_folder), *options], str(self.home))

    def verify(self) -> Command:
        return Command(["artifacts", "verify", "--store", str(self.store_folder)], str(self.home))

    def run(self, *options: str, seconds: float = 240.0) -> Command:
        """Run to a good end that leaves no process."""
        command = self.start(*options)
        code = command.wait(seconds)
        assert code == 0, command.output
        command.seconds_until_gone()
        return command

    def copy_until(self, station: str, folder: Path, *, records: bool = False) -> "Line":
        """This line in a store of its own that has only what comes before `station`, or has all.

        `records` copies aliases and run records, too.
        """
        copied = [*STATIONS[: (*STATIONS, END).index(station)]]
        (folder / "store").mkdir(parents=True)
        for name in [*copied, *(("aliases", "runs") if records else ())]:
            shutil.copytree(self.store_folder / name, folder / "store" / name)
        return replace(self, store_folder=folder / "store", home=folder / "prefect")

    def digests(self) -> dict[str, str]:
        """Station -> digest of its newest artifact."""
        return {r.station: r.digest for r in self.store.list() if r.station in STATIONS}

    def checkpoint_folders(self, station: str = "*") -> list[Path]:
        pattern = Path("inprogress", station, "*", "*", "work", "checkpoints", "step-*")
        return sorted(self.store_folder.glob(str(pattern)))

    def unfinished_checkpoints(self) -> bool:
        return any(not (path / "manifest.json").exists() for path in self.checkpoint_folders())

    def unpublished_attempts(self, station: str) -> bool:
        """Whether files are being published at this moment."""
        for folder in self.store_folder.glob(f"{station}/*"):
            manifests = list(folder.glob("manifest-*.json"))
            if folder.is_dir() and not manifests and any(folder.glob("2*-*")):
                return True
        return False


@dataclass(frozen=True)
class Uninterrupted:
    """A finished run; nobody may change its store."""

    line: Line
    digests: dict[str, str]
    seconds: dict[str, float]
    """Of each station."""


def run_uninterrupted(folder: Path, preset: str, seconds: float) -> Uninterrupted:
    """Run a preset from nothing to its end."""
    line = Line(folder / "store", folder / "prefect", preset=preset)
    command = line.run(seconds=seconds)
    assert set(states(command.output).values()) == {"made"}, command.output
    (record,) = line.store.runs().values()
    durations = {name: station["seconds"] for name, station in record["stations"].items()}
    return Uninterrupted(line, line.digests(), durations)


def flip_file(path: Path, choose: random.Random) -> int:
    """Change one byte of a file, its modification time set back; returns where."""
    before = path.stat()
    position = choose.randrange(before.st_size)
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ choose.randint(1, 255)]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return position


def states(output: str) -> dict[str, str]:
    """Station -> how the output says that it ended."""
    found = {}
    for line in output.splitlines():
        words = line.split()
        if len(words) > 3 and words[2] == "in" and words[0] in (*STATIONS, "release"):
            found[words[0]] = words[1]
    return found


def check_store_is_sound(line: Line) -> None:
    """Whatever the store shows is whole: nothing half-made is visible."""
    store = line.store
    assert store.verify() == []
    for ref in store.list():
        manifest = store.manifest(ref)
        folder = store.materialize(ref)
        assert all((folder / file.path).stat().st_size == file.bytes for file in manifest.files)
    for name in store.aliases():
        store.materialize(store.resolve(name))


@dataclass(frozen=True)
class Moment:
    """When to kill: so long after a station was entered, or at the next write of one kind."""

    station: str
    after_seconds: float
    during: str = ""

    def __str__(self) -> str:
        what = f" {self.during}" if self.during else ""
        return f"{self.after_seconds:.3f} s after the start of {self.station}{what}"

    def wait(self, line: Line, command: Command) -> bool:
        """Wait for it; False when the command ended before."""
        entered = command.wait_for(lambda: command.has_started(self.station), 120)
        if entered and self.during == "checkpointing":
            entered = command.wait_for(line.unfinished_checkpoints, 120)
        elif entered and self.during == "publishing":
            entered = command.wait_for(lambda: line.unpublished_attempts(self.station), 120)
        elif entered:
            time.sleep(self.after_seconds)
        return entered and command.is_running


def random_moment(
    choose: random.Random, seconds: dict[str, float], stations: tuple[str, ...], during: str
) -> Moment:
    """A moment in one of the stations, drawn by their duration, or while files are written."""
    if during == "checkpointing":
        return Moment(choose.choice(TRAINED), 0.0, during)
    if during == "publishing":
        return Moment(choose.choice(stations), 0.0, during)
    station = choose.choices(stations, [seconds[name] for name in stations])[0]
    return Moment(station, choose.uniform(0, seconds[station]))
