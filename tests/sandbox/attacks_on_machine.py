"""Attacks with processes and with everything that a machine has only so much of."""

from tests.sandbox.hostile import Attack

PROCESSES = [
    Attack(
        "fork bomb",
        """
children = 0
for _ in range(200):
    try:
        if os.fork() == 0:
            linger(10)
    except OSError:
        break
    children += 1
if children > 20:
    print("BREACH", children)
""",
        escapes="perhaps",
    ),
    Attack(
        "threads by the thousand",
        """
threads = 0
try:
    for _ in range(1000):
        threading.Thread(target=time.sleep, args=(10,), daemon=True).start()
        threads += 1
except RuntimeError:
    pass
if threads > 100:
    print("BREACH", threads)
""",
    ),
    Attack(
        "daemon: new session, two forks",
        """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        linger()
    os._exit(0)
time.sleep(0.05)
""",
    ),
    Attack(
        "daemon without our environment",
        """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        mark()
        code = f"import ctypes,time;ctypes.CDLL(None).prctl(15,b'{MARK}',0,0,0);time.sleep(30)"
        os.execve(PYTHON, ["python", "-I", "-S", "-c", code], {})
    os._exit(0)
time.sleep(0.1)
""",
        escapes="perhaps",
    ),
    Attack(
        "daemon that ignores every signal",
        """
if os.fork() == 0:
    os.setsid()
    for number in range(1, 32):
        try:
            signal.signal(number, signal.SIG_IGN)
        except OSError:
            pass
    linger()
time.sleep(0.05)
""",
    ),
    Attack(
        "multiprocessing",
        """
import multiprocessing
workers = [multiprocessing.Process(target=linger, daemon=False) for _ in range(3)]
for worker in workers:
    worker.start()
os._exit(0)
""",
    ),
    Attack(
        "kills a process of ours", "expect_failure(os.kill, VICTIM, signal.SIGKILL)\n", (), "always"
    ),
    Attack("signals the parent", "expect_failure(os.kill, PARENT, 0)\n", (), "always"),
    Attack(
        "signals everybody",
        # Not where we are among them: in a tier that does not hold, that would be the end.
        """
try:
    os.kill(PARENT, 0)
    print("BREACH")
except OSError:
    os.kill(-1, signal.SIGKILL)
""",
        escapes="always",
    ),
    Attack(
        "kills its own init",
        """
os.kill(1 if os.getpid() < 10 else os.getpid(), signal.SIGKILL)
time.sleep(0.05)
""",
    ),
    Attack(
        "traces its own init",
        "print('BREACH' if os.getpid() < 10 and libc().ptrace(16, 1, 0, 0) == 0 else '')\n",
    ),
    Attack("stops itself", "os.kill(os.getpid(), signal.SIGSTOP)\n", ["timeout"]),
    Attack(
        "traces a process of ours",
        """
if libc().ptrace(16, VICTIM, 0, 0) == 0:
    print("BREACH")
    os.waitpid(VICTIM, 0x40000000)
    libc().ptrace(17, VICTIM, 0, 0)
""",
        escapes="perhaps",
    ),
    Attack(
        "executes a shell",
        """
os.execv("/bin/sh", ["sh", "-c", "echo BREACH; echo harm > " + CANARY])
""",
        ["error"],
        escapes="always",
    ),
    Attack(
        "subprocess",
        """
expect_failure(subprocess.run, ["/bin/sh", "-c", "echo harm > " + CANARY])
""",
        escapes="always",
    ),
    Attack("os.system", "os.system('echo harm > ' + CANARY)\n", (), "always"),
    Attack("libc system", "libc().system(b'echo harm > ' + CANARY.encode())\n", (), "always"),
]

