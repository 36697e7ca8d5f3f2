"""From options to a model: that of the demo, that of the dial, and variants of either."""

import re
from dataclasses import dataclass

import pytest
import torch
from bench_tools import setup, tiny_parts

from flows.presets import PRESETS
from nanochat_core.bench.train import parser, run, setup_of
from nanochat_core.bench.train_rows import most_that_fit
from nanochat_core.bench.train_setup import DEMO, DEMO_VOCAB_SIZE
from nanochat_core.bench.train_variants import variant_of
from nanochat_core.data.recipes import HarvestSource
from nanochat_core.errors import ConfigError, UnknownNameError
from nanochat_core.training.dial import plan_training
from nanochat_core.training.recipes import PretrainRecipe
from nanochat_core.training.step import MicroBatch


def test_without_a_depth_it_is_the_model_that_the_demo_trains() -> None:
    demo = PRESETS["demo"](HarvestSource(versions={}, python="")).recipes
    assert demo.pretrain == DEMO
    assert demo.tokenizer.vocab_size == DEMO_VOCAB_SIZE
    default = setup_of(parser().parse_args([]))
    assert plan_training(default.recipe, default.vocab_size) == plan_training(DEMO, 2048)


def test_with_a_depth_it_is_the_model_of_the_dial() -> None:
    asked = setup_of(parser().parse_args(["--depth", "12"]))
    plan = plan_training(asked.recipe, asked.vocab_size)
    assert plan == plan_training(PretrainRecipe(depth=12), 32768)
    assert (plan.model.n_embd, plan.model.sequence_len) == (768, 2048)


def test_a_variant_changes_what_its_words_name_and_nothing_else() -> None:
    base = setup("--compile", "blocks", "--dtype", "bfloat16", "--fp8")
    eager = variant_of(base, "eager-float32")
    assert eager.recipe == base.recipe.model_copy(update={"compute_dtype": "float32", "fp8": False})
    assert eager.execution == base.execution.model_copy(update={"compile": False})
    other = variant_of(base, "flex-model-recomputed").execution
    assert (other.attention, other.compile_scope, other.activation_checkpointing) == (
        "flex",
        "model",
        True,
    )
    assert variant_of(eager, "fp8").recipe == base.recipe
    with pytest.raises(UnknownNameError, match="'quick' in the variant 'eager-quick' is none of"):
        variant_of(base, "eager-quick")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "--steps 0; give 1 or more"),
        (["--device-batch-size", "many"], "device_batch_size='many'"),
        (["--dtype", "float8"], "compute_dtype='float8'"),
        (["--device-batch-size", "3"], "device_batch_size 3 x 1 ranks"),
        (["--against", "none-such"], "'none' in the variant 'none-such'"),
        (["--fp8-loss-check", "0"], "give the number of steps"),
        (["--fp8", "--dtype", "float32"], "set compute_dtype=bfloat16"),
    ],
)
def test_options_that_cannot_work_are_refused_before_anything_is_measured(
    options: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        run(["--device", "cpu", *options], {})


def test_the_help_has_the_commands_for_an_h100(capsys: pytest.CaptureFixture[str]) -> None:
    parser().print_help()
    text = capsys.readouterr().out
    for line in text.splitlines():
        assert len(line) <= 100, line
    commands = " ".join(text.replace("\\\n", " ").split())
    assert "--depth 12 --dtype bfloat16 --sequence-len 2048 --tokens-per-step 524288" in commands
    assert "--fp8-loss-check 200" in commands


@dataclass
class Room:
    """A device of so many bytes, of which nothing is known but that all of it is free."""

    bytes: int

    def start(self) -> int:
        return 0

    def peak(self) -> int:
        return 0

    def limit(self) -> int:
        return self.bytes


def test_automatic_rows_are_what_memory_holds_and_leave_no_gradient() -> None:
    parts = tiny_parts("--tokens-per-step", "512", "--device-batch-size", "auto")
    assert (parts.device_batch_size, parts.passes) == (8, 2), "a CPU takes eight"
    tried: list[int] = []

    def make(rows: int) -> MicroBatch:
        tried.append(rows)
        tokens = torch.zeros(rows, 32, dtype=torch.int64)
        return MicroBatch(tokens, tokens, 1.0)

    model = parts.state.model
    rows = most_that_fit(
        parts.setup.execution, model, parts.loss, make, share=16, memory=Room(10**12)
    )
    assert rows == 16
    assert set(tried) == {16}
    assert all(parameter.grad is None for parameter in model.parameters())
