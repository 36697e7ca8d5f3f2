"""The application in this process: replies and streams, errors, who may ask, the page."""

import re
from typing import Any

import pytest
import torch
from serving_tools import (
    ACCENT,
    LAUGH,
    SUM,
    YES,
    chunks_of,
    in_process,
    make_engine,
    request,
)

URL = "/v1/chat/completions"


def test_a_reply_has_the_shape_of_the_openai_api() -> None:
    with in_process(*YES) as client:
        reply = client.post(URL, json=request()).json()
    assert reply["object"] == "chat.completion"
    assert reply["model"] == "scripted"
    assert reply["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "yes", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
            "nanochat_parts": [{"kind": "text", "text": "yes"}],
        }
    ]
    # bos, user_start, 14 bytes, user_end, assistant_start
    assert reply["usage"] == {"prompt_tokens": 18, "completion_tokens": 3, "total_tokens": 21}


def test_a_stream_says_who_speaks_first_and_why_it_ended_last() -> None:
    with in_process(*YES) as client:
        options = {"stream": True, "stream_options": {"include_usage": True}}
        response = client.post(URL, json=request(**options))
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, usage = chunks_of(response.text)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert [choice["delta"] for choice in choices[1:-1]] == [{"content": c} for c in "yes"]
    assert choices[-1]["delta"] == {}
    assert [choice["finish_reason"] for choice in choices] == [None] * 4 + ["stop"]
    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 18, "completion_tokens": 3, "total_tokens": 21}
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in [*chunks, usage]}) == 1


def test_a_stream_has_no_usage_unless_asked() -> None:
    with in_process(*YES) as client:
        chunks = chunks_of(client.post(URL, json=request(stream=True)).text)
    assert not any("usage" in chunk for chunk in chunks)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "text", "reason"),
    [
        ({"max_tokens": 3}, "hah", "length"),
        ({"max_completion_tokens": 4}, "haha", "length"),
        ({"stop": "ahah"}, "h", "stop"),
        ({"stop": ["x", "hah"]}, "", "stop"),
    ],
)
def test_where_a_reply_ends(fields: dict[str, Any], text: str, reason: str, stream: bool) -> None:
    with in_process(*LAUGH) as client:
        response = client.post(URL, json=request(**fields, stream=stream))
    if not stream:
        choice = response.json()["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == (text, reason)
        return
    choices = [chunk["choices"][0] for chunk in chunks_of(response.text)]
    assert "".join(choice["delta"].get("content", "") for choice in choices) == text
    assert choices[-1]["finish_reason"] == reason


def test_a_calculation_stands_beside_the_content_and_is_counted() -> None:
    with in_process(*SUM) as client:
        whole = client.post(URL, json=request()).json()
        streamed = chunks_of(client.post(URL, json=request(stream=True)).text)
    choice = whole["choices"][0]
    assert choice["message"]["content"] == "ok"
    assert [(part["kind"], part["text"]) for part in choice["nanochat_parts"]] == [
        ("python", "6*7"),
        ("python_output", "42"),
        ("text", "ok"),
    ]
    # Five of code, four of output, two of text.
    assert whole["usage"]["completion_tokens"] == 11
    choices = [chunk["choices"][0] for chunk in streamed]
    parts = [part for choice in choices for part in choice.get("nanochat_parts", ())]
    assert "".join(part["text"] for part in parts if part["kind"] == "python") == "6*7"
    assert "".join(part["text"] for part in parts if part["kind"] == "python_output") == "42"
    assert "".join(choice["delta"].get("content") or "" for choice in choices) == "ok"


def test_a_stream_never_splits_a_character() -> None:
    with in_process(*ACCENT) as client:
        chunks = chunks_of(client.post(URL, json=request(stream=True)).text)
    assert [c["choices"][0]["delta"].get("content") for c in chunks] == ["", "é", None]


def test_equal_seeds_give_equal_replies_and_no_seed_another_each_time() -> None:
    unsure = make_engine(*YES)
    with torch.no_grad():
        unsure.model.lm_head.weight.zero_()
    fields = {"temperature": 2, "top_k": 0, "max_tokens": 8}
    with in_process(engine=unsure) as client:
        replies = [
            client.post(URL, json=request(**fields, seed=seed)).json()["choices"]
            for seed in (1, 1, None, None)
        ]
    assert replies[0] == replies[1]
    assert replies[2] != replies[3]


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ("{", None, "no JSON object"),
        ("[]", None, "no JSON object"),
        ("{}", "messages", "messages: Field required"),
        ('{"messages": [{"role": "tool"}]}', "messages[0].role", "'assistant'"),
        ('{"messages": [{"role": "user", "content": 5}]}', "messages[0].content", "string"),
        ('{"messages": [{"role": "user", "content": "a"}], "top_k": "x"}', "top_k", "integer"),
        ('{"messages": [{"role": "user", "content": "a"}], "n": 2}', "n", "n=2"),
        ('{"messages": [{"role": "user", "content": "a"}], "temperature": NaN}', "temperature", ""),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "messages", "the user's"),
    ],
)
def test_a_mistake_is_told_in_the_shape_of_the_openai_api(
    body: str, param: str | None, words: str
) -> None:
    with in_process(*YES) as client:
        response = client.post(URL, content=body, headers={"Content-Type": "application/json"})
    error = response.json()["error"]
    assert response.status_code == 400
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert words in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v1/models/gpt-4", 404),
        ("GET", URL, 405),
        ("GET", "/docs", 404),
    ],
)
def test_a_wrong_address_is_an_error_of_the_same_shape(method: str, path: str, status: int) -> None:
    with in_process(*YES) as client:
        response = client.request(method, path)
    assert response.status_code == status
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_a_body_without_its_type_is_refused() -> None:
    with in_process(*YES) as client:
        # What a form of another page could send without asking first.
        response = client.post(
            URL, content='{"messages": []}', headers={"Content-Type": "text/plain"}
        )
    assert response.status_code == 400
    assert "Content-Type: application/json" in response.json()["error"]["message"]


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_body_beyond_the_limit_is_refused(is_streamed: bool) -> None:
    parts = [b" " * 100_000] * 11
    content = iter(parts) if is_streamed else b"".join(parts)
    with in_process(*YES) as client:
        headers = {"Content-Type": "application/json"}
        response = client.post(URL, content=content, headers=headers)
    assert response.status_code == 413
    assert "1,048,576" in response.json()["error"]["message"]


