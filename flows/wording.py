"""How numbers read in tables: key numbers of a station, durations, sizes."""

from collections.abc import Mapping

from nanochat_core.report.numbers import duration, pick_key_numbers
from tasks.listening import describe_metrics

__all__ = ["duration", "key_numbers", "size"]


def key_numbers(station: str, metrics: Mapping[str, float | int | str]) -> str:
    """The few numbers of a finished stage that people look for."""
    return describe_metrics(pick_key_numbers(station, metrics))


def size(num_bytes: int) -> str:
    """`512 B`, `3.4 kB`, `1.2 MB`, `3.1 GB`, in powers of 1000."""
    value = float(num_bytes)
    for unit in ("B", "kB", "MB"):
        if value < 999.5:
            return f"{value:.0f} B" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB" if value < 999.5 else f"{value:,.0f} GB"
