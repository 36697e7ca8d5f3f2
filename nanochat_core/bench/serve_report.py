"""From what clients saw, and what the server counted, to the figures of one line."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from nanochat_core.bench.serve_load import Sample, Window, problems_of

PERCENTS = (50, 90, 99)
STEPS, TOKENS = "nanochat_engine_steps_total", "nanochat_sampled_tokens_total"
_METRIC = re.compile(r"(?P<name>[a-zA-Z_:][\w:]*)(?:\{.*\})? (?P<value>\S+)(?: \d+)?")


def percentiles(values: Iterable[float | None]) -> dict[str, float] | None:
    """The smallest values that 50, 90 and 99 % of all do not exceed; None for no values."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    found = np.percentile(known, PERCENTS, method="inverted_cdf")
    return {
        f"p{percent}": round(float(value), 6)
        for percent, value in zip(PERCENTS, found, strict=True)
    }


def figures(samples: Sequence[Sample], window: Window) -> dict[str, Any]:
    """Throughput while it was measured, and times of the requests that were sent then."""
    answered = [sample for sample in samples if not sample.problem]
    seen = [sample for sample in answered if window.holds(sample.sent)]
    seconds = _seconds(answered, window)
    tokens = sum(sample.num_measured_tokens for sample in answered)
    finished = sum(window.holds(sample.ended) for sample in answered)
    return {
        "requests": len(answered),
        "requests_busy": sum(sample.problem.startswith("429") for sample in samples),
        "requests_failed": sum(problems_of(samples).values()),
        "problems": problems_of(samples),
        "measured_seconds": round(seconds, 2),
        "tokens_per_second": round(tokens / seconds, 1) if seconds else 0.0,
        "requests_per_second": round(finished / seconds, 2) if seconds else 0.0,
        "ttft_seconds": percentiles(_since_sent(sample) for sample in seen),
        "tpot_seconds": percentiles(sample.seconds_per_token for sample in seen),
        "gap_seconds": percentiles(gap for sample in seen for gap in sample.gaps),
        "request_seconds": percentiles(sample.ended - sample.sent for sample in seen),
        "prompt_tokens_mean": _mean(sample.prompt_tokens for sample in answered),
        "reply_tokens_mean": _mean(sample.reply_tokens for sample in answered),
    }


def _since_sent(sample: Sample) -> float | None:
    return None if sample.first is None else sample.first - sample.sent


def _seconds(answered: Sequence[Sample], window: Window) -> float:
    """The length of what was measured."""
    if window.num_requests is None:
        return window.end - window.measured
    if not answered:
        return 0.0
    return max(sample.ended for sample in answered) - min(sample.sent for sample in answered)


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return round(float(np.mean(known)), 1) if known else None


def read_metrics(text: str) -> dict[str, float]:
    """Prometheus' text format: the sum over all labels of every metric."""
    sums: dict[str, float] = {}
    for line in text.splitlines():
        if found := _METRIC.fullmatch(line.strip()):
            sums[found["name"]] = sums.get(found["name"], 0.0) + float(found["value"])
    return sums


def batch_size_mean(before: dict[str, float], after: dict[str, float]) -> float | None:
    """Tokens that a step of the engine sampled, on average between two looks; None if unknown."""
    steps, tokens = (after.get(name, 0.0) - before.get(name, 0.0) for name in (STEPS, TOKENS))
    return round(tokens / steps, 2) if steps > 0 else None
