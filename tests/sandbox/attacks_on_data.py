"""Attacks on files and secrets, through the network, and on the sandbox itself."""

from tests.sandbox.hostile import Attack

FILES = [
    Attack("overwrites a file of ours", "expect_failure(open, CANARY, 'w')\n", (), "always"),
    Attack("deletes a file of ours", "expect_failure(os.remove, CANARY)\n", (), "always"),
    Attack(
        "deletes a folder of ours",
        "import shutil\nexpect_failure(shutil.rmtree, HOME)\n",
        escapes="always",
    ),
    Attack("writes next to our files", "expect_failure(open, HOME + '/made', 'w')\n", (), "always"),
    Attack(
        "writes to the temporary folder of the machine",
        "open('/tmp/' + MARK, 'w').write('harm')\n",
        escapes="always",
    ),
    Attack("writes to /etc", "write_to('/etc')\n", (), "perhaps"),
    Attack("writes to the root", "write_to('/')\n", (), "perhaps"),
    Attack("writes to the library", "write_to(os.path.dirname(os.__file__))\n", (), "perhaps"),
    Attack("writes to a home folder", "write_to(USER_HOME)\n", (), "always"),
    Attack("writes to the checkout", "write_to(CHECKOUT)\n", (), "perhaps"),
    Attack("reads a secret", "print(open(SECRET_FILE).read())\n", ["error"], "always"),
    Attack("lists our folder", "expect_failure(os.listdir, HOME)\n", (), "always"),
    Attack(
        "symlink out of its folder",
        """
os.symlink(CANARY, "link")
expect_failure(open, "link", "a")
open("link", "w").write("harm")
""",
        escapes="always",
    ),
    Attack(
        "symlinks to our folder, left for whoever cleans up",
        "os.symlink(HOME, 'link')\nos.mkdir('d')\nos.symlink(HOME, 'd/link')\nos.chmod('d', 0)\n",
    ),
    Attack(
        "puts a link to our folder in the place of its own",
        "here = os.getcwd()\nos.chdir('..')\nos.rmdir(here)\nos.symlink(HOME, here)\n",
    ),
    Attack("removes its own folder", "os.rmdir(os.getcwd())\n"),
    Attack(
        "hard link to a file of ours", "expect_failure(os.link, CANARY, 'link')\n", (), "perhaps"
    ),
    Attack(
        "escapes through a chroot",
        """
expect_failure(os.chroot, ".")
os.chdir("../" * 50)
expect_failure(open, CANARY[1:], "w")
""",
        escapes="always",
    ),
    Attack(
        "shared memory of ours",
        "open('/dev/shm/' + MARK, 'r+').write('harm')\n",
        ["error"],
        "always",
    ),
    Attack(
        "leaves shared memory",
        "open('/dev/shm/' + MARK + 'x', 'w').write('x')\n",
        ["error"],
        "always",
    ),
    Attack(
        "reads the disk",
        "expect_failure(os.mknod, 'disk', 0o60600, os.makedev(254, 0))\n",
    ),
]

SECRETS = [
    Attack(
        "reads its environment",
        "print(dict(os.environ))\nprint(libc().getenv(b'OUR_SECRET'))\n",
        ["ok"],
    ),
    Attack(
        "reads the environment of a process of ours",
        "print(open(f'/proc/{VICTIM}/environ').read())\n",
        ["error"],
        "perhaps",
    ),
    Attack(
        "reads the environment of every process",
        """
for name in os.listdir("/proc"):
    try:
        print(open(f"/proc/{name}/environ").read()[-300:])
    except OSError:
        pass
""",
        ["error"],
        "perhaps",
    ),
    Attack(
        "reads the parent's memory",
        """
with open(f"/proc/{PARENT}/mem", "rb", 0) as memory:
    memory.seek(ADDRESS)
    print(memory.read(32))
""",
        ["error"],
        "perhaps",
    ),
    Attack(
        "reads the parent's memory by system call",
        """
here = ctypes.create_string_buffer(32)
class Part(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
mine, theirs = Part(ctypes.addressof(here), 32), Part(ADDRESS, 32)
libc().process_vm_readv(PARENT, ctypes.byref(mine), 1, ctypes.byref(theirs), 1, 0)
print(here.raw)
""",
        ["ok"],
        "perhaps",
    ),
    Attack(
        "uses files that we have open",
        """
for number in range(3, 200):
    try:
        os.fstat(number)
        kind = os.readlink(f"/proc/self/fd/{number}") if os.path.exists("/proc/self") else "?"
    except OSError:
        continue
    try:
        print("BREACH" if os.read(number, 100) else "", number, kind)
    except OSError:
        pass
    os.write(number, b"") if number == OPEN_FILE else None
""",
        ["ok"],
    ),
    Attack(
        "looks for secrets among its own objects",
        """
frame = sys._getframe()
while frame is not None:
    print(list(frame.f_globals), {k: str(v)[:500] for k, v in frame.f_locals.items()})
    frame = frame.f_back
sys.settrace(lambda *a: print(a[0].f_code.co_filename) if a[1] == "call" else None)
print([o for o in gc.get_objects() if isinstance(o, dict) and "OUR_SECRET" in o])
""",
    ),
    Attack(
        "imports a package that reads credentials",
        """
sys.path += ["/usr/lib/python3/dist-packages", PACKAGES]
expect_failure(lambda: print(__import__("psutil").Process(PARENT).environ(), "BREACH"))
""",
        ["error"],
        "perhaps",
    ),
]

