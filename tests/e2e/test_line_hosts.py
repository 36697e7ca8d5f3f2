"""A run that ends on one host and goes on on another, which share a bucket and nothing else."""

import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest
from line_tools import Command, Line, Uninterrupted, states

from nanochat_core.artifacts.store import ArtifactStore

pytestmark = [pytest.mark.e2e, pytest.mark.s3, pytest.mark.xdist_group("tiny-line")]

BEFORE_PRETRAIN = ("shards", "tokenizer", "tokens")
EVERY_STEP = ("--set", "pretrain.checkpoint_every=1", "--stop-after", "pretrain")


def copy_to_bucket(line: Line, store: ArtifactStore) -> None:
    """What comes before pretraining: finished artifacts look alike in every store."""
    for station in BEFORE_PRETRAIN:
        for path in sorted((line.store_folder / station).rglob("*")):
            if path.is_file():
                name = path.relative_to(line.store_folder).as_posix()
                store.files.put(path, name, share=True)


def start(url: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """A host is a home folder of its own."""
    monkeypatch.setenv("HOME", str(home))
    return Command(["run", "tiny", "--store", url, *EVERY_STEP], str(home / "prefect"))


def steps_here(home: Path) -> list[int]:
    """Whole steps in the in-progress folder of a host."""
    pattern = ".cache/*/stores/*/inprogress/pretrain/*/*/*/checkpoints/step-*/manifest*"
    # Folders that are pruned meanwhile are gone when they are entered.
    with suppress(FileNotFoundError):
        return sorted(int(path.parent.name[5:13]) for path in home.glob(pattern))
    return []


def steps_in_bucket(store: ArtifactStore) -> list[int]:
    parts = [path.split("/") for path in store.files.infos("inprogress/pretrain")]
    return sorted(int(path[-2][5:13]) for path in parts if path[-1] == "manifest.json")


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.long)]
)
def test_another_host_ends_with_the_same_bytes(
    uninterrupted: Uninterrupted,
    s3_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    store = ArtifactStore(s3_url, cache_folder=tmp_path / "looking")
    copy_to_bucket(uninterrupted.line, store)
    first = start(s3_url, tmp_path / "a", monkeypatch)
    assert first.wait_for(lambda: max(steps_here(tmp_path / "a"), default=0) >= 5, 90), first.output
    if number == signal.SIGKILL:
        for rank in first.ranks():
            rank.suspend()
        assert first.wait_for(lambda: steps_in_bucket(store) != [], 90), first.output
        assert first.kill("group")
        first.wait(30)
    else:
        os.killpg(first.process.pid, number)
        assert first.wait(60) == 130, first.output
        assert steps_in_bucket(store)[-1] == steps_here(tmp_path / "a")[-1]
    first.seconds_until_gone()
    left = steps_in_bucket(store)[-1]
    assert "pretrain" not in [ref.station for ref in store.list()]
    second = start(s3_url, tmp_path / "b", monkeypatch)
    assert second.wait(240) == 0, second.output
    second.seconds_until_gone()
    assert states(second.output)["pretrain"] == "resumed"
    (base,) = store.list("pretrain")
    assert store.manifest(base).provenance["resumed_from_step"] == left
    assert base.digest == uninterrupted.digests["pretrain"]
    assert store.files.infos("inprogress") == {}
