"""The lineage of an artifact goes back to its text, and names each artifact once."""

import re
import shutil
from pathlib import Path

from made_line import make_line, publish, resolved_run

from flows.lineage import lineage_lines
from flows.presets import MAKING_STATIONS
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import Manifest, Request
from nanochat_core.config.job import StageOutput
from nanochat_core.data.recipes import HarvestSource, ShardsRecipe


def made_store(folder: Path, *names: str) -> ArtifactStore:
    """A whole line made of texts and a benchmark of these names."""
    (folder / "texts").mkdir(parents=True)
    for name in names:
        (folder / "texts" / name).write_text(f"{name} has a text of its own.\n")
    (folder / "benchmarks").mkdir()
    (folder / "benchmarks" / "gsm8k-test.jsonl").write_text("{}\n")
    resolved = resolved_run(
        folder / "store", source=(str(folder / "texts"),), benchmarks=str(folder / "benchmarks")
    )
    store = ArtifactStore(resolved.store_url)
    make_line(store, resolved)
    return store


def newest(store: ArtifactStore, station: str) -> Manifest:
    return store.manifest(store.list(station)[-1])


def indent(line: str) -> int:
    return (len(line) - len(line.lstrip())) // 2


def test_every_artifact_of_the_line_stands_once_below_what_was_made_of_it(tmp_path: Path) -> None:
    store = made_store(tmp_path, "a.txt")
    lines = lineage_lines(store, newest(store, "report"))
    named = [found[1] for line in lines if (found := re.match(r" *([a-z_]+)/[0-9a-f]{8} ", line))]
    assert sorted(named) == sorted(MAKING_STATIONS)
    assert lines[0].endswith(
        "of chat_eval_rl, rl, chat_eval_sft, sft, base_eval, pretrain, tokens, tokenizer, shards"
    )
    depths = {name: indent(line) for line in lines for name in named if f" {name}/" in f" {line}"}
    # The tree goes down the line: each below the last thing that was made of it.
    assert [depths[name] for name in ("chat_eval_rl", "rl", "sft", "pretrain")] == [1, 2, 3, 4]
    assert [depths[name] for name in ("tokens", "tokenizer", "shards")] == [5, 6, 7]


def test_it_ends_with_the_files_that_the_text_came_from(tmp_path: Path) -> None:
    store = made_store(tmp_path, *(f"{letter}.txt" for letter in "abcde"))
    lines = lineage_lines(store, newest(store, "chat_eval_sft"))
    files = [line.strip() for line in lines if line.strip().startswith("files: ")]
    assert len(files) == 2
    assert re.fullmatch(
        r"files: a.txt \(.*\), b.txt \(.*\), c.txt \(.*\) and 2 more files", files[0]
    )
    assert re.fullmatch(r"files: gsm8k-test.jsonl \(sha256 [0-9a-f]{12}…\)", files[1])


def test_documentation_is_named_with_its_versions(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    for versions in ({}, {"numpy": "2.0", "rich": "14"}):
        recipe = ShardsRecipe(source=HarvestSource(versions=versions, python="3.12"))
        request = Request(station="shards", code_version=1, recipe=recipe.model_dump(mode="json"))
        lines = lineage_lines(store, store.manifest(publish(store, request, {})))
        packages = ", numpy 2.0, rich 14" if versions else ""
        assert lines[1:] == [f"  text: documentation of Python 3.12{packages}"]


def test_a_shared_beginning_is_named_at_the_run_that_took_it_over(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    request = Request(station="pretrain", code_version=1, recipe={})
    folder = store.generation(request, fresh=True)
    (folder / "model").write_text("")
    store.publish(
        request,
        folder,
        StageOutput(files={"model": "result"}),
        provenance={"started_from": f"pretrain/{'0123abcd' * 8}", "started_from_step": 1600},
    )
    assert lineage_lines(store, newest(store, "pretrain"))[1:] == [
        "  began with the first 1,600 steps of pretrain/0123abcd"
    ]


def test_what_is_gone_is_said_and_the_rest_is_shown(tmp_path: Path) -> None:
    store = made_store(tmp_path, "a.txt")
    gone = newest(store, "pretrain").ref
    shutil.rmtree(tmp_path / "store" / "pretrain")
    lines = lineage_lines(store, newest(store, "rl"))
    assert f"    {gone.short}, as pretrain: not in this store, or damaged" in lines
    assert any(line.strip().startswith("shards/") for line in lines)


def test_an_artifact_that_was_made_again_says_so(tmp_path: Path) -> None:
    store = made_store(tmp_path, "a.txt")
    before = newest(store, "tokens")
    publish(store, before.request, before.input_refs, text="otherwise", force=True)
    assert ", manifest 2, of tokenizer, shards" in lineage_lines(store, newest(store, "tokens"))[0]
