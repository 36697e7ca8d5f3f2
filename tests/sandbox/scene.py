"""What an attack could hurt, made for one test, and the look at what it did hurt."""

import ctypes
import os
import secrets
import shutil
import socket
import subprocess
import sysconfig
from contextlib import suppress
from pathlib import Path

import psutil

from nanochat_core.sandbox.execution import ExecutionResult, Sandbox, SandboxLimits
from nanochat_core.sandbox.tiers import interpreter
from tests.sandbox.hostile import PRELUDE, Attack

LIMITS = SandboxLimits()
SHORT_LIMITS = SandboxLimits(wall_seconds=0.2)
"""For programs that would never end."""
LATE_SECONDS = 3.0
"""More than any run may take beyond its wall time on a busy machine."""
_IPC_RMID = 0


class Scene:
    """Canaries, secrets, servers and a process to kill, all of them ours."""

    def __init__(self, folder: Path) -> None:
        self.mark = f"nc{secrets.token_hex(5)}"  # the name of a process has 15 characters
        self.secret = secrets.token_hex(16)
        self.home = folder / "home"
        self.home.mkdir()
        self.canary = self.home / "canary"
        self.canary.write_text("alive")
        self.secret_file = self.home / "credentials"
        self.secret_file.write_text(self.secret)
        self.shared = Path("/dev/shm", self.mark)
        self.shared.write_text("alive")
        self.segment = secrets.randbelow(1 << 30) + 1
        self._secret_buffer = ctypes.create_string_buffer(self.secret.encode())
        self.open_file = os.open(self.secret_file, os.O_RDWR)
        os.set_inheritable(self.open_file, True)
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.udp = socket.socket(type=socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        self.unix_path = str(self.home / "s")
        self.unix, self.abstract = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        self.unix.bind(self.unix_path)
        self.abstract.bind(f"\0{self.mark}")
        for server in (self.unix, self.abstract):
            server.listen()
        for server in (self.tcp, self.udp, self.unix, self.abstract):
            server.setblocking(False)
        self.victim = subprocess.Popen(["sleep", "120"], env={"OUR_SECRET": self.secret})
        # Other tests of this process may have left helpers of their own.
        self.children = set(psutil.Process().children())

    def close(self) -> None:
        """Take everything away again, also what an attack has left."""
        self.victim.kill()
        self.victim.wait()
        for server in (self.tcp, self.udp, self.unix, self.abstract):
            server.close()
        os.close(self.open_file)
        for process in self.marked_processes():
            process.kill()
        for path in (*self._places(), self.shared, Path(f"{self.shared}x")):
            path.unlink(missing_ok=True)
        if (number := self._segment_number()) is not None:
            ctypes.CDLL(None).shmctl(number, _IPC_RMID, None)
        shutil.rmtree(self.home, ignore_errors=True)

    def constants(self) -> dict[str, object]:
        """What an attack knows."""
        return {
            "ADDRESS": ctypes.addressof(self._secret_buffer),
            "CANARY": str(self.canary),
            "CHECKOUT": str(Path(__file__).parents[2]),
            "HOME": str(self.home),
            "MARK": self.mark,
            "OPEN_FILE": self.open_file,
            "PACKAGES": sysconfig.get_path("purelib"),
            "PARENT": os.getpid(),
            "PYTHON": interpreter(),
            "SECRET_FILE": str(self.secret_file),
            "SEGMENT": self.segment,
            "TCP_PORT": self.tcp.getsockname()[1],
            "UDP_PORT": self.udp.getsockname()[1],
            "UNIX_SOCKET": self.unix_path,
            "USER_HOME": str(Path.home()),
            "VICTIM": self.victim.pid,
        }

    def attack(self, sandbox: Sandbox, attack: Attack) -> ExecutionResult:
        """Run one attack."""
        lines = [f"{name} = {value!r}" for name, value in self.constants().items()]
        limits = SHORT_LIMITS if "timeout" in attack.reasons else LIMITS
        return sandbox.run("\n".join([*lines, PRELUDE, attack.code]), limits=limits)

    def harm(self, result: ExecutionResult, temporary: Path) -> list[str]:
        """What the attack has achieved; empty where it was contained."""
        printed = result.stdout + result.stderr
        looks = {
            "it says so": "BREACH" in printed,
            "the secret got out": self.secret in printed,
            "canary": _text(self.canary) != "alive",
            "secret file": _text(self.secret_file) != self.secret,
            "shared memory": _text(self.shared) != "alive",
            "shared memory left": Path(f"{self.shared}x").exists(),
            "segment left": self._segment_number() is not None,
            "our folder": sorted(_names(self.home)) != ["canary", "credentials", "s"],
            "file left": any(path.exists() for path in self._places()),
            "temporary folder left": bool(_names(temporary)),
            "process left": bool(self.marked_processes()),
            "child left": not self.children.issuperset(psutil.Process().children()),
            "victim dead": self.victim.poll() is not None,
            "server reached": any(map(_has_caller, (self.tcp, self.unix, self.abstract))),
            "datagram came": _has_datagram(self.udp),
            "late": result.seconds > LIMITS.wall_seconds + LATE_SECONDS,
            "output too long": max(map(len, (result.stdout, result.stderr))) > LIMITS.output_bytes,
            "mount left": "/jail" in Path("/proc/self/mountinfo").read_text(),
        }
        return [name for name, is_so in looks.items() if is_so]

    def marked_processes(self) -> list[psutil.Process]:
        """Processes that an attack has started and named."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.name() == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def _places(self) -> list[Path]:
        library = Path(os.__file__).parent
        folders = ("/tmp", "/etc", "/", library, Path.home(), Path(__file__).parents[2])
        return [Path(folder, self.mark) for folder in folders]

    def _segment_number(self) -> int | None:
        for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]:
            key, number = line.split()[:2]
            if int(key) == self.segment:
                return int(number)
        return None


def _text(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


def _names(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.exists() else []


def _has_caller(server: socket.socket) -> bool:
    with suppress(BlockingIOError):
        server.accept()[0].close()
        return True
    return False


def _has_datagram(server: socket.socket) -> bool:
    with suppress(BlockingIOError):
        return bool(server.recv(10))
    return False
