"""What `--source` means, which files that are, and what is refused before anything runs."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from flows.parameters import ResolvedRun, check, parse_parameters, resolve
from flows.sources import Asked, addresses, parse_sources
from flows.text_checks import MEASURED_BYTES
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import Request
from nanochat_core.config.job import StageOutput
from nanochat_core.data.hub_shards import CLIMBMIX, num_shards_for
from nanochat_core.data.recipes import (
    FilesSource,
    HarvestSource,
    HubSource,
    MixturePart,
    MixtureSource,
    ShardsRecipe,
)
from nanochat_core.errors import ConfigError, DataError
from tests.data.hub_server import digest_of, make_shards

TEST_DATA = os.environ.get("NANOCHAT_TEST_DATA", "")
NOBODY = {"HF_ENDPOINT": "http://127.0.0.1:9"}


def checked(environ: dict[str, str] | None = None, **values: Any) -> ResolvedRun:
    return check(parse_parameters({"preset": "tiny", **values}), environ or {})


def resolved(environ: dict[str, str] | None = None, **values: Any) -> ResolvedRun:
    return resolve(parse_parameters({"preset": "tiny", **values}), environ or {})


def write_shards(folder: Path, count: int) -> Path:
    folder.mkdir(exist_ok=True)
    for name, data in make_shards(count).items():
        (folder / name).write_bytes(data)
    return folder


def write_text(path: Path, paragraphs: int = 300) -> Path:
    lines = (
        f"Paragraph {i} of {path.stem}, which ends in {hashlib.sha256(str(i).encode()).hexdigest()}"
        for i in range(paragraphs)
    )
    path.write_text("\n\n".join(lines))
    return path


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("docs", Asked("docs", "docs")),
        ("docs@70", Asked("docs", "docs", 70)),
        ("./docs", Asked("text", "./docs")),
        ("a/book.txt", Asked("text", "a/book.txt")),
        ("a/*.md@0.5", Asked("text", "a/*.md", 0.5)),
        ("https://example.org/a.txt@2", Asked("text", "https://example.org/a.txt", 2)),
        ("me@home.txt", Asked("text", "me@home.txt")),
        ("hf://datasets/o/n", Asked("hub", "hf://datasets/o/n")),
        ("hf://datasets/o/n@main/x@30", Asked("hub", "hf://datasets/o/n@main/x", 30)),
        ("shards:s3://b/climbmix", Asked("hub", "s3://b/climbmix")),
        ("shards:hf://datasets/o/n", Asked("hub", "hf://datasets/o/n")),
        ("text:hf://datasets/o/n", Asked("text", "hf://datasets/o/n")),
    ],
)
def test_a_source_says_what_it_is_and_where(given: str, expected: Asked) -> None:
    others = () if expected.weight is None else ("other.txt@1",)
    assert parse_sources((given, *others))[0] == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a.txt@30", "b.txt"], "b.txt has no share, and others have"),
        (["a.txt@30"], "a share and nothing to share with; leave out @30"),
        (["a.txt@0", "b.txt@1"], "a share of 0; leave this source out"),
        (["docs", "a.txt"], "docs and a.txt are of different kinds; .* --source docs@50"),
        (["shards:a", "shards:b"], "of different kinds; give each its share"),
    ],
)
def test_shares_that_mean_nothing_are_refused(given: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_sources(given)


def test_several_texts_without_shares_are_one_source(tmp_path: Path) -> None:
    paths = [str(write_text(tmp_path / name)) for name in ("a.txt", "b.txt")]
    run = resolved(source=paths)
    source = run.preset.recipes.shards.source
    assert isinstance(source, FilesSource)
    assert [file.name for file in source.files] == ["a.txt", "b.txt"]
    assert run.source_paths["shards"] == tuple(paths)


def test_shares_make_a_mixture_of_one_part_a_source(tmp_path: Path) -> None:
    text, shards = write_text(tmp_path / "a.txt"), write_shards(tmp_path / "set", 3)
    other = write_text(tmp_path / "set" / "a.txt")
    given = [f"{text}@30", "docs@60", f"shards:{shards}@9", f"{other}@1"]
    run = resolved(source=given, mirrors=["/mirror"])
    source = run.preset.recipes.shards.source
    assert isinstance(source, MixtureSource)
    told = [(part.name, part.weight, type(part.source)) for part in source.parts]
    assert told == [
        ("a.txt", 30, FilesSource),
        ("docs", 60, HarvestSource),
        ("set", 9, HubSource),
        ("a.txt-2", 1, FilesSource),
    ]
    assert run.source_paths["shards"] == (
        *(str(text), "docs", str(shards), str(other)),
        "/mirror",
    )
    docs = source.parts[1].source
    assert isinstance(docs, HarvestSource)
    assert docs.versions == {}, "tiny reads the standard library alone, of a mixture, too"


def test_a_field_of_one_part_can_be_set(tmp_path: Path) -> None:
    text = write_text(tmp_path / "a.txt")
    changes = {"shards.source.parts.0.max_epochs": 3, "shards.source.parts.0.language": "en"}
    source = resolved(
        source=[f"{text}@1", "docs@1"], overrides=changes
    ).preset.recipes.shards.source
    assert isinstance(source, MixtureSource)
    assert (source.parts[0].max_epochs, source.parts[0].language) == (3, "en")


def test_published_shards_are_the_first_ones_and_the_last(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "set", 5)
    run = resolved(source=[f"shards:{folder}"], overrides={"shards.num_shards": 2})
    recipe = run.preset.recipes.shards
    assert isinstance(recipe.source, HubSource)
    names = [file.name for file in recipe.source.files]
    assert names == ["shard_00000.parquet", "shard_00001.parquet", "shard_00004.parquet"]
    data = (folder / names[1]).read_bytes()
    assert recipe.source.files[1].sha256 == hashlib.sha256(data).hexdigest()
    assert run.source_paths["shards"] == (str(folder),)
    again = resolved(source=[f"shards:{folder}"], overrides={"shards.num_shards": 2})
    assert again.preset.recipes.shards == recipe
    assert checked(source=[f"shards:{folder}"]).preset.recipes.shards.num_shards < 5


def test_the_place_of_published_shards_is_no_part_of_what_is_asked_for(tmp_path: Path) -> None:
    one, other = (write_shards(tmp_path / name, 3) for name in ("one", "other"))
    number = {"shards.num_shards": 2}
    runs = [
        resolved(source=[f"shards:{one}"], overrides=number),
        resolved(source=[f"shards:{other}"], overrides=number, mirrors=["/x"], preset="demo"),
    ]
    assert runs[0].preset.recipes.shards == runs[1].preset.recipes.shards
    assert runs[1].source_paths["shards"] == (str(other), "/x")


def test_the_number_of_shards_comes_from_the_plan_in_whole_blocks() -> None:
    tokens = 5_570 * 2**20
    assert num_shards_for(tokens * 4.7, 250e6, 1) == 111
    assert num_shards_for(tokens * 4.7, 250e6, 8) == 112
    assert num_shards_for(tokens * 4.7 / 2, 250e6, 8) == 56
    assert num_shards_for(1.0, 250e6, 8) == 8


def test_more_steps_take_more_shards_and_a_set_far_too_small_is_refused(tmp_path: Path) -> None:
    source = [f"shards:{write_shards(tmp_path / 'set', 12)}"]

    def number(steps: int, epochs: float = 1.0, **values: Any) -> int:
        overrides = {"pretrain.num_iterations": steps, "pretrain.data.max_epochs": epochs}
        run = checked(source=source, overrides=overrides, **values)
        return run.preset.recipes.shards.num_shards

    few, more = number(30), number(100)
    assert 1 <= few < more <= 11
    assert number(100, epochs=4.0) < more
    assert number(900) == 11, "about as much as there is: tokens tell, later"
    with pytest.raises(
        DataError, match=r"set has 11 train shards of some [\d,]+ tokens"
    ) as refusal:
        number(5_000)
    assert re.search(r"about \d+ shards.* take about \d+ steps", str(refusal.value))
    assert number(5_000, stop_after="tokens") == 11


@pytest.mark.parametrize(
    ("overrides", "kind", "message"),
    [
        ({"shards.num_shards": 9}, DataError, "9 train shards were asked of a set that has 2"),
        ({"shards.max_documents": 9}, ConfigError, "taken as they are.* leave it out"),
    ],
)
def test_a_number_that_a_set_cannot_give_is_refused(
    overrides: dict[str, int], kind: type[Exception], message: str, tmp_path: Path
) -> None:
    folder = write_shards(tmp_path / "set", 3)
    with pytest.raises(kind, match=message):
        checked(source=[f"shards:{folder}"], overrides=overrides)


def test_offline_nothing_on_the_network_is_asked(tmp_path: Path) -> None:
    values: dict[str, Any] = {"store": str(tmp_path / "store"), "offline": True}
    with pytest.raises(DataError, match="offline, and the store has no shards of hf://"):
        resolved(NOBODY, source=["hf://datasets/o/n"], **values)
    with pytest.raises(ConfigError, match="on the network, and the run is offline"):
        resolved(NOBODY, source=["https://example.org/a.txt"], **values)
    folder = write_shards(tmp_path / "set", 3)
    mirrors = ["https://example.org/set", "/mirror"]
    run = resolved(source=[f"shards:{folder}"], mirrors=mirrors, **values)
    assert run.source_paths["shards"] == (str(folder), "/mirror")
    parts = parse_sources(["hf://datasets/o/n@1", "docs@1"])
    assert addresses(parts, ["/mirror"], offline=True) == ("", "docs", "/mirror")


def known_set(store: Path, *numbers: int) -> None:
    """A store in which an earlier mixture had those shards of a set."""
    digests = [digest_of(f"shard_{n:05d}.parquet", b"x" * 20_000) for n in numbers]
    parts = (
        MixturePart(name="docs", source=HarvestSource(versions={}, python="3.11")),
        MixturePart(name="n", source=HubSource(files=tuple(digests))),
    )
    recipe = ShardsRecipe(source=MixtureSource(parts=parts)).model_dump(mode="json")
    request = Request(station="shards", code_version=1, recipe=recipe)
    folder = store.parent / "made"
    folder.mkdir()
    (folder / "shards.json").write_text("{}")
    output = StageOutput(
        files={"shards.json": "result"}, provenance={"addresses": ["", "hf://datasets/o/n"]}
    )
    ArtifactStore(str(store)).publish(request, folder, output)


@pytest.mark.parametrize("source", [["hf://datasets/o/n"], ["hf://datasets/o/n@1", "docs@1"]])
def test_offline_the_shards_of_an_earlier_mixture_are_known(
    tmp_path: Path, source: list[str]
) -> None:
    known_set(tmp_path / "store", 0, 1, 2)
    values: dict[str, Any] = {"store": str(tmp_path / "store"), "offline": True, "source": source}
    few = {"pretrain.num_iterations": 1}
    recipe = checked(NOBODY, overrides=few, **values).preset.recipes.shards
    found = recipe.source
    if isinstance(found, MixtureSource):
        found = found.parts[0].source  # type: ignore[assignment]
    assert isinstance(found, HubSource)
    assert [file.name[6:11] for file in found.files] == ["00000", "00002"]


def test_offline_a_set_that_is_known_whole_is_all_that_is_needed(tmp_path: Path) -> None:
    known_set(tmp_path / "store", 0, 1, 2)
    steps = {"pretrain.num_iterations": 800}
    values: dict[str, Any] = {"store": str(tmp_path / "store"), "offline": True, "overrides": steps}
    run = checked(NOBODY, source=["hf://datasets/o/n"], **values)
    assert run.preset.recipes.shards.num_shards == 2


@pytest.mark.parametrize("name", ["source", "mirrors", "conversations"])
def test_a_place_that_would_record_a_secret_is_refused(name: str) -> None:
    for url in ("https://me:token@example.org/x", "shards:https://me:token@example.org/x@30"):
        with pytest.raises(ConfigError, match="credentials in the environment"):
            parse_parameters({name: [url]})


def test_a_mirror_of_nothing_is_refused() -> None:
    for source in ([], ["docs"]):
        with pytest.raises(ConfigError, match="mirror /x has no published shards to stand in for"):
            checked(source=source, mirrors=["/x"])


def test_documentation_is_told_from_a_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert checked(source=["docs"]).warnings == ()
    Path("docs").mkdir()
    assert checked(source=["docs"]).warnings == (
        "--source docs is the documentation of what is installed, not ./docs",
    )
    assert checked(source=["docs"]).source_paths["shards"] == ()


def test_text_for_too_many_steps_is_refused_with_the_largest_number(tmp_path: Path) -> None:
    text = write_text(tmp_path / "a.txt", paragraphs=2_000)
    source = [str(text)]
    with pytest.raises(DataError, match=r"2,000 steps are about \d+ epochs of this") as refusal:
        checked(source=source, overrides={"pretrain.num_iterations": 2_000})
    most = int(str(refusal.value).split("pretrain.num_iterations=")[1].split()[0])
    assert checked(source=source, overrides={"pretrain.num_iterations": most})
    with pytest.raises(DataError, match=f"num_iterations={most} or less"):
        checked(source=source, overrides={"pretrain.num_iterations": most + 1})


def test_documents_of_jsonl_are_measured_too(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    texts = [hashlib.sha256(str(i).encode()).hexdigest() * 4 for i in range(1_000)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    with pytest.raises(DataError, match="epochs of this text"):
        checked(source=[str(path)], overrides={"pretrain.num_iterations": 9_000})
    assert path.stat().st_size < MEASURED_BYTES


def test_a_mixture_that_one_text_would_end_far_too_early_is_refused(tmp_path: Path) -> None:
    source = ["docs@3", f"{write_text(tmp_path / 'a.txt', paragraphs=2_000)}@1"]
    steps = {"pretrain.num_iterations": 100_000, "shards.source.parts.0.max_epochs": 1_000}
    with pytest.raises(DataError, match=r"of which a\.txt is to be 25%.*parts\.1\.max_epochs=N"):
        checked(source=source, overrides=steps)
    often = {**steps, "shards.source.parts.1.max_epochs": 50}
    assert checked(source=source, overrides=often)


def test_a_mixture_that_documentation_would_end_far_too_early_is_refused(tmp_path: Path) -> None:
    source = [f"{write_text(tmp_path / 'a.txt', paragraphs=2_000)}@1", "docs@9"]
    steps = {"shards.max_documents": 0, "pretrain.num_iterations": 150_000}
    steps["shards.source.parts.0.max_epochs"] = 9
    with pytest.raises(DataError, match=r"docs is to be 90%, .* about 5\.\d MB.*parts\.1\.max_ep"):
        checked(source=source, overrides=steps)
    fewer = {**steps, "pretrain.num_iterations": 60_000}
    assert checked(source=source, overrides=fewer)
    limited = {**fewer, "shards.max_documents": 2_000}
    with pytest.raises(DataError, match=r"docs is to be 90%, and it holds about 2\.4 MB of text"):
        checked(source=source, overrides=limited)


@pytest.mark.skipif(not TEST_DATA, reason="NANOCHAT_TEST_DATA is not set")
def test_shakespeare_is_too_little_for_the_demo_as_it_is() -> None:
    source = [str(Path(TEST_DATA) / "tinyshakespeare.txt")]
    with pytest.raises(DataError, match=r"1,500 steps are about 8\.9 epochs .*=1352 or"):
        checked(preset="demo", source=source)
    steps = {"pretrain.num_iterations": 600}
    assert checked(preset="demo", source=source, overrides=steps)


def test_the_usual_source_is_climbmix_where_a_preset_says_so() -> None:
    with pytest.raises(DataError, match="offline, and the store has no shards of " + CLIMBMIX):
        checked(preset="research", offline=True, store="memory://empty")
