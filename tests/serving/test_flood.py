"""Thousands of requests at once: all are answered, and one that was there before notices little."""

import time
from collections.abc import Iterator

import openai
import pytest
from abuse import Listener, assert_well, flood, memory_of, statuses
from serving_tools import LAUGH, Running, request, save_folders, started

pytestmark = pytest.mark.e2e

MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folders = save_folders(tmp_path_factory.mktemp("laugh"), *LAUGH, sequence_len=1000)
    with started([*folders, "--rows", "4", "--max-waiting", "8"]) as running:
        yield running


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}v1", api_key="none", max_retries=0) as opened:
        yield opened


def flood_and_check(server: Running, num_requests: int) -> float:
    """How long it took until everybody had an answer: a reply, or when to come back."""
    begin = time.monotonic()
    answers = flood(server.host_and_port, [request(max_tokens=2)] * num_requests)
    seconds = time.monotonic() - begin
    found = statuses(answers)
    assert found.keys() == {200, 429}, found
    refused = [answer for answer in answers if answer.status == 429]
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert {answer.code for answer in refused} == {"server_busy"}
    return seconds


@pytest.mark.parametrize(
    ("num_requests", "num_tokens", "seconds"),
    [(1_500, 1_500, 20), pytest.param(10_000, 3_000, 60, marks=pytest.mark.long)],
)
def test_a_flood_gets_429s_while_a_client_that_behaves_streams_on(
    server: Running, client: openai.OpenAI, num_requests: int, num_tokens: int, seconds: float
) -> None:
    flood_and_check(server, num_requests)
    before = memory_of(server)
    listener = Listener(client, num_tokens)
    assert flood_and_check(server, num_requests) < seconds
    listener.check(longest_pause=seconds / 4)
    assert memory_of(server) - before < 30 * MEGABYTE
    assert_well(server, client)
