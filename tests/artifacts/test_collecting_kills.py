"""A collection that is killed leaves a sound store."""

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from collecting_tools import NOTHING_BUT_ALIASES, assert_whole, collect
from family_tools import age, digests, everything, make_family
from store_tools import open_store

from nanochat_core.artifacts.ancestry import Ancestry
from nanochat_core.artifacts.collecting import plan_collection
from nanochat_core.artifacts.local_files import LocalFiles
from nanochat_core.artifacts.records import Manifests
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.sweeping import sweep


class Killed(BaseException):
    """In place of SIGKILL."""


@pytest.mark.parametrize("seed", range(3))
def test_collecting_that_ends_after_any_removal_leaves_a_sound_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Every step that changes the store may be the last one."""
    template = open_store("local", tmp_path / "template")
    for i in range(2):
        family = make_family(template, tmp_path / "made", seed=i, size=40)
    template.set_alias("latest", family["sft"])
    for steps in range(seed, 30, 3):
        place = tmp_path / str(steps)
        shutil.copytree(template.url, place)
        store = ArtifactStore(str(place))
        if collect_some(store, steps, monkeypatch):
            break
        assert_whole(store)
        assert_lineages_whole(store)
    collect(store)
    assert_whole(store)
    assert len(store.list()) == 5


def collect_some(store: ArtifactStore, steps: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Collect until so many removals were done; whether it came to the end."""
    remove, count = LocalFiles.remove, []

    def remove_or_die(self: LocalFiles, path: str) -> None:
        if len(count) == steps:
            raise Killed
        count.append(path)
        remove(self, path)

    with monkeypatch.context() as patched:
        patched.setattr(LocalFiles, "remove", remove_or_die)
        try:
            sweep(store, plan_collection(store, NOTHING_BUT_ALIASES), lambda one, why: None)
        except Killed:
            return False
    return True


def assert_lineages_whole(store: ArtifactStore) -> None:
    ancestry = Ancestry(Manifests(store.files))
    ancestry.closure(store.list())
    assert ancestry.missing == []


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_collecting_that_is_killed_at_any_moment_leaves_a_sound_store(
    tmp_path: Path, seed: int
) -> None:
    store = ArtifactStore(str(tmp_path / "store"))
    kept = make_family(store, tmp_path / "made")
    store.set_alias("latest", kept["sft"])
    for i in range(1, 7):
        make_family(store, tmp_path / "made", seed=i, size=400)
    age(store, 3)
    script = (
        "import sys; from nanochat_core.artifacts.store import ArtifactStore as S;"
        "from nanochat_core.artifacts.collecting import *;"
        "from nanochat_core.artifacts.sweeping import sweep;"
        "s = S(sys.argv[1]); c = plan_collection(s, Keeping(runs=0, young_seconds=0));"
        "print('found', flush=True); sweep(s, c, lambda one, why: None); print('done', flush=True)"
    )
    moments, kills = random.Random(seed), 0
    for _ in range(12):
        process = subprocess.Popen(
            [sys.executable, "-c", script, store.url], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"found\n"
        time.sleep(moments.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        is_done = process.stdout.read() == b"done\n"
        process.wait()
        process.stdout.close()
        assert_whole(store)
        assert_lineages_whole(store)
        if is_done:
            break
        kills += 1
    collect(store)
    assert kills >= 1
    assert set(digests(store)) == {(ref.station, ref.fingerprint) for ref in kept.values()}
    named = {store.manifest(ref).attempt for ref in store.list()}
    assert len(everything(store)) == 1 + 4 * len(named)
