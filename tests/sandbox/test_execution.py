"""What a run says, and that none ever hangs, mixes with another or leaves anything."""

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from nanochat_core.errors import JobLostError, WeakSandboxError
from nanochat_core.sandbox import leftovers, selftest, tiers
from nanochat_core.sandbox.execution import Sandbox, SandboxLimits
from nanochat_core.sandbox.tiers import Tier, Way


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return Sandbox.open(allow_weak=True)


def test_a_program_that_reaches_its_last_line_has_passed(sandbox: Sandbox) -> None:
    result = sandbox.run("print(6 * 7)")
    assert (result.stdout, result.stderr, result.exit_code, result.reason) == ("42\n", "", 0, "ok")
    assert result.passed
    assert 0 < result.seconds < 5


@pytest.mark.parametrize(
    ("code", "reason", "exit_code"),
    [
        ("assert 1 + 1 == 3", "error", 1),
        ("raise SystemExit(3)", "error", 3),
        ("import sys; sys.exit(0)", "error", 0),
        ("def f(:", "error", 1),
        ("x = bytearray(1 << 30)", "memory", 1),
        ("import os; os.kill(os.getpid(), 11)", "killed", 139),
        ("print('x' * 1_000_000)", "output", 137),
    ],
)
def test_a_program_that_does_not_has_a_reason(
    sandbox: Sandbox, code: str, reason: str, exit_code: int
) -> None:
    result = sandbox.run(code)
    assert (result.reason, result.passed) == (reason, False)
    assert reason == "output" or result.exit_code == exit_code


def test_an_error_shows_the_lines_of_the_program_only(sandbox: Sandbox) -> None:
    result = sandbox.run("def f():\n    1 / 0\nf()\n")
    assert "ZeroDivisionError" in result.stderr
    assert [line for line in result.stderr.splitlines() if "File" in line] == [
        '  File "<program>", line 3, in <module>',
        '  File "<program>", line 2, in f',
    ]


def test_time_is_up_when_it_is_up(sandbox: Sandbox) -> None:
    start = time.monotonic()
    result = sandbox.run("print(1, flush=True)\nwhile True: pass", limits=SandboxLimits(0.2))
    assert (result.reason, result.stdout) == ("timeout", "1\n")
    assert 0.2 <= result.seconds < 3
    assert time.monotonic() - start < 6


def test_output_is_cut_at_its_limit(sandbox: Sandbox) -> None:
    limits = SandboxLimits(output_bytes=1000)
    result = sandbox.run("import os; os.write(2, b'y' * 10)\nprint('x' * 5000)", limits=limits)
    assert (result.reason, result.stdout, result.stderr) == ("output", "x" * 1000, "y" * 10)


def test_any_text_gets_in_and_out(sandbox: Sandbox) -> None:
    text = "Schön \U0001f642 \u4f60\u597d"
    assert sandbox.run(f"# {text}\nprint({text!r})").stdout == text + "\n"
    assert sandbox.run("import os; os.write(1, b'\\xff')").stdout == "\ufffd"
    large = "x" * 300_000
    assert sandbox.run(f"print(len({large!r}))").stdout == "300000\n"


def test_a_program_that_nobody_can_encode_is_only_an_error(sandbox: Sandbox) -> None:
    assert sandbox.run("print('\ud800')").reason == "error"


def test_the_standard_library_is_there(sandbox: Sandbox) -> None:
    names = "collections, datetime, decimal, hashlib, heapq, itertools, json, math, random, re"
    assert sandbox.run(f"import {names}, statistics, string, typing").passed


def test_a_program_sees_no_environment_no_input_and_an_empty_folder(sandbox: Sandbox) -> None:
    os.environ["OUR_SECRET"] = "x"
    code = """
        import os, sys
        assert not set(os.environ) - {"LANG", "NANOCHAT_SANDBOX"}, os.environ
        assert sys.stdin.read() == "" and os.listdir(".") == [] and sys.argv == ["program"]
        open("written", "w").write("x")
        print(__name__)
    """
    try:
        results = [sandbox.run(textwrap.dedent(code)) for _ in range(2)]
    finally:
        del os.environ["OUR_SECRET"]
    assert [(result.stdout, result.stderr) for result in results] == [("__main__\n", "")] * 2


