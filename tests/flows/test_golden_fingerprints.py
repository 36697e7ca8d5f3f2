"""Identity does not drift: what the presets ask for has the fingerprints that it always had.

A change here means that every user's artifacts are made again. Where that is meant, say so in
CHANGELOG.md and write the new values down (the failing test prints them).
"""

import importlib

import pytest

from flows.presets import MAKING_STATIONS, PRESETS, Recipes
from nanochat_core.artifacts.canonical import canonical_json
from nanochat_core.artifacts.types import Request
from nanochat_core.config.execution import Execution
from nanochat_core.data.recipes import HarvestSource, ShardsRecipe
from nanochat_core.tokenizer.recipe import TokenizerRecipe
from nanochat_core.training.recipes import PretrainRecipe, RlRecipe, SftRecipe

SOURCE = HarvestSource(versions={"numpy": "2.0.0", "absentee": "absent"}, python="3.12")
DEFAULTS = Recipes(
    shards=ShardsRecipe(source=SOURCE),
    tokenizer=TokenizerRecipe(),
    pretrain=PretrainRecipe(),
    sft=SftRecipe(),
    rl=RlRecipe(),
)
CODE_VERSIONS = {
    station: importlib.import_module(f"tasks.{station}").CODE_VERSION for station in MAKING_STATIONS
}
GOLDEN: dict[str, dict[str, str]] = {
    "default": {
        "shards": "7f3a18204880826a",
        "tokenizer": "01355b1ffee28ce1",
        "tokens": "414c623cb1bc0a59",
        "benchmarks": "3d97f9865714a369",
        "pretrain": "8ab498685a9adaba",
        "base_eval": "7ced81e23c62759c",
        "sft": "707cec013b01ccb4",
        "chat_eval_sft": "c3ccfab9a4ff7bc5",
        "rl": "348560a563a5fc38",
        "chat_eval_rl": "368ddc5587ea209a",
        "report": "401c73639421ef7d",
    },
    "tiny": {
        "shards": "5a9f8fce7b2cf90e",
        "tokenizer": "73ea2b5e6ae5de08",
        "tokens": "414c623cb1bc0a59",
        "benchmarks": "3d97f9865714a369",
        "pretrain": "dc2a6b5858bedfb0",
        "base_eval": "4bdd9772a3d91b54",
        "sft": "1f5b8875ed1b66be",
        "chat_eval_sft": "d54ac5cfb0b7ca8c",
        "rl": "1ccc4ecc20ed96e6",
        "chat_eval_rl": "b4039da7daed0026",
        "report": "401c73639421ef7d",
    },
    "demo": {
        "shards": "7f3a18204880826a",
        "tokenizer": "e9c9fe81b83731eb",
        "tokens": "414c623cb1bc0a59",
        "benchmarks": "3d97f9865714a369",
        "pretrain": "bc06c6b7d7315300",
        "base_eval": "7ced81e23c62759c",
        "sft": "6259c763d5925d3f",
        "chat_eval_sft": "6f5244076848c011",
        "rl": "a81167685c0b34cd",
        "chat_eval_rl": "f9f9043247940a9e",
        "report": "401c73639421ef7d",
    },
    "cpu": {
        "shards": "7f3a18204880826a",
        "tokenizer": "01355b1ffee28ce1",
        "tokens": "414c623cb1bc0a59",
        "benchmarks": "3d97f9865714a369",
        "pretrain": "72de4e8cca868cc9",
        "base_eval": "52bd863cfb50889f",
        "sft": "099cffe27a3f6a81",
        "chat_eval_sft": "0e67e6f7cd76f131",
        "rl": "eb477d2591e065f3",
        "chat_eval_rl": "975fdd7ca73f09ea",
        "report": "401c73639421ef7d",
    },
    "research": {
        "shards": "7f3a18204880826a",
        "tokenizer": "01355b1ffee28ce1",
        "tokens": "414c623cb1bc0a59",
        "benchmarks": "3d97f9865714a369",
        "pretrain": "cdec48f891412e63",
        "base_eval": "0e76981dbc137701",
        "sft": "3a0995996a741ca1",
        "chat_eval_sft": "c3ccfab9a4ff7bc5",
        "rl": "c826b43984fc9ed1",
        "chat_eval_rl": "368ddc5587ea209a",
        "report": "401c73639421ef7d",
    },
    "speedrun": {
        "shards": "7f3a18204880826a",
        "tokenizer": "01355b1ffee28ce1",
        "tokens": "414c623cb1bc0a59",
        "benchmarks": "3d97f9865714a369",
        "pretrain": "e999ca8fc64a4521",
        "base_eval": "0e76981dbc137701",
        "sft": "3a0995996a741ca1",
        "chat_eval_sft": "c3ccfab9a4ff7bc5",
        "rl": "c826b43984fc9ed1",
        "chat_eval_rl": "368ddc5587ea209a",
        "report": "401c73639421ef7d",
    },
}


def fingerprints(preset_name: str) -> dict[str, str]:
    """First half of every station's fingerprint, as if it had no inputs."""
    recipes = DEFAULTS if preset_name == "default" else PRESETS[preset_name](SOURCE).recipes
    found = {}
    for station in MAKING_STATIONS:
        request = Request(
            station=station,
            code_version=CODE_VERSIONS[station],
            recipe=getattr(recipes, station).model_dump(mode="json"),
            inputs={},
        )
        found[station] = request.fingerprint[:16]
    return found


@pytest.mark.parametrize("preset_name", ["default", *PRESETS])
def test_the_recipes_of_a_preset_have_the_fingerprints_that_they_always_had(
    preset_name: str,
) -> None:
    found = fingerprints(preset_name)
    assert found == GOLDEN[preset_name], f"write down, if that is meant: {found}"


def test_where_a_station_runs_is_no_part_of_its_fingerprint() -> None:
    for station in MAKING_STATIONS:
        recipe = getattr(PRESETS["tiny"](SOURCE).recipes, station).model_dump(mode="json")
        assert not set(recipe) & set(Execution.model_fields)


def test_other_packages_on_the_machine_are_another_source() -> None:
    newer = SOURCE.model_copy(update={"versions": {"numpy": "2.1.0", "absentee": "absent"}})
    before, after = (PRESETS["demo"](source).recipes.shards for source in (SOURCE, newer))
    assert canonical_json(before.model_dump(mode="json")) != canonical_json(
        after.model_dump(mode="json")
    )