RESOURCES = [
    Attack("memory bomb, one block", "x = bytearray(900 << 20)\nprint('BREACH')\n", ["memory"]),
    Attack(
        "memory bomb, piece by piece",
        "x = []\nfor _ in range(900):\n    x.append(bytearray(1 << 20))\nprint('BREACH')\n",
        ["memory", "timeout"],
    ),
    Attack(
        "memory map bomb",
        "expect_failure(mmap.mmap, -1, 900 << 20)\n",
    ),
    Attack(
        "memory of a file without a name",
        """
try:
    files, written = [], 0
    for _ in range(40):
        files.append(os.memfd_create("x"))
        written += os.write(files[-1], b"x" * (24 << 20))
except OSError:
    pass
if written > 900 << 20:
    print("BREACH", written)
""",
    ),
    Attack(
        "leaves a shared memory segment",
        "print(libc().shmget(SEGMENT, 1 << 20, 0o1600))\n",
        ["ok"],
        "always",
    ),
    Attack("endless output", "while True:\n    print('x' * 1000)\n", ["output"]),
    Attack("endless stderr", "while True:\n    os.write(2, b'x' * 1000)\n", ["output"]),
    Attack("closes stdout and goes on", "os.close(1)\nwhile True:\n    pass\n", ["timeout"]),
    Attack("sleeps", "time.sleep(1000)\n", ["timeout"]),
    Attack("busy loop", "while True:\n    pass\n", ["timeout"]),
    Attack(
        "ignores every signal that can be",
        """
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while True:
    pass
""",
        ["timeout"],
    ),
    Attack(
        "alarm to outlive the limit",
        "signal.setitimer(signal.ITIMER_REAL, 100)\nsignal.pause()\n",
        ["timeout"],
    ),
    Attack(
        "catches everything",
        "while True:\n    try:\n        time.sleep(100)\n    except BaseException:\n        pass\n",
        ["timeout"],
    ),
    Attack(
        "blocks on a fifo",
        "os.mkfifo('fifo')\nopen('fifo').read()\n",
        ["timeout"],
    ),
    Attack("waits for input", "print(repr(sys.stdin.read()))\nassert input()\n", ["error"]),
    Attack(
        "huge file",
        """
with open("huge", "wb") as file:
    written = 0
    try:
        for _ in range(48):
            written += file.write(b"x" * (1 << 20))
    except OSError:
        pass
if written > 40 << 20:
    print("BREACH", written)
""",
    ),
    Attack(
        "many files",
        "for n in range(5000):\n    open(f'file{n}', 'w').close()\n",
    ),
    Attack(
        "deep folders that cannot be entered",
        """
home = os.getcwd()
for _ in range(600):
    os.mkdir("d")
    os.chdir("d")
os.chmod(".", 0)
os.chdir(home)
os.mkdir("locked")
os.mkdir("locked/inner")
os.chmod("locked", 0)
""",
    ),
    Attack(
        "many open files",
        "expect_failure(lambda: [open(os.devnull) for _ in range(2000)])\n",
    ),
    Attack(
        "raises its limits",
        """
import resource
expect_failure(resource.setrlimit, resource.RLIMIT_AS, (-1, -1))
expect_failure(resource.setrlimit, resource.RLIMIT_NPROC, (-1, -1))
expect_failure(resource.setrlimit, resource.RLIMIT_FSIZE, (1 << 40, 1 << 40))
""",
    ),
    Attack(
        "endless recursion",
        "def f():\n    f()\nf()\n",
        ["error"],
    ),
    Attack(
        "recursion without a limit",
        """
class A:
    def __repr__(self):
        return repr([self])
sys.setrecursionlimit(10**9)
repr(A())
""",
        ["killed", "error", "memory"],
    ),
    Attack("segmentation fault", "ctypes.string_at(0)\n", ["killed"]),
    Attack("abort", "os.abort()\n", ["killed"]),
    Attack("huge power", "x = 9 ** (9 ** 9)\nprint('BREACH')\n", ["timeout", "memory"]),
    Attack(
        "regular expression catastrophe",
        "import re\nre.match('(a+)+$', 'a' * 60 + 'b')\nprint('BREACH')\n",
        ["timeout"],
    ),
    Attack(
        "decompression bomb",
        """
import zlib
packer = zlib.compressobj(9)
small = b"".join(packer.compress(bytes(1 << 20)) for _ in range(600)) + packer.flush()
x = zlib.decompress(small)
print("BREACH", len(x))
""",
        ["memory", "timeout"],
    ),
    Attack(
        "program of a hundred thousand brackets",
        "eval('(' * 100_000 + ')' * 100_000)\n",
        ["error", "memory", "output"],
    ),
]
