"""What a run amounts to: the same if it was stopped and resumed, else it is said what differs."""

import random
import shutil
from pathlib import Path

import pytest
import typer
from job_tools import NUM_STEPS, PRETRAIN, make_spec
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from flows.cli import told
from flows.verify_resume_command import verify_resume
from nanochat_core.config.job import METRICS_FILE, JobSpec
from nanochat_core.distributed.ranks import Ranks
from nanochat_core.errors import CheckpointError, JobStoppedError
from nanochat_core.jobs import pretrain
from nanochat_core.jobs.common import StopRequest
from nanochat_core.jobs.training_run import CHECKPOINTS
from nanochat_core.jobs.verify_resume import NEXT_STEPS, Parts, describe_run
from nanochat_core.training.recipes import PretrainRecipe

SECONDS_ALLOWED = 600


class StopAfter(StopRequest):
    """Asks for a stop once so many steps are in the metrics."""

    def __init__(self, work: Path, steps: int) -> None:
        super().__init__()
        self.path, self.steps = work / METRICS_FILE, steps

    def __call__(self) -> bool:
        return len(self.path.read_text().splitlines()) >= self.steps


def trained(
    line: dict[str, str], folder: Path, *, stop_after: int = 0, recipe: PretrainRecipe = PRETRAIN
) -> JobSpec:
    """A finished run, which may have been stopped once and resumed."""
    spec = make_spec(recipe, line, folder, station="pretrain")
    spec.save(folder / "work" / "job.json")
    if stop_after:
        with pytest.raises(JobStoppedError):
            pretrain.main(spec, Ranks.single(), StopAfter(folder / "work", stop_after))
    pretrain.main(spec, Ranks.single(), StopRequest())
    return spec


@pytest.fixture(scope="module")
def two_runs(line: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two runs, one of which was stopped and resumed; nobody may change it."""
    folder = tmp_path_factory.mktemp("two")
    trained(line, folder / "straight")
    trained(line, folder / "interrupted", stop_after=3)
    return folder


def described(folder: Path) -> Parts:
    return describe_run(JobSpec.load(folder / "work" / "job.json"))


def moved(two_runs: Path, folder: Path) -> Path:
    """A copy of the second run, whose job knows its new place."""
    copy = folder / "copy"
    shutil.copytree(two_runs / "interrupted", copy)
    path = copy / "work" / "job.json"
    path.write_text(path.read_text().replace(str(two_runs / "interrupted"), str(copy)))
    return copy


def differing(left: Parts, right: Parts) -> dict[str, set[str]]:
    """Part -> names whose values differ."""
    return {
        part: names
        for part in left
        if (names := {n for n in left[part] if left[part][n] != right[part].get(n)})
    }


def test_a_run_that_was_stopped_and_resumed_amounts_to_the_same(
    two_runs: Path, one_thread: None
) -> None:
    straight, resumed = (described(two_runs / name) for name in ("straight", "interrupted"))
    assert straight == resumed
    assert straight["metrics lines"] == {f"step {n}": f"{n}" for n in range(1, NUM_STEPS + 1)}
    assert len(straight["next batches"]) == NEXT_STEPS
    assert len(straight["moments"]) > len(straight["weights"]) > 10


def test_a_run_from_other_weights_differs_in_all_but_its_rows(
    two_runs: Path, line: dict[str, str], tmp_path: Path, one_thread: None
) -> None:
    other = trained(line, tmp_path, recipe=PRETRAIN.model_copy(update={"seed": 1}))
    found = differing(described(two_runs / "straight"), describe_run(other))
    assert "next batches" not in found
    assert {"weights", "moments", "losses", "published files"} <= set(found)


def test_a_run_with_another_order_of_rows_differs_in_its_next_batches(
    two_runs: Path, line: dict[str, str], tmp_path: Path, one_thread: None
) -> None:
    order = PRETRAIN.data.model_copy(update={"seed": 1})
    other = trained(line, tmp_path, recipe=PRETRAIN.model_copy(update={"data": order}))
    found = differing(described(two_runs / "straight"), describe_run(other))
    assert len(found["next batches"]) == NEXT_STEPS


def test_one_other_number_in_the_published_weights_is_told(two_runs: Path, tmp_path: Path) -> None:
    copy = moved(two_runs, tmp_path)
    path = copy / "output" / "model.safetensors"
    tensors = load_file(path)
    tensors["x0_lambdas"][0] += 1e-6
    save_file(tensors, path)
    found = differing(described(two_runs / "straight"), described(copy))
    assert found == {"published files": {"model.safetensors"}}


def test_a_line_that_was_written_twice_is_told(two_runs: Path, tmp_path: Path) -> None:
    copy = moved(two_runs, tmp_path)
    path = copy / "work" / METRICS_FILE
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[4]]))
    found = differing(described(two_runs / "straight"), described(copy))
    assert found == {"metrics lines": {"step 5"}, "losses": {"step 5"}}


def test_a_flipped_byte_anywhere_in_the_last_checkpoint_is_told(
    two_runs: Path, tmp_path: Path
) -> None:
    choose = random.Random(0)
    copy = moved(two_runs, tmp_path)
    (newest,) = (copy / "work" / CHECKPOINTS).glob(f"step-{NUM_STEPS:08d}-*")
    for path in sorted(newest.iterdir()):
        whole = path.read_bytes()
        at = choose.randrange(len(whole))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(CheckpointError):
            described(copy)
        path.write_bytes(whole)
    described(copy)


@pytest.mark.e2e
def test_the_command_ends_with_1_when_the_runs_differ(two_runs: Path, tmp_path: Path) -> None:
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(told(verify_resume))
    same = CliRunner().invoke(app, ["--again", str(two_runs)])
    assert same.exit_code == 0, same.output
    assert "verdict: bit-identical" in same.output

    folder = tmp_path / "both"
    folder.mkdir()
    shutil.copytree(two_runs / "straight", folder / "straight")
    moved(two_runs, tmp_path).rename(folder / "interrupted")
    job = folder / "interrupted" / "work" / "job.json"
    job.write_text(job.read_text().replace(str(tmp_path / "copy"), str(folder / "interrupted")))
    path = folder / "interrupted" / "output" / "model.safetensors"
    tensors = load_file(path)
    tensors["x0_lambdas"][0] += 1e-6
    save_file(tensors, path)
    other = CliRunner().invoke(app, ["--again", str(folder)])
    assert other.exit_code == 1, other.output
    assert "verdict: the runs differ\n  published files: model.safetensors\n" in other.output


@pytest.mark.e2e
@pytest.mark.timeout(SECONDS_ALLOWED)
def test_the_command_kills_a_real_run_and_finds_it_bit_identical() -> None:
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(told(verify_resume))
    done = CliRunner().invoke(app, ["--device", "cpu", "--kills", "2"])
    assert done.exit_code == 0, done.output
    assert "killed: a rank at step" in done.output
    assert "everything at step" in done.output
    assert "resumed after step" in done.output
    assert "verdict: bit-identical" in done.output
