"""From what a station would take by reference to what it will take: by records, with a range.

The closed forms of `flows.forecast.nominal` are right about how time grows, and wrong by a factor
about a machine. Records of that machine give the factor, the nearest in size counting most. What
is left to chance becomes the range: a number of times that the middle is divided and multiplied by.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flows.forecast.machine import Machine
from flows.forecast.nominal import TRAINED, Compiling, Nominal
from flows.forecast.timings import Timing, Timings
from flows.forecast.types import Range, Source, total

ONE_RECORD = 1.4
"""The spread that one time of the same work on the same machine leaves: on shared machines the same
work was seen to take 1.6 times as long in one run as before."""
LEAST = 1.12
"""However many records agree."""
ENOUGH = 3
"""Records from which their own spread is believed."""
SIMILAR = 1.6
"""By other stations of the same machine."""
ELSEWHERE = 2.0
"""By the same station on other hardware."""
MEASURED = 1.6
"""By reference figures and a matrix product measured here."""
BY_DATA_SHEET = 2.2
"""By reference figures alone."""
GROWTH = 0.25
"""A record of another size leaves a spread of the ratio of sizes to this power."""
FADING = 0.9
"""What a record counts beside the next newer one: code changes."""
SHORT_SECONDS = 0.5
"""Below this a time is noise, and a factor of it means nothing."""


@dataclass(frozen=True)
class Estimate:
    """Seconds of one station, and what they were worked out from."""

    seconds: Range
    source: Source
    why: str


@dataclass(frozen=True)
class Factor:
    """How much slower than by reference, give or take a spread."""

    value: float
    spread: float
    source: Source
    count: int = 0
    """Records that it comes from."""


@dataclass(frozen=True)
class Estimator:
    """Times on one machine."""

    machine: Machine
    timings: Timings
    scale: float = 1.0
    """How much slower this machine multiplies matrices than that of reference."""
    is_scaled: bool = False
    """Whether that was measured."""

    def estimate(
        self, station: str, nominal: Nominal, how: Compiling | None, *, uses_device: bool
    ) -> Estimate:
        """Seconds of a station; `how` it compiles, None where nobody knows."""
        around = _around(nominal, how)
        if not nominal.step:
            return _as_a_whole(around, self._factor(station, around.mid, whole_factor, uses_device))
        step = self._factor(station, nominal.step, step_factor, uses_device)
        if step.source not in ("store", "bench"):
            whole = around.plus(nominal.training)
            factor = self._factor(station, whole.mid, whole_factor, uses_device)
            if factor.source == "store" or not step.count:
                # Too short, so far, to have told how long a step takes.
                return _as_a_whole(whole, factor)
        start = self._factor(station, around.mid, around_factor, uses_device)
        training = Range.around(nominal.training * step.value, step.spread)
        starting = _stretched(around, start)
        most = step if training.mid > starting.mid else start
        return Estimate(total((training, starting)), most.source, _why(most))

    def around_the_run(self) -> Range:
        """The command before and after its stations: imports, Prefect's server, the last words."""
        return Range.around(RUN_SECONDS * self.scale, ELSEWHERE)

    def cached(self) -> Range:
        """One lookup and what Prefect shows of it."""
        times = sorted(self.timings.cached_seconds)
        mid = times[len(times) // 2] if times else CACHED_SECONDS * self.scale
        return Range(low=mid / 2, mid=mid, high=mid * 3)

    def steps_ratio(self, station: str) -> float:
        """Packing decides how many steps a mixture makes: as with the last one."""
        own = [t for t in self.timings.of(station) if not t.is_bench]
        return own[0].steps_ratio if own else 1.0

    def _own(self, station: str, uses_device: bool, measure: "Measure") -> list["Sample"]:
        timings = [
            timing
            for timing in self.timings.of(station)
            if timing.machine.is_like(self.machine, uses_device=uses_device)
        ]
        return _samples(timings, measure)

    def _factor(
        self, station: str, nominal: float, measure: "Measure", uses_device: bool
    ) -> Factor:
        """By this station here, by others here, by this station elsewhere, by reference."""
        if own := self._own(station, uses_device, measure):
            return _averaged(own, nominal, "bench" if own[0].is_bench else "store")
        here = [
            timing
            for timing in self.timings.made
            if timing.machine.is_like(self.machine, uses_device=uses_device)
            and _is_akin(timing.station, station)
        ]
        if samples := _samples(here, measure):
            return _averaged(samples, nominal, "similar", at_least=SIMILAR)
        elsewhere = [
            timing
            for timing in self.timings.of(station)
            if timing.machine.device_type == self.machine.device_type or not uses_device
        ]
        if samples := _samples(elsewhere, measure):
            return _averaged(samples, nominal, "elsewhere", at_least=ELSEWHERE)
        spread = MEASURED if self.is_scaled else BY_DATA_SHEET
        return Factor(self.scale, spread, "reference")


RUN_SECONDS = 8.0
"""Of a run in which everything is cached: 7.6 to 8.7 s (LOG.md)."""
CACHED_SECONDS = 0.07


@dataclass(frozen=True)
class Sample:
    """One record's factor, and the size that it is of."""

    factor: float
    nominal: float
    is_bench: bool


Measure = Callable[[Timing], tuple[float, float] | None]
"""What a record took of something, and what that takes by reference; None if it does not say."""


def whole_factor(timing: Timing) -> tuple[float, float] | None:
    """All of it."""
    if timing.is_bench:
        return None
    nominal = timing.nominal
    around = _nearest_around(nominal, timing.seconds - nominal.training)
    return timing.seconds, around + nominal.training


def step_factor(timing: Timing) -> tuple[float, float] | None:
    """One optimizer step."""
    if timing.step_seconds is None:
        return None
    return timing.step_seconds, timing.nominal.step


def around_factor(timing: Timing) -> tuple[float, float] | None:
    """All but the steps."""
    seconds = timing.around_seconds
    return None if seconds is None else (seconds, _nearest_around(timing.nominal, seconds))


def _nearest_around(nominal: Nominal, seconds: float) -> float:
    """Nobody wrote down whether code had to be compiled: what is nearest will have been so."""
    seconds = max(seconds, SHORT_SECONDS)
    return min(nominal.arounds, key=lambda choice: abs(math.log(seconds / choice)))


def _samples(timings: Sequence[Timing], measure: Measure) -> list[Sample]:
    found = []
    for timing in timings:
        measured = measure(timing)
        if measured is not None and min(measured) > 0:
            actual, nominal = measured
            found.append(Sample(actual / nominal, nominal, timing.is_bench))
    return found


def _averaged(
    samples: Sequence[Sample], nominal: float, source: Source, *, at_least: float = LEAST
) -> Factor:
    """The factor of records near in size and new, with the spread that they leave."""
    logs = [math.log(sample.factor) for sample in samples]
    distances = [abs(math.log(max(nominal, 1e-9) / sample.nominal)) for sample in samples]
    weights = [math.exp(-2.0 * distance) * FADING**age for age, distance in enumerate(distances)]
    mean = sum(w * value for w, value in zip(weights, logs, strict=True)) / sum(weights)
    scatter = math.log(ONE_RECORD)
    if len(samples) >= ENOUGH:
        squares = sum(w * (v - mean) ** 2 for w, v in zip(weights, logs, strict=True))
        scatter = max(2.0 * math.sqrt(squares / sum(weights)), math.log(LEAST))
    spread = math.exp(math.hypot(scatter, GROWTH * min(distances)))
    return Factor(math.exp(mean), max(spread, at_least), source, len(samples))


def _is_akin(other: str, station: str) -> bool:
    """Whether times of one station say something about another: training, jobs, and data apart."""
    return _kind(other) == _kind(station)


def _kind(station: str) -> str:
    if station in TRAINED:
        return "training"
    return "evaluation" if station.endswith(("_eval", "_eval_sft", "_eval_rl")) else "data"


def _around(nominal: Nominal, how: Compiling | None) -> Range:
    if how is None:
        most = max(nominal.arounds)
        return Range(low=min(nominal.arounds), mid=most, high=most)
    seconds = nominal.around(how)
    return Range(low=seconds, mid=seconds, high=seconds)


def _stretched(seconds: Range, factor: Factor) -> Range:
    return Range(
        low=seconds.low * factor.value / factor.spread,
        mid=seconds.mid * factor.value,
        high=seconds.high * factor.value * factor.spread,
    )


def _as_a_whole(seconds: Range, factor: Factor) -> Estimate:
    return Estimate(_stretched(seconds, factor), factor.source, _why(factor))


def _why(factor: Factor) -> str:
    if factor.source == "reference":
        return "closed form"
    records = f"{factor.count} record{'s' if factor.count > 1 else ''}"
    return {
        "store": f"{records} of it here",
        "similar": f"{records} of others here",
        "elsewhere": f"{records} of it elsewhere",
        "bench": "bench",
    }[factor.source]
