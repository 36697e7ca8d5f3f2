"""Numbers for Prometheus: what happened is in them, and no label grows without bound."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from nanochat_core.serving.catalog import Catalog
from nanochat_core.serving.metrics import MOST_NAMES, OTHER, Metrics, path_label
from nanochat_core.serving.pool import ModelPool
from nanochat_core.serving.settings import ServerSettings

Numbers = dict[tuple[str, tuple[str, ...]], float]


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(ModelPool(Catalog(), ServerSettings()))


def numbers_of(metrics: Metrics) -> Numbers:
    """Samples by name and values of labels, in the order of their names."""
    families = text_string_to_metric_families(metrics.text().decode())
    return {(s.name, tuple(s.labels.values())): s.value for f in families for s in f.samples}


def test_a_reply_is_counted_from_its_start_to_its_end(metrics: Metrics) -> None:
    metrics.started("demo", "chat")
    metrics.first_token("demo", 0.02)
    metrics.finished("demo", "stop", 7, 5, 0.003)
    numbers = numbers_of(metrics)
    assert numbers["nanochat_requests_total", ("chat", "demo")] == 1
    assert numbers["nanochat_replies_total", ("demo", "stop")] == 1
    assert numbers["nanochat_prompt_tokens_total", ("demo",)] == 7
    assert numbers["nanochat_reply_tokens_total", ("demo",)] == 5
    assert numbers["nanochat_time_to_first_token_seconds_sum", ("demo",)] == 0.02
    assert numbers["nanochat_time_per_output_token_seconds_count", ("demo",)] == 1


def test_a_reply_without_a_second_token_has_no_pace(metrics: Metrics) -> None:
    metrics.finished("demo", "length", 7, 1, None)
    assert ("nanochat_time_per_output_token_seconds_count", ("demo",)) not in numbers_of(metrics)


def test_too_many_names_are_one(metrics: Metrics) -> None:
    for i in range(2 * MOST_NAMES):
        metrics.refused(f"code-{i}")
        metrics.started(f"model-{i}", "chat")
    numbers = numbers_of(metrics)
    assert numbers["nanochat_refused_total", (OTHER,)] == MOST_NAMES
    assert numbers["nanochat_requests_total", ("chat", OTHER)] == MOST_NAMES
    assert len(numbers) < 10 * MOST_NAMES


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/models/a/b", "/v1/models/{name}"),
        ("/wp-admin", OTHER),
        ("/v1/chat/completions/", OTHER),
    ],
)
def test_a_path_is_one_of_ours_or_other(path: str, label: str) -> None:
    assert path_label(path) == label


def test_a_pool_without_models_has_none_loaded(metrics: Metrics) -> None:
    assert numbers_of(metrics)["nanochat_models_loaded", ()] == 0
