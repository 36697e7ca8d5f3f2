"""The API in this process over one engine: replies and streams, and errors."""

import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from serving_tools import SUM, chunks_of, in_process, request

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
NUM_ROWS, MAX_WAITING = 4, 3
# In a chat: a calculation, and a character of two tokens. After "h": laughter without end.
STEPS = (*SUM[:-1], 0xC3, 0xA9, "assistant_end", "h", "a", "h")
GREEDY = {"temperature": 0}
RANDOM = {"temperature": 2, "top_k": 0}
"""At this temperature the model goes astray every few tokens."""


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with in_process(*STEPS, num_rows=NUM_ROWS, max_waiting=MAX_WAITING) as opened:
        yield opened


def chat(client: TestClient, **fields: Any) -> dict[str, Any]:
    response = client.post(CHAT, json=request(**{**GREEDY, **fields}))
    assert response.status_code == 200, response.text
    return response.json()


def complete(client: TestClient, **fields: Any) -> dict[str, Any]:
    response = client.post(TEXT, json={"prompt": "h", **GREEDY, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def num_open(client: TestClient) -> int:
    queue = client.get("/health").json()["queue"]
    return queue["running"] + queue["waiting"]


def test_a_reply_has_the_shape_of_the_openai_api(client: TestClient) -> None:
    reply = chat(client)
    assert reply["object"] == "chat.completion"
    assert (reply["model"], reply["system_fingerprint"]) == ("scripted", "scripted")
    assert reply["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "oké", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
            "nanochat_parts": [
                {"kind": "python", "text": "6*7"},
                {"kind": "python_output", "text": "42"},
                {"kind": "text", "text": "oké"},
            ],
        }
    ]
    # bos, user_start, 14 bytes, user_end, assistant_start; five of code, four of output, four.
    assert reply["usage"] == {"prompt_tokens": 18, "completion_tokens": 13, "total_tokens": 31}


def test_a_stream_says_who_speaks_first_and_why_it_ended_last(client: TestClient) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}, **GREEDY}
    response = client.post(CHAT, json=request(**options))
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, usage = chunks_of(response.text)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    # Never half a character.
    assert "".join(choice["delta"].get("content", "") for choice in choices) == "oké"
    parts = [part for choice in choices for part in choice.get("nanochat_parts", ())]
    assert "".join(part["text"] for part in parts if part["kind"] == "python") == "6*7"
    assert "".join(part["text"] for part in parts if part["kind"] == "python_output") == "42"
    assert (choices[-1]["delta"], choices[-1]["finish_reason"]) == ({}, "stop")
    assert not any(choice["finish_reason"] for choice in choices[:-1])
    assert usage["usage"] == {"prompt_tokens": 18, "completion_tokens": 13, "total_tokens": 31}
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in [*chunks, usage]}) == 1


def test_a_completion_continues_each_text_n_times(client: TestClient) -> None:
    reply = complete(client, prompt=["h", "a"], n=2, max_tokens=3)
    texts = [choice["text"] for choice in reply["choices"]]
    assert texts == ["aha", "aha", "hah", "hah"]
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2, 3]
    assert reply["usage"] == {"prompt_tokens": 4, "completion_tokens": 12, "total_tokens": 16}
    assert reply["object"] == "text_completion"
    fields = {"prompt": ["h", "a"], "n": 2, "max_tokens": 3, "stream": True, "echo": True}
    chunks = chunks_of(client.post(TEXT, json={**fields, **GREEDY}).text)
    streamed = [""] * 4
    for chunk in chunks:
        streamed[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert streamed == ["haha", "haha", "ahah", "ahah"]


def test_ids_and_texts_are_the_same_prompt(client: TestClient) -> None:
    by_text, by_ids = complete(client, max_tokens=5), complete(client, prompt=[104], max_tokens=5)
    assert by_text["choices"] == by_ids["choices"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "text", "reason"),
    [
        ({"max_tokens": 3}, "aha", "length"),
        ({"stop": "haha"}, "a", "stop"),
        ({"stop": ["x", "ahah"]}, "", "stop"),
        ({"stop": ["<|bos|>", "\x00", "hah"]}, "a", "stop"),
    ],
)
def test_where_a_reply_ends(
    client: TestClient, fields: dict[str, Any], text: str, reason: str, stream: bool
) -> None:
    response = client.post(TEXT, json={"prompt": "h", **GREEDY, **fields, "stream": stream})
    if not stream:
        choice = response.json()["choices"][0]
        assert (choice["text"], choice["finish_reason"]) == (text, reason)
        return
    choices = [chunk["choices"][0] for chunk in chunks_of(response.text)]
    assert "".join(choice["text"] for choice in choices) == text
    assert choices[-1]["finish_reason"] == reason


