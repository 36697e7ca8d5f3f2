"""Whether a tier holds on this very machine: it is tried, because a binary proves nothing."""

import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nanochat_core.errors import JobLostError
from nanochat_core.sandbox.tiers import Way

_ATTEMPT = """
import ctypes, os, socket, time

def must_fail(what, attempt):
    try:
        attempt()
    except (OSError, MemoryError):
        return
    raise SystemExit("not held back: " + what)

def open_user_namespace():
    if ctypes.CDLL(None).unshare(0x10000000) != 0:
        raise OSError

def trace_init():
    if os.getppid() != 1 or ctypes.CDLL(None).ptrace(16, 1, 0, 0) != 0:
        raise OSError

def fork_too_often():
    for _ in range({num_processes}):
        if os.fork() == 0:
            time.sleep(60)

must_fail("reads a file of ours", lambda: open({canary!r}))
must_fail("sees the folder of ours", lambda: os.listdir({folder!r}))
must_fail("writes to its root", lambda: os.mkdir("/made"))
must_fail("signals us", lambda: os.kill({parent}, 0))
must_fail("reaches our network", lambda: socket.create_connection(("127.0.0.1", {port}), 1))
must_fail("takes more memory", lambda: bytearray({memory_bytes}))
must_fail("becomes root", lambda: os.setuid(0))
must_fail("opens a user namespace", open_user_namespace)
must_fail("traces its init", trace_init)
must_fail("forks without end", fork_too_often)
if os.getuid() == 0:
    raise SystemExit("not held back: is root")
open("written", "w").write("here")
print("contained")
"""


def failure(run: Callable[[str], Any], way: Way) -> str:
    """Why that way does not hold here, or nothing if it does."""
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        canary = Path(folder, "canary")
        canary.write_text("alive")
        program = _ATTEMPT.format(
            canary=str(canary),
            folder=folder,
            parent=os.getpid(),
            port=server.getsockname()[1],
            memory_bytes=256 << 20,
            num_processes=8,
        )
        try:
            result = run(program)
        except (JobLostError, OSError) as error:
            return f"{way} does not start: {error}"
    if result.passed and result.stdout == "contained\n":
        return ""
    return f"{way} does not hold: {result.reason}, {result.stderr.strip()}"
