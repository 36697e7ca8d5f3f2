"""Evaluations by hand that find their scores known: each command is a process."""

import csv
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import SCORE_STATION
from tests.evals.eval_line import make_line
from tests.evals.eval_tools import choice_rows, write_bundle

pytestmark = pytest.mark.e2e

APP = Path(__file__).with_name("by_hand_app.py")
SECONDS_ALLOWED = 120
TYPE = {"icl_task_type": "multiple_choice", "continuation_delimiter": " "}


class Shell:
    """Commands about one small model; with `torchless` a process that imports torch fails."""

    def __init__(self, root: Path) -> None:
        self.root, self.base = root, root / "base"
        self.line = make_line(root / "line")
        (root / "torchless").mkdir()
        (root / "torchless" / "torch.py").write_text("raise ImportError('torch is not for this')")
        self.environ = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "NANOCHAT_BASE_DIR": str(self.base),
        }
        self.environ.pop("NANOCHAT_STORE", None)

    def start(self, *arguments: str, torchless: bool = False) -> subprocess.Popen[str]:
        path = {"PYTHONPATH": str(self.root / "torchless")} if torchless else {}
        return subprocess.Popen(
            [sys.executable, str(APP), *arguments],
            env=self.environ | path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def __call__(self, *arguments: str, torchless: bool = False) -> str:
        process = self.start(*arguments, torchless=torchless)
        output, _ = process.communicate(timeout=SECONDS_ALLOWED)
        assert process.returncode == 0, output
        return output

    def core(self, bundle: Path, *arguments: str, torchless: bool = False) -> list[list[str]]:
        """The table of `nanochat eval core`."""
        output = self("eval", "core", *self.asked(bundle, *arguments), torchless=torchless)
        return [line.split() for line in output.splitlines() if line.startswith("task_")]

    def asked(self, bundle: Path, *arguments: str) -> tuple[str, ...]:
        named = ("--checkpoint", self.line["pretrain"], "--tokenizer", self.line["tokenizer"])
        return (*named, "--eval-bundle", str(bundle), "--device-type", "cpu", *arguments)

    @property
    def scores(self) -> list[str]:
        """Of each score in the store what was asked."""
        store = ArtifactStore(str(self.base))
        return [store.manifest(ref).recipe["kind"] for ref in store.list(SCORE_STATION)]


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    return Shell(tmp_path_factory.mktemp("shell"))


def children_seconds() -> float:
    """What processes that have ended have computed: unlike the clock, it knows no busy machine."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def table_of(output: str) -> list[list[str]]:
    """Below the names of the columns, and before the line about files."""
    lines = [line.split() for line in output.splitlines()]
    (head,) = (i for i, cells in enumerate(lines) if cells[:2] == ["benchmark", "asked"])
    return lines[head + 1 : -1]


def make_bundle(folder: Path, count: int, rows: int = 8) -> Path:
    folder.mkdir()
    tasks = [
        {"label": f"task_{i}", "num_fewshot": [i], "rows": choice_rows(rows), **TYPE}
        for i in range(count)
    ]
    write_bundle(folder, tasks)
    return folder


def test_the_second_time_core_is_a_table_without_torch(shell: Shell, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", 2)
    table = shell.core(bundle)
    assert [row[0] for row in table] == ["task_0", "task_1"]
    seconds_before = children_seconds()
    assert shell.core(bundle, torchless=True) == table
    assert children_seconds() - seconds_before < 2
    newest = sorted((shell.base / "by-hand" / "core").glob("*/result-*"))[-1]
    with (newest / "core.csv").open(newline="") as file:
        assert [row for row in csv.reader(file) if row[0].startswith("task_")] == table
    more = shell.core(make_bundle(tmp_path / "more", 3))
    assert more[:2] == table
    assert len(more) == 3
    assert shell.scores == ["core"] * 3
    output = shell("eval", "core", *shell.asked(bundle, "--fresh"))
    assert "known" not in output


def test_chat_evals_find_known_benchmarks(shell: Shell) -> None:
    named = ("--checkpoint", shell.line["sft"], "--tokenizer", shell.line["tokenizer"])
    asked = ("eval", "chat", *named, "-m", "4", "-x", "3", "--device-type", "cpu")
    before = shell(*asked, "-a", "sums")
    again = shell(*asked, "-a", "sums", torchless=True)
    assert "nothing was asked" in again
    tables = [table_of(output) for output in (before, again)]
    assert tables[0] == tables[1]
    assert [row[0] for row in tables[0]] == ["sums", "demo_score"]
    both = shell(*asked, "-a", "sums|SpellingBee")
    assert "sums known already" in both


def test_what_a_script_has_found_is_published_by_the_next_command(shell: Shell) -> None:
    named = ("--checkpoint", shell.line["sft"], "--tokenizer", shell.line["tokenizer"])
    asked = (*named, "-m", "4", "-x", "2", "--device-type", "cpu", "-a", "identity")
    before = len(shell.scores)
    script = [sys.executable, "-m", "flows.scripts.chat_eval", "--", *asked]
    done = subprocess.run(script, env=shell.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(shell.scores) == before
    assert "nothing was asked" in shell("eval", "chat", *asked, torchless=True)
    assert len(shell.scores) == before + 1


def test_a_killed_command_has_kept_what_was_finished(shell: Shell, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "long", 6, rows=400)
    before = len(shell.scores)
    process = shell.start("eval", "core", *shell.asked(bundle))
    deadline = time.monotonic() + SECONDS_ALLOWED
    while len(shell.scores) == before and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=SECONDS_ALLOWED)
    num_kept = len(shell.scores) - before
    assert num_kept >= 1
    shell.core(bundle)
    newest = sorted((shell.base / "by-hand" / "core").glob("*/result-*"))[-1]
    known = json.loads((newest / "outputs.json").read_bytes())["provenance"]["known_scores"]
    assert num_kept <= len(known) <= 6
    assert len(shell.scores) == before + 6
