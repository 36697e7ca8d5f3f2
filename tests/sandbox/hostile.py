"""What a hostile program tries, one entry each.

Every program finds constants in front of it (see `Scene.constants`): the address of a canary, of a
server, of a process that waits to be killed. It prints BREACH where only it can see that it got
through; everything else is looked up in the scene afterwards. All numbers are small: an attack
that nothing holds back (tier "limits") must not hurt the machine that runs the tests.
"""

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Attack:
    """One hostile program and how it may end.

    `reasons`: endings that a strong tier may report; empty for any. `escapes`: what the tier
    "limits" does not contain; "always" where this holds for any user on any Linux system, "perhaps"
    where it depends on the user and on the system.
    """

    name: str
    code: str
    reasons: Collection[str] = ()
    escapes: str = ""


PRELUDE = """
import ctypes, errno, gc, mmap, os, signal, socket, struct, subprocess, sys, threading, time
def libc():
    return ctypes.CDLL(None, use_errno=True)
def mark():
    if sys.platform == "linux":
        libc().prctl(15, MARK.encode(), 0, 0, 0)
def linger(seconds=30):
    mark()
    time.sleep(seconds)
    os._exit(0)
def write_to(folder):
    # Where nothing holds, we are content to know that it could: those places are not a test's.
    if os.access(folder, os.W_OK):
        print("BREACH", folder)
    else:
        expect_failure(open, folder + "/" + MARK, "w")
def expect_failure(attempt, *arguments):
    try:
        result = attempt(*arguments)
    except (OSError, ValueError, MemoryError, RuntimeError) as error:
        print("refused", type(error).__name__)
    else:
        print("BREACH", result)
"""
