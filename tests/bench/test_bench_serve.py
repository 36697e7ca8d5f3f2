"""Figures of a server: what is read from the bytes of its answers, and what they amount to."""

import json
import math
import re
import socket
from typing import Any

import pytest

from nanochat_core.bench.serve import parser, run, window_of
from nanochat_core.bench.serve_client import Response, Target, events
from nanochat_core.bench.serve_load import WORDS, Load, Prompts, Sample, Window, sample_of
from nanochat_core.bench.serve_report import batch_size_mean, figures, percentiles, read_metrics
from nanochat_core.errors import ConfigError, JobError

HEAD = "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n"
ALWAYS = Window(begin=0.0)


def chunk(content: str) -> bytes:
    data = content.encode()
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(values: dict[str, Any] | str) -> str:
    return f"data: {values if isinstance(values, str) else json.dumps(values)}\n\n"


def delta(content: str = "", reason: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": reason, **more}
    return {"choices": [choice]}


def usage(prompt: int, reply: int) -> dict[str, Any]:
    return {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": reply}}


def streamed(*timed: tuple[float, dict[str, Any] | str], status: str = "200 OK") -> Response:
    """A stream whose events come at these moments."""
    response = Response()
    response.feed(HEAD.format(status=status, kind="text/event-stream").encode(), 0.0)
    for when, values in timed:
        response.feed(chunk(event(values)), when)
    response.feed(b"0\r\n\r\n", 99.0)
    assert response.is_whole
    return response


def answered(status: str, body: dict[str, Any], **headers: str) -> Response:
    content = json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(content)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    response = Response()
    response.feed("\r\n".join([*lines, "", ""]).encode() + content, 5.0)
    assert response.is_whole
    return response


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_an_answer_reads_the_same_however_it_is_cut(size: int) -> None:
    # Two events in a chunk, one over two chunks, a comment, and a character of two bytes.
    body = [event(delta("a")) + event(delta("é")), ": wait\n\ndata: {", '"choices": []}\n\n']
    sent = HEAD.format(status="200 OK", kind="text/event-stream").encode()
    sent += b"".join(map(chunk, body)) + chunk(event("[DONE]")) + b"0\r\n\r\n"
    response = Response()
    for start in range(0, len(sent), size):
        assert not response.is_whole
        response.feed(sent[start : start + size], float(start))
    assert response.is_whole
    assert response.body.decode() == "".join(body) + event("[DONE]")
    assert [values for _, values in events(response)] == [delta("a"), delta("é"), {"choices": []}]


def test_an_answer_may_end_with_its_length_or_with_the_connection() -> None:
    assert answered("200 OK", {"a": 1}).body == b'{"a": 1}'
    unsaid, cut = Response(), Response()
    unsaid.feed(b"HTTP/1.0 200 OK\r\n\r\nabc", 1.0)
    assert not unsaid.is_whole
    assert unsaid.end()
    cut.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", 1.0)
    assert not cut.end()


@pytest.mark.parametrize("sent", [b"SSH-2.0-x\r\n\r\n", b"\r\n\r\n", b"HTTP/1.1 ok\r\n\r\n"])
def test_what_is_no_http_is_refused(sent: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  of any text; the caller says it to people
        Response().feed(sent, 0.0)


def test_tokens_are_those_of_usage_and_not_events() -> None:
    response = streamed(
        (1.0, delta("")),
        (2.0, delta("one ")),
        (3.0, delta("two and three")),
        (5.0, delta("four")),
        (5.0, delta("", "stop")),
        (5.0, usage(7, 31)),
        (5.0, "[DONE]"),
    )
    sample = sample_of(response, 0.5, ALWAYS)
    assert (sample.problem, sample.prompt_tokens, sample.reply_tokens) == ("", 7, 31)
    assert (sample.sent, sample.first, sample.last) == (0.5, 2.0, 5.0)
    assert sample.seconds_per_token == pytest.approx(3.0 / 30)
    assert sample.gaps == [1.0, 2.0]
    assert sample.num_measured_tokens == 31


def test_tokens_outside_of_the_window_do_not_count() -> None:
    response = streamed(
        *((float(second), delta("abcd")) for second in range(1, 9)),
        (9.0, delta("", "length")),
        (9.0, usage(3, 16)),
    )
    window = Window(begin=0.0, measured=3.0, end=6.0)
    # Seconds 3, 4 and 5 of eight.
    assert sample_of(response, 0.5, window).num_measured_tokens == pytest.approx(6)
    whole = answered("200 OK", usage(3, 10), content_type="application/json")
    # From 0 to 5 seconds; 3 to 5 is measured.
    assert sample_of(whole, 0.0, window).num_measured_tokens == pytest.approx(4)


def test_what_a_calculator_says_is_text_that_came() -> None:
    part = {"nanochat_parts": [{"kind": "python", "text": "6*7"}]}
    response = streamed((1.0, delta("", **part)), (2.0, delta("", "stop")), (2.0, usage(1, 5)))
    sample = sample_of(response, 0.0, ALWAYS)
    assert (sample.first, sample.num_measured_tokens) == (1.0, 5)
    assert sample.seconds_per_token == 0.0


def test_every_way_in_which_an_answer_fails_has_a_name() -> None:
    failed = {"error": {"message": "the engine failed", "code": "internal_error"}}
    busy = answered("429 Too Many Requests", {"error": {"code": "server_busy"}}, retry_after="2")
    responses = [
        streamed((1.0, delta("a")), (2.0, failed)),
        streamed((1.0, delta("a"))),
        answered("500 Internal Server Error", {"error": {"code": "internal_error"}}),
        answered("502 Bad Gateway", {"detail": "who knows"}),
        busy,
    ]
    samples = [sample_of(response, 0.0, ALWAYS) for response in responses]
    found = figures(samples, Window(0.0, num_requests=9))
    assert found["problems"] == {
        "in the stream: internal_error": 1,
        "the stream ended without a finish_reason": 1,
        "500 internal_error": 1,
        "502": 1,
    }
    assert (found["requests"], found["requests_failed"], found["requests_busy"]) == (0, 4, 1)
    assert (found["tokens_per_second"], found["ttft_seconds"]) == (0.0, None)


def test_percentiles_are_values_that_occurred() -> None:
    assert percentiles([float(i) for i in range(1, 101)]) == {"p50": 50, "p90": 90, "p99": 99}
    assert percentiles([3.0, None, 1.0]) == {"p50": 1.0, "p90": 3.0, "p99": 3.0}
    assert percentiles([None]) is None


def test_figures_are_of_the_window() -> None:
    window = Window(begin=0.0, measured=10.0, end=20.0)
    samples = [
        Sample(sent=5.0, ended=12.0, first=6.0, reply_tokens=70, num_measured_tokens=20.0),
        Sample(sent=12.0, ended=15.0, first=12.5, reply_tokens=30, num_measured_tokens=30.0),
        Sample(sent=18.0, ended=24.0, first=18.25, reply_tokens=60, num_measured_tokens=20.0),
        Sample(sent=19.0, ended=19.1, problem="429 server_busy"),
    ]
    found = figures(samples, window)
    assert found["tokens_per_second"] == 7.0
    assert found["requests_per_second"] == 0.2
    assert found["ttft_seconds"] == {"p50": 0.25, "p90": 0.5, "p99": 0.5}
    assert found["request_seconds"] == {"p50": 3.0, "p90": 6.0, "p99": 6.0}
    assert (found["requests"], found["requests_busy"], found["reply_tokens_mean"]) == (3, 1, 53.3)


def test_with_a_number_of_requests_all_of_their_time_counts() -> None:
    window = window_of(parser().parse_args(["--requests", "2"]), 100.0)
    assert [window.allows(i) for i in range(3)] == [True, True, False]
    samples = [Sample(100.0, 104.0, num_measured_tokens=8), Sample(101.0, 105.0)]
    found = figures(samples, window)
    assert (found["measured_seconds"], found["tokens_per_second"]) == (5.0, 1.6)


def test_the_mean_batch_is_that_of_the_steps_between_two_looks() -> None:
    text = """
# HELP nanochat_engine_steps_total steps since it was loaded
# TYPE nanochat_engine_steps_total counter
nanochat_engine_steps_total{{model="a b {{c}}"}} {steps}
nanochat_engine_steps_total{{model="d"}} 1e1 1700000000000
nanochat_sampled_tokens_total{{model="a b"}} {tokens}
nanochat_models_loaded 2.0
"""
    first, second = (
        read_metrics(text.format(steps=steps, tokens=tokens))
        for steps, tokens in ((10, 20), (30.0, 260.0))
    )
    assert first == {
        "nanochat_engine_steps_total": 20,
        "nanochat_sampled_tokens_total": 20,
        "nanochat_models_loaded": 2,
    }
    assert batch_size_mean(first, second) == 12
    assert batch_size_mean(second, second) is None
    assert batch_size_mean({}, {}) is None


def test_a_request_is_the_same_in_every_run_and_unlike_the_others() -> None:
    load = Load(num_clients=4, prompts=Prompts(num_words=50), max_tokens=9)
    assert load.body(3) == load.body(3)
    texts = [load.body(i)["messages"][0]["content"] for i in range(20)]
    assert len(set(texts)) == 20
    assert all(text.count(word) in (3, 4) for text in texts for word in WORDS)
    assert {len(text.split()) for text in texts} == {50}
    two = Prompts(("a", "b"))
    assert [two.text(i) for i in range(3)] == ["a", "b", "a"]


@pytest.mark.parametrize(
    ("url", "host", "port", "prefix", "is_loopback"),
    [
        ("http://127.0.0.1:8000/", "127.0.0.1", 8000, "", True),
        ("http://localhost:81/v1", "localhost", 81, "", True),
        ("http://[::1]:8000", "::1", 8000, "", True),
        ("https://chat.example/nano/v1/", "chat.example", 443, "/nano", False),
        ("http://127.0.0.1.example", "127.0.0.1.example", 80, "", False),
    ],
)
def test_a_url_says_where_and_whose(
    url: str, host: str, port: int, prefix: str, is_loopback: bool
) -> None:
    target = Target.of_url(url)
    assert (target.host, target.port, target.prefix) == (host, port, prefix)
    assert target.is_loopback == is_loopback


def test_a_key_goes_to_the_server_and_into_no_message() -> None:
    target = Target.of_url("http://[::1]:8000/v1", key="secret-key")
    head, body = target.request("POST", "/v1/x", {"a": "é"}).split(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/x HTTP/1.1\r\nHost: [::1]:8000\r\n")
    assert b"Authorization: Bearer secret-key" in head
    assert f"Content-Length: {len(body)}".encode() in head
    assert "secret-key" not in repr(target)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--clients", "0"], "--clients 0; give 1 or more"),
        (["--seconds", "inf"], "--seconds inf; give 0.1 or more"),
        (["--url", "nonsense"], "'nonsense' is no URL of a server"),
        (["--url", "http://127.0.0.1:99999"], "no URL"),
        (["--url", "http://example.com"], "is of another machine, and this is a load test"),
        (["--url", "http://127.0.0.1:1", "--against-engine"], "leave --url out"),
        (["--name", "tiny"], "give --model"),
    ],
)
def test_options_that_cannot_work_are_refused_before_anything_is_sent(
    options: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        run(options, {})


def test_a_server_that_is_not_there_is_one_message() -> None:
    with socket.socket() as silent:
        # Bound, so that nobody else listens there.
        silent.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(JobError, match=r"does not answer as a server does .*nanochat serve"):
            run(["--url", url], {})


def test_the_last_request_is_awaited_only_so_long() -> None:
    window = window_of(parser().parse_args(["--seconds", "3", "--warm-up", "1"]), 100.0)
    assert (window.measured, window.end) == (101.0, 104.0)
    assert math.isfinite(window.end + window.patience_seconds)
    assert [window.holds(moment) for moment in (100.5, 101.0, 104.0)] == [False, True, False]
