"""The far side of the sandbox: locks its own process in, then runs the program it was given.

Nobody imports this in the parent: `execution` compiles it and hands it, with the request, to a
fresh interpreter through stdin, so it needs no file inside the jail. It uses nothing but the
standard library. Everything here happens before the first line of the program, in the order of
`main`; whatever fails ends the process, and the program does not run.
"""

import ctypes
import os
import resource
import select
import signal
import sys
import types
from collections.abc import Mapping
from typing import Any, NoReturn

CANNOT_CONTAIN_EXIT_CODE = 125
"""The process could not be locked in; as docker and env say it of themselves."""

ORPHAN_SECONDS = 0.2
"""How long a program may go on after the process that runs it has died."""

# From the kernel's headers; the same numbers on every architecture.
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
MNT_DETACH = 2
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE = 442, -100, 0x8000
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV = 1, 2, 4
CAPABILITY_VERSION_3 = 0x20080522
NOBODY = 65534


def main(request: Mapping[str, Any]) -> NoReturn:
    """Lock this process in and run `request["program"]`; never returns."""
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        if request["tier"] == "namespaces":
            _enter_namespaces(request)
        if request["jail"]:
            # A process whose root is not the root of its mounts may not make user namespaces:
            # the way to fresh capabilities and unlimited tmpfs is closed without seccomp.
            os.chroot(request["jail"])
        os.chdir(request["folder"])
        os.umask(0o077)
        for name in ("PWD", "PYTHONHASHSEED"):  # what served to start this process
            os.environ.pop(name, None)  # noqa: TID251  nothing is read from it
        _give_up_privileges(request["uid"])
        _close_files(keep=request["report_fd"])
        _take_limits(request)
        if request["jail"]:
            _leave_init_behind(request["report_fd"])
        os.write(request["report_fd"], b"started\n")
    except BaseException as error:  # noqa: BLE001  said below, and the process ends
        os.write(2, f"sandbox: {type(error).__name__}: {error}\n".encode())
        os._exit(CANNOT_CONTAIN_EXIT_CODE)
    _run(request["program"], request["report_fd"])


def _run(program: str, report_fd: int) -> NoReturn:
    """Run the program, report how it went, and end without waiting for its threads."""
    this_process = os.getpid()
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.argv = ["program"]
    reason, code = "error", 1
    try:
        exec(compile(program, "<program>", "exec"), module.__dict__)
        reason, code = "ok", 0
    except SystemExit as error:
        # Its last line was not reached, so it has not passed, whatever code it gives.
        code = _exit_code(error.code)
    except BaseException as error:  # noqa: BLE001  a program may raise what it likes
        reason = "memory" if isinstance(error, MemoryError) else "error"
        _print_error(error)
    _flush(sys.stdout)
    _flush(sys.stderr)
    try:
        # A fork of the program that gets here must not speak for it.
        if os.getpid() == this_process:
            os.write(report_fd, reason.encode())
    finally:
        os._exit(code)


def _exit_code(code: Any) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    os.write(2, f"{code}\n".encode("utf-8", "replace"))
    return 1


def _print_error(error: BaseException) -> None:
    """The traceback from the program's own first frame on."""
    try:
        trace = error.__traceback__
        own = trace.tb_next if trace is not None else None
        sys.__excepthook__(type(error), error.with_traceback(own), own)
    except BaseException:  # noqa: BLE001, S110  without memory or stack it is reported all the same
        pass


def _flush(stream: Any) -> None:
    try:  # noqa: SIM105  importing contextlib would be a tenth of the start
        stream.flush()
    except BaseException:  # noqa: BLE001, S110  the program may close or replace it
        pass


def _give_up_privileges(uid: int | None) -> None:
    """Become `uid` if there is one, lose every capability, and never gain any again."""
    if uid is not None:
        os.setgroups([])
        _become(uid)
    if sys.platform == "linux":
        _give_up_capabilities()


