"""One question to an endpoint that speaks the OpenAI chat API, asked until it is answered.

The key goes into the header of a request and nowhere else: it is cut out of whatever an endpoint
says back.
"""

import json
import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from nanochat_core.errors import ConfigError, DataError

if TYPE_CHECKING:
    import httpx

COMPLETIONS = "/chat/completions"
TRANSIENT = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
"""Statuses after which the same request can succeed."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
MAX_SAID = 300


@dataclass(frozen=True)
class Endpoint:
    """Where to ask, and which model; `key` may be empty."""

    url: str
    model: str
    key: str = field(default="", repr=False)
    temperature: float | None = None
    max_tokens: int | None = None


@dataclass(frozen=True)
class AskPolicy:
    """How patient a client is. Waits between attempts double, and Retry-After is obeyed."""

    attempts: int = 6
    first_wait_seconds: float = 1.0
    max_wait_seconds: float = 120.0
    max_told_seconds: float = 900.0
    """So long an endpoint may put a request off: the waits that it asks for are no attempts."""
    spread_seconds: float = 1.0
    """By chance after such a wait, lest all threads come back in one moment."""
    connect_seconds: float = 10.0
    read_seconds: float = 300.0
    """Of silence; a model on CPUs that writes a few conversations at once takes minutes."""


@dataclass(frozen=True)
class Reply:
    """What a model said, and whether it came to its end."""

    text: str
    is_whole: bool


class Stopped(Exception):
    """Somebody has set the event that ends all waiting."""


def completions_url(url: str) -> str:
    """Where requests go: `url` may be that place, or the base that clients are given."""
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address:
        raise ConfigError(
            "--endpoint is no address; expected http://HOST:PORT/v1 or https://HOST/v1"
        )
    if parts.username or parts.password or parts.query:
        raise ConfigError(
            f"the endpoint at {parts.hostname} is given with a password or a query; give the key "
            "in an environment variable instead"
        )
    path = parts.path.rstrip("/")
    path = path if path.endswith(COMPLETIONS) else (path or "/v1") + COMPLETIONS
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def may_have_key(url: str) -> bool:
    """Whether nobody on the way can read what is sent: by https, or on this machine."""
    parts = urlsplit(url)
    return parts.scheme == "https" or parts.hostname in LOOPBACK


def retry_after(value: str, now: float) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date; None for nonsense."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - now
        except (ValueError, TypeError):
            return None
    return max(0.0, seconds) if seconds < float("inf") else None


class ChatClient:
    """Asks one endpoint, from many threads at once; a wait that it is told holds all of them."""

    def __init__(self, endpoint: Endpoint, policy: AskPolicy, stop: threading.Event) -> None:
        import httpx

        self.url = completions_url(endpoint.url)
        self._endpoint, self._policy, self._stop = endpoint, policy, stop
        headers = {"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
        seconds = httpx.Timeout(policy.read_seconds, connect=policy.connect_seconds)
        # What is for this machine does not go through a proxy, which would read the key.
        is_elsewhere = urlsplit(self.url).hostname not in LOOPBACK
        self._http = httpx.Client(headers=headers, timeout=seconds, trust_env=is_elsewhere)
        self._takes_seed = True
        self._limit_field = "max_tokens"
        self._has_answered = False
        self._not_before = 0.0

    def __enter__(self) -> "ChatClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def ask(self, messages: Sequence[Mapping[str, str]], seed: int) -> Reply:
        """The reply to these messages; it waits and asks again where that can help.

        ConfigError when the endpoint refuses such requests, DataError when it does not answer in
        all attempts, Stopped.
        """
        said, attempt = "", 0
        deadline = time.monotonic() + self._policy.max_told_seconds
        while attempt < self._policy.attempts:
            self._wait_for_permission()
            reply, said, wait_seconds = self._try(messages, seed)
            if reply is not None:
                self._has_answered = True
                return reply
            attempt += not wait_seconds or time.monotonic() > deadline
            if attempt < self._policy.attempts:
                self._wait(max(attempt - 1, 0), wait_seconds)
        raise DataError(
            f"{self.url} gave no answer in {self._policy.attempts} attempts, at last: {said}. What "
            "was accepted is kept; run the same command again to go on"
        )

    def _try(
        self, messages: Sequence[Mapping[str, str]], seed: int
    ) -> tuple[Reply | None, str, float | None]:
        """A reply, or what went wrong and how long the endpoint wants to be left alone."""
        import httpx

        try:
            response = self._http.post(self.url, json=self._body(messages, seed))
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            if not self._has_answered:
                raise DataError(
                    f"nothing answers at {self.url} ({self._clean(str(error))}); give --endpoint "
                    "the address of a server that runs, as http://HOST:PORT/v1"
                ) from error
            return None, self._clean(str(error)), None
        except httpx.TransportError as error:
            return None, f"{type(error).__name__} {self._clean(str(error))}".strip(), None
        if response.status_code == 200:
            reply = read_reply(response.text)
            return reply, "an answer that is no chat completion", None
        said = f"status {response.status_code}, {self._message(response)}"
        if response.status_code in TRANSIENT and "insufficient_quota" not in response.text:
            told = retry_after(response.headers.get("Retry-After", ""), time.time())
            return None, said, told
        if self._adapts(response):
            return None, said, 0.0
        raise ConfigError(f"{self.url} refuses: {said}. {self._advice(response.status_code)}")

    def _body(self, messages: Sequence[Mapping[str, str]], seed: int) -> dict[str, Any]:
        given: dict[str, Any] = {"seed": seed} if self._takes_seed else {}
        if self._endpoint.temperature is not None:
            given["temperature"] = self._endpoint.temperature
        if self._endpoint.max_tokens is not None:
            given[self._limit_field] = self._endpoint.max_tokens
        return {"model": self._endpoint.model, "messages": list(messages), **given}

    def _adapts(self, response: "httpx.Response") -> bool:
        """Whether the endpoint complains of the seed, or knows the limit by its newer name.

        What the user has chosen is never left out.
        """
        if response.status_code not in (400, 422):
            return False
        # Requests of other threads may have been on their way before the change: they get here too.
        if "max_completion_tokens" in response.text and self._endpoint.max_tokens is not None:
            self._limit_field = "max_completion_tokens"
            return True
        if "seed" in response.text:
            self._takes_seed = False
            return True
        return False

    def _wait_for_permission(self) -> None:
        while (seconds := self._not_before - time.monotonic()) > 0:
            self._sleep(seconds + random.uniform(0.0, self._policy.spread_seconds))
        if self._stop.is_set():
            raise Stopped

    def _wait(self, attempt: int, told_seconds: float | None) -> None:
        policy = self._policy
        if told_seconds is not None:
            seconds = min(told_seconds, policy.max_wait_seconds)
            self._not_before = max(self._not_before, time.monotonic() + seconds)
            return
        # Half of the wait is by chance, lest all threads come back in one moment.
        seconds = min(policy.first_wait_seconds * 2**attempt, policy.max_wait_seconds)
        self._sleep(seconds * random.uniform(0.5, 1.0))

    def _sleep(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise Stopped

    def _advice(self, status: int) -> str:
        if status in (401, 403):
            return "Set the environment variable of the key; --key-variable names another one"
        if status == 404:
            return "Check the address (it mostly ends in /v1) and the name of the model"
        if 300 <= status < 400:
            return "It sends elsewhere; give the final address"
        return "Check --endpoint-model, --temperature and --max-tokens"

    def _message(self, response: "httpx.Response") -> str:
        if response.has_redirect_location:
            return f"which points to {self._clean(response.headers['location'])}"
        try:
            error = json.loads(response.text)["error"]
            said = error["message"] if isinstance(error, dict) else str(error)
        except (ValueError, KeyError, TypeError):
            said = response.text
        return self._clean(str(said)) or "without a word"

    def _clean(self, text: str) -> str:
        if self._endpoint.key:
            text = text.replace(self._endpoint.key, "***")
        printable = "".join(character if character.isprintable() else " " for character in text)
        return " ".join(printable.split())[:MAX_SAID]


def read_reply(body: str) -> Reply | None:
    """The reply in the body of an answer; None when it has another shape."""
    try:
        choice = json.loads(body)["choices"][0]
        text = choice["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        return None
    if text is None:
        # A refusal, or all tokens went into thoughts: an answer, and no conversation.
        text = ""
    if not isinstance(text, str):
        return None
    return Reply(text=text, is_whole=choice.get("finish_reason") != "length")
