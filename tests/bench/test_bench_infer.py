"""The inference benchmark: the model it is asked for, figures that agree with each other."""

import json
import re
from pathlib import Path

import pytest
import torch

from nanochat_core.bench.infer import batches_of, main, parser, report_of, subject_of
from nanochat_core.bench.infer_bare import BareLoop
from nanochat_core.bench.infer_costs import (
    cache_bytes,
    decode_bytes,
    decode_flops,
    prefill_flops,
    weight_bytes,
)
from nanochat_core.bench.infer_measuring import (
    Ceilings,
    Seeds,
    against_bare_loop,
    against_one_at_a_time,
    measure_batch,
)
from nanochat_core.bench.infer_setup import Subject, made_up_tokenizer, shape_of
from nanochat_core.bench.infer_timing import Timeline, drive
from nanochat_core.bench.train_setup import DEMO, DEMO_VOCAB_SIZE
from nanochat_core.errors import ConfigError
from nanochat_core.inference.loading import save_model
from nanochat_core.model.config import ModelConfig
from nanochat_core.training.dial import model_config
from nanochat_core.training.recipes import PretrainRecipe
from tests.inference.mixes import alone
from tests.model.builders import random_model

TINY = (
    *("--depth", "1", "--sequence-len", "32", "--vocab-size", "300", "--device", "cpu"),
    *("--prompt", "20", "--new", "6", "--rounds", "1"),
)


def subject(*options: str) -> Subject:
    return subject_of(parser().parse_args([*TINY, *options]))


def test_without_a_depth_it_is_the_shape_that_the_demo_trains() -> None:
    assert shape_of(None, None, None) == model_config(DEMO, DEMO_VOCAB_SIZE)
    dial = shape_of(12, None, None)
    assert dial == model_config(PretrainRecipe(depth=12), 32768)
    assert (dial.n_embd, dial.sequence_len) == (768, 2048)
    small = shape_of(12, 64, 500)
    assert (small.n_layer, small.sequence_len, small.vocab_size) == (12, 64, 500)


@pytest.mark.parametrize("vocab_size", [265, 300, 32768])
def test_a_made_up_tokenizer_has_a_text_for_every_token(vocab_size: int) -> None:
    tokenizer = made_up_tokenizer(vocab_size)
    assert tokenizer.vocab_size == vocab_size
    assert len(set(tokenizer.ranks)) == len(tokenizer.ranks)


def test_every_reply_has_the_length_asked_for_and_no_prompt_comes_twice() -> None:
    asked = subject("--temperature", "1")
    timeline = drive(asked.engine(3), asked.requests(5, seed=1))
    assert [len(moments) for moments in timeline.moments.values()] == [6] * 5
    prompts = [request.prompt for seed in (1, 2) for request in asked.requests(5, seed)]
    assert len({prompt[:4] for prompt in prompts}) == 10


def test_what_the_clock_says_of_each_token() -> None:
    line = Timeline({0: [1.0, 2.0, 3.0], 1: [2.0, 3.0, 5.0]}, 5.0, steps=[1.0, 2.0, 3.0, 4.5, 5.0])
    assert line.num_tokens == 6
    assert line.to_first == [1.0, 2.0]
    assert line.per_token == [1.0, 1.5]
    assert line.full_steps == [1.0], "from the last first token to the first last one"


def test_costs_are_those_counted_token_by_token() -> None:
    config = ModelConfig(
        sequence_len=512, vocab_size=300, n_layer=2, n_head=4, n_kv_head=2, n_embd=64,
        window_pattern="SL",
    )  # fmt: skip
    short, long = config.windows
    assert (short, long) == (128, 512)
    # Keys and values, two heads of 16 channels, two bytes each: of 129 keys and of 200.
    assert cache_bytes(config, 2, 200) == 2 * 2 * 16 * 2 * (129 + 200)
    looked_up = 2 * (64 + 2 * 16)
    assert decode_bytes(config, 2, batch=3, prompt=199, new=2) == (
        weight_bytes(config, 2) + 3 * (2 * 2 * 16 * 2 * (129 + 200) + looked_up)
    )
    matrices = weight_bytes(config, 1)
    held = random_model(config)
    tables = {"wte", "value_embeddings"}
    large = [
        p for name, p in held.named_parameters() if p.dim() > 1 and name.split(".")[0] not in tables
    ]
    padding = (config.padded_vocab_size - config.vocab_size) * config.n_embd
    assert matrices == sum(p.numel() for p in large) - padding
    assert decode_flops(config, prompt=199, new=2) == 2 * matrices + 4 * 64 * (129 + 200)
    blocks = matrices - 300 * 64
    seen = sum(min(t, 129) + t for t in range(1, 151))
    assert prefill_flops(config, 150) == 2 * (blocks * 150 + 300 * 64) + 4 * 64 * seen