NETWORK = [
    Attack(
        "connects to a server",
        "expect_failure(socket.create_connection, ('127.0.0.1', TCP_PORT), 1)\n",
        escapes="always",
    ),
    Attack(
        "sends a datagram",
        "socket.socket(type=socket.SOCK_DGRAM).sendto(b'harm', ('127.0.0.1', UDP_PORT))\n",
        escapes="always",
    ),
    Attack(
        "connects to a unix socket",
        "expect_failure(socket.socket(socket.AF_UNIX).connect, UNIX_SOCKET)\n",
        escapes="always",
    ),
    Attack(
        "connects to an abstract socket",
        "expect_failure(socket.socket(socket.AF_UNIX).connect, chr(0) + MARK)\n",
        escapes="always",
    ),
    Attack(
        "knows the interfaces of the machine",
        "names = [name for _, name in socket.if_nameindex() if name != 'lo']\n"
        "print('BREACH' if names else '', names)\n",
        escapes="perhaps",
    ),
    Attack(
        "raw socket",
        "expect_failure(socket.socket, socket.AF_INET, socket.SOCK_RAW, 1)\n",
    ),
]

PRIVILEGES = [
    Attack("becomes root", "expect_failure(os.setuid, 0 if os.getuid() else 1)\n"),
    Attack(
        "mounts", "print('BREACH' if libc().mount(b'x', b'.', b'tmpfs', 0, None) == 0 else '')\n"
    ),
    Attack(
        "opens namespaces",
        """
for flag in (0x20000, 0x10000000, 0x20000000, 0x40000000):
    print("BREACH" if libc().unshare(flag) == 0 else "")
""",
        escapes="perhaps",
    ),
    Attack(
        "clones into a user namespace",
        """
number = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
pid = libc().syscall(number, ctypes.c_ulong(0x10000000 | 17), 0, 0, 0, 0)
if pid == 0:
    os._exit(0)
print("BREACH" if pid > 0 else "")
""",
        escapes="perhaps",
    ),
    Attack(
        "enters our namespaces",
        "print('BREACH' if libc().setns(os.pidfd_open(PARENT), 0x20000) == 0 else '')\n",
    ),
    Attack(
        "takes the last place for the memory killer",
        "expect_failure(open('/proc/self/oom_score_adj', 'w', buffering=1).write, '-1000\\n')\n",
    ),
    Attack("takes more than its share", "expect_failure(os.nice, -20)\n"),
    Attack("changes the host name", "expect_failure(socket.sethostname, 'harm')\n"),
    Attack(
        "changes the kernel",
        "expect_failure(open, '/proc/sys/kernel/core_pattern', 'a')\n",
        escapes="perhaps",
    ),
    Attack(
        "gets rights from a program",
        """
for name in ("/usr/bin/su", "/usr/bin/sudo", "/bin/mount", "/usr/bin/newuidmap"):
    if os.path.exists(name):
        print(subprocess.run([name, "--version"], capture_output=True).returncode)
print("BREACH" if libc().prctl(39, 0, 0, 0, 0) != 1 else "no new privileges")
""",
    ),
]

LIES = [
    Attack("exits with 0 before its end", "sys.exit(0)\nassert False\n", ["error"]),
    Attack("ends its process with 0", "os._exit(0)\nassert False\n", ["error"]),
    Attack("executes something that ends with 0", "os.execv(PYTHON, ['p', '-c', ''])\n", ["error"]),
    Attack(
        "fails, and its fork does not",
        "if os.fork():\n    time.sleep(0.1)\n    raise ValueError\n",
        ["error"],
    ),
    Attack(
        "fails in silence",
        "sys.stderr = None\nsys.excepthook = lambda *a: os._exit(0)\nraise ValueError\n",
        ["error"],
    ),
    Attack(
        "raises what cannot be caught by name",
        "class Hidden(BaseException):\n    pass\nraise Hidden\n",
        ["error"],
    ),
    Attack(
        "says that it has passed", "print('ok')\nos.write(2, b'started\\nok')\n1 / 0\n", ["error"]
    ),
    Attack("an error of its own grammar", "def f(:\n", ["error"]),
    Attack("a program with a null", "x = 1\0\n", ["error"]),
]
