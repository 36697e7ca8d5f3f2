"""`nanochat artifacts push, pull, alias, gc` as people type them."""

import os
import shutil
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows import counted as counting
from flows.cli import app
from flows.counted import counted
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import ArtifactRef, Request
from nanochat_core.config.job import StageOutput

DAY = 24 * 3600


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["artifacts", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.output


def publish(
    store: ArtifactStore, station: str, seed: int = 0, **inputs: ArtifactRef
) -> ArtifactRef:
    folder = Path(store.url).with_name(f"made-{station}-{seed}")
    folder.mkdir(exist_ok=True)
    (folder / "data.bin").write_bytes(f"{station} {seed}".encode() * 100)
    request = Request(
        station=station,
        code_version=1,
        recipe={"seed": seed},
        inputs={name: ref.digest for name, ref in inputs.items()},
    )
    output = StageOutput(files={"data.bin": "result"})
    return store.publish(request, folder, output, input_refs=inputs)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    """shards -> tokenizer -> sft, which is `latest`, and an sft that nothing names."""
    opened = ArtifactStore(str(tmp_path / "store"))
    shards = publish(opened, "shards")
    words = publish(opened, "tokenizer", shards=shards)
    opened.set_alias("latest", publish(opened, "sft", tokenizer=words))
    publish(opened, "sft", seed=1, tokenizer=words)
    return opened


def content(store: ArtifactStore) -> dict[str, str]:
    return {f"{ref.station}/{ref.fingerprint}": ref.digest for ref in store.list()}


def test_a_model_is_pushed_with_what_it_was_made_from_and_pulled_elsewhere(
    store: ArtifactStore, tmp_path: Path
) -> None:
    there, back = str(tmp_path / "there"), str(tmp_path / "back")
    code, output = run("push", "latest", there, "--store", store.url, "--aliases")
    assert code == 0
    assert "copying 3 artifacts, " in output
    assert output.splitlines()[-2] == "every byte was verified"
    assert output.splitlines()[-1] == f"latest names {store.resolve('latest').short} in {there}"
    code, output = run("pull", "latest", there, "--store", back)
    assert code == 0
    assert content(ArtifactStore(back)) == content(ArtifactStore(there))
    assert len(content(ArtifactStore(back))) == 3
    assert ArtifactStore(back).aliases() == {}
    code, output = run("pull", "latest", there, "--store", back)
    assert code == 0
    assert "already with all that it was made from" in output
    assert run("verify", "--store", back)[0] == 0


def test_an_alias_that_is_moved_by_a_copy_is_said_with_what_it_named(
    store: ArtifactStore, tmp_path: Path
) -> None:
    there = ArtifactStore(str(tmp_path / "there"))
    old = publish(there, "sft", seed=2)
    there.set_alias("latest", old)
    output = run("pull", "latest", there.url, "--store", store.url, "--aliases")[1]
    (other,) = [ref for ref in store.list("sft") if ref.fingerprint == old.fingerprint]
    assert store.resolve("latest") == other
    assert output.splitlines()[-1].startswith(
        f"latest names {old.short} in {store.url}, no longer sft/"
    )


def test_alone_means_without_what_it_was_made_from(store: ArtifactStore, tmp_path: Path) -> None:
    there = ArtifactStore(str(tmp_path / "there"))
    assert run("push", "latest", there.url, "--store", store.url, "--alone")[0] == 0
    assert [ref.station for ref in there.list()] == ["sft"]
    _, output = run("push", "latest", there.url, "--store", store.url)
    assert "1 more were there already" in output


def test_the_store_that_is_pulled_from_is_only_read(store: ArtifactStore, tmp_path: Path) -> None:
    root = Path(store.url)
    shutil.rmtree(root / "cache", ignore_errors=True)
    before = {p: p.stat().st_mtime_ns for p in [root, *root.rglob("*")]}
    assert run("pull", "latest", store.url, "--store", str(tmp_path / "here"))[0] == 0
    assert {p: p.stat().st_mtime_ns for p in [root, *root.rglob("*")]} == before
    shared = [p for p in (tmp_path / "here").rglob("*.bin") if p.stat().st_nlink > 1]
    assert shared == []


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["push", "nobody", "{other}"], 1, "names nothing in the store"),
        (["push", "latest", "{store}"], 2, "both stores are"),
        (["push", "latest", "/proc/nanochat"], 1, "/proc/nanochat"),
        (["push", "latest", "foo://x"], 2, "unknown protocol 'foo'"),
        (["pull", "latest", "{other}"], 1, "is empty"),
        (["alias", "best"], 2, "should stand for which artifact"),
        (["alias", "--remove"], 2, "takes the name of one alias"),
        (["alias", "a", "b", "--remove"], 2, "takes the name of one alias"),
        (["alias", "other", "--remove"], 1, "no alias 'other'; there are: latest"),
        (["alias", "a/b", "latest"], 2, "alias name 'a/b' cannot be used"),
        (["alias", "best", "nobody"], 1, "names nothing in the store"),
        (["gc", "--keep", "nobody"], 1, "names nothing in the store"),
    ],
)
def test_what_cannot_be_is_one_message_and_an_exit_code(
    store: ArtifactStore, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    places = {"other": str(tmp_path / "other"), "store": store.url}
    given = [argument.format(**places) for argument in arguments]
    exit_code, output = run(*given, "--store", store.url)
    assert exit_code == code
    assert message in output
    assert output.startswith("error: ")


def test_a_conflict_is_told_with_the_way_out(store: ArtifactStore, tmp_path: Path) -> None:
    there = ArtifactStore(str(tmp_path / "there"))
    folder = tmp_path / "made-other"
    folder.mkdir()
    (folder / "data.bin").write_bytes(b"other")
    request = Request(station="shards", code_version=1, recipe={"seed": 0})
    there.publish(request, folder, StageOutput(files={"data.bin": "result"}))
    code, output = run("push", "latest", there.url, "--store", store.url)
    assert code == 1
    assert "With --replace" in output
    assert run("push", "latest", there.url, "--store", store.url, "--replace")[0] == 0
    assert len(there.list()) == 3


def test_what_the_source_has_lost_is_said(store: ArtifactStore, tmp_path: Path) -> None:
    (shards,) = store.list("shards")
    shutil.rmtree(Path(store.url) / "shards")
    code, output = run("push", "latest", str(tmp_path / "there"), "--store", store.url)
    assert code == 0
    assert output.startswith(f"{shards.short} is not in {store.url} any more")


def test_aliases_are_listed_moved_and_removed(store: ArtifactStore) -> None:
    first, second = store.list("sft")
    other = second if store.resolve("latest") == first else first
    assert "latest  sft/" in run("alias", "--store", store.url)[1]
    _, output = run("alias", "best", f"sft/{other.fingerprint[:12]}", "--store", store.url)
    assert output == f"best names {other.short} from now on\n"
    assert run("alias", "best", "best", "--store", store.url)[1].endswith("already\n")
    _, output = run("alias", "best", "latest", "--store", store.url)
    assert output.endswith(f"no longer {other.short}\n")
    assert store.resolve("best") == store.resolve("latest")
    (Path(store.url) / "aliases" / "best.json").write_text("{}")
    assert run("alias", "best", "--remove", "--store", store.url)[0] == 0
    assert set(store.aliases()) == {"latest"}
    assert run("alias", "latest", "--remove", "--store", store.url)[0] == 0
    assert "has no alias yet" in run("alias", "--store", store.url)[1]
    assert len(store.list()) == 4


def test_gc_tells_what_it_would_remove_and_then_does_the_same(store: ArtifactStore) -> None:
    root = Path(store.url)
    options = ("--older-than", "0", "--keep-runs", "0", "--store", store.url)
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    code, planned = run("gc", "--dry-run", *options)
    assert code == 0
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before
    title, line, last = planned.splitlines()
    assert title.split() == ["what", "name", "size", "why"]
    assert line.startswith("artifact  sft/")
    assert line.endswith("nothing that is kept needs it")
    assert last.startswith("nothing was removed; without --dry-run it would be 1 thing, ")
    assert last.endswith("; 3 artifacts kept for good reason")
    code, done = run("gc", *options)
    assert done.splitlines()[:2] == [title, line]
    assert done.splitlines()[2].startswith("removed 1 of 1, ")
    assert len(store.list()) == 3
    assert store.verify() == []
    assert run("gc", *options)[1].startswith("there is nothing to remove; 3 artifacts")


def test_gc_keeps_the_young_and_the_named_unless_told_otherwise(store: ArtifactStore) -> None:
    assert run("gc", "--store", store.url)[1].startswith("there is nothing to remove")
    (doomed,) = [ref for ref in store.list("sft") if ref != store.resolve("latest")]
    options = ("--older-than", "0", "--keep-runs", "0", "--store", store.url)
    kept = run("gc", *options, "--keep", f"sft/{doomed.fingerprint[:12]}")[1]
    assert kept.startswith("there is nothing to remove")
    store.save_run("20260101-000000-abcdef", {"stations": {"sft": {"ref": doomed.model_dump()}}})
    assert run("gc", *options[:2], *options[4:])[1].startswith("there is nothing to remove")
    assert run("gc", *options)[1].splitlines()[-1].startswith("removed 1 of 1")


def test_gc_leaves_artifacts_alone_while_something_is_made(store: ArtifactStore) -> None:
    options = ("--older-than", "0", "--keep-runs", "0", "--store", store.url)
    with store.lock("rl", "0" * 64):
        code, output = run("gc", *options)
        assert code == 0
        note, last = output.splitlines()
        assert note.startswith("note: rl/00000000 is being made right now by process")
        assert note.endswith("whole artifacts stay until it is finished")
        assert last.startswith("there is nothing to remove")
        assert "removed 1 of 1" in run("gc", *options, "--while-busy")[1]


def test_what_stays_is_said(store: ArtifactStore) -> None:
    options = ("--older-than", "0", "--keep-runs", "0", "--store", store.url)
    (doomed,) = [ref for ref in store.list("sft") if ref != store.resolve("latest")]
    with store.lock("sft", doomed.fingerprint):
        lines = run("gc", *options, "--while-busy")[1].splitlines()
    assert lines[-2].startswith(f"{doomed.short} stays: {doomed.short} is being made right now by")
    assert lines[-1].startswith("removed 0 of 1, 0 B")


def test_many_bytes_are_counted_in_lines_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(counting, "LINE_SECONDS", 0.05)
    with counted("copied", 3_000_000) as advance:
        advance(1_000_000)
        time.sleep(0.06)
        advance(1_000_000)
        advance(500_000)
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("copied: 2 MB of 3 MB, about ")


def test_many_bytes_are_a_bar_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with counted("copied", 2_000_000) as advance:
        advance(1_000_000)
    assert "1.0/2.0 MB" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["push", "pull", "alias", "gc", "ls", "verify"])