def test_the_figures_of_a_batch_agree_with_each_other() -> None:
    asked = subject()
    report = measure_batch(asked, 4, rounds=2, seeds=Seeds(), ceilings=Ceilings(1e12, 1e10))
    assert report["batch"] == 4
    assert report["decode_tokens_per_second"] == pytest.approx(
        4e3 / report["decode_step_ms"]["p50"], rel=0.01
    )
    config = asked.model.config
    rate = report["decode_tokens_per_second"]
    flops = rate * decode_flops(config, prompt=20, new=6)
    assert report["decode_compute_share"] == pytest.approx(flops / 1e12, rel=0.01)
    num_bytes = decode_bytes(config, 4, batch=4, prompt=20, new=6)
    assert report["decode_bandwidth_share"] == pytest.approx(rate / 4 * num_bytes / 1e10, rel=0.01)
    assert 0 < report["ttft_ms"]["p50"] <= report["ttft_ms"]["p95"]
    assert report["tokens_per_second"] > 0
    assert report["prefill_tokens_per_second"] > 0


def test_decoding_is_timed_with_the_prompts_in_the_cache() -> None:
    asked = subject("--prompt", "50")
    engine = asked.engine(3)
    drive(engine, asked.requests(3, 1, new=1))
    read = engine.stats.num_prefix_tokens
    timeline = drive(engine, asked.requests(3, 1))
    assert engine.stats.num_prefix_tokens - read == 3 * 49
    assert len(timeline.full_steps) >= 4


def test_the_bare_loop_says_what_the_engine_says() -> None:
    asked = subject()
    engine, loop = asked.engine(1), BareLoop(asked)
    for seed in (1, 2):
        (request,) = asked.requests(1, seed)
        expected = alone(engine, request).tokens
        assert loop.reply(list(request.prompt)) == expected


def test_both_comparisons_say_how_many_times_as_fast_the_engine_is() -> None:
    asked, seeds = subject(), Seeds()
    several = against_one_at_a_time(asked, 3, rounds=2, seeds=seeds)
    alone = against_bare_loop(asked, rounds=2, seeds=seeds)
    for found in (several, alone):
        assert 0 < found["ratio_min"] <= found["ratio_median"]
        assert found["rounds"] == 2
    assert (several["batch"], alone["batch"]) == (3, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch", "1,x"], "--batch '1,x'; give numbers from 1 on"),
        (["--batch", "0"], "give numbers from 1 on"),
        (["--rounds", "0"], "--rounds 0; give 1 or more"),
        (["--threads", "0"], "--threads 0; give 1 or more"),
        (["--prompt", "0"], "--prompt 0"),
        (["--prompt", "400"], "more than the 320 positions"),
        (["--vocab-size", "100"], "--vocab-size 100; give 265"),
        (["--model", "somewhere"], "--model has its own shape"),
        (["--tokenizer", "somewhere"], "--tokenizer belongs to --model"),
        (["--temperature", "-1"], "temperature=-1"),
        (["--against", "bare-loop", "--batch", "2"], "give --batch 1"),
        (["--against", "bare-loop", "--batch", "1", "--temperature", "1"], "is greedy"),
    ],
)
def test_options_that_cannot_work_are_refused(options: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        report_of(parser().parse_args([*TINY, *options]))


def test_batches_are_in_order_of_size() -> None:
    assert batches_of("8, 1,32") == [1, 8, 32]


def test_the_help_has_the_commands_for_an_h100(capsys: pytest.CaptureFixture[str]) -> None:
    parser().print_help()
    text = capsys.readouterr().out
    for line in text.splitlines():
        assert len(line) <= 100, line
    command = "--depth 12 --dtype bfloat16 --prompt 1024 --new 256 --batch 1,8,32,128"
    assert f"nanochat bench infer {command}" in text


def test_a_model_from_a_folder_is_measured_with_its_own_tokenizer(tmp_path: Path) -> None:
    tokenizer = made_up_tokenizer(280)
    config = shape_of(1, 32, 280)
    save_model(random_model(config), tmp_path, {"tokenizer": tokenizer.identity})
    tokenizer.save(tmp_path / "tokenizer")
    found = subject_of(parser().parse_args(["--model", str(tmp_path), "--device", "cpu"]))
    assert found.model.config == config
    assert found.tokenizer.identity == tokenizer.identity
    assert found.model.compute_dtype == torch.float32


@pytest.mark.e2e
def test_the_command_prints_one_line_and_writes_it_to_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "line.json"
    assert main([*TINY, "--batch", "1,3", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed == out.read_text()
    assert printed.count("\n") == 1
    report = json.loads(printed)
    assert [measured["batch"] for measured in report["batches"]] == [1, 3]
    assert (report["depth"], report["prompt"], report["new"]) == (1, 20, 6)
    assert report["roofline_bytes_per_second"] > 0
    assert main([*TINY, "--batch", "none"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "--batch 'none'" in told.err
