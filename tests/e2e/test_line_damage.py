"""One byte flipped in any file of a real store is noticed by whoever uses that file next."""

import random
import time
from pathlib import Path

import pytest
from line_tools import END, Line, Uninterrupted, flip_file

from nanochat_core.artifacts.stamps import RACY_NANOSECONDS
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import Manifest
from nanochat_core.errors import DamagedFileError

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("tiny-line")]

POSITIONS = 100


class Damaged:
    """A copy of the finished store in which bytes are flipped one at a time."""

    def __init__(self, line: Line) -> None:
        self.folder, self.store = line.store_folder, ArtifactStore(str(line.store_folder))
        self.manifests = [self.store.manifest(ref) for ref in self.store.list()]
        self.digests = {manifest.ref for manifest in self.manifests}

    def files(self) -> list[Path]:
        """Every file that holds anything, but no stamp: these can only confirm what is sound."""
        paths = (path for path in self.folder.rglob("*") if path.is_file() and path.stat().st_size)
        return sorted(path for path in paths if not self.place(path).startswith("cache/"))

    def place(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def owner(self, place: str) -> Manifest:
        station, fingerprint, *_ = place.split("/")
        (found,) = (
            manifest
            for manifest in self.manifests
            if (manifest.station, manifest.fingerprint) == (station, fingerprint)
        )
        return found

    def check_is_noticed(self, place: str, caplog: pytest.LogCaptureFixture) -> None:
        folder, name = place.split("/", 1)
        caplog.clear()
        if folder == "runs":
            assert name.removesuffix(".json") not in self.store.runs()
        elif folder == "aliases":
            assert self.store.alias(name.removesuffix(".json")) is None
            with pytest.raises(DamagedFileError, match="Run the line again"):
                self.store.resolve(name.removesuffix(".json"))
        else:
            manifest = self.owner(place)
            assert self.store.lookup(manifest.request) is None
            with pytest.raises(DamagedFileError, match="damaged"):
                self.store.materialize(manifest.ref)
        assert place in caplog.text, "the reason is not in the log"

    def check_is_sound(self) -> None:
        found = {self.store.lookup(manifest.request) for manifest in self.manifests}
        assert found == self.digests


@pytest.fixture(scope="module")
def damaged(uninterrupted: Uninterrupted, tmp_path_factory: pytest.TempPathFactory) -> Damaged:
    line = uninterrupted.line.copy_until(END, tmp_path_factory.mktemp("damage"), records=True)
    return Damaged(line)


def test_a_flipped_byte_anywhere_is_noticed(
    damaged: Damaged, caplog: pytest.LogCaptureFixture
) -> None:
    choose = random.Random(2)
    files = damaged.files()
    kinds = {damaged.place(path).split("/")[0] for path in files}
    assert kinds >= {"aliases", "runs", "pretrain", "tokens"}
    # Every file once, then files drawn at random: small ones as often as large ones.
    chosen = [*files, *choose.choices(files, k=max(POSITIONS - len(files), 0))]
    for path in chosen:
        damaged.check_is_sound()
        content = path.read_bytes()
        flip_file(path, choose)
        damaged.check_is_noticed(damaged.place(path), caplog)
        path.write_bytes(content)
    damaged.check_is_sound()


def test_a_flipped_byte_of_a_stamp_changes_no_answer(damaged: Damaged) -> None:
    choose = random.Random(3)
    # Files that were written a moment ago get no stamp.
    time.sleep(2 * RACY_NANOSECONDS / 1e9)
    damaged.check_is_sound()
    stamps = sorted((damaged.folder / "cache").rglob("*.json"))
    assert stamps
    for stamp in choose.sample(stamps, k=min(10, len(stamps))):
        flip_file(stamp, choose)
    damaged.check_is_sound()
