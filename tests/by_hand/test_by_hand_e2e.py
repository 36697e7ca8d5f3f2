"""The commands for real, on a line in miniature: each a process, as people start it."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nanochat_core import supervise
from nanochat_core.inference import CheckpointManager, InferenceEngine
from tests.jobs.job_tools import make_line

pytestmark = pytest.mark.e2e

APP = Path(__file__).with_name("by_hand_app.py")
SECONDS_ALLOWED = 240
SMALL = (
    *("--depth", "2", "--aspect_ratio", "16", "--head-dim=16", "--max_seq_len=64"),
    *("--total-batch-size", "128", "--device-batch-size", "2", "--eval-every", "-1"),
    *("--set", "data.max_epochs=8", "--set", "data.block_shards=1", "--set", "compile=false"),
    *("--warmup-steps=2", "--run", "dummy"),
)


class Shell:
    """Runs commands with a store and an output folder of their own."""

    def __init__(self, root: Path) -> None:
        self.root, self.base = root, root / "base" / "by-hand"
        self.line = make_line(root / "line")
        self.environ = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "NANOCHAT_BASE_DIR": str(root / "base"),
        }
        self.environ.pop("NANOCHAT_STORE", None)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(APP), *arguments],
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def __call__(self, *arguments: str, code: int = 0) -> str:
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=SECONDS_ALLOWED)
        assert process.returncode == code, output
        return output

    def pretrain(self, *arguments: str, code: int = 0) -> str:
        given = ("--tokens", self.line["tokens"], *SMALL, *arguments)
        return self("train", "pretrain", *given, code=code)

    def metrics(self, kind: str, tag: str) -> list[dict[str, float]]:
        lines = (self.base / kind / tag / "work" / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A base model of four steps, `d2`."""
    made = Shell(tmp_path_factory.mktemp("shell"))
    made.pretrain("--num-iterations", "4", "--sample-every=2", "--core-metric-every=4")
    return made


def test_pretraining_leaves_a_model_that_answers(shell: Shell) -> None:
    model, config = CheckpointManager(shell.base / "pretrain" / "d2", device="cpu").load()
    assert config["training"]["num_iterations"] == 4
    assert isinstance(InferenceEngine(model).generate("ka lo", max_new_tokens=4), str)
    scored = [
        values["step"] for values in shell.metrics("pretrain", "d2") if "demo_score" in values
    ]
    assert scored == [4]


def test_the_same_command_again_has_nothing_to_do(shell: Shell) -> None:
    same = ("--num-iterations", "4", "--sample-every=2", "--core-metric-every=4")
    assert "finished already" in shell.pretrain(*same)


def test_another_recipe_under_the_same_tag_is_refused(shell: Shell) -> None:
    output = shell.pretrain("--num-iterations", "5", code=2)
    assert "num_iterations: 4 there, 5 now" in output
    assert "--overwrite" in output


def test_fine_tuning_and_evaluating_by_tag(shell: Shell) -> None:
    parts = (
        "mixture.parts.0.conversations=20",
        "mixture.parts.1.conversations=20",
        "compile=false",
    )
    shell(
        *("train", "sft", "--model-tag", "d2", "--num-iterations", "3", "--init-lr-frac", "0.5"),
        *(word for part in (*parts, "compile=false") for word in ("--set", part)),
    )
    assert (shell.base / "sft" / "d2" / "model-000001" / "tokenizer" / "tokenizer.json").is_file()
    output = shell("eval", "chat", "-i", "sft", "-g", "d2", "-x", "4", "-m", "4")
    assert "identity" in output
    assert "sums" in output


def test_bits_per_byte(shell: Shell) -> None:
    output = shell("eval", "bpb", "--checkpoint", "pretrain/d2", "--eval-tokens", "1000")
    scores = json.loads((shell.base / "bpb" / "d2" / "result-000001" / "scores.json").read_bytes())
    assert f"{scores['val/bpb']:.4f} bits per byte" in output
    assert scores["tasks"] == {}


def test_core_prints_a_table_and_writes_csv(shell: Shell) -> None:
    output = shell("eval", "core", "--checkpoint", "pretrain/d2", "--max-per-task", "3")
    table = [line.split() for line in output.splitlines() if line.startswith("heldout_")]
    place = shell.base / "core" / "d2" / "result-000001" / "core.csv"
    with place.open(newline="") as file:
        rows = list(csv.reader(file))
    assert table == [row for row in rows if row[0].startswith("heldout_")]
    assert "demo_score" in output


def test_core_of_an_official_bundle(shell: Shell) -> None:
    data = os.environ.get("NANOCHAT_TEST_DATA")
    if not data or not Path(data, "core_bundle").is_dir():
        pytest.skip("NANOCHAT_TEST_DATA names no folder with core_bundle")
    given = ("--eval-bundle", str(Path(data, "core_bundle")), "--max-per-task", "12")
    output = shell("eval", "core", "--checkpoint", "pretrain/d2", *given)
    for label in ("arc_easy", "copa", "openbook_qa", "winograd", "bigbench_operators"):
        assert any(line.startswith(f"{label} ") for line in output.splitlines())


def test_ctrl_c_saves_and_the_same_command_continues(shell: Shell) -> None:
    arguments = ("--tokens", shell.line["tokens"], *SMALL, "--num-iterations", "60")
    long = ("train", "pretrain", *arguments, "--model-tag", "long", "--set", "log_every=1")
    process = shell.start(*long)
    work = shell.base / "pretrain" / "long" / "work"
    deadline = time.monotonic() + SECONDS_ALLOWED
    while not (work / "progress.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=SECONDS_ALLOWED)
    assert process.returncode == 130, output
    assert not supervise.marked_processes(str(work.resolve()))
    (checkpoint,) = (work / "checkpoints").iterdir()
    step = int(checkpoint.name.split("-")[1])
    assert 0 < step < 60
    assert f"resumed after step {step}" in shell(*long, "--resume-from-step", str(step))
    steps = [values["step"] for values in shell.metrics("pretrain", "long")]
    assert steps == list(range(1, 61))


@pytest.mark.parametrize("name", ["base_train", "chat_sft", "chat_rl", "base_eval", "chat_eval"])
def test_every_script_of_the_reference_is_there(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"flows.scripts.{name}", "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "--model-tag" in done.stdout


def test_a_folder_that_is_no_base_model_is_refused(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    output = shell("train", "sft", "--checkpoint", str(tmp_path), code=2)
    assert "cannot be read as the description of a model" in output
