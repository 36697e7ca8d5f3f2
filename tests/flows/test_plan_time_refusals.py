"""What is refused before anything is read, started or computed, and what each message says."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.checks import check_compiler, missing_device
from flows.overrides import parse_assignments
from flows.parameters import WEAK_SANDBOX, ResolvedRun, check, parse_parameters
from flows.presets import PRESETS
from nanochat_core.data.recipes import HarvestSource
from nanochat_core.errors import (
    BatchSizeError,
    ConfigError,
    DataError,
    UnknownNameError,
    WeakSandboxError,
)
from nanochat_core.sandbox import tiers

# So many words as a vocabulary of 512 tokens needs.
WORDS = [hashlib.sha256(str(i).encode()).hexdigest()[:7] for i in range(12_000)]
PARAGRAPHS = [" ".join(WORDS[60 * i : 60 * i + 60]) for i in range(200)]


def checked(environ: dict[str, str] | None = None, **values: Any) -> ResolvedRun:
    return check(parse_parameters({"preset": "tiny", **values}), environ or {})


def from_file(folder: Path, name: str, content: bytes, **values: Any) -> ResolvedRun:
    (folder / name).write_bytes(content)
    return checked(source=[str(folder / name)], **values)


@pytest.mark.parametrize(
    ("overrides", "kind", "message"),
    [
        ({"sft.epochs": "0"}, ConfigError, "sft.epochs=0: expected greater than 0; or .*'auto'"),
        ({"sft.num_iterations": "0"}, ConfigError, "sft.num_iterations=0: .* 1; or .*'auto'"),
        ({"pretrain.num_iterations": "-5"}, ConfigError, "pretrain.num_iterations=-5"),
        ({"pretrain.tokens_per_step": "0"}, ConfigError, "pretrain.tokens_per_step=0"),
        ({"pretrain.n_embd": "0"}, ConfigError, "pretrain.n_embd=0"),
        ({"pretrain.n_kv_head": "0"}, ConfigError, "pretrain.n_kv_head=0"),
        ({"pretrain.n_kv_head": "3"}, ConfigError, "n_head=2 .* n_kv_head=3; set pretrain.n_kv"),
        ({"pretrain.head_dim": "15"}, ConfigError, "head_dim=15 is odd; .* set .*head_dim to 16"),
        ({"pretrain.eval_every": "0"}, ConfigError, "pretrain.eval_every=0.*expected -1"),
        ({"pretrain.depth": "1000000"}, ConfigError, "less than or equal to 1000"),
        ({"pretrain.target_flops": "1e9"}, ConfigError, "both num_iterations=30 and target_flops"),
        ({"pretrain.seed": "1e400"}, ConfigError, "finite"),
        ({"pretrain.ranks": "3"}, BatchSizeError, "pretrain: a step of 8 rows .* use a step of 12"),
        (
            {"pretrain.ranks": "3", "pretrain.device_batch_size": "auto"},
            BatchSizeError,
            "pretrain: a step of 8 rows cannot be shared .* 3 ranks; use a step of 9 rows",
        ),
        (
            {"pretrain.ranks": "2", "pretrain.nodes": "2"},
            BatchSizeError,
            "pretrain: a step of 8 rows is not a multiple of 16 .*4 x 4 ranks",
        ),
        ({"rl.nodes": "4"}, BatchSizeError, "rl.ranks=1 times rl.nodes=4; use 4 questions"),
        ({"sft.ranks": "4"}, BatchSizeError, "sft: a step of 8 rows is not a multiple of 16"),
        ({"rl.ranks": "4"}, BatchSizeError, "rl.questions_per_step=2 .* use 4 questions"),
        ({"rl.samples_per_question": "9"}, ConfigError, "not a multiple of rl.normalise_group=8"),
        ({"rl.task": "sum"}, UnknownNameError, "did you mean sums"),
        ({"pretrain.compute_dtype": "bf16"}, UnknownNameError, "did you mean bfloat16"),
        ({"pretrain.device": "gpu"}, UnknownNameError, "expected 'auto', 'cuda', 'mps' or 'cpu'"),
    ],
)
def test_a_number_that_cannot_work_is_refused_with_what_would(
    overrides: dict[str, str], kind: type[ConfigError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        checked(overrides=overrides)


def test_a_batch_that_is_chosen_later_fits_any_step_that_ranks_can_share() -> None:
    meeting = {"rendezvous_endpoint": "node01:29500", "rendezvous_id": "one"}
    overrides = {"pretrain.ranks": "2", "pretrain.nodes": "2"}
    overrides |= {f"pretrain.{name}": value for name, value in meeting.items()}
    run = checked(overrides={**overrides, "pretrain.device_batch_size": "auto"})
    assert run.preset.executions.pretrain.device_batch_size == "auto"


def test_machines_that_cannot_find_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"sft\.nodes=2 with rendezvous_endpoint=''"):
        checked(overrides={"sft.nodes": "2"})


@pytest.mark.parametrize("variable", ["foo", "bf16", "Float32"])
def test_an_unknown_dtype_in_the_environment_names_the_variable(variable: str) -> None:
    with pytest.raises(UnknownNameError, match=f"NANOCHAT_DTYPE.*'{variable}'.*bfloat16"):
        checked({"NANOCHAT_DTYPE": variable})


def test_the_depth_cannot_be_given_twice() -> None:
    with pytest.raises(ConfigError, match=r"depth=4 and pretrain\.depth=6 say the same thing"):
        checked(depth=4, overrides={"pretrain.depth": "6"})


def test_a_field_cannot_be_set_to_two_values() -> None:
    assert parse_assignments(["sft.seed=1", "sft.seed=1"]) == {"sft.seed": "1"}
    with pytest.raises(ConfigError, match=r"gives sft\.seed twice, as 1 and 2"):
        parse_assignments(["sft.seed=1", "sft.seed=2"])


@pytest.mark.parametrize(
    ("device", "platform", "torch_version", "reason"),
    [
        ("mps", "linux", "2.13.0", "on a Mac only"),
        ("cuda", "linux", "2.14.0+cpu", "built for CPUs only"),
        ("cuda", "darwin", "2.13.0", "no CUDA GPU"),
        ("cuda", "linux", "2.13.0", "shows no GPU"),
        ("cuda", "win32", "2.13.0+cu130", ""),
        ("mps", "darwin", "2.13.0", ""),
        ("auto", "linux", "2.14.0+cpu", ""),
        ("cpu", "linux", "2.13.0", ""),
    ],
)
def test_a_device_that_cannot_be_there_is_known_without_torch(
    device: str, platform: str, torch_version: str, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "nvme0").touch()
    found = missing_device(device, platform=platform, torch_version=torch_version, nodes=tmp_path)
    assert bool(found) == bool(reason)
    assert reason in found


def test_a_gpu_is_seen_by_its_device_file(tmp_path: Path) -> None:
    (tmp_path / "nvidia0").touch()
    assert missing_device("cuda", platform="linux", torch_version="2.13.0", nodes=tmp_path) == ""


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "holds 0 documents; 40 or more are needed.*add text"),
        ("a.txt", b" \n\n \n", "holds 0 documents"),
        ("a.md", b"A single line.\n", "holds 1 document;"),
        ("a.txt", b"\x89PNG\r\n\x1a\n" * 99, "a.txt is not UTF-8: byte 0 is 0x89; convert"),
        ("a.txt", b"abc\0def\n" * 99, "holds a NUL byte at 3: a binary file"),
        ("a.txt", "déjà vu\n\n".encode("latin-1") * 99, "byte 1 is 0xe9.*convert the file"),
        ("a.csv", b"a,b\n", "ends in one of .txt, .md, .jsonl, .parquet"),
        ("a.jsonl", b'{"text": oops}\n', "a.jsonl:1: not JSON .*expected one object a line"),
        ("a.jsonl", b'{"content": "x"}\n', r"no column 'text'; the line has \['content'\].*--set"),
        ("a.jsonl", b'{"text": 3}\n', "column 'text' holds int; expected a string"),
        ("a.parquet", b"no parquet", "a.parquet is not a readable parquet file"),
    ],
)
def test_a_source_that_is_no_text_is_refused_before_the_run(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        from_file(tmp_path, name, content)
    assert "file://" not in str(caught.value)


def test_a_parquet_file_without_the_column_names_those_it_has(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": PARAGRAPHS}), path)
    with pytest.raises(DataError, match=r"no column 'text'; it has \['body'\]"):
        checked(source=[str(path)])
    column = {"shards.source.text_column": "body"}
    assert checked(source=[str(path)], overrides=column).source_paths["shards"] == (str(path),)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "a source is empty text"),
        ("  ", "a source is empty text"),
        ("nothing.txt", r"no such file or folder: nothing\.txt; check the path"),
        ("folder/*.txt", "nothing matches"),
        ("folder", r"nothing matches folder: expected \.txt"),
        ("foo://x.txt", "Protocol not known: foo; check its spelling"),
    ],
)
def test_a_source_that_is_not_there_is_refused(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file.txt").write_text("\n\n".join(PARAGRAPHS))
    with pytest.raises(DataError, match=message):
        checked(source=[source])


def test_the_home_folder_may_be_written_as_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME" if os.name != "nt" else "USERPROFILE", str(tmp_path))
    (tmp_path / "a.txt").write_text("\n\n".join(PARAGRAPHS))
    assert checked(source=["~/a.txt"]).source_paths["shards"] == ("~/a.txt",)


def test_far_too_little_text_for_the_steps_is_refused_before_it_is_read(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in PARAGRAPHS[:100]).encode()
    too_many = {"pretrain.num_iterations": "100000"}
    with pytest.raises(DataError, match=r"51,200,000 tokens.* 8 times .*MB of text or more"):
        from_file(tmp_path, "a.jsonl", lines, overrides=too_many)
    data_only = {"overrides": too_many, "stop_after": "tokens"}
    assert from_file(tmp_path, "a.jsonl", lines, **data_only).stations[-1] == "tokens"
    assert from_file(tmp_path, "a.jsonl", lines).stations[-1] == "release"


def test_a_machine_without_a_compiler_is_told_how_to_go_on() -> None:
    preset = PRESETS["demo"](HarvestSource(versions={}, python=""))
    with pytest.raises(ConfigError, match=r"no C\+\+ compiler.*--set pretrain\.compile=false"):
        check_compiler(preset, platform="linux", find=lambda name: None)
    check_compiler(preset, platform="darwin", find=lambda name: None)


@pytest.mark.parametrize(
    "source",
    [
        "https://me:token@example.org/a.txt",
        "https://example.org/a.txt?signature=token",
        "simplecache::https://example.org/a.txt?signature=token",
        "https://example.org/a.txt?signature=token&next=http://example.org",
    ],
)
def test_a_source_that_would_record_a_secret_is_refused_without_showing_it(source: str) -> None:
    with pytest.raises(ConfigError, match="credentials in the environment") as refusal:
        parse_parameters({"source": [source]})
    assert "token" not in str(refusal.value)


def test_a_benchmark_without_its_file_is_refused_by_the_name_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "gsm8k-test.jsonl").write_text("{}")
    expected = r"rl needs the train rows of gsm8k; put gsm8k-train\.jsonl or .* --benchmarks"
    with pytest.raises(ConfigError, match=expected):
        checked(benchmarks=str(tmp_path), overrides={"rl.task": "gsm8k"})


def test_a_folder_without_benchmarks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no benchmark"):
        checked(benchmarks=str(tmp_path))


def test_generated_code_that_nothing_would_hold_back_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiers, "ways", lambda: iter([]))
    (tmp_path / "humaneval-test.jsonl").write_text("{}")
    with pytest.raises(WeakSandboxError, match="--allow-weak-sandbox"):
        checked(benchmarks=str(tmp_path))
    assert checked(benchmarks=str(tmp_path), stop_after="sft").stations[-1] == "sft"
    assert checked(benchmarks=str(tmp_path), overrides=WEAK_SANDBOX).stations[-1] == "release"
