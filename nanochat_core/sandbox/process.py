"""Start a command, collect what it writes, and end it: every wait here has a bound.

Made for one run of one thread: nothing is shared between runs, so any number of them may go on
at once.
"""

import json
import os
import select
import selectors
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Literal

from nanochat_core.errors import JobLostError

CutOff = Literal["timeout", "output", ""]

STARTED = b"started\n"
"""What the far side reports first: it is locked in, and the time of the program begins."""
START_SECONDS = 20.0
"""For a machine that is busy with other things; a start takes a thousandth of it."""
POLL_SECONDS = 0.01
_MAX_MESSAGE_BYTES = 1 << 12
END_SECONDS = 5.0
"""How long killed processes may take to end; one that hangs in the kernel cannot be helped."""
_CHUNK = 1 << 16
_CHUNKS_IN_A_PIPE = 16
"""A program may enlarge a pipe to a megabyte."""


@dataclass
class Outcome:
    """How a command ended: what cut it off, if anything, and all that it left in the pipes."""

    code: int
    cut_off: CutOff
    stdout: bytes
    stderr: bytes
    report: bytes
    seconds: float


@dataclass
class _Stream:
    """One pipe that we read, to its limit."""

    descriptor: int
    most: int
    kept: bytearray = field(default_factory=bytearray)
    is_over: bool = False

    def read(self) -> bool:
        """Take what is there; False at the end of the pipe."""
        try:
            chunk = os.read(self.descriptor, _CHUNK)
        except BlockingIOError:
            return True  # nothing yet
        self.is_over = self.is_over or len(self.kept) + len(chunk) > self.most
        self.kept += chunk[: self.most - len(self.kept)]
        return bool(chunk)


class Run:
    """One command, from its start until nothing of it is left."""

    def __init__(self, *, wall_seconds: float, output_bytes: int) -> None:
        self._wall_seconds = wall_seconds
        self._report, self._info = _Pipe(), _Pipe()
        self._output = (_Pipe(), _Pipe())
        self._output_bytes = output_bytes
        self._init, self._init_fd = 0, -1
        self._is_running = False

    @property
    def report_fd(self) -> int:
        """Where the far side says how the program ended."""
        return self._report.write_end

    @property
    def info_fd(self) -> int:
        """Where the command says which process is the first of its namespace."""
        return self._info.write_end

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in (self._report, self._info, *self._output):
            pipe.close()
        if self._init_fd >= 0:
            os.close(self._init_fd)

    def start(
        self, command: Sequence[str], request: IO[bytes], env: dict[str, str], uid: int | None
    ) -> None:
        """Start the command with the request as its stdin, as user `uid` if there is one."""
        self._started = time.monotonic()
        self._deadline = self._started + START_SECONDS
        self._child = subprocess.Popen(
            command,
            stdin=request,
            stdout=self._output[0].write_end,
            stderr=self._output[1].write_end,
            cwd="/",
            env=env,
            pass_fds=(self.report_fd, self.info_fd),
            start_new_session=True,
            user=uid,
            group=uid,
            extra_groups=None if uid is None else [],
        )
        for pipe in (self._report, self._info, *self._output):
            pipe.close_write_end()

    def finish(self) -> Outcome:
        """Wait for the end of the command, or bring it about."""
        streams = self._streams()
        try:
            cut_off = self._watch(streams)
            streams["info"].read()
            self._notice("info", streams["info"])
        finally:
            self._end()
        for stream in streams.values():
            # What was written last is still in the pipe, which holds no more than these reads.
            for _ in range(_CHUNKS_IN_A_PIPE):
                if not stream.read():
                    break
        if not cut_off and any(stream.is_over for stream in streams.values()):
            cut_off = "output"
        report = bytes(streams["report"].kept)
        if not report.startswith(STARTED):
            raise JobLostError(self._no_start(bytes(streams["stderr"].kept)))
        code = self._child.returncode
        return Outcome(
            code=code if code >= 0 else 128 - code,
            cut_off=cut_off,
            stdout=bytes(streams["stdout"].kept),
            stderr=bytes(streams["stderr"].kept),
            report=report.removeprefix(STARTED),
            seconds=time.monotonic() - self._started,
        )

    def _no_start(self, stderr: bytes) -> str:
        said = stderr.decode("utf-8", "replace").strip() or "no message"
        code = self._child.returncode
        return f"the sandbox did not start a program (exit code {code}: {said}); try again"

    def _streams(self) -> dict[str, _Stream]:
        stdout, stderr = self._output
        streams = {
            "stdout": _Stream(stdout.read_end, self._output_bytes),
            "stderr": _Stream(stderr.read_end, self._output_bytes),
            "report": _Stream(self._report.read_end, _MAX_MESSAGE_BYTES),
            "info": _Stream(self._info.read_end, _MAX_MESSAGE_BYTES),
        }
        for stream in streams.values():
            os.set_blocking(stream.descriptor, False)
        return streams

    def _watch(self, streams: dict[str, _Stream]) -> CutOff:
        """Read until the command is done or must not go on; why it must not, or nothing."""
        with selectors.DefaultSelector() as selector:
            for name, stream in streams.items():
                selector.register(stream.descriptor, selectors.EVENT_READ, name)
            while self._child.poll() is None:
                if time.monotonic() >= self._deadline:
                    return "timeout"
                if not selector.get_map():
                    time.sleep(POLL_SECONDS)
                for key, _ in selector.select(POLL_SECONDS):
                    if not streams[key.data].read():
                        selector.unregister(key.fd)
                    self._notice(key.data, streams[key.data])
                    if streams[key.data].is_over:
                        return "output"
        return ""

    def _notice(self, name: str, stream: _Stream) -> None:
        if name == "report" and not self._is_running and stream.kept.startswith(STARTED):
            self._is_running = True
            self._started = time.monotonic()
            self._deadline = self._started + self._wall_seconds
        if name == "info" and stream.kept and not self._init:
            # The first process of the namespace: all others die with it.
            with suppress(ValueError, KeyError, OSError):
                self._init = json.loads(stream.kept)["child-pid"]
                self._init_fd = _open_process(self._init)

    def _end(self) -> None:
        """Kill what is left, and wait until it is gone."""
        if self._init_fd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._init_fd, signal.SIGKILL)
            select.select([self._init_fd], [], [], END_SECONDS)
        elif self._init and self._child.poll() is None:
            # Its parent is there, so the number is still its own; the parent ends after it.
            with suppress(ProcessLookupError):
                os.kill(self._init, signal.SIGKILL)
        else:
            self._kill_group()
        try:
            self._child.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._kill_group()
            with suppress(subprocess.TimeoutExpired):
                self._child.wait(END_SECONDS)

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, signal.SIGKILL)


def _open_process(number: int) -> int:
    """A handle that never means another process, or -1 where Python or the kernel has none."""
    return os.pidfd_open(number) if hasattr(os, "pidfd_open") else -1


class _Pipe:
    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()

    def close_write_end(self) -> None:
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1

    def close(self) -> None:
        self.close_write_end()
        if self.read_end >= 0:
            os.close(self.read_end)
            self.read_end = -1
