"""Train rows of published sets as conversations for SFT."""

import json
import re
from pathlib import Path

import pytest
from benchmark_tools import ARC_ROWS, GSM8K_ROWS, MMLU_ROWS, real_file, write_rows

from nanochat_core.benchmarks.open import check_files, open_benchmark
from nanochat_core.benchmarks.pools import open_pool, open_set, part_files
from nanochat_core.conversation.recipes import MixturePart
from nanochat_core.conversation.types import exchange
from nanochat_core.errors import ConfigError, DataError

SMOLTALK_ROWS = [
    {
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "" if n == 1 else f"Hello {n}"},
        ],
        "source": "everyday",
    }
    for n in range(3)
]


@pytest.mark.parametrize("form", [".jsonl", ".jsonl.gz", ".parquet"])
@pytest.mark.parametrize(
    ("kind", "rows"), [("gsm8k", GSM8K_ROWS), ("mmlu", MMLU_ROWS), ("arc-easy", ARC_ROWS)]
)
def test_a_benchmark_teaches_its_train_rows_in_the_order_of_their_file(
    tmp_path: Path, kind: str, rows: list[dict[str, object]], form: str
) -> None:
    write_rows(tmp_path / f"{kind}-train{form}", rows)
    pool = open_pool(MixturePart.model_validate({"kind": kind}), tmp_path)
    found = [conversation for _, conversation in pool.pick(range(len(pool)))]
    assert list(pool.pick([len(rows) - 1])) == [(len(rows) - 1, found[-1])]
    assert len(pool) == len(found) == len(rows)
    assert all(str(r["question"]) in c.messages[0].text for r, c in zip(rows, found, strict=True))
    benchmark = open_benchmark(kind, "train", folder=tmp_path)
    asked = [benchmark.conversation(i) for i in range(len(benchmark))]
    assert sorted(asked, key=repr) == sorted(found, key=repr)


def test_smoltalk_is_read_as_it_is_published(tmp_path: Path) -> None:
    write_rows(tmp_path / "smoltalk-train.parquet", SMOLTALK_ROWS)
    pool = open_pool(MixturePart(kind="smoltalk"), tmp_path)
    replies = ("Hello 0", "", "Hello 2")
    assert list(pool.pick(range(3))) == [
        (n, exchange("Hi", each)) for n, each in enumerate(replies)
    ]


def test_every_file_is_checked_as_what_its_name_says(tmp_path: Path) -> None:
    write_rows(tmp_path / "smoltalk-train.parquet", SMOLTALK_ROWS)
    write_rows(tmp_path / "gsm8k-train.jsonl", GSM8K_ROWS)
    write_rows(tmp_path / "me.jsonl", SMOLTALK_ROWS[:1])
    assert check_files(tmp_path) == 3 + 3 + 1
    write_rows(tmp_path / "me.jsonl", SMOLTALK_ROWS)
    with pytest.raises(DataError, match=r"me\.jsonl:2: message 2: an empty message"):
        check_files(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"smoltalk \(train\): put smoltalk-train\.jsonl or"):
        open_pool(MixturePart(kind="smoltalk"), tmp_path)
    own = MixturePart(kind="jsonl", file="me.jsonl")
    with pytest.raises(DataError, match=r"does not hold me\.jsonl"):
        open_pool(own, tmp_path)
    for part in (own, MixturePart(kind="mmlu")):
        with pytest.raises(ConfigError, match="no folder of benchmarks"):
            open_pool(part, None)


def test_only_parts_that_are_read_have_files() -> None:
    assert part_files(MixturePart(kind="sums", conversations=1)) == ()
    assert part_files(MixturePart(kind="jsonl", file="me.jsonl")) == ("me.jsonl",)
    assert "mmlu-train.parquet" in part_files(MixturePart(kind="mmlu"))


def test_a_malformed_conversation_of_a_set_is_told_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "smoltalk-train.jsonl").write_text(
        json.dumps(SMOLTALK_ROWS[0]) + '\n{"text": "no messages"}\n'
    )
    pool = open_pool(MixturePart(kind="smoltalk"), tmp_path)
    with pytest.raises(DataError, match=r"smoltalk-train\.jsonl:2: an object with text; expected"):
        list(pool.pick(range(2)))


def test_the_published_rows_of_gsm8k_teach_with_the_calculator() -> None:
    pool = open_set("gsm8k", real_file("gsm8k_train_head.jsonl"))
    assert len(pool) == 3000
    called = 0
    for row, conversation in pool.pick(range(0, 3000, 50)):
        answer = conversation.messages[-1]
        assert re.search(r"#### -?[0-9.,]+$", answer.text), row
        called += any(part.kind == "python" for part in answer.parts)
    assert called > 55
