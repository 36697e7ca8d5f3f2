"""Who may ask, and how much: what is refused before a route sees it, in the shape of the API."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from nanochat_core.serving.catalog import Catalog
from nanochat_core.serving.connections import ConnectionLimits
from nanochat_core.serving.guards import Guards, Rules
from nanochat_core.serving.metrics import Metrics
from nanochat_core.serving.pool import ModelPool
from nanochat_core.serving.settings import ServerSettings

CHAT, KEY, SITE = "/v1/chat/completions", "key-of-mine", "https://chat.example.com"
MOST = 1_000


async def echo(request: Request) -> Response:
    """How long the body was."""
    return JSONResponse({"bytes": len(await request.body())})


@contextmanager
def guarded(host: str = "127.0.0.1:8000", **rules: Any) -> Iterator[TestClient]:
    """A client of an application that stands behind the guards."""
    routes = [Route(path, echo, methods=["GET", "POST"]) for path in ("/", "/health", CHAT)]
    app = Starlette(routes=[*routes, Route("/metrics", echo)])
    metrics = Metrics(ModelPool(Catalog(), ServerSettings()))
    values = {"is_private": True, "max_body_bytes": MOST, **rules}
    app.add_middleware(Guards, rules=Rules(**values), limits=ConnectionLimits(), metrics=metrics)
    with TestClient(app, base_url=f"http://{host}") as client:
        client.metrics = metrics  # type: ignore[attr-defined]
        yield client


def code_of(answer: Any) -> str:
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error["code"]


@pytest.fixture(scope="module")
def private() -> Iterator[TestClient]:
    with guarded() as client:
        yield client


@pytest.fixture(scope="module")
def public() -> Iterator[TestClient]:
    with guarded("chat.lan", is_private=False, api_key=KEY, origins=(SITE,)) as client:
        yield client


def bearer(key: str) -> dict[str, bytes]:
    return {"Authorization": f"Bearer {key}".encode()}


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "10.0.0.1", "[::1", ""])
def test_a_name_that_was_pointed_to_this_machine_is_refused(private: TestClient, host: str) -> None:
    answer = private.get("/", headers={"Host": host})
    assert (answer.status_code, code_of(answer)) == (403, "foreign_origin")


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "127.9.9.9:1", "[::1]:8000"])
def test_this_machine_is_asked_by_any_of_its_names(private: TestClient, host: str) -> None:
    assert private.get("/", headers={"Host": host}).status_code == 200
    own = {"Host": host, "Origin": f"http://{host}"}
    assert private.post(CHAT, headers=own, content=b"{}").status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:9999", "["])
def test_a_page_of_another_site_is_refused(
    private: TestClient, public: TestClient, origin: str
) -> None:
    for client in (private, public):
        for headers in ({"Origin": origin}, {"Origin": origin, **bearer(KEY)}):
            answer = client.post(CHAT, headers=headers, content=b"{}")
            assert (answer.status_code, code_of(answer)) == (403, "foreign_origin")
            assert "access-control-allow-origin" not in answer.headers
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        assert client.options(CHAT, headers=asked).status_code == 403


def test_an_allowed_site_asks_first_and_then_may(public: TestClient) -> None:
    asked = {
        "Origin": SITE,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,x-stainless-os",
    }
    first = public.options(CHAT, headers=asked)
    assert first.status_code == 204
    assert first.headers["access-control-allow-origin"] == SITE
    assert first.headers["access-control-allow-headers"] == "authorization,x-stainless-os"
    assert "POST" in first.headers["access-control-allow-methods"]
    then = public.post(CHAT, headers={"Origin": SITE, **bearer(KEY)}, content=b"{}")
    assert then.json() == {"bytes": 2}
    assert then.headers["access-control-allow-origin"] == SITE
    assert "Origin" in then.headers["vary"]
    # What went wrong is for the page to read, too.
    wrong = public.post(CHAT, headers={"Origin": SITE}, content=b"{}")
    assert (wrong.status_code, wrong.headers["access-control-allow-origin"]) == (401, SITE)


def test_any_site_may_ask_where_that_was_wanted() -> None:
    with guarded(origins=("*",)) as client:
        answer = client.post(CHAT, headers={"Origin": SITE}, content=b"{}")
        assert answer.headers["access-control-allow-origin"] == SITE


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer(""),
        bearer("key-of-min"),
        bearer("kèy-of-mine"),
        bearer(f"{KEY}!"),
        {"Authorization": KEY.encode()},
    ],
)
def test_without_the_key_only_the_page_and_the_health_are_shown(
    public: TestClient, headers: dict[str, bytes]
) -> None:
    for path in ("/", "/health"):
        assert public.get(path, headers=headers).status_code == 200
    for path in (CHAT, "/v1/models", "/metrics", "/v1//models", "/no/such/path"):
        answer = public.get(path, headers=headers)
        assert (answer.status_code, code_of(answer)) == (401, "invalid_api_key"), path
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "mine" not in answer.text


def test_with_the_key_everything_is_there(public: TestClient) -> None:
    for scheme in ("Bearer", "bearer"):
        headers = {"Authorization": f"{scheme} {KEY}".encode()}
        assert public.post(CHAT, headers=headers, content=b"{}").status_code == 200
        assert public.get("/metrics", headers=headers).status_code == 200


@pytest.mark.parametrize("is_told", [True, False])
def test_a_long_body_is_refused_whether_it_says_so_or_not(
    private: TestClient, is_told: bool
) -> None:
    def sent(num_bytes: int) -> Any:
        body = b"x" * num_bytes
        return private.post(CHAT, content=body if is_told else iter([body[:10], body[10:]]))

    assert sent(MOST).json() == {"bytes": MOST}
    answer = sent(MOST + 1)
    assert (answer.status_code, code_of(answer)) == (413, "body_too_large")
    assert answer.headers["connection"] == "close"


def test_every_answer_is_ours_alone_to_show(private: TestClient) -> None:
    for answer in (private.get("/"), private.get("/", headers={"Host": "evil.example"})):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["cache-control"] == "no-store"


def test_what_is_refused_is_counted_without_a_word_of_the_client() -> None:
    with guarded() as client:
        client.get("/secret/path/of/mine", headers={"Host": "evil.example"})
        client.post(CHAT, content=b"x" * 2 * MOST)
        text = client.metrics.text().decode()  # type: ignore[attr-defined]
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    refused = {s.labels["code"]: s.value for s in samples if s.name == "nanochat_refused_total"}
    assert refused == {"foreign_origin": 1.0, "body_too_large": 1.0}
    answered = {s.labels["path"] for s in samples if s.name == "nanochat_http_responses_total"}
    assert answered == {"other", CHAT}
    assert "secret" not in text
