"""Numbers for Prometheus: counted as things happen, or read from the pool when they are asked for.

No label is a text of a client's: what is not known by name is counted as "other".
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from nanochat_core.inference.requests import EngineStats
from nanochat_core.serving.loaded import LoadedModel
from nanochat_core.serving.pool import ModelPool

CONTENT_TYPE = CONTENT_TYPE_LATEST
OTHER = "other"
MOST_NAMES = 100
"""Different values of one label; models come and go, and a series stays for ever."""
PATHS = frozenset(
    {
        *("/", "/health", "/ready", "/metrics", "/openapi.json"),
        *("/v1/chat/completions", "/v1/completions", "/v1/models"),
    }
)
FIRST_TOKEN_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
TOKEN_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
_PREFIX = "nanochat"


Number: TypeAlias = Callable[[LoadedModel], float]


class Metrics:
    """All numbers of one server; the pool's are read at each `text`."""

    def __init__(self, pool: ModelPool) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(PoolNumbers(pool))
        self._models, self._codes = Names(MOST_NAMES), Names(MOST_NAMES)
        self._endpoints = Names(MOST_NAMES)
        self._answers = self._counter(
            "http_responses", "answers by path and status", "path", "status"
        )
        self._refusals = self._counter("refused", "requests refused, by error code", "code")
        self._started = self._counter(
            "requests", "replies that were asked for", "model", "endpoint"
        )
        self._finished = self._counter("replies", "replies by how they ended", "model", "reason")
        self._prompt_tokens = self._counter("prompt_tokens", "tokens of prompts", "model")
        self._reply_tokens = self._counter("reply_tokens", "tokens of replies", "model")
        self._first = self._histogram(
            "time_to_first_token_seconds", "from request to first piece", FIRST_TOKEN_SECONDS
        )
        self._each = self._histogram(
            "time_per_output_token_seconds", "mean of each reply after its first", TOKEN_SECONDS
        )

    def text(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return generate_latest(self._registry)

    def answered(self, path: str, status: int) -> None:
        """An answer has begun."""
        self._answers.labels(path_label(path), str(status)).inc()

    def refused(self, code: str) -> None:
        """A request was refused with this code of the table of problems."""
        self._refusals.labels(self._codes.known(code)).inc()

    def started(self, model: str, endpoint: str) -> None:
        """A reply was asked for and has its place; `model` is the name of one that is loaded."""
        self._started.labels(self._models.known(model), self._endpoints.known(endpoint)).inc()

    def first_token(self, model: str, seconds: float) -> None:
        """The first piece of a reply came so long after its request."""
        self._first.labels(self._models.known(model)).observe(seconds)

    def finished(
        self,
        model: str,
        reason: str,
        num_prompt: int,
        num_reply: int,
        seconds_per_token: float | None,
    ) -> None:
        """A reply ended: `stop`, `length`, or what else became of it.

        `seconds_per_token` is the mean of those after the first; None where there is none.
        """
        name = self._models.known(model)
        self._finished.labels(name, reason).inc()
        self._prompt_tokens.labels(name).inc(num_prompt)
        self._reply_tokens.labels(name).inc(num_reply)
        if seconds_per_token is not None:
            self._each.labels(name).observe(seconds_per_token)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"{_PREFIX}_{name}", text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(
            f"{_PREFIX}_{name}", text, ("model",), registry=self._registry, buckets=buckets
        )


class Names:
    """The first values of a label; those that come when there are too many are all "other"."""

    def __init__(self, most: int) -> None:
        self._most, self._known = most, set[str]()

    def known(self, name: str) -> str:
        """The value to count under."""
        if name not in self._known and len(self._known) >= self._most:
            return OTHER
        self._known.add(name)
        return name


class PoolNumbers:
    """Gauges of the models that are loaded now."""

    def __init__(self, pool: ModelPool) -> None:
        self._pool = pool

    def describe(self) -> list[Metric]:
        """Nothing, so that registering does not read the pool."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The numbers of this moment."""
        models = self._pool.loaded()
        yield GaugeMetricFamily(
            f"{_PREFIX}_models_loaded", "models that are loaded", value=len(models)
        )
        for name, text, number in _GAUGES:
            gauge = GaugeMetricFamily(f"{_PREFIX}_{name}", text, labels=["model"])
            for model in models:
                gauge.add_metric([model.name], number(model))
            yield gauge
        for name, text, number in _COUNTERS:
            counter = CounterMetricFamily(f"{_PREFIX}_{name}", text, labels=["model"])
            for model in models:
                counter.add_metric([model.name], number(model))
            yield counter


def path_label(path: str) -> str:
    """A path as a label: one of ours, or "other"."""
    if path.startswith("/v1/models/"):
        return "/v1/models/{name}"
    return path if path in PATHS else OTHER


def _kv_use(stats: EngineStats) -> float:
    return stats.num_cached_tokens / stats.capacity_tokens if stats.capacity_tokens else 0.0


_GAUGES: tuple[tuple[str, str, Number], ...] = (
    ("requests_running", "replies under way", lambda model: model.num_running),
    ("requests_waiting", "replies that wait for a row", lambda model: model.num_waiting),
    ("rows_running", "rows in the batch", lambda model: model.stats.num_running),
    ("rows", "rows that the cache has", lambda model: model.stats.num_rows),
    ("kv_tokens", "tokens in the cache", lambda model: model.stats.num_cached_tokens),
    ("kv_use_ratio", "share of the cache in use", lambda model: _kv_use(model.stats)),
)
# The mean batch of a while is its sampled tokens over its steps.
_COUNTERS: tuple[tuple[str, str, Number], ...] = (
    ("engine_steps", "steps since it was loaded", lambda model: model.stats.num_steps),
    ("sampled_tokens", "tokens since it was loaded", lambda model: model.stats.num_sampled_tokens),
    ("prefix_tokens", "of prompts, not read again", lambda model: model.stats.num_prefix_tokens),
)
