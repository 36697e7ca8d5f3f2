"""The loss on held-out conversations: what it is of, that it is right, and changes nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from job_tools import MODEL_FILES, SFT, make_spec, results, run_ranks

from nanochat_core.conversation.identity import ModelFacts
from nanochat_core.conversation.pools import permutation
from nanochat_core.conversation.recipes import Mixture, MixturePart
from nanochat_core.conversation.sums import is_held_out
from nanochat_core.data.conversation_rows import IGNORE
from nanochat_core.distributed.ranks import Ranks
from nanochat_core.errors import JobStoppedError
from nanochat_core.inference.loading import load_pair
from nanochat_core.jobs import sft
from nanochat_core.jobs.common import StopRequest
from nanochat_core.jobs.sft_conversations import render_rows
from nanochat_core.jobs.sft_validation import TEST_ROWS, VAL_LOSS, held_out_mixture

FACTS = ModelFacts(
    name="nanochat", depth=2, num_parameters=1, n_embd=32, n_head=2, vocab_size=320,
    sequence_len=64,
)  # fmt: skip


def lines_of(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "work" / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def losses_of(folder: Path) -> dict[int, float]:
    return {line["step"]: line[VAL_LOSS] for line in lines_of(folder) if VAL_LOSS in line}


def tune(base: dict[str, str], folder: Path, every: int, stop: StopRequest | None = None) -> Any:
    spec = make_spec(SFT, base, folder, station="sft", device_batch_size=8, eval_every=every)
    sft.main(spec, Ranks.single(), stop or StopRequest())
    return spec


def test_held_out_conversations_are_looked_at_and_change_no_bit(
    base: dict[str, str], tmp_path: Path, one_thread: None
) -> None:
    looked, not_looked = (tune(base, tmp_path / str(every), every) for every in (2, -1))
    assert results(looked, MODEL_FILES) == results(not_looked, MODEL_FILES)
    assert list(losses_of(tmp_path / "2")) == [0, 2, 4]
    assert losses_of(tmp_path / "-1") == {}
    trained = [line for line in lines_of(tmp_path / "2") if "train/loss" in line]
    assert [line["step"] for line in trained] == [1, 2, 3, 4]


def test_a_fine_tuning_that_goes_on_has_each_loss_once(
    base: dict[str, str], tmp_path: Path, one_thread: None
) -> None:
    class StopAfter(StopRequest):
        left = 3

        def __call__(self) -> bool:
            self.left -= 1
            return self.left <= 0

    tune(base, tmp_path / "straight", 1)
    with pytest.raises(JobStoppedError):
        tune(base, tmp_path / "stopped", 1, StopAfter())
    tune(base, tmp_path / "stopped", 1)
    assert losses_of(tmp_path / "stopped") == losses_of(tmp_path / "straight")
    assert len([line for line in lines_of(tmp_path / "stopped") if VAL_LOSS in line]) == 5


def test_the_loss_is_the_mean_over_supervised_tokens(
    base: dict[str, str], tmp_path: Path, one_thread: None
) -> None:
    spec = tune(base, tmp_path, 4)
    model, _, tokenizer = load_pair(
        *(Path(base["pretrain"]), Path(base["tokenizer"])),
        *(torch.device("cpu"), torch.bfloat16),
    )
    facts = sft.model_facts(sft.load_base(spec, SFT, Ranks.single()), SFT)
    mixture = held_out_mixture(spec, SFT.mixture, facts)
    assert mixture is not None
    rows = render_rows(mixture, tokenizer, Ranks.single(), sequence_len=64, buffer=100).rows
    inputs, targets = (torch.from_numpy(each) for each in rows.read(0, rows.num_rows))
    with torch.no_grad():
        logits = model(inputs)
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
    assert losses_of(tmp_path)[0] == pytest.approx(float(expected), rel=1e-3)


def test_made_conversations_are_of_families_that_are_never_trained_with(tmp_path: Path) -> None:
    spec = make_spec(SFT, {}, tmp_path, station="sft")
    mixture = held_out_mixture(spec, SFT.mixture, FACTS)
    assert mixture is not None
    assert mixture.counts == {"identity": 36, "sums": 100}
    sums = [
        part.text.split("+")
        for each in mixture.conversations
        for part in each.messages[-1].parts
        if part.kind == "python"
    ]
    assert len(sums) == 100
    assert all(is_held_out(int(a), int(b)) for a, b in sums)


def test_published_sets_give_the_first_of_their_test_rows_where_the_file_is_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    num_rows = TEST_ROWS["gsm8k"] + 80
    rows = [{"question": f"{n} + 0?", "answer": f"It is. #### {n}"} for n in range(num_rows)]
    (folder / "gsm8k-test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    kinds = ("gsm8k", "mmlu", "gsm8k")
    parts = tuple(MixturePart(kind=kind) for kind in kinds)  # type: ignore[arg-type]
    spec = make_spec(SFT, {"benchmarks": str(folder)}, tmp_path, station="sft")
    with caplog.at_level("INFO"):
        mixture = held_out_mixture(spec, Mixture(parts=parts), FACTS)
    assert mixture is not None
    assert list(mixture.counts) == ["gsm8k"]
    rows_taken = {row for _, row in mixture.order}
    assert len(rows_taken) == mixture.counts["gsm8k"] == len(mixture)
    assert rows_taken <= set(permutation(num_rows)[: TEST_ROWS["gsm8k"]])
    assert "without mmlu: no mmlu-test.jsonl or" in caplog.text


def test_without_anything_held_out_there_is_no_loss(tmp_path: Path) -> None:
    parts = (MixturePart(kind="questions", conversations=5), MixturePart(kind="gsm8k"))
    spec = make_spec(SFT, {"benchmarks": str(tmp_path)}, tmp_path, station="sft")
    assert held_out_mixture(spec, Mixture(parts=parts), FACTS) is None


@pytest.mark.distributed
@pytest.mark.xdist_group("sft_ranks")
def test_ranks_share_the_held_out_rows(
    base: dict[str, str], tmp_path: Path, one_thread: None
) -> None:
    found = []
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        settings = {"device_batch_size": 2, "eval_every": 4, "ranks": ranks}
        process = run_ranks(make_spec(SFT, base, folder, station="sft", **settings))
        assert process.returncode == 0, process.stderr[-3000:]
        found.append(losses_of(folder))
    assert list(found[0]) == list(found[1]) == [0, 4]
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-4)
