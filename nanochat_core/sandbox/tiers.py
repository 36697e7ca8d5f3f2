"""The ways to lock a program in, strongest first, and the command that each of them starts."""

import itertools
import os
import shutil
import stat
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Tier = Literal["bubblewrap", "namespaces", "limits"]

JAIL = "/jail"
"""Where the tree that the program sees is built; see `contained.main` for why it is not `/`."""
INSIDE_FOLDER = "/tmp"
"""The only place inside where a program can write."""
NOBODY = 65534

# Reads the request to its end from stdin; what was compiled here runs there, so both are the same
# version of Python. -P and -s: nothing of a folder or a user; -S: no site, half of the start.
_BOOTSTRAP = (
    "import marshal,sys;r=marshal.load(sys.stdin.buffer);"
    "n={'__name__':'contained'};exec(r['contained'],n);n['main'](r)"
)
_SYSTEM_FOLDERS = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/nix/store")
_LINKER_CACHE = "/etc/ld.so.cache"
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")

# CAP_CHOWN, CAP_KILL, CAP_SETGID, CAP_SETUID
_MIGHT = 1 << 0 | 1 << 5 | 1 << 6 | 1 << 7

_runs = itertools.count()


@dataclass(frozen=True)
class Way:
    """One tier, entered with or without a user namespace."""

    tier: Tier
    user_namespace: bool = False

    @property
    def starts_as_other_user(self) -> bool:
        """Whether the command is started as another user than ours.

        The kernel limits the processes of every user but root, even root in a namespace.
        """
        return self.user_namespace and is_mighty()

    def __str__(self) -> str:
        return f"{self.tier} with a user namespace" if self.user_namespace else self.tier


def ways() -> Iterator[Way]:
    """What is worth a try on this machine, strongest first, without the limits tier."""
    if sys.platform != "linux":
        return
    tiers: list[Tier] = ["namespaces"]
    if shutil.which("bwrap"):
        tiers.insert(0, "bubblewrap")
    for tier in tiers:
        if is_mighty():
            yield Way(tier)
        if not is_mighty() or others_can_read(Path(interpreter())):
            yield Way(tier, user_namespace=True)