def test_help_says_what_it_does_and_ends_with_examples(name: str) -> None:
    code, output = run(name, "--help")
    assert code == 0
    _, _, lines = output.partition("Examples:\n")
    assert lines.strip().startswith(f"nanochat artifacts {name}")
    assert max(map(len, output.splitlines())) <= 80


@pytest.mark.s3
def test_a_bucket_is_pushed_to_listed_cleaned_and_pulled_from(
    store: ArtifactStore, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert run("push", "latest", s3_url, "--store", store.url, "--aliases")[0] == 0
    code, output = run("ls", "--store", s3_url)
    assert code == 0
    assert len(output.splitlines()) == 4
    others = [ref for ref in store.list("sft") if ref != store.resolve("latest")]
    assert run("push", f"sft/{others[0].fingerprint}", s3_url, "--store", store.url)[0] == 0
    options = ("--older-than", "0", "--keep-runs", "0", "--store", s3_url)
    assert "would be 1 thing," in run("gc", "--dry-run", *options)[1]
    assert "removed 1 of 1" in run("gc", *options)[1]
    here = str(tmp_path / "here")
    assert run("pull", "latest", s3_url, "--store", here)[0] == 0
    assert set(content(ArtifactStore(here)).items()) <= set(content(store).items())
    assert run("verify", "--store", s3_url)[0] == 0
    assert os.listdir(tmp_path / "home") != [], "copies belong to the user's cache"
