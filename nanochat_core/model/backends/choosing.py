"""Which attention backend a run uses: the fastest that proves right on this very machine."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from nanochat_core.errors import ConfigError, UnknownNameError
from nanochat_core.model.backends.opening import OPENERS
from nanochat_core.model.backends.trial import HEAD_DIM, Verdict, try_backend
from nanochat_core.model.backends.verdict_files import (
    Key,
    read_verdicts,
    verdict_key,
    write_verdicts,
)

log = logging.getLogger(__name__)

TIE = 1.05
"""Times this close are equal: two measurements of one kernel differ by as much."""
FLASH = ("fa3", "fa4")
QUICK = (*FLASH, "sdpa")
"""Tried by `auto` in seconds. FlexAttention compiles every shape of its trial, half a minute, and
was never the fastest where a flash kernel ran (on an H100 2.7 and 1.8 ms, full and windowed, to 1.8
and 1.4 ms of FlashAttention 4), so it is tried where none of those passes."""


@dataclass(frozen=True)
class Choice:
    """A backend by name, why it was taken, and what is known of all that were looked at."""

    name: str
    reason: str
    verdicts: tuple[Verdict, ...]


def choose_backend(
    wanted: str,
    device: torch.device,
    dtype: torch.dtype,
    cache_folder: Path | None,
    *,
    head_dim: int = HEAD_DIM,
) -> Choice:
    """Take the backend asked for, or with `auto` the fastest that passes its trial here.

    Trials cost seconds to minutes on a GPU; their verdicts are kept in `cache_folder`. Raises
    ConfigError for a name that does not pass.
    """
    if wanted not in ("auto", *OPENERS):
        names = ", ".join(("auto", *OPENERS))
        raise UnknownNameError(f"attention={wanted!r} is no backend; use one of {names}")
    if wanted == "auto" and device.type != "cuda":
        return Choice("sdpa", f"the only one that trains on a device of type {device.type}", ())
    trials = Trials(device, dtype, head_dim, cache_folder)
    choice = _fastest(trials) if wanted == "auto" else _asked_for(wanted, trials)
    log.info("attention: %s, %s", choice.name, choice.reason)
    return choice


def try_all(
    device: torch.device,
    dtype: torch.dtype,
    cache_folder: Path | None = None,
    *,
    head_dim: int = HEAD_DIM,
) -> list[Verdict]:
    """Try every backend now, whatever is known of it; the verdicts go to `cache_folder`."""
    return Trials(device, dtype, head_dim, cache_folder, is_fresh=True).of(OPENERS)


class Trials:
    """Verdicts of one device and dtype, each from the cache or else from a trial made now."""

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        head_dim: int,
        cache_folder: Path | None,
        *,
        is_fresh: bool = False,
    ) -> None:
        self.device, self.dtype, self.head_dim = device, dtype, head_dim
        self.cache_folder = cache_folder
        self.key: Key = verdict_key(device, dtype, head_dim)
        self.known = {} if is_fresh else read_verdicts(cache_folder, self.key)

    def of(self, names: Iterable[str]) -> list[Verdict]:
        """Verdicts of these backends, in this order; new ones are kept."""
        names = list(names)
        missing = [name for name in names if name not in self.known]
        for name in missing:
            self.known[name] = try_backend(name, self.device, self.dtype, self.head_dim)
        if missing:
            write_verdicts(self.cache_folder, self.key, self.known.values())
        return [self.known[name] for name in names]

    def all_known(self) -> tuple[Verdict, ...]:
        """What is known by now, in the order of preference."""
        return tuple(self.known[name] for name in OPENERS if name in self.known)


def _asked_for(wanted: str, trials: Trials) -> Choice:
    verdict = trials.of([wanted])[0]
    if verdict.passes:
        return Choice(wanted, f"as asked for ({verdict.reason})", trials.all_known())
    others = [other.backend for other in trials.of(OPENERS) if other.passes]
    names = [*(["auto"] if others else []), *others]
    advice = f"use {', '.join(names[:-1])} or {names[-1]}" if names else "none passes here"
    raise ConfigError(f"attention={wanted}: {verdict.reason}; {advice}")


def _fastest(trials: Trials) -> Choice:
    verdicts = trials.of(QUICK)
    if not any(verdict.passes for verdict in verdicts if verdict.backend in FLASH):
        trials.of(OPENERS)
    known = trials.all_known()
    name = fastest(known)
    table = "; ".join(f"{verdict.backend}: {verdict.reason}" for verdict in known)
    if name is None:
        raise ConfigError(f"no attention backend passes its trial on this device ({table})")
    return Choice(name, f"the fastest that passes its trial here ({table})", known)


def fastest(verdicts: Iterable[Verdict]) -> str | None:
    """The quickest that passes; of those as quick, the first in the order of `OPENERS`."""
    times = {v.backend: v.milliseconds for v in verdicts if v.passes and v.milliseconds is not None}
    if not times:
        return None
    limit = TIE * min(times.values())
    return min((name for name in times if times[name] <= limit), key=list(OPENERS).index)
