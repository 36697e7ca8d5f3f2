"""The reference's own way of working, as the README shows it: read from there, and run."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat_core.inference import CheckpointManager
from tests.jobs.job_tools import make_line

ROOT = Path(__file__).parents[2]
SECONDS_ALLOWED = 240
TINY = (
    "--aspect-ratio=8 --head-dim=16 --max-seq-len=64 --num-iterations=2 --total-batch-size=512 "
    "--device-batch-size=2 --set data.max_epochs=8 --set data.block_shards=1 --set compile=false"
)


def example(name: str) -> str:
    """The code block behind `<!-- example: NAME -->` in the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"<!-- example: {name} -->\s*```\w*\n(.*?)```", text, re.DOTALL)
    assert found, f"README.md has no code block behind <!-- example: {name} -->"
    return found[1]


def run(command: list[str], environ: dict[str, str]) -> str:
    done = subprocess.run(
        command,
        env=environ,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS_ALLOWED,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.e2e
def test_the_examples_run_as_they_stand(tmp_path: Path) -> None:
    line = make_line(tmp_path / "line")
    environ = {**os.environ, "NANOCHAT_BASE_DIR": str(tmp_path / "base"), "OMP_NUM_THREADS": "1"}
    environ.pop("NANOCHAT_STORE", None)
    program, *arguments = shlex.split(example("torchrun"))
    assert program == "torchrun"
    torchrun = str(Path(sys.executable).with_name(program))
    smaller = [*shlex.split(TINY), "--tokens", line["tokens"]]
    output = run([torchrun, *arguments, *smaller], environ)
    assert "rank 1 of 2" in output
    made = tmp_path / "base" / "by-hand" / "pretrain" / "d4"
    model, config = CheckpointManager(made, device="cpu").load()
    assert (config["model"]["n_layer"], model.config.n_embd) == (4, 32)
    assert run([sys.executable, "-c", example("load")], environ).strip("\n") != ""
