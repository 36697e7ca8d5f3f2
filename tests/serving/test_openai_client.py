"""The official `openai` client, unchanged, against a server in a process of its own."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from serving_tools import SUM, Running, save_folders, started

pytestmark = pytest.mark.e2e

KEY = "open-sesame-0123456789"
MODEL = "scripted"
# In a chat: a calculation, then "ok". After "h": laughter without end.
STEPS = (*SUM, "h", "a", "h")
MESSAGES: Any = [{"role": "user", "content": "What is 6 times 7?"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folders = save_folders(Path(tmp_path_factory.mktemp("openai")), *STEPS)
    with started([*folders, "--max-waiting", "2", "--rows", "2"], key=KEY) as running:
        yield running


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}v1", api_key=KEY, max_retries=0) as opened:
        yield opened


def chat(client: openai.OpenAI, **fields: Any) -> Any:
    asked = {"model": MODEL, "messages": MESSAGES, "temperature": 0, **fields}
    return client.chat.completions.create(**asked)


def complete(client: openai.OpenAI, **fields: Any) -> Any:
    asked = {"model": MODEL, "prompt": "h", "temperature": 0, "max_tokens": 4, **fields}
    return client.completions.create(**asked)


def test_a_chat(client: openai.OpenAI) -> None:
    reply = chat(client)
    assert reply.choices[0].message.content == "ok"
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.model == MODEL
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + 11
    # Our own fields are there for those who know them.
    assert [part["kind"] for part in reply.choices[0].nanochat_parts] == [
        "python",
        "python_output",
        "text",
    ]


def test_a_streamed_chat(client: openai.OpenAI) -> None:
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == "ok"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], 11)
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert not any(chunk.usage for chunk in chat(client, stream=True))


def test_the_streaming_helper_puts_the_same_reply_together(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=MESSAGES, n=2) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert [choice.message.content for choice in final.choices] == ["ok", "ok"]
    assert [choice.finish_reason for choice in final.choices] == ["stop", "stop"]


def test_a_completion_streamed_and_not(client: openai.OpenAI) -> None:
    reply = complete(client, prompt=["h", "a"], echo=True)
    assert [choice.text for choice in reply.choices] == ["hahah", "ahaha"]
    assert reply.choices[0].finish_reason == "length"
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (4, 8)
    chunks = list(complete(client, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "ahah"
    assert chunks[-1].choices[0].finish_reason == "length"


def test_stop_texts(client: openai.OpenAI) -> None:
    for stop in ("aha", ["x", "aha"]):
        choice = complete(client, prompt="a", max_tokens=99, stop=stop).choices[0]
        assert (choice.text, choice.finish_reason) == ("h", "stop")


def test_seeds_repeat_a_reply_and_give_n_different_ones(client: openai.OpenAI) -> None:
    def texts(**fields: Any) -> list[str]:
        wild = {"temperature": 2, "max_tokens": 64, "extra_body": {"top_k": 0}}
        return [choice.text for choice in complete(client, **wild, **fields).choices]

    several = texts(n=4, seed=11)
    assert several == texts(n=4, seed=11)
    assert several[:1] == texts(seed=11)
    assert len(set(several)) > 1


def test_probabilities(client: openai.OpenAI) -> None:
    told = chat(client, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert "".join(entry.token for entry in told).endswith("ok")
    assert bytes(told[-1].bytes) == b"k"
    assert all(len(entry.top_logprobs) == 3 and entry.logprob <= 0 for entry in told)
    streamed = [chunk.choices[0].logprobs for chunk in chat(client, stream=True, logprobs=True)]
    tokens = [entry.token for part in streamed if part for entry in part.content]
    assert tokens == [entry.token for entry in told]
    logprobs = complete(client, logprobs=2).choices[0].logprobs
    assert (logprobs.tokens, logprobs.text_offset) == (["a", "h", "a", "h"], [0, 1, 2, 3])
    assert all(len(top) == 2 for top in logprobs.top_logprobs)


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    found = client.models.retrieve(MODEL)
    assert (found.id, found.object, found.owned_by) == (MODEL, "model", "nanochat")


def test_errors_are_of_the_classes_that_clients_catch(
    server: Running, client: openai.OpenAI
) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature=3") as bad:
        chat(client, temperature=3)
    assert (bad.value.param, bad.value.type) == ("temperature", "invalid_request_error")
    with pytest.raises(openai.BadRequestError, match="tokens") as bad:
        complete(client, prompt="h" * 5000)
    assert bad.value.code == "context_length_exceeded"
    for ask in (chat, complete):
        with pytest.raises(openai.NotFoundError, match="'gpt-4' is not served here") as missing:
            ask(client, model="gpt-4")
        assert missing.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("org/no such model")
    with pytest.raises(openai.RateLimitError) as busy:
        complete(client, n=5)
    assert int(busy.value.response.headers["retry-after"]) >= 1
    stranger = openai.OpenAI(base_url=f"{server.url}v1", api_key="guessed", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError):
        chat(stranger)


def test_a_stream_that_is_closed_early_frees_its_rows(client: openai.OpenAI) -> None:
    for _ in range(3):
        # Two rows and two places in the queue: each needs all of them.
        with complete(client, n=4, max_tokens=600, stream=True) as stream:
            next(iter(stream))
        _until_accepted(client)


def _until_accepted(client: openai.OpenAI) -> None:
    for _ in range(200):
        try:
            complete(client, n=4, max_tokens=1)
        except openai.RateLimitError:
            continue
        return
    raise AssertionError("the rows of a client that has gone are still taken")


async def _concurrent(server: Running) -> list[str]:
    async with openai.AsyncOpenAI(base_url=f"{server.url}v1", api_key=KEY, max_retries=0) as own:
        asked = [
            own.completions.create(model=MODEL, prompt=prompt, max_tokens=3, temperature=0)
            for prompt in "haha"
        ]
        return [reply.choices[0].text for reply in await asyncio.gather(*asked)]


def test_the_asynchronous_client(server: Running) -> None:
    assert asyncio.run(_concurrent(server)) == ["aha", "hah", "aha", "hah"]