def test_a_failed_reply_is_a_500_that_tells_no_details(caplog: pytest.LogCaptureFixture) -> None:
    # Weights that are gone, as after a failure of the device.
    broken = make_engine(*YES)
    broken.model.wte.weight.data = broken.model.wte.weight.data[:0]
    with in_process(engine=broken) as client:
        responses = [client.post(URL, json=request(stream=stream)) for stream in (False, True)]
    for response in responses:
        assert response.status_code == 500
        assert response.json()["error"]["code"] == "internal_error"
        assert "index" not in response.text
    assert caplog.text.count("a reply failed") == 2


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("127.0.0.1:8000", None, 200),
        ("localhost:8000", "http://localhost:8000", 200),
        ("[::1]:8000", "http://[::1]:8000", 200),
        ("evil.example", None, 403),
        ("evil.example", "http://evil.example", 403),
        ("localhost:8000", "http://evil.example", 403),
        ("localhost:8000", "http://localhost:3000", 403),
        ("localhost:8000", "null", 403),
        ("127.0.0.1.evil.example", None, 403),
        ("", None, 403),
        ("[::1", None, 403),
        ("localhost:8000", "http://[::1", 403),
    ],
)
def test_on_loopback_only_this_machine_and_this_page_may_ask(
    host: str, origin: str | None, status: int
) -> None:
    headers = {"Host": host} | ({"Origin": origin} if origin is not None else {})
    with in_process(*YES) as client:
        for path in ("/", "/health", "/v1/models"):
            assert client.get(path, headers=headers).status_code == status
        assert client.post(URL, json=request(), headers=headers).status_code == status


def test_elsewhere_any_name_of_the_machine_will_do() -> None:
    with in_process(*YES, host="0.0.0.0") as client:
        assert client.get("/health", headers={"Host": "box.lan:8000"}).status_code == 200


def test_no_other_site_may_read_an_answer() -> None:
    with in_process(*YES, host="0.0.0.0") as client:
        headers = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
        asked = client.options(URL, headers=headers)
        read = client.get("/health", headers={"Origin": "http://evil.example"})
    for response in (asked, read):
        assert not [name for name in response.headers if name.startswith("access-control")]
    assert asked.status_code == 405


def test_models_and_health() -> None:
    with in_process(*YES) as client:
        listed, one = client.get("/v1/models").json(), client.get("/v1/models/scripted").json()
        health = client.get("/health")
    assert listed == {"object": "list", "data": [one]}
    assert (one["id"], one["object"]) == ("scripted", "model")
    assert health.json() == {
        "status": "ok",
        "model": "scripted",
        "device": "cpu",
        "queue": {"running": 0, "waiting": 0, "limit": 16},
    }


def test_the_page_needs_nothing_from_elsewhere_and_may_get_nothing() -> None:
    with in_process(*YES) as client:
        response = client.get("/")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert not re.search(r"https?://|innerHTML|\bon\w+=|style=", response.text)
