"""The first step of a real pretrain job, compiled from nothing and from what the store has."""

import json
import logging
from pathlib import Path

import job_tools
import pytest
from job_tools import PRETRAIN, make_spec, run_ranks

from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.config.execution import Execution
from nanochat_core.config.job import METRICS_FILE, JobSpec
from tasks.kernel_archive import kernel_files
from tasks.kernel_cache import STATION, kernel_folder, shared_kernels

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

THIRD = 1 / 3
SECONDS_ALLOWED = 900


class Told:
    """What was said about kernels."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, str]] = []

    def __call__(self, level: int, line: str) -> None:
        self.lines.append((level, line))


def first_step_seconds(
    spec: JobSpec, store: ArtifactStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> float:
    """Run the job around which kernels are shared, on a machine whose caches lie in `root`."""
    told = Told()
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    with shared_kernels(store, spec.execution, told, root=root):
        # What `job_environment` does with the folder of the user.
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(kernel_folder(spec.execution, root)))
        done = run_ranks(spec)
        assert done.returncode == 0, done.stderr[-3000:]
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    assert [line for level, line in told.lines if level > logging.INFO] == []
    lines = (Path(spec.work_folder) / METRICS_FILE).read_text().splitlines()
    return float(json.loads(lines[0])["train/dt"])


def test_a_new_machine_starts_in_a_third_of_the_time_with_the_kernels_of_another(
    line: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_tools, "SECONDS_ALLOWED", SECONDS_ALLOWED)
    store = ArtifactStore(str(tmp_path / "store"))
    recipe = PRETRAIN.model_copy(update={"num_iterations": 2})
    seconds = {}
    for name in ("first", "second"):
        spec = make_spec(recipe, line, tmp_path / name, station="pretrain")
        execution = Execution.model_validate({**spec.execution.model_dump(), "compile": True})
        spec = spec.model_copy(update={"execution": execution})
        seconds[name] = first_step_seconds(spec, store, tmp_path / f"cache-{name}", monkeypatch)
    print(f"first step: cold {seconds['first']:.1f} s, with kernels {seconds['second']:.1f} s")  # noqa: T201
    assert seconds["second"] <= THIRD * seconds["first"], seconds
    (ref,) = store.list(STATION)
    assert ref.manifest == 1, "the second machine had nothing to add"
    folders = [kernel_folder(execution, tmp_path / f"cache-{name}") for name in seconds]
    assert set(kernel_files(folders[0])) == set(kernel_files(folders[1]))
