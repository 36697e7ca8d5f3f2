"""How numbers read in tables: key numbers of a station, durations, sizes."""

from collections.abc import Mapping

from tasks.listening import describe_metrics

KEY_NUMBERS = {
    "pretrain": ("val/bpb", "train/loss"),
    "base_eval": ("val/bpb", "core_metric", "demo_score"),
    "sft": ("train/loss", "steps", "conversations"),
    "chat_eval_sft": ("identity/right", "identity/asked", "sums"),
}
"""What to show first of a station's metrics; of others the first ones."""
SHOWN_NUMBERS = 3


def key_numbers(station: str, metrics: Mapping[str, float | int | str]) -> str:
    """The few numbers of a finished stage that people look for."""
    wanted = KEY_NUMBERS.get(station, ())
    names = [name for name in wanted if name in metrics] or list(metrics)
    return describe_metrics({name: metrics[name] for name in names[:SHOWN_NUMBERS]})


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


def size(num_bytes: int) -> str:
    """`512 B`, `3.4 kB`, `1.2 MB`, `3.1 GB`, in powers of 1000."""
    value = float(num_bytes)
    for unit in ("B", "kB", "MB"):
        if value < 999.5:
            return f"{value:.0f} B" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB" if value < 999.5 else f"{value:,.0f} GB"
