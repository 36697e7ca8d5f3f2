"""Two ranks share the work and get the result of one."""

import json
import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from eval_tools import choice_rows, make_batches, make_model, make_tokenizer, write_bundle

from nanochat_core.distributed.ranks import Ranks, init_ranks
from nanochat_core.evals.bits_per_byte import loss_totals
from nanochat_core.evals.bundle import read_bundle
from nanochat_core.evals.core import evaluate_core
from nanochat_core.evals.core_results import example_rows


def evaluate(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """Everything that ranks share, as JSON values; infinite scores are among them."""
    model, tokenizer = make_model(), make_tokenizer()
    bundle = read_bundle(folder)
    # One row at a time, so that shapes, and so the bits, do not depend on the number of ranks.
    core = evaluate_core(model, tokenizer, bundle, ranks, max_per_task=9, batch_tokens=1)
    tokens_BT, targets_BT = make_batches()
    own = range(ranks.rank, len(tokens_BT), ranks.world_size)
    batches = [(tokens_BT[i : i + 1], targets_BT[i : i + 1]) for i in own]
    loss = loss_totals(model, batches, tokenizer.token_bytes, ranks)
    cropped = [task.num_cropped for task in core.tasks]
    return {
        "examples": list(example_rows(core)),
        "cropped": cropped,
        "score": core.score,
        "bytes": loss.num_bytes,
        "bits_per_byte": loss.bits_per_byte,
    }


def run_rank(rank: int, port: int, folder: str) -> None:
    """The body of one process."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank)}
    os.environ |= {"LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    ranks = init_ranks("cpu", timeout_seconds=30)
    result = evaluate(Path(folder), ranks)
    ranks.close()
    (Path(folder) / f"result-{rank}.json").write_text(json.dumps(result))


@pytest.mark.distributed
def test_two_ranks_get_what_one_gets(tmp_path: Path) -> None:
    rows = [*choice_rows(10), {"query": "The sky", "choices": ["is", "is"], "gold": 0}]
    entry = {"rows": rows, "icl_task_type": "multiple_choice", "num_fewshot": [1]}
    write_bundle(tmp_path, [{"label": "few", **entry}, {"label": "same", **entry}])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=run_rank, args=(rank, port, str(tmp_path))) for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    first, second = (json.loads((tmp_path / f"result-{i}.json").read_text()) for i in range(2))
    alone = evaluate(tmp_path, Ranks.single())
    assert first == second
    bits = alone.pop("bits_per_byte")
    assert first.pop("bits_per_byte") == pytest.approx(bits, rel=1e-12)
    assert first == alone
