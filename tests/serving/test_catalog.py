"""Which names a server answers to, and what it does when its store does not answer."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import ArtifactRef, Request
from nanochat_core.config.job import StageOutput
from nanochat_core.errors import ArtifactNotFoundError, ConfigError, StoreUnavailableError
from nanochat_core.serving.catalog import Catalog, open_catalog
from nanochat_core.serving.problems import UnknownModelError
from nanochat_core.serving.settings import ServerSettings
from tests.serving.pool_tools import NO, YES, save_by_hand

Line = dict[str, ArtifactRef]


def publish(
    store: ArtifactStore, scratch: Path, station: str, inputs: Line, **recipe: object
) -> ArtifactRef:
    """An artifact whose one file would have to be a model."""
    name = "tokenizer.json" if station == "tokenizer" else "config.json"
    # What was published is linked, and must not be written again.
    (scratch / name).unlink(missing_ok=True)
    (scratch / name).write_text(json.dumps([station, recipe]), encoding="utf-8")
    digests = {kind: ref.digest for kind, ref in inputs.items()}
    request = Request(station=station, code_version=1, recipe=recipe, inputs=digests)
    output = StageOutput(files={name: "result"})
    return store.publish(request, scratch, output, input_refs=inputs)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "store"))


@pytest.fixture
def line(store: ArtifactStore, tmp_path: Path) -> Line:
    """A base model, a chat model of it, and one more of each."""
    refs: Line = {"tokenizer": publish(store, tmp_path, "tokenizer", {})}
    given = {"tokenizer": refs["tokenizer"]}
    refs["pretrain"] = publish(store, tmp_path, "pretrain", given, depth=2)
    refs["sft"] = publish(store, tmp_path, "sft", {"pretrain": refs["pretrain"]})
    refs["rl"] = publish(store, tmp_path, "rl", {"sft": refs["sft"]})
    store.set_alias("demo", refs["rl"])
    store.set_alias("words", refs["tokenizer"])
    return refs


def name_of(ref: ArtifactRef) -> str:
    return f"{ref.station}/{ref.fingerprint[:12]}"


def test_models_are_listed_aliases_first_and_the_newest_first(
    store: ArtifactStore, line: Line
) -> None:
    catalog = Catalog("demo", store=store)
    alias, *rest = catalog.models()
    assert (alias.id, alias.is_alias, alias.target) == ("demo", True, name_of(line["rl"]))
    assert {entry.id for entry in rest} == {name_of(line[k]) for k in ("rl", "sft", "pretrain")}
    assert [entry.created for entry in rest] == sorted((e.created for e in rest), reverse=True)
    assert {entry.station: entry.is_chat for entry in rest} == {
        "rl": True,
        "sft": True,
        "pretrain": False,
    }
    assert all(entry.target == entry.id and not entry.is_alias for entry in rest)
    assert abs(alias.created - time.time()) < 1000


def test_a_model_has_many_names(store: ArtifactStore, line: Line) -> None:
    catalog = Catalog("demo", store=store)
    rl = line["rl"]
    names = ["demo", name_of(rl), rl.short, f"rl/{rl.fingerprint}", f"rl/{rl.fingerprint[:6]}"]
    assert {catalog.entry(name).key for name in [*names, None, ""]} == {catalog.entry("demo").key}
    assert catalog.find(rl.short).ref == rl
    assert catalog.find(None).model == store.materialize(rl)
    assert catalog.find(None).tokenizer == store.materialize(line["tokenizer"])


@pytest.mark.parametrize(
    "name",
    [
        *("words", "demo2", "rl", "rl/", "rl/ffffff", "d2", "tokenizer/000000", "DEMO", "demo "),
        *("/etc", ".", "..", "~", "demo\0", "x" * 10_000, "rl/../rl", "\ud800"),
    ],
)
def test_no_other_name_is_looked_for(
    store: ArtifactStore, line: Line, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rl").mkdir()
    with pytest.raises(UnknownModelError, match="not served here; there is demo, ") as caught:
        Catalog("demo", store=store).entry(name)
    assert len(str(caught.value)) < 500


def soon(is_true: Callable[[], bool]) -> bool:
    ends_at = time.monotonic() + 20
    while not is_true() and time.monotonic() < ends_at:
        time.sleep(0.01)
    return is_true()


def test_an_alias_that_moves_is_followed_and_another_default_is_not(
    store: ArtifactStore, line: Line
) -> None:
    by_alias = Catalog("demo", store=store, fresh_seconds=0.01)
    by_newest = Catalog("", store=store, fresh_seconds=0.01)
    assert by_alias.find(None).ref == by_newest.find(None).ref == line["rl"]
    store.set_alias("demo", line["sft"])
    assert soon(lambda: by_alias.find(None).ref == line["sft"])
    by_newest.models()
    assert by_newest.find(None).ref == line["rl"]


def test_what_is_published_while_the_server_runs_is_found(
    store: ArtifactStore, line: Line, tmp_path: Path
) -> None:
    catalog = Catalog("demo", store=store, fresh_seconds=0.01)
    catalog.entry(None)
    store.set_alias("newer", line["sft"])
    assert soon(lambda: catalog.known("newer") is not None)
    assert catalog.find("newer").ref == line["sft"]


def test_an_alias_of_a_lost_model_is_left_out(
    store: ArtifactStore, line: Line, caplog: pytest.LogCaptureFixture
) -> None:
    store.set_alias("lost", line["sft"])
    for path in Path(store.url).glob("sft/*/manifest-*"):
        path.unlink()
    assert "lost" not in {entry.id for entry in Catalog("demo", store=store).models()}
    assert "the alias lost is left out" in caplog.text


def test_models_made_by_hand_are_served_with_a_store_or_without(
    store: ArtifactStore, line: Line, tmp_path: Path
) -> None:
    base = tmp_path / "by-hand"
    newest = save_by_hand(base, "d1", *YES)
    catalog = Catalog("d1", store=store, by_hand=base)
    assert catalog.entry(None).id == "sft/d1"
    assert catalog.find("sft/d1").model == newest
    assert catalog.known("d1") == catalog.entry(None)
    alone = Catalog("", by_hand=base)
    assert [alone.entry(None).id] == [entry.id for entry in alone.models()] == ["sft/d1"]


def test_a_folder_is_the_only_model_without_a_store(tmp_path: Path) -> None:
    folder = save_by_hand(tmp_path, "mine", *NO)
    catalog = open_catalog(ServerSettings(model=str(folder.parent)))
    entry = catalog.entry(None)
    assert (entry.id, entry.station, entry.is_chat) == ("mine", "sft", True)
    assert [listed.id for listed in catalog.models()] == ["mine"]
    assert catalog.find("mine").model == folder
    with pytest.raises(UnknownModelError, match=r"there is mine$"):
        catalog.entry(str(folder.parent / "other"))


def test_a_tokenizer_that_is_given_is_for_the_default_model_alone(
    tmp_path: Path, store: ArtifactStore, line: Line
) -> None:
    base, own = tmp_path / "by-hand", tmp_path / "own"
    save_by_hand(base, "d1", *YES)
    save_by_hand(base, "d2", *YES)
    catalog = Catalog("sft/d1", by_hand=base, tokenizer=own)
    assert catalog.find(None).tokenizer == own
    assert catalog.find("sft/d2").tokenizer != own
    assert [entry.id for entry in catalog.models()].count("sft/d1") == 1


def test_nothing_to_serve_is_said(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give --model"):
        open_catalog(ServerSettings())
    with pytest.raises(ArtifactNotFoundError, match="make one first"):
        Catalog("", store=store).entry(None)
    with pytest.raises(ArtifactNotFoundError, match="names nothing"):
        Catalog("latest", store=store).entry(None)


class MutedStore(ArtifactStore):
    """A store that takes its time to answer as long as it is muted, and then does not."""

    is_lost = is_waiting = False

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.answers = threading.Event()
        self.answers.set()

    def aliases(self) -> dict[str, ArtifactRef]:
        self.is_waiting = not self.answers.is_set()
        assert self.answers.wait(60)
        if self.is_lost:
            raise StoreUnavailableError("the store does not answer")
        return super().aliases()


@contextmanager
def muted(store: MutedStore) -> Iterator[None]:
    store.answers.clear()
    try:
        yield
    finally:
        store.answers.set()


def test_a_store_that_does_not_answer_holds_up_no_list_and_no_known_model(
    store: ArtifactStore, line: Line, caplog: pytest.LogCaptureFixture
) -> None:
    away = MutedStore(store.url)
    catalog = Catalog("demo", store=away, fresh_seconds=0.01, patience_seconds=0.3)
    catalog.entry(None)
    before = catalog.models()
    with muted(away):
        assert soon(lambda: catalog.known("demo") is not None and away.is_waiting)
        started = time.monotonic()
        assert catalog.models() == before
        assert catalog.entry("demo").target == name_of(line["rl"])
        with pytest.raises(UnknownModelError):
            catalog.entry("newer")
        assert catalog.models() == before
        # All who ask share the patience with one look into the store.
        assert time.monotonic() - started < 0.8
        away.is_lost = True
    assert soon(lambda: "stays as it is" in caplog.text)
    assert catalog.models() == before
