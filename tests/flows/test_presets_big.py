"""The presets for published shards: what the dial makes of them, and what they fetch."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.checks import has_gpu
from flows.parameters import ResolvedRun, check, parse_parameters
from flows.presets import PRESETS, USUAL_SOURCES
from flows.source_files import Reading, Wanted, characters_per_token
from nanochat_core.data.hub_shards import (
    CLIMBMIX,
    HubAccess,
    num_shards_for,
    usual_characters,
)
from nanochat_core.data.recipes import HarvestSource, HubSource
from nanochat_core.training.dial import TrainingPlan, plan_training
from tests.data.hub_server import make_shards

CLIMBMIX_SHARDS = 6_543


def checked(name: str, **values: Any) -> ResolvedRun:
    # Documentation, so that nothing is asked of the network.
    return check(parse_parameters({"preset": name, "source": ["docs"], **values}), {})


def planned(name: str) -> TrainingPlan:
    recipes = PRESETS[name](HubSource(files=())).recipes
    return plan_training(recipes.pretrain, recipes.tokenizer.vocab_size)


def test_a_speedrun_is_the_published_one() -> None:
    plan = planned("speedrun")
    assert (plan.model.n_layer, plan.model.n_embd, plan.model.n_head) == (24, 1536, 12)
    assert plan.tokens_per_step == 2**20
    assert 5_560 <= plan.num_iterations <= 5_580
    run = checked("speedrun")
    assert run.preset.recipes.pretrain.fp8
    assert run.preset.executions.pretrain.ranks == 8
    assert run.preset.executions.pretrain.device_batch_size == 16


def test_research_is_depth_twelve_with_everything_by_the_dial() -> None:
    plan = planned("research")
    assert (plan.model.n_layer, plan.model.n_embd) == (12, 768)
    assert (plan.tokens_per_step, plan.num_iterations) == (2**19, 2520)
    assert plan.batch_lr_scale == plan.width_lr_scale == 1.0
    assert checked("research").preset.executions.pretrain.core_metric_every == -1


def test_a_preset_for_gpus_is_noted_where_there_is_none() -> None:
    notes = checked("speedrun").warnings
    told = "speedrun is for GPUs, and this machine shows none" in " ".join(notes)
    assert told != has_gpu()
    elsewhere = checked("speedrun", stage_pools={"pretrain": "gpu"}).warnings
    assert "is for GPUs" not in " ".join(elsewhere)


def test_cpu_is_a_small_model_that_a_laptop_can_train() -> None:
    plan = planned("cpu")
    assert (plan.model.n_layer, plan.model.sequence_len, plan.model.window_pattern) == (6, 512, "L")
    assert (plan.tokens_per_step, plan.num_iterations) == (16_384, 5_000)
    assert checked("cpu").preset.recipes.sft.num_iterations == 1_500
    assert checked("cpu").warnings[0].startswith("fine-tuning goes without smoltalk")


@pytest.mark.parametrize(("name", "expected"), [("speedrun", 112), ("research", 32), ("cpu", 1)])
def test_a_preset_takes_as_many_shards_of_climbmix_as_its_plan_reads(
    name: str, expected: int
) -> None:
    preset = PRESETS[name](HubSource(files=()))
    wanted = Wanted.of(preset, planned(name))
    per_shard = usual_characters(USUAL_SOURCES[name])
    assert per_shard == 250e6
    count = num_shards_for(wanted.characters, per_shard, wanted.block_shards)
    assert count == expected
    assert count % wanted.block_shards == 0
    assert count < CLIMBMIX_SHARDS


def test_a_mixture_with_published_shards_is_dealt_to_as_many_as_usual(tmp_path: Path) -> None:
    for name, data in make_shards(3).items():
        (tmp_path / name).write_bytes(data)
    source = ["docs@1", f"shards:{tmp_path}@1"]
    data_only: dict[str, Any] = {"source": source, "stop_after": "tokens"}
    assert checked("speedrun", **data_only).preset.recipes.shards.num_shards == 112
    assert checked("demo", **data_only).preset.recipes.shards.num_shards == 4
    few = {"shards.num_shards": 8}
    assert checked("speedrun", **data_only, overrides=few).preset.recipes.shards.num_shards == 8


def test_a_larger_vocabulary_needs_more_text_for_a_token() -> None:
    sizes = (300, 512, 2_048, 10_000, 32_768, 50_000, 65_536, 200_000)
    found = [characters_per_token(size) for size in sizes]
    assert found == sorted(found)
    assert (found[1], found[4], found[-1]) == (2.2, 4.7, 4.9)


def test_the_conversations_of_the_reference_are_taken_where_they_are(tmp_path: Path) -> None:
    bare = checked("research")
    assert [part.kind for part in bare.preset.recipes.sft.mixture.parts] == ["identity", "sums"]
    assert bare.preset.recipes.rl.task == "sums"
    row = {"question": "1+1?", "answer": "It is 2. #### 2"}
    for split in ("train", "test"):
        (tmp_path / f"gsm8k-{split}.jsonl").write_text(json.dumps(row))
    (tmp_path / "smoltalk-train.jsonl").write_text(
        json.dumps({"messages": [{"role": "user", "content": "a"}]})
    )
    recipes = checked("research", benchmarks=str(tmp_path)).preset.recipes
    parts = [(part.kind, part.epochs) for part in recipes.sft.mixture.parts]
    assert parts == [("smoltalk", 1), ("gsm8k", 4), ("identity", 1), ("sums", 1)]
    assert recipes.sft.mixture.seed == 42
    assert (recipes.rl.task, recipes.rl.num_iterations) == ("gsm8k", "auto")


def test_presets_of_the_demo_read_what_is_installed_and_the_others_climbmix() -> None:
    assert set(USUAL_SOURCES) == set(PRESETS) - {"tiny", "demo"}
    assert set(USUAL_SOURCES.values()) == {CLIMBMIX}
    told = {
        name: PRESETS[name](source).recipes.sft.mixture.data
        for name, source in (
            ("demo", HarvestSource(versions={}, python="")),
            ("cpu", HubSource(files=())),
        )
    }
    assert told == {"demo": "the documentation of Python packages", "cpu": "text from the web"}


def test_a_token_is_in_no_text_of_how_the_hub_is_asked() -> None:
    access = HubAccess.of({"HF_TOKEN": "hf_secret", "HF_ENDPOINT": "http://127.0.0.1:1"})
    assert access.headers == {"authorization": "Bearer hf_secret"}
    assert access.policy.endpoint == "http://127.0.0.1:1"
    assert "hf_secret" not in repr(Reading(access, "store"))