def interpreter() -> str:
    """The real executable: the one of a virtual environment needs a file that is not inside."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def is_mighty() -> bool:
    """Whether this process is root and can become somebody else; in some containers it cannot."""
    if os.geteuid() != 0:
        return False
    if sys.platform != "linux":
        return True
    status = Path("/proc/self/status").read_text()
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    return effective & _MIGHT == _MIGHT


def others_can_read(path: Path) -> bool:
    """Whether any user of this machine can reach and read that file."""
    if not path.stat().st_mode & stat.S_IROTH:
        return False
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in path.parents)


def private_uid() -> int:
    """A user id that nobody else has: its processes can be counted, and none is ours to signal."""
    # Below 2**31, which old tools take for negative; a process id has at most 22 bits.
    return 10**9 + (os.getpid() << 8 | next(_runs) & 0xFF)


def uid_for(way: Way) -> int | None:
    """The user that a program becomes, or None where it stays the one that starts it.

    Without a jail, that other user still has to be able to read the interpreter.
    """
    if not is_mighty() or (way.tier == "limits" and not others_can_read(Path(interpreter()))):
        return None
    return private_uid()


def jail_request(way: Way) -> dict[str, Any]:
    """What the far side needs to know of the tree it lives in."""
    if way.tier == "limits":
        return {"jail": ""}
    tree = _Tree.of_this_interpreter()
    return {
        "jail": JAIL,
        "user_namespace": way.user_namespace,
        "links": tree.links,
        "folders": tree.folders,
        "files": [*tree.files, *tree.devices],
        "hidden": tree.hidden,
    }


def command_line(way: Way, *, folder_bytes: int, info_fd: int) -> list[str]:
    """The command that reads a request from stdin and runs it."""
    python = [interpreter(), "-P", "-s", "-S", "-X", "utf8", "-c", _BOOTSTRAP]
    if way.tier != "bubblewrap":
        return python
    return [*_bubblewrap(way, folder_bytes, info_fd), "--", *python]


def _bubblewrap(way: Way, folder_bytes: int, info_fd: int) -> list[str]:
    tree = _Tree.of_this_interpreter()
    command = [shutil.which("bwrap") or "bwrap", "--info-fd", str(info_fd)]
    command += ["--die-with-parent", "--as-pid-1"]
    command += [f"--unshare-{name}" for name in ("pid", "net", "ipc", "uts", "cgroup-try")]
    if way.user_namespace:
        command += ["--unshare-user", "--uid", str(NOBODY), "--gid", str(NOBODY)]
    command += ["--cap-drop", "ALL", "--cap-add", "CAP_SYS_CHROOT"]
    if not way.user_namespace:
        # To become another user; lost with everything else in the moment it does.
        command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    for folder in tree.parents:  # bubblewrap makes missing ones unreadable for other users
        command += ["--dir", JAIL + folder]
    for source, target in tree.links:
        command += ["--symlink", source, target]
    for source in (*tree.folders, *tree.files):
        command += ["--ro-bind", source, JAIL + source]
    for source in tree.devices:
        command += ["--dev-bind", source, JAIL + source]
    for target in tree.hidden:
        command += ["--tmpfs", JAIL + target, "--remount-ro", JAIL + target]
    command += ["--perms", "1777", "--size", str(folder_bytes), "--tmpfs", JAIL + INSIDE_FOLDER]
    return [*command, "--remount-ro", "/", "--chdir", "/"]


@dataclass(frozen=True)
class _Tree:
    """The read-only part of what a program sees: an interpreter and its libraries.

    No shell, no home, no site packages, and no /proc: nothing of it is needed to compute, and a
    container may forbid to mount one.
    """

    links: list[tuple[str, str]]
    folders: list[str]
    files: list[str]
    devices: list[str]
    hidden: list[str]

    @property
    def parents(self) -> list[str]:
        """Folders to make before anything is put into them, outermost first."""
        inside = [*self.folders, *self.files, *self.devices]
        return sorted({str(folder) for path in inside for folder in Path(path).parents})

    @classmethod
    def of_this_interpreter(cls) -> "_Tree":
        stdlib = os.path.realpath(sysconfig.get_path("stdlib"))
        wanted = [name for name in _SYSTEM_FOLDERS if os.path.isdir(name)]
        wanted += [os.path.realpath(Path(sys.base_prefix, "lib")), stdlib]
        links = [(os.readlink(name), JAIL + name) for name in wanted if os.path.islink(name)]
        # The outermost folders are enough.
        real = sorted({name for name in wanted if os.path.isdir(name) and not os.path.islink(name)})
        folders = [name for name in real if not any(_is_inside(name, other) for other in real)]
        files = [interpreter()] + [_LINKER_CACHE] * os.path.isfile(_LINKER_CACHE)
        files = [name for name in files if not any(_is_inside(name, other) for other in folders)]
        devices = [name for name in _DEVICES if os.path.exists(name)]
        packages = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
        packages |= {os.path.join(stdlib, "site-packages")}
        packages |= {"/usr/lib/python3/dist-packages"}
        hidden = sorted(
            name
            for name in packages
            if os.path.isdir(name) and any(_is_inside(name, other) for other in folders)
        )
        return cls(_outer_links(links, folders, files) + links, folders, files, devices, hidden)


def _is_inside(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip("/") + "/")


def _outer_links(
    links: list[tuple[str, str]], folders: list[str], files: list[str]
) -> list[tuple[str, str]]:
    """Names by which the interpreter starts before it enters the jail, and still knows after."""
    inside = [*folders, *files, *(target.removeprefix(JAIL) for _, target in links)]
    tops = sorted({Path(path).parts[1] for path in inside})
    return [(f"{JAIL[1:]}/{top}", f"/{top}") for top in tops]