def test_the_order_of_a_set_is_the_same_in_every_run(sandbox: Sandbox) -> None:
    programs = ["print({str(n) for n in range(20)})"] * 2
    assert len({sandbox.run(program).stdout for program in programs}) == 1


def test_threads_may_run_programs_at_once(sandbox: Sandbox) -> None:
    with ThreadPoolExecutor(4) as pool:
        programs = [f"print({n}); open('f', 'x')" for n in range(12)]
        results = list(pool.map(sandbox.run, programs))
    assert [result.stdout for result in results] == [f"{n}\n" for n in range(12)]
    assert all(result.passed for result in results)


def test_nothing_of_a_run_is_left(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    sandbox.run("1")
    files, threads = psutil.Process().num_fds(), threading.active_count()
    for code in ("print(1)", "1 / 0", "import os; os.fork()", "print('x' * 10**6)"):
        sandbox.run(code)
    assert psutil.Process().num_fds() == files
    assert threading.active_count() == threads
    assert [child.name() for child in psutil.Process().children() if "python" in child.name()] == []
    assert list(tmp_path.iterdir()) == []


def test_where_only_limits_hold_somebody_has_to_allow_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers, "ways", lambda: iter([]))
    with pytest.raises(WeakSandboxError, match=r"install bubblewrap .* or pass --allow-weak"):
        Sandbox.open(allow_weak=False)
    weak = Sandbox.open(allow_weak=True)
    assert weak.tier == "limits"
    assert weak.run("print(1)").passed


def test_a_tier_that_starts_but_does_not_hold_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers, "ways", lambda: iter([Way("limits")]))
    with pytest.raises(WeakSandboxError, match="limits does not hold: error, not held back: "):
        Sandbox.open(allow_weak=False)


def test_a_broken_bubblewrap_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho no permission >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(tiers.shutil, "which", lambda name: str(broken))
    with pytest.raises(JobLostError, match="no permission"):
        Sandbox(Way("bubblewrap")).run("print(1)")
    assert Sandbox.open(allow_weak=True).tier != "bubblewrap"


def test_a_folder_is_removed_however_it_was_left(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o555)
    (outside / "file").touch() if os.geteuid() == 0 else None
    folder = tmp_path / "folder"
    (folder / "a" / "b" / "c").mkdir(parents=True)
    (folder / "a" / "link").symlink_to(outside)
    (folder / "link").symlink_to(outside)
    (folder / "broken").symlink_to("nothing")
    for path in (folder / "a" / "b", folder / "a", folder):
        path.chmod(0)
    leftovers.remove_folder(str(folder))
    assert not folder.exists()
    assert outside.stat().st_mode & 0o777 == 0o555


@pytest.mark.e2e
@pytest.mark.parametrize("tier", ["bubblewrap", "namespaces", "limits"])
def test_a_program_ends_with_the_process_that_runs_it(tier: Tier, tmp_path: Path) -> None:
    way = next((way for way in tiers.ways() if way.tier == tier), Way("limits"))
    if selftest.failure(Sandbox(way).run, way) and tier != "limits":
        pytest.skip(f"{tier} does not hold on this machine")
    code = f"""
        from nanochat_core.sandbox.execution import Sandbox
        from nanochat_core.sandbox.tiers import Way
        print("go", flush=True)
        Sandbox({way!r}).run("while True: pass")
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},  # limits alone leave a folder there
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"go\n"
        deadline = time.monotonic() + 20
        while not (below := psutil.Process(parent.pid).children(recursive=True)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.5)
        below = psutil.Process(parent.pid).children(recursive=True)
        parent.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(below, timeout=3)
    assert alive == []
