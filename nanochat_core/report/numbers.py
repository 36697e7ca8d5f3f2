"""Which numbers people look for, and how numbers read."""

from collections.abc import Mapping
from typing import Any, TypeGuard

_SUMS = ("sums", "sums/stderr")
KEY_NUMBERS = {
    "shards": ("characters", "documents", "questions"),
    "pretrain": ("val/bpb", "train/loss"),
    "base_eval": ("val/bpb", "core_metric", "demo_score"),
    "sft": ("train/loss", "steps", "conversations"),
    "chat_eval_sft": ("chatcore_metric", "identity/right", "identity/asked", *_SUMS),
    "rl": ("rl/reward_start", "rl/reward_end", "pass@1"),
    "chat_eval_rl": ("chatcore_metric", "identity/right", "identity/asked", *_SUMS),
    "report": ("sections", "plots"),
}
"""What to show first of a station's metrics; of others the first ones."""
SHOWN_NUMBERS = 3
SHOWN_OF = {"chat_eval_sft": 4, "chat_eval_rl": 4}


def pick_key_numbers(
    station: str, metrics: Mapping[str, float | int | str]
) -> dict[str, float | int | str]:
    """The few numbers of a finished stage that people look for."""
    wanted = KEY_NUMBERS.get(station, ())
    names = [name for name in wanted if name in metrics] or list(metrics)
    return {name: metrics[name] for name in names[: SHOWN_OF.get(station, SHOWN_NUMBERS)]}


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 m 05 s`, `2 h 10 m`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} m"


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)
