"""The bandwidth of two gloo ranks, and whether predictions from it come true."""

import json
import multiprocessing
import os
import statistics
from pathlib import Path

import pytest
import torch
from host_tools import free_port

from nanochat_core.distributed.bandwidth import (
    MESSAGE_BYTES,
    Bandwidth,
    all_reduce_seconds,
    check_bandwidth,
    describe,
    exchanged_bytes,
)
from nanochat_core.distributed.ranks import Ranks, init_ranks

ATTEMPTS = 9
SECONDS_ALLOWED = 100


def measure(rank: int, port: int, folder: Path) -> None:
    """Predict a message of twice the size, then send it; several times over."""
    torch.set_num_threads(1)
    os.environ.update({"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    ranks = init_ranks("cpu", timeout_seconds=60)
    twice = torch.zeros(2 * MESSAGE_BYTES["cpu"] // 4)
    pairs = []
    for _ in range(ATTEMPTS):
        # An all-reduce is both halves of an exchange: each of the bytes of the message.
        predicted = check_bandwidth(ranks, 2 * 2 * MESSAGE_BYTES["cpu"])
        measured = statistics.median(all_reduce_seconds(twice, ranks))
        pairs.append((predicted.gigabytes_per_second, predicted.seconds_per_step, measured))
    (folder / f"pairs-{rank}.json").write_text(json.dumps(pairs))
    ranks.close()


@pytest.mark.distributed
def test_a_message_of_twice_the_size_takes_what_was_predicted_within_a_factor_of_two(
    tmp_path: Path,
) -> None:
    context = multiprocessing.get_context("spawn")
    port = free_port()
    processes = [context.Process(target=measure, args=(r, port, tmp_path)) for r in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(SECONDS_ALLOWED)
        process.kill()
    pairs = [json.loads((tmp_path / f"pairs-{rank}.json").read_bytes()) for rank in range(2)]
    assert pairs[0] == pairs[1], "all ranks know the same"
    # Other work on this machine comes and goes between the two measurements.
    ratio = statistics.median(measured / predicted for _, predicted, measured in pairs[0])
    assert 0.5 < ratio < 2
    assert all(0.01 < gigabytes_per_second < 1_000 for gigabytes_per_second, _, _ in pairs[0])


def test_one_rank_exchanges_nothing() -> None:
    assert check_bandwidth(Ranks.single(), 10**9) == Bandwidth(1, 0.0, 0.0)


def test_gradients_and_weights_are_exchanged_in_the_dtype_of_the_parameters() -> None:
    parameters = [torch.zeros(10, 3), torch.zeros(4, dtype=torch.bfloat16)]
    assert exchanged_bytes(parameters) == 2 * (30 * 4 + 4 * 2)


def test_the_prediction_is_told_beside_the_time_of_a_step() -> None:
    told = describe(Bandwidth(8, 41.8, 0.0351), 0.702)
    assert "8 ranks exchange 41.8 GB/s" in told
    assert "adds about 35.1 ms to each step, which takes 702 ms without it (5% slower" in told
