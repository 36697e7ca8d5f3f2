"""From a request's body to what the engine is asked: values are checked against the limits here."""

import reprlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from nanochat_core.inference.requests import Request
from nanochat_core.inference.settings import SamplingSettings
from nanochat_core.serving.bodies import ChatCompletionRequest, CompletionRequest, ReplyBody
from nanochat_core.serving.problems import RequestError
from nanochat_core.serving.prompts import chat_prompt, check_most, text_prompts
from nanochat_core.serving.settings import Limits, ServerSettings
from nanochat_core.tokenizer.tokenizer import Tokenizer

Number = TypeVar("Number", int, float)

SMALLEST_TOP_P = 1e-9
"""`top_p` 0 is valid in the OpenAI API; like this it keeps the most likely token alone."""
MAX_TEXT_LOGPROBS = 5
"""Of /v1/completions, as in the OpenAI API."""
_SEED_STRIDE = 0x9E3779B97F4A7C15
"""2**64 divided by the golden ratio: its multiples spread evenly (Steele, Lea and Flood, "Fast
splittable pseudorandom number generators", 2014), so that choices of neighbouring seeds differ."""
_HALF = 2**63
"""Seeds are the integers of 64 bits, as in the OpenAI API."""

_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
}
"""Fields that would change the reply if they were heard, and the values that ask for nothing."""


