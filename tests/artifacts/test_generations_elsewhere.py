"""In-progress folders of several hosts that share a store elsewhere."""

from pathlib import Path
from uuid import uuid4

import pytest
from store_tools import OUTPUT, fill, make_request

from nanochat_core.artifacts.filesystems import MemoryFiles
from nanochat_core.artifacts.generations import remove_whole
from nanochat_core.artifacts.store import ArtifactStore

STEP = "work/checkpoints/step-00000001-00000000"


@pytest.fixture
def hosts(tmp_path: Path) -> tuple[ArtifactStore, ArtifactStore]:
    """One store as two hosts see it."""
    url = f"memory://{uuid4().hex}"
    first, second = (ArtifactStore(url, cache_folder=tmp_path / name) for name in "ab")
    return first, second


def put_step(store: ArtifactStore, folder: Path) -> str:
    """What the task of a stage copies of its checkpoints; returns where to."""
    place = store.stored_generation(make_request(), folder)
    store.files.write(f"{place}/{STEP}/rank-000-of-001.safetensors", b"weights")
    store.files.write(f"{place}/{STEP}/manifest.json", b"{}")
    return place


def test_another_host_goes_on_in_a_folder_of_the_same_name(
    hosts: tuple[ArtifactStore, ArtifactStore],
) -> None:
    first, second = hosts
    second.generation(make_request())
    first.generation(make_request())
    folder = first.generation(make_request(), fresh=True)
    put_step(first, folder)
    assert second.generation(make_request()).name == folder.name == "000001-002"
    siblings = list(second.generation(make_request()).parent.iterdir())
    assert [path.name for path in siblings] == ["000001-002"]


def test_a_fresh_one_removes_what_other_hosts_have_put_there(
    hosts: tuple[ArtifactStore, ArtifactStore],
) -> None:
    first, second = hosts
    put_step(first, first.generation(make_request()))
    assert second.generation(make_request(), fresh=True).name == "000001-002"
    assert second.files.infos("inprogress") == {}


def test_publishing_ends_what_is_in_progress_here_and_in_the_store(
    hosts: tuple[ArtifactStore, ArtifactStore], tmp_path: Path
) -> None:
    first, second = hosts
    put_step(first, first.generation(make_request()))
    folder = second.generation(make_request())
    second.publish(make_request(), fill(tmp_path / "made"), OUTPUT)
    assert second.generation(make_request()).name == "000002-001"
    assert second.files.infos("inprogress") == {}
    put_step(second, folder)
    second.discard_generations(make_request())
    assert second.files.infos("inprogress") == {}
    assert not folder.parent.exists()


def test_a_host_that_comes_back_clears_what_it_had_in_progress(
    hosts: tuple[ArtifactStore, ArtifactStore], tmp_path: Path
) -> None:
    first, second = hosts
    left = first.generation(make_request())
    second.publish(make_request(), fill(tmp_path / "made"), OUTPUT)
    with second.lock("pretrain", make_request().fingerprint):
        first.clear_leftovers(make_request())
        assert left.exists(), "taken from under a maker at work"
    first.clear_leftovers(make_request())
    assert not left.exists()


class Recording(MemoryFiles):
    """Notes in which order things are removed."""

    def remove(self, path: str) -> None:
        self.removed = [*getattr(self, "removed", []), path]
        super().remove(path)


def test_what_makes_a_step_whole_is_removed_first() -> None:
    files = Recording(f"memory://{uuid4().hex}")
    files.write("inprogress/a/rank.safetensors", b"weights")
    files.write("inprogress/a/manifest.json", b"{}")
    remove_whole(files, "inprogress/a")
    assert files.removed == ["inprogress/a/manifest.json", "inprogress/a"]
    assert files.infos("inprogress") == {}
