"""How fast an engine answers: alone, with others, and beside simpler ways to do the same."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nanochat_core.bench.infer_bare import BareLoop
from nanochat_core.bench.infer_costs import decode_bytes, decode_flops, prefill_flops
from nanochat_core.bench.infer_setup import Subject
from nanochat_core.bench.infer_timing import Timeline, drive, drive_in_turn, milliseconds
from nanochat_core.bench.roofline import synchronize
from nanochat_core.bench.train_measuring import PeakMemory
from nanochat_core.inference.engine import InferenceEngine

WARM_UP_TOKENS = 4


@dataclass(frozen=True)
class Ceilings:
    """What this device reaches at best."""

    flops_per_second: float
    bytes_per_second: float


class Seeds:
    """A new seed each time: no prompt comes twice, unless it is meant to."""

    def __init__(self) -> None:
        self._last = 0

    def next(self) -> int:
        """One that was not there before."""
        self._last += 1
        return self._last


@dataclass
class Rounds:
    """The same measurements, several times."""

    whole: list[Timeline]
    """All prompts at once, and their replies."""
    prompts: list[Timeline]
    """All prompts at once, a single token of each reply."""
    replies: list[Timeline]
    """Replies to prompts that are in the cache already."""


def measure_batch(
    subject: Subject, batch: int, *, rounds: int, seeds: Seeds, ceilings: Ceilings
) -> dict[str, Any]:
    """Times and shares of `batch` requests that come at once."""
    memory = PeakMemory(subject.model.device)
    engine = warm_engine(subject, batch, seeds)
    done = Rounds([], [], [])
    for _ in range(rounds):
        done.whole.append(drive(engine, subject.requests(batch, seeds.next())))
        seed = seeds.next()
        done.prompts.append(drive(engine, subject.requests(batch, seed, new=1)))
        done.replies.append(drive(engine, subject.requests(batch, seed)))
    report = times(done.whole) | shares(subject, batch, done, ceilings)
    if memory.device.type == "cuda":
        report["peak_memory_bytes"] = memory.bytes
    return {"batch": batch, **report}


def warm_engine(subject: Subject, batch: int, seeds: Seeds) -> InferenceEngine:
    """An engine that has answered `batch` requests at once: memory is there, kernels are loaded."""
    engine = subject.engine(batch)
    drive(engine, subject.requests(batch, seeds.next()))
    new = min(subject.new, WARM_UP_TOKENS)
    drive(engine, subject.requests(batch, seeds.next(), new=new))
    synchronize(subject.model.device)
    return engine


def times(whole: list[Timeline]) -> dict[str, Any]:
    """What those who wait for the replies see."""
    return {
        "tokens_per_second": round(statistics.median(t.num_tokens / t.seconds for t in whole), 1),
        "ttft_ms": milliseconds([s for timeline in whole for s in timeline.to_first]),
        "tpot_ms": milliseconds([s for timeline in whole for s in timeline.per_token]),
    }


def shares(subject: Subject, batch: int, done: Rounds, ceilings: Ceilings) -> dict[str, Any]:
    """Reading prompts and decoding apart, beside what the device could do."""
    config, itemsize = subject.model.config, subject.model.compute_dtype.itemsize
    sizes = {"prompt": subject.prompt, "new": subject.new}
    prefill = statistics.median(timeline.seconds for timeline in done.prompts)
    report: dict[str, Any] = {
        "prefill_tokens_per_second": round(batch * subject.prompt / prefill),
        "prefill_compute_share": share(
            batch * prefill_flops(config, subject.prompt) / prefill, ceilings.flops_per_second
        ),
    }
    steps = [seconds for timeline in done.replies for seconds in timeline.full_steps]
    if not steps:
        return report
    step = statistics.median(steps)
    num_bytes = decode_bytes(config, itemsize, batch=batch, **sizes)
    return report | {
        "decode_step_ms": milliseconds(steps),
        "decode_tokens_per_second": round(batch / step, 1),
        "decode_bandwidth_share": share(num_bytes / step, ceilings.bytes_per_second),
        "decode_compute_share": share(
            batch * decode_flops(config, **sizes) / step, ceilings.flops_per_second
        ),
    }


def share(reached: float, possible: float) -> float:
    """A part of the ceiling, in four figures however small it is."""
    return float(f"{reached / possible:.4g}")


def against_one_at_a_time(
    subject: Subject, batch: int, *, rounds: int, seeds: Seeds
) -> dict[str, Any]:
    """How many times as long `batch` requests take when each waits for the one before."""
    together, alone = (warm_engine(subject, rows, seeds) for rows in (batch, 1))
    return {
        "batch": batch,
        **ratio(
            lambda: drive(together, subject.requests(batch, seeds.next())).seconds,
            lambda: drive_in_turn(alone, subject.requests(batch, seeds.next())),
            rounds,
        ),
    }


def against_bare_loop(subject: Subject, *, rounds: int, seeds: Seeds) -> dict[str, Any]:
    """The speed of the engine with one request, as a share of that of the loop without it."""
    engine = warm_engine(subject, 1, seeds)
    loop = BareLoop(subject)
    loop.seconds(seeds.next())
    return {
        "batch": 1,
        **ratio(
            lambda: drive(engine, subject.requests(1, seeds.next())).seconds,
            lambda: loop.seconds(seeds.next()),
            rounds,
        ),
    }


def ratio(own: Callable[[], float], other: Callable[[], float], rounds: int) -> dict[str, Any]:
    """How many times as long the other way takes, round by round in turn."""
    pairs = [(own(), other()) for _ in range(rounds)]
    ratios = [theirs / ours for ours, theirs in pairs]
    return {
        "seconds": round(statistics.median(ours for ours, _ in pairs), 5),
        "against_seconds": round(statistics.median(theirs for _, theirs in pairs), 5),
        "ratio_median": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "rounds": rounds,
    }