def _give_up_capabilities() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    _check(libc.capset(header, nothing), "capset")
    _check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(no new privileges)")
    # Last, because a change of user clears it.
    _check(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl(parent death signal)")


def _become(uid: int) -> None:
    try:
        os.setgid(uid)  # of root: the real, effective and saved one, and so the next
        os.setuid(uid)
    except OSError:
        # A container can know fewer user ids than the kernel does; nobody exists in all of them.
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def _close_files(keep: int) -> None:
    """Leave stdout, stderr and the report open, and nothing to read from."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    highest = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    os.closerange(3, keep)
    os.closerange(keep + 1, min(highest, 1 << 16))


def _take_limits(request: Mapping[str, Any]) -> None:
    for name, most in request["limits"].items():
        number = getattr(resource, name, None)  # some systems do not have all of them
        if number is None:
            continue
        hard = resource.getrlimit(number)[1]
        if hard != resource.RLIM_INFINITY:
            most = min(most, hard)
        try:
            resource.setrlimit(number, (most, most))
        except (OSError, ValueError):
            if sys.platform == "linux":  # elsewhere the memory limits are refused
                raise


def _leave_init_behind(report_fd: int) -> None:
    """Return in a child; this process, the first of its namespace, collects the dead.

    Bubblewrap's own init would be one that the program may trace where both are the same user.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    # Nobody may trace or read it, and it has given up as much as the program.
    _check(libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "prctl(not dumpable)")
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    program = os.fork()
    if program == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        _check(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl(parent death signal)")
        return
    os.closerange(0, report_fd)
    # Whoever reads the report is the one that runs us. Its end has to be noticed here: bubblewrap
    # may not signal this process once it is another user's.
    reader = select.poll()
    reader.register(report_fd, 0)
    while not reader.poll(0):
        signal.sigtimedwait([signal.SIGCHLD], ORPHAN_SECONDS)
        child, status = os.waitpid(-1, os.WNOHANG)
        while child:
            if child == program:
                os._exit(_shell_code(status))  # and the kernel kills all others
            child, status = os.waitpid(-1, os.WNOHANG)
    os._exit(CANNOT_CONTAIN_EXIT_CODE)


# ---- the namespaces tier, Linux only


def _enter_namespaces(request: Mapping[str, Any]) -> None:
    """Return in the first process of new namespaces, with the jail built; its parent waits."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    uid, gid = os.geteuid(), os.getegid()
    flags = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
    if request["user_namespace"]:
        flags |= CLONE_NEWUSER
    _check(libc.unshare(flags), "unshare")
    if request["user_namespace"]:
        _map_user(uid, gid)
    _build_jail(libc, request)
    init = os.fork()
    if init:
        _wait_outside(init, request["info_fd"], request["report_fd"])


def _map_user(uid: int, gid: int) -> None:
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{NOBODY} {uid} 1"),
        ("gid_map", f"{NOBODY} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def _wait_outside(init: int, info_fd: int, report_fd: int) -> NoReturn:
    """Tell who to kill, and end when the last process of the namespace has."""
    os.write(info_fd, b'{"child-pid": %d}' % init)
    for number in (0, 1, 2, info_fd, report_fd):
        os.close(number)
    os._exit(_shell_code(os.waitpid(init, 0)[1]))


def _shell_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _build_jail(libc: ctypes.CDLL, request: Mapping[str, Any]) -> None:
    """Make a tree of read-only views and one small private folder, and forget everything else."""
    _mount(libc, None, "/", None, MS_REC | MS_PRIVATE)
    _mount(libc, "tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    os.mkdir("/tmp/host")
    _check(libc.pivot_root(b"/tmp", b"/tmp/host"), "pivot_root")
    os.chdir("/")
    jail = request["jail"]
    for source, target in request["links"]:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.symlink(source, target)
    for source in request["folders"]:
        os.makedirs(jail + source, exist_ok=True)
        _bind(libc, "/host" + source, jail + source, ATTR_NODEV)
    for source in request["files"]:
        os.makedirs(os.path.dirname(jail + source), exist_ok=True)
        with open(jail + source, "x"):
            pass
        is_device = source.startswith("/dev/")
        _bind(libc, "/host" + source, jail + source, 0 if is_device else ATTR_NODEV)
    for target in request["hidden"]:
        _mount(libc, "tmpfs", jail + target, "tmpfs", MS_NOSUID | MS_NODEV, "size=4k,mode=755")
        _make_read_only(libc, jail + target, 0)
    os.makedirs(jail + request["folder"], exist_ok=True)
    size, inodes = request["folder_bytes"], request["folder_files"]
    options = f"size={size},nr_inodes={inodes},mode=1777"
    _mount(libc, "tmpfs", jail + request["folder"], "tmpfs", MS_NOSUID | MS_NODEV, options)
    _check(libc.umount2(b"/host", MNT_DETACH), "umount2")
    os.rmdir("/host")
    _make_read_only(libc, "/", 0)


def _bind(libc: ctypes.CDLL, source: str, target: str, attributes: int) -> None:
    _mount(libc, source, target, None, MS_BIND | MS_REC)
    _make_read_only(libc, target, attributes, AT_RECURSIVE)


def _make_read_only(libc: ctypes.CDLL, target: str, attributes: int, flags: int = 0) -> None:
    # One call for a whole tree of mounts, and it never touches a flag that the host has locked.
    change = (ctypes.c_uint64 * 4)(ATTR_RDONLY | ATTR_NOSUID | attributes, 0, 0, 0)
    code = libc.syscall(
        ctypes.c_long(SYS_MOUNT_SETATTR),
        ctypes.c_long(AT_FDCWD),
        target.encode(),
        ctypes.c_long(flags),
        change,
        ctypes.c_long(ctypes.sizeof(change)),
    )
    _check(code, f"mount_setattr({target})")


def _mount(
    libc: ctypes.CDLL, source: str | None, target: str, kind: str | None, flags: int, data: str = ""
) -> None:
    code = libc.mount(
        source.encode() if source else None,
        target.encode(),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        data.encode() if data else None,
    )
    _check(code, f"mount({source}, {target})")


def _check(code: int, call: str) -> None:
    if code != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