def test_a_reply_that_fills_its_row_ends_by_its_length(client: TestClient) -> None:
    # The model has 640 positions.
    reply = complete(client, prompt="ah" * 300, max_tokens=4096)
    assert (reply["choices"][0]["finish_reason"], reply["usage"]["total_tokens"]) == ("length", 640)


def test_the_probability_of_each_token_is_told(client: TestClient) -> None:
    content = chat(client, logprobs=True, top_logprobs=2)["choices"][0]["logprobs"]["content"]
    texts = [entry["token"] for entry in content]
    # What the calculator said was not sampled.
    assert "".join(texts).endswith("ok" + "bytes:\\xc3" + "bytes:\\xa9")
    for entry in content:
        assert -0.01 < entry["logprob"] <= 0
        assert entry["top_logprobs"][0]["token"] == entry["token"]
        assert len(entry["top_logprobs"]) == 2
    logprobs = complete(client, logprobs=1, max_tokens=3)["choices"][0]["logprobs"]
    assert (logprobs["tokens"], logprobs["text_offset"]) == (["a", "h", "a"], [0, 1, 2])
    assert [list(top) for top in logprobs["top_logprobs"]] == [["a"], ["h"], ["a"]]


@pytest.mark.parametrize("stream", [False, True])
def test_equal_seeds_give_equal_replies_and_no_seed_another_each_time(
    client: TestClient, stream: bool
) -> None:
    def texts(**fields: Any) -> list[str]:
        body = {"prompt": "h", **RANDOM, "max_tokens": 64, "stream": stream, **fields}
        response = client.post(TEXT, json=body)
        if not stream:
            return [choice["text"] for choice in response.json()["choices"]]
        found = [""] * fields.get("n", 1)
        for chunk in chunks_of(response.text):
            found[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
        return found

    several = texts(seed=7, n=4)
    assert several == texts(seed=7, n=4)
    assert several[0] == texts(seed=7)[0]
    assert len(set(several)) > 1
    assert texts(n=4) != texts(n=4)


def test_all_replies_have_a_place_or_none_has(client: TestClient) -> None:
    most = NUM_ROWS + MAX_WAITING
    assert len(complete(client, n=most, max_tokens=1)["choices"]) == most
    response = client.post(TEXT, json={"prompt": "h", "n": most + 1})
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) >= 1
    assert response.json()["error"]["code"] == "server_busy"
    assert num_open(client) == 0


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ("{", None, "no JSON object"),
        ("[]", None, "the body: "),
        ("{}", "messages", "messages: Field required"),
        ('{"messages": [{"role": "tool"}]}', "messages[0].role", "'assistant'"),
        ('{"messages": [{"role": "user", "content": 5}]}', "messages[0].content", "string; or"),
        ('{"messages": [{"role": "user", "content": "a"}], "top_k": "x"}', "top_k", "integer"),
        ('{"messages": [{"role": "user", "content": "a"}], "n": 99}', "n", "n=99"),
        ('{"messages": [{"role": "user", "content": "a"}], "temperature": NaN}', None, "NaN"),
        ('{"messages": [{"role": "user", "content": "a"}], "top_p": 1e999}', "top_p", "finite"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "messages", "the user's"),
        ('{"messages": [{"role": "user", "content": "\\ud83d"}]}', None, "surrogate"),
        ('{"messages": ' + "[" * 9_999 + "]" * 9_999 + "}", None, "nested"),
        ('{"messages": [' + "[" * 900 + "]" * 900 + "]}", "messages[0]", "object"),
    ],
)
def test_a_mistake_is_told_in_the_shape_of_the_openai_api(
    client: TestClient, body: str, param: str | None, words: str
) -> None:
    response = client.post(CHAT, content=body, headers={"Content-Type": "application/json"})
    error = response.json()["error"]
    assert response.status_code == 400
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert words in error["message"]