@dataclass(frozen=True)
class Question:
    """A checked request: replies `i * n` to `i * n + n - 1` are those to prompt `i`."""

    prompts: tuple[tuple[int, ...], ...]
    requests: tuple[Request, ...]
    is_streamed: bool
    wants_usage: bool
    echoes: tuple[str, ...] = ()
    num_dropped_messages: int = 0

    @property
    def num_prompt_tokens(self) -> int:
        """Of all prompts; one with several replies counts once."""
        return sum(map(len, self.prompts))

    def num_new_prompt_tokens(self, index: int) -> int:
        """Tokens of a reply's prompt, or 0 if it was that of the one before."""
        prompt, rest = divmod(index, len(self.requests) // len(self.prompts))
        return 0 if rest else len(self.prompts[prompt])


def read_chat(
    body: ChatCompletionRequest, tokenizer: Tokenizer, max_length: int, server: ServerSettings
) -> Question:
    """Check a chat request and render its prompt for a model whose rows hold `max_length` tokens.

    Raises RequestError for what is asked, DataError for messages in no order of turns.
    """
    _check_supported(body)
    prompt, num_dropped = chat_prompt(body.messages, tokenizer, max_length, server.limits)
    field = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    plan = _Plan(body, server, max_tokens=field, num_logprobs=_chat_logprobs(body, server.limits))
    return Question(
        prompts=(prompt,),
        requests=plan.requests([prompt], max_length),
        is_streamed=bool(body.stream),
        wants_usage=_wants_usage(body),
        num_dropped_messages=num_dropped,
    )


def read_completion(
    body: CompletionRequest, tokenizer: Tokenizer, max_length: int, server: ServerSettings
) -> Question:
    """Check a request to continue texts, and encode its prompts."""
    _check_supported(body)
    _check_completion(body)
    num_logprobs = _in_range("logprobs", body.logprobs, None, 0, MAX_TEXT_LOGPROBS)
    plan = _Plan(body, server, max_tokens="max_tokens", num_logprobs=num_logprobs)
    prompts, texts = text_prompts(body.prompt, tokenizer, max_length, server.limits)
    return Question(
        prompts=tuple(prompts),
        requests=plan.requests(prompts, max_length),
        is_streamed=bool(body.stream),
        wants_usage=_wants_usage(body),
        echoes=tuple(text for text in texts for _ in range(plan.n)) if body.echo else (),
    )


class _Plan:
    """What is asked of every reply, whatever its prompt."""

    def __init__(
        self, body: ReplyBody, server: ServerSettings, *, max_tokens: str, num_logprobs: int | None
    ) -> None:
        limits = server.limits
        self.num_logprobs, self.limits = num_logprobs, limits
        self.seed = _seed(body.seed)
        self.n = _in_range("n", body.n, 1, 1, limits.max_choices)
        given = getattr(body, max_tokens)
        self.max_tokens = _in_range(max_tokens, given, server.max_tokens, 1, limits.max_tokens)
        self.stops = _stops(body.stop, limits)
        self.temperature = _in_range(
            "temperature", body.temperature, server.temperature, 0, limits.max_temperature
        )
        self.top_k = _in_range("top_k", body.top_k, server.top_k, 0, limits.max_top_k)
        self.top_p = max(_in_range("top_p", body.top_p, 1.0, 0, 1), SMALLEST_TOP_P)

    def requests(self, prompts: Sequence[tuple[int, ...]], max_length: int) -> tuple[Request, ...]:
        """One for each reply; all of it that a row has no room for is not asked for."""
        num_replies, most = len(prompts) * self.n, self.limits.max_choices
        if num_replies > most:
            raise RequestError(
                f"{len(prompts)} prompts with n={self.n} ask for {num_replies} replies, the limit "
                f"is {most}; send several requests",
                param="prompt",
            )
        asked = []
        for prompt in prompts:
            # Without a seed each prompt is a new draw, as with the OpenAI API.
            seed = secrets.randbits(63) if self.seed is None else self.seed
            room = min(self.max_tokens, max_length - len(prompt))
            asked += [self._request(prompt, seed_of(seed, i), room) for i in range(self.n)]
        return tuple(asked)

    def _request(self, prompt: tuple[int, ...], seed: int, max_tokens: int) -> Request:
        return Request(
            prompt=prompt,
            settings=SamplingSettings(self.temperature, self.top_k, self.top_p, seed),
            max_new_tokens=max_tokens,
            max_reply_tokens=max_tokens,
            stops=self.stops,
            num_logprobs=self.num_logprobs,
        )


def seed_of(seed: int, index: int) -> int:
    """The seed of one of several replies: of the first, the one that was given."""
    return (seed + index * _SEED_STRIDE + _HALF) % (2 * _HALF) - _HALF


def _check_supported(body: ReplyBody) -> None:
    for name, neutral in _UNSUPPORTED.items():
        given = (body.model_extra or {}).get(name)
        if given is not None and (isinstance(given, bool) or given not in neutral):
            raise _unsupported(name, given, neutral[0])


def _check_completion(body: CompletionRequest) -> None:
    if body.suffix:
        raise _unsupported("suffix", body.suffix, "")
    if body.best_of not in (None, body.n or 1):
        raise _unsupported("best_of", body.best_of, body.n or 1)
    if body.echo and body.logprobs is not None:
        raise RequestError(
            "echo together with logprobs is not supported, as the prompt's own are not told; "
            "leave one of them out",
            param="echo",
            code="unsupported_value",
        )


def _unsupported(name: str, given: object, neutral: object) -> RequestError:
    return RequestError(
        f"{name}={reprlib.repr(given)} is not supported; leave it out, or give {neutral!r}",
        param=name,
        code="unsupported_value",
    )


def _wants_usage(body: ReplyBody) -> bool:
    return body.stream_options is not None and bool(body.stream_options.include_usage)


def _chat_logprobs(body: ChatCompletionRequest, limits: Limits) -> int | None:
    most = _in_range("top_logprobs", body.top_logprobs, None, 0, limits.max_top_logprobs)
    if most and not body.logprobs:
        raise RequestError(
            f"top_logprobs={most} asks for nothing without logprobs; give logprobs=true",
            param="top_logprobs",
        )
    return (most or 0) if body.logprobs else None


def _in_range(name: str, given: Number | None, default: Any, least: Number, most: Number) -> Any:
    if given is None:
        return default
    if not least <= given <= most:
        raise RequestError(f"{name}={reprlib.repr(given)}; give {least:g} to {most:,g}", param=name)
    return given


def _seed(given: int | None) -> int | None:
    if given is not None and not -_HALF <= given < _HALF:
        raise RequestError(f"seed={reprlib.repr(given)}; give -2**63 to 2**63 - 1", param="seed")
    return given


def _stops(stop: str | list[str] | None, limits: Limits) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else stop or []
    check_most("stop", len(stops), limits.max_stop_strings, "strings")
    for text in stops:
        check_most("stop", len(text), limits.max_stop_characters, "characters")
    if "" in stops:
        raise RequestError("stop holds an empty text; leave it out", param="stop")
    return tuple(stops)
