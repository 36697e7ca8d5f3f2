"""The scripts of deploy/: shells accept them, and what they run are commands that we have."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from host_tools import environment, free_port, kill_all

from flows.by_hand.commands import train_app
from flows.join_command import join
from nanochat_core.inference import CheckpointManager
from tests.jobs.job_tools import make_line

DEPLOY = Path(__file__).parents[2] / "deploy"
SCRIPTS = sorted(path for path in DEPLOY.rglob("*") if path.suffix in (".sh", ".sbatch"))
RECORDER = (
    '#!/bin/sh\nfor word in "$@"; do printf "%s\\0" "$word"; done >"$RECORDS/${SLURM_NODEID:-0}"\n'
)
SRUN = """#!/bin/sh
while [ "${1#--}" != "$1" ]; do shift; done
SLURM_NODEID=0 "$@" && SLURM_NODEID=1 "$@"
"""
SCONTROL = '#!/bin/sh\n[ "$*" = "show hostnames node[07-08]" ] && printf "node07\\nnode08\\n"\n'


def app() -> typer.Typer:
    """The commands that the scripts use, as `nanochat` has them."""
    made = typer.Typer()
    made.add_typer(train_app, name="train")
    made.command()(join)
    return made


def parsed(words: list[str]) -> dict[str, Any]:
    """What our command line makes of these words; it raises for a flag that there is not."""
    command: Any = typer.main.get_command(app())
    while hasattr(command, "commands"):  # typer brings a click of its own
        command, words = command.commands[words[0]], words[1:]
    values: dict[str, Any] = command.make_context(command.name, list(words)).params
    return {name: value for name, value in values.items() if value}


def program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)


def commands_of(
    script: str, tmp_path: Path, *arguments: str, **variables: str
) -> list[dict[str, Any]]:
    """The parsed `nanochat` commands that a script runs, in order of machines."""
    programs, records = tmp_path / "bin", tmp_path / "records"
    for folder in (programs, records):
        folder.mkdir(parents=True)
    for name, text in (("nanochat", RECORDER), ("srun", SRUN), ("scontrol", SCONTROL)):
        program(programs, name, text)
    path = f"{programs}:{os.environ['PATH']}"
    environ = {**os.environ, **variables, "PATH": path, "RECORDS": str(records)}
    subprocess.run(["bash", str(DEPLOY / script), *arguments], env=environ, check=True)
    told = [path.read_text() for path in sorted(records.iterdir())]
    return [parsed(text.split("\0")[:-1]) for text in told]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shells_accept_the_scripts_and_people_can_run_them(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert os.access(script, os.X_OK)


def test_the_two_machines_mean_the_same_job(tmp_path: Path) -> None:
    place = {"SHARED": "/mnt/s", "RENDEZVOUS": "node01:29500", "RANKS": "4"}
    (first,) = commands_of("two-hosts/host0.sh", tmp_path / "0", "--fp8", **place)
    (second,) = commands_of("two-hosts/host1.sh", tmp_path / "1", SHARED="/mnt/s")
    assert (first["nnodes"], first["nproc_per_node"], first["depth"]) == (2, 4, 24)
    assert (first["rdzv_endpoint"], first["fp8"]) == ("node01:29500", True)
    job = str(Path(first["output"], "pretrain", first["model_tag"], "work", "job.json"))
    assert second["place"] == job
    assert second["rdzv_id"] == first["rdzv_id"]


def test_a_slurm_job_meets_at_its_first_machine(tmp_path: Path) -> None:
    slurm = {
        "SLURM_JOB_ID": "123456",
        "SLURM_JOB_NODELIST": "node[07-08]",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "8",
    }
    flags = ("--depth", "12", "--set", "data.max_epochs=2")
    first, second = commands_of("slurm/pretrain.sbatch", tmp_path, *flags, SHARED="/s", **slurm)
    assert first["rdzv_endpoint"] == "node07:23456"
    assert (first["nnodes"], first["nproc_per_node"], first["depth"]) == (2, 8, 12)
    assert first["set"] == ["grace_seconds=60", "data.max_epochs=2"]
    assert first["rdzv_id"] == second["rdzv_id"] == "123456"
    assert second["place"] == str(
        Path("/s/by-hand/pretrain", first["model_tag"], "work", "job.json")
    )


@pytest.mark.distributed
def test_the_two_scripts_train_a_model_together(tmp_path: Path) -> None:
    line = make_line(tmp_path / "line")
    code = (
        "import sys; from tests.distributed.test_deploy_scripts import app; sys.argv[0]='nanochat';"
        " app()()"
    )
    (tmp_path / "bin").mkdir()
    program(tmp_path / "bin", "nanochat", f'#!/bin/sh\nexec "{sys.executable}" -c "{code}" "$@"\n')
    root = str(Path(__file__).parents[2])
    environ = {
        **environment(),
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join((root, str(Path(__file__).parent))),
        "SHARED": str(tmp_path),
        "RENDEZVOUS": f"127.0.0.1:{free_port()}",
        "RANKS": "1",
        "DEPTH": "2",
    }
    small = "--aspect-ratio=16 --head-dim=16 --max-seq-len=64 --num-iterations=4 --eval-every=-1"
    batch = "--total-batch-size=512 --device-batch-size=2 --device-type=cpu --warmup-steps=2"
    data = f"--tokens {line['tokens']} --tokenizer {line['tokenizer']} --core-metric-every=-1"
    sets = "--set data.max_epochs=8 --set data.block_shards=1 --set compile=false"
    work = tmp_path / "by-hand" / "pretrain" / "two-hosts" / "work"
    commands = [["host1.sh"], ["host0.sh", *f"{small} {batch} {data} {sets}".split()]]
    processes = [
        subprocess.Popen(
            ["bash", str(DEPLOY / "two-hosts" / script), *arguments],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for script, *arguments in commands
    ]
    try:
        outputs = [process.communicate(timeout=100)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
        for mark in (str(work), f"{work} joined"):
            kill_all(mark)
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    assert "joining pretrain, start 1" in outputs[0]
    assert "rank 0 of 2 on cpu" in outputs[1]
    _, config = CheckpointManager(work.parent, device="cpu").load()
    assert config["training"]["num_iterations"] == 4