@pytest.mark.parametrize("content_type", [None, "text/plain", "multipart/form-data"])
def test_a_body_without_its_type_is_refused(client: TestClient, content_type: str | None) -> None:
    # What a form of another page could send without asking first.
    headers = {"Content-Type": content_type} if content_type else {}
    response = client.post(CHAT, content='{"messages": []}', headers=headers)
    assert response.status_code == 415
    assert "Content-Type: application/json" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/v1/models/gpt-4", 404, "model_not_found"),
        ("GET", "/v1/models/", 404, "model_not_found"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("DELETE", "/v1/models/scripted", 405, "method_not_allowed"),
        ("GET", "/docs", 404, "not_found"),
    ],
)
def test_a_wrong_address_is_an_error_of_the_same_shape(
    client: TestClient, method: str, path: str, status: int, code: str
) -> None:
    response = client.request(method, path)
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (status, "invalid_request_error")
    assert error["code"] == code
    assert ("allow" in response.headers) == (status == 405)


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_a_model_that_is_not_there_is_named_beside_one_that_is(
    client: TestClient, path: str
) -> None:
    body = {"prompt": "a", **request(), "model": "gpt-4"}
    response = client.post(path, json=body)
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert re.search(r"'gpt-4'.*scripted", response.json()["error"]["message"])
    for name in (None, "", "scripted"):
        fields = {"prompt": "a", **request(), "model": name, "max_tokens": 1}
        assert client.post(path, json=fields).status_code == 200


def test_models_health_and_readiness(client: TestClient) -> None:
    listed, one = client.get("/v1/models").json(), client.get("/v1/models/scripted").json()
    assert listed == {"object": "list", "data": [one]}
    assert (one["id"], one["object"], one["owned_by"]) == ("scripted", "model", "nanochat")
    assert one["nanochat"]["loaded"] is True
    assert not one["nanochat"]["is_alias"]
    health = client.get("/health").json()
    assert abs(health.pop("started") - time.time()) < 600
    assert health == {
        "status": "ok",
        "model": "scripted",
        "device": "cpu",
        "queue": {"running": 0, "waiting": 0, "limit": MAX_WAITING},
    }
    assert client.get("/ready").json() == {"status": "ready"}


def test_every_reply_is_counted_once_by_how_it_ended(client: TestClient) -> None:
    def counted(name: str, **labels: str) -> float:
        wanted = {f'{label}="{value}"' for label, value in labels.items()}
        lines = client.get("/metrics").text.splitlines()
        found = [line for line in lines if line.startswith(f"nanochat_{name}_total{{")]
        return sum(float(line.split()[-1]) for line in found if wanted <= set(_labels(line)))

    before = counted("replies", reason="length"), counted("reply_tokens"), counted("prompt_tokens")
    refused = counted("refused", code="invalid_value")
    complete(client, prompt="h", n=3, max_tokens=5)
    client.post(TEXT, json={"prompt": "h", "n": 2, "max_tokens": 5, "stream": True, **GREEDY})
    client.post(TEXT, json={"prompt": []})
    after = counted("replies", reason="length"), counted("reply_tokens"), counted("prompt_tokens")
    # A prompt is read once, whatever number of replies it gets.
    assert [b - a for a, b in zip(before, after, strict=True)] == [5, 25, 4]
    assert counted("refused", code="invalid_value") == refused + 1
    assert counted("requests") == counted("replies")


def _labels(line: str) -> list[str]:
    return line.partition("{")[2].partition("}")[0].split(",")
