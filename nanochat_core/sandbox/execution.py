"""Run Python that a model has written, in a process that can do nothing but compute and print.

    sandbox = Sandbox.open(allow_weak=False)
    result = sandbox.run("print(6 * 7)")
    assert result.passed and result.stdout == "42\\n"

Three tiers. `bubblewrap` and `namespaces` give a program its own processes, network, mounts and
user, a read-only view of an interpreter and nothing else of this machine. `limits` only bounds
what it uses: it sees and does what its user may, so it has to be allowed.
"""

import marshal
import math
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from nanochat_core.errors import WeakSandboxError
from nanochat_core.sandbox import contained, leftovers, selftest, tiers
from nanochat_core.sandbox.process import Outcome, Run
from nanochat_core.sandbox.tiers import Tier, Way

Reason = Literal["ok", "error", "timeout", "memory", "output", "killed"]

_MEGABYTE = 1 << 20
# The order of a set is the same in every run, so an eval can be repeated.
_ENVIRONMENT = {"LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
_CPU_TIME_CODE = 128 + signal.SIGXCPU
_REPORTED: tuple[Reason, ...] = ("ok", "error", "memory")


@dataclass(frozen=True)
class SandboxLimits:
    """What one run may use; wall time and memory are those of HumanEval (RECIPE 6).

    Memory is counted per process, and so are files without a name, which are memory too: a
    hostile run can take num_processes * (memory_bytes + num_open_files * file_bytes) for its time.
    """

    wall_seconds: float = 5.0
    memory_bytes: int = 256 * _MEGABYTE
    file_bytes: int = 16 * _MEGABYTE
    folder_bytes: int = 32 * _MEGABYTE
    folder_files: int = 4096
    output_bytes: int = 64 * 1024
    num_processes: int = 8
    num_open_files: int = 16

    def by_resource(self) -> dict[str, int]:
        """The same as names and values of `setrlimit`."""
        return {
            "RLIMIT_CPU": math.ceil(self.wall_seconds) + 1,
            "RLIMIT_FSIZE": self.file_bytes,
            "RLIMIT_NOFILE": self.num_open_files,
            "RLIMIT_CORE": 0,
            "RLIMIT_MEMLOCK": 0,
            "RLIMIT_MSGQUEUE": 0,
            "RLIMIT_NPROC": self.num_processes,
            "RLIMIT_AS": self.memory_bytes,
        }


@dataclass(frozen=True)
class ExecutionResult:
    """How one program went.

    `ok`: its last line was reached; its threads and children end with it, unasked. That is the
    word of the program's own interpreter, so a program that sets out to lie about itself can.
    `error`: an exception, also `SystemExit`, or an end before the last line. `killed`: a signal, as
    after a segmentation fault.
    """

    exit_code: int
    stdout: str
    stderr: str
    reason: Reason
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether the program ran to its end."""
        return self.reason == "ok"


@dataclass(frozen=True)
class Sandbox:
    """A way to run programs that was seen to hold on this machine."""

    way: Way

    @classmethod
    def open(cls, *, allow_weak: bool) -> "Sandbox":
        """The strongest tier that holds when tried; `limits` only if `allow_weak`."""
        failures = []
        for way in tiers.ways():
            failure = selftest.failure(cls(way).run, way)
            if not failure:
                return cls(way)
            failures.append(failure)
        if not allow_weak:
            raise WeakSandboxError(_no_strong_tier(failures))
        return cls(Way("limits"))

    @property
    def tier(self) -> Tier:
        """What holds programs back."""
        return self.way.tier

    def run(self, code: str, *, limits: SandboxLimits | None = None) -> ExecutionResult:
        """Run a program to its end or to one of its limits; nothing of it is left afterwards."""
        limits = limits or SandboxLimits()
        uid = tiers.uid_for(self.way)
        with (
            _folder(self.tier, uid) as folder,
            tempfile.TemporaryFile() as file,
            Run(wall_seconds=limits.wall_seconds, output_bytes=limits.output_bytes) as run,
        ):
            starts_as = uid if self.way.starts_as_other_user else None
            request = _request(self.way, limits, folder) | {
                "program": code,
                "report_fd": run.report_fd,
                "info_fd": run.info_fd,
                "uid": uid if starts_as is None else None,
            }
            file.write(marshal.dumps(request))
            file.seek(0)
            command = tiers.command_line(
                self.way, folder_bytes=limits.folder_bytes, info_fd=run.info_fd
            )
            mark = leftovers.new_mark()
            try:
                run.start(command, file, {**_ENVIRONMENT, **mark}, starts_as)
                outcome = run.finish()
            finally:
                if self.tier == "limits":
                    leftovers.end(mark, uid)
        return _result(outcome)


def _request(way: Way, limits: SandboxLimits, folder: str) -> dict[str, Any]:
    return {
        **tiers.jail_request(way),
        "contained": _contained(),
        "tier": way.tier,
        "folder": folder,
        "folder_bytes": limits.folder_bytes,
        "folder_files": limits.folder_files,
        "limits": limits.by_resource(),
    }


@cache
def _contained() -> Any:
    """The far side, compiled: it is sent along, so a jail needs no file of ours."""
    return compile(Path(contained.__file__).read_text("utf-8"), "<contained>", "exec")


@contextmanager
def _folder(tier: Tier, uid: int | None) -> Iterator[str]:
    """Where a program may write: a private mount that dies with it, or a temporary folder."""
    if tier != "limits":
        yield tiers.INSIDE_FOLDER
        return
    folder = tempfile.mkdtemp(prefix="nanochat-sandbox-")
    try:
        if uid is not None:
            os.chown(folder, uid, uid)
        yield folder
    finally:
        leftovers.remove_folder(folder)


def _result(outcome: Outcome) -> ExecutionResult:
    return ExecutionResult(
        exit_code=outcome.code,
        stdout=outcome.stdout.decode("utf-8", "replace"),
        stderr=outcome.stderr.decode("utf-8", "replace"),
        reason=_reason(outcome),
        seconds=outcome.seconds,
    )


def _reason(outcome: Outcome) -> Reason:
    if outcome.cut_off:
        return outcome.cut_off
    for reason in _REPORTED:
        if outcome.report == reason.encode():
            return reason
    if outcome.code == _CPU_TIME_CODE:
        return "timeout"
    return "killed" if outcome.code > 128 else "error"


def _no_strong_tier(failures: list[str]) -> str:
    tried = "; ".join(failures) or "this system has no namespaces"
    return (
        "generated code would run with limits only, and could read and write what you can "
        f"({tried}); install bubblewrap or allow user namespaces, "
        "or pass --allow-weak-sandbox to run it anyway"
    )
