"""When each token came: an engine driven until nothing is left, and what its clock says."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch

from nanochat_core.bench.train_timing import percentile
from nanochat_core.errors import NanochatError
from nanochat_core.inference.engine import InferenceEngine
from nanochat_core.inference.requests import Request


@dataclass
class Timeline:
    """Seconds since the requests were handed over at which each of them got a token."""

    moments: dict[int, list[float]]
    seconds: float = 0.0
    steps: list[float] = field(default_factory=list)
    """The end of every step."""

    @property
    def num_tokens(self) -> int:
        """Of all replies."""
        return sum(map(len, self.moments.values()))

    @property
    def to_first(self) -> list[float]:
        """Until the first token of each."""
        return [moments[0] for moments in self.moments.values()]

    @property
    def per_token(self) -> list[float]:
        """Of each reply the mean time from a token to the next; none where there is one only."""
        spans = [(m[-1] - m[0], len(m) - 1) for m in self.moments.values()]
        return [span / count for span, count in spans if count]

    @property
    def full_steps(self) -> list[float]:
        """Seconds of the steps in which every request got a token other than its first."""
        begins = max(moments[0] for moments in self.moments.values())
        ends = min(moments[-1] for moments in self.moments.values())
        inside = [moment for moment in self.steps if begins <= moment <= ends]
        return [after - before for before, after in pairwise(inside)]


@torch.inference_mode()
def drive(engine: InferenceEngine, requests: Sequence[Request]) -> Timeline:
    """Hand over all requests at once, and step until the last reply is whole."""
    started = time.perf_counter()
    line = Timeline({engine.submit(request): [] for request in requests})
    while engine.has_work:
        outputs = engine.step()
        now = time.perf_counter() - started
        line.steps.append(now)
        for output in outputs:
            if output.token is not None:
                line.moments[output.sequence_id].append(now)
    line.seconds = time.perf_counter() - started
    if not all(line.moments.values()):
        raise NanochatError("the engine ended with a request that got no token")
    return line


def drive_in_turn(engine: InferenceEngine, requests: Sequence[Request]) -> float:
    """Seconds that the requests take when each waits for the one before."""
    return sum(drive(engine, [request]).seconds for request in requests)


def milliseconds(seconds: Sequence[float]) -> dict[str, float] | None:
    """Median and 95th percentile; None of nothing."""
    if not seconds:
        return None
    return {
        "p50": round(1e3 * statistics.median(seconds), 4),
        "p95": round(1e3 * percentile(seconds, 95), 4),
    }
