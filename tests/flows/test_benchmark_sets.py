"""Published sets and own conversations: which files a run has, and what they change in it."""

import json
from pathlib import Path

import pytest

from flows.benchmark_sets import (
    check_conversations_at_hand,
    left_out,
    reads_files,
    with_benchmarks,
)
from flows.overrides import apply_overrides
from flows.presets import PRESETS, Preset
from nanochat_core.benchmarks.official_files import CORE_FILE
from nanochat_core.conversation.recipes import MixturePart
from nanochat_core.data.recipes import HarvestSource
from nanochat_core.errors import ConfigError, DataError, UnknownNameError

TINY = PRESETS["tiny"](HarvestSource(versions={}, python=""))
SETS = (
    MixturePart(kind="smoltalk"),
    MixturePart(kind="mmlu", epochs=3),
    MixturePart(kind="gsm8k", epochs=4),
)
LINE = json.dumps([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}])


def taught(preset: Preset) -> list[str]:
    return [part.label for part in preset.recipes.sft.mixture.parts]


def with_parts(*parts: MixturePart) -> Preset:
    recipes = TINY.recipes
    mixture = recipes.sft.mixture.model_copy(update={"parts": (*recipes.sft.mixture.parts, *parts)})
    sft = recipes.sft.model_copy(update={"mixture": mixture})
    return TINY.model_copy(update={"recipes": recipes.model_copy(update={"sft": sft})})


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "me.jsonl").write_text(LINE + "\n" + LINE + "\n")
    return str(tmp_path / "me.jsonl")


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "sets").mkdir()
    for name in ("smoltalk-train.parquet", "gsm8k-train.jsonl", "gsm8k-test.jsonl"):
        (tmp_path / "sets" / name).write_text("rows")
    return str(tmp_path / "sets")


def test_a_run_without_files_is_what_it_was() -> None:
    assert with_benchmarks(TINY, "") == TINY


def test_own_conversations_are_a_file_and_a_part_of_the_mixture(own: str, tmp_path: Path) -> None:
    (tmp_path / "you.jsonl").write_text(LINE)
    preset = with_benchmarks(TINY, "", (own, f"{tmp_path}/you.jsonl@2.5"))
    assert [file.name for file in preset.recipes.benchmarks.files] == ["me.jsonl", "you.jsonl"]
    assert preset.recipes.sft.mixture.parts[-2:] == (
        MixturePart(kind="jsonl", file="me.jsonl"),
        MixturePart(kind="jsonl", file="you.jsonl", epochs=2.5),
    )
    assert taught(preset)[:3] == ["identity", "sums", "questions"]
    assert preset.recipes.chat_eval_sft == TINY.recipes.chat_eval_sft
    assert reads_files(preset.recipes.sft)
    assert not reads_files(TINY.recipes.sft)


def test_only_the_content_of_own_conversations_counts(own: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "me.jsonl").write_bytes(Path(own).read_bytes())
    there = with_benchmarks(TINY, "", (f"file://{tmp_path}/elsewhere/me.jsonl",))
    assert there == with_benchmarks(TINY, "", (own,))
    Path(own).write_text(LINE)
    assert there != with_benchmarks(TINY, "", (own,))


def test_sets_of_a_preset_are_taught_where_their_files_are(folder: str, own: str) -> None:
    preset = with_parts(*SETS)
    made = ["identity", "sums", "questions"]
    assert taught(with_benchmarks(preset, "")) == made
    found = with_benchmarks(preset, folder, (own,))
    assert taught(found) == [*made, "smoltalk", "gsm8k", "me.jsonl"]
    assert found.recipes.chat_eval_rl.benchmarks == ("identity", "sums", "gsm8k")
    (note,) = left_out(preset, found)
    assert "without mmlu: no mmlu-train.jsonl" in note
    assert len(left_out(preset, with_benchmarks(preset, ""))) == 3
    assert left_out(TINY, with_benchmarks(TINY, folder)) == ()


def test_a_part_that_is_asked_for_without_its_file_is_refused(folder: str, own: str) -> None:
    stations = ("pretrain", "sft")
    check_conversations_at_hand(with_benchmarks(with_parts(*SETS), folder, (own,)), stations)
    with pytest.raises(ConfigError, match=r"train rows of smoltalk; put smoltalk-train\.jsonl or"):
        check_conversations_at_hand(with_parts(*SETS), stations)
    preset = with_parts(MixturePart(kind="jsonl", file="you.jsonl"))
    with pytest.raises(ConfigError, match=r"you\.jsonl, .* --conversations you\.jsonl"):
        check_conversations_at_hand(preset, stations)
    check_conversations_at_hand(preset, ("pretrain",))


def test_a_line_that_is_no_conversation_is_refused_before_anything_starts(own: str) -> None:
    with Path(own).open("a") as file:
        file.write('{"messages": [{"role": "bot", "content": "Hi"}]}\n')
    with pytest.raises(DataError, match=rf"^{own}:3: message 1: role='bot'; expected"):
        with_benchmarks(TINY, "", (own,))


@pytest.mark.parametrize("name", ["me.txt", "me.jsonl@0", "me", "", "me.json@2"])
def test_a_file_of_another_form_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"ends in one of \.jsonl"):
        with_benchmarks(TINY, "", (name,))


def test_names_that_come_twice_are_refused(own: str, tmp_path: Path) -> None:
    (tmp_path / "gsm8k-train.jsonl").write_text(LINE)
    with pytest.raises(ConfigError, match=r"me\.jsonl: the name is twice"):
        with_benchmarks(TINY, "", (own, f"{own}@2"))
    with pytest.raises(ConfigError, match=r"gsm8k-train\.jsonl: the name is that of a published"):
        with_benchmarks(TINY, "", (str(tmp_path / "gsm8k-train.jsonl"),))


def test_parts_are_changed_and_replaced_by_name(own: str) -> None:
    preset = with_benchmarks(TINY, "", (own,))
    more = apply_overrides(preset, {"sft.mixture.parts.3.epochs": "4"})
    assert more.recipes.sft.mixture.parts[3].epochs == 4.0
    whole = '[{"kind": "gsm8k", "epochs": 2}, {"kind": "jsonl", "file": "me.jsonl"}]'
    assert taught(apply_overrides(preset, {"sft.mixture.parts": whole})) == ["gsm8k", "me.jsonl"]
    with pytest.raises(ConfigError, match="epochs=4 of kind identity, which are made"):
        apply_overrides(preset, {"sft.mixture.parts.0.epochs": "4"})
    with pytest.raises(UnknownNameError, match="did you mean gsm8k"):
        apply_overrides(preset, {"sft.mixture.parts.3.kind": "gsm8"})


def test_the_zip_of_core_is_asked_by_base_eval_which_then_reads_the_files(tmp_path: Path) -> None:
    (tmp_path / CORE_FILE).write_bytes(b"zip")
    recipes = with_benchmarks(TINY, str(tmp_path)).recipes
    assert recipes.base_eval.core_bundle == CORE_FILE
    assert reads_files(recipes.base_eval)
    assert not reads_files(TINY.recipes.base_eval)
