"""From the options of `nanochat plan` to a forecast."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flows.forecast.benched import read_bench
from flows.forecast.forecasting import forecast
from flows.forecast.machine import machine_here, machine_named
from flows.forecast.types import Forecast
from flows.parameters import RunParameters, resolve
from nanochat_core.artifacts.store import ArtifactStore, only_read
from nanochat_core.errors import ConfigError


@dataclass(frozen=True)
class Question:
    """A run, and for whom it is to be forecast."""

    parameters: RunParameters
    price_per_hour: float | None = None
    on: str = ""
    """A GPU by name; '' for this machine."""
    bench: Path | None = None
    """A measurement of it."""


def ask(question: Question, environ: Mapping[str, str]) -> Forecast:
    """What the run will take; ConfigError for options that contradict each other."""
    price = question.price_per_hour
    if price is not None and not math.isfinite(price):
        raise ConfigError(f"--price-per-hour {price}: expected an amount, as in 3 or 0.5")
    resolved = resolve(question.parameters, environ)
    upstream = only_read(resolved.upstream_url) if resolved.upstream_url else None
    store = ArtifactStore(resolved.store_url, upstream=upstream)
    machine = timing = None
    here = machine_here(resolved.preset.executions.pretrain)
    if question.on:
        machine = here = machine_named(question.on, here)
    if question.bench is not None:
        timing, measured = read_bench(question.bench, here)
        machine = machine or (measured if measured != here else None)
    return forecast(resolved, store, price_per_hour=price, machine=machine, bench=timing)
