"""Shapes of what is answered, for the API's description; answers are written without them."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from nanochat_core.conversation.types import PartKind
from nanochat_core.inference.requests import FinishReason


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ErrorDetail(_Answer):
    """What was given, what was expected, what to do; `param` names the field at fault."""

    message: str
    type: Literal["invalid_request_error", "permission_error", "rate_limit_error", "server_error"]
    param: str | None
    code: str


class ErrorAnswer(_Answer):
    """Any refusal."""

    error: ErrorDetail


class Usage(_Answer):
    """Tokens of the prompts, and of all replies with what tools answered."""

    prompt_tokens: int = Field(ge=1)
    completion_tokens: int = Field(ge=0)
    total_tokens: int = Field(ge=1)


class ReplyPart(_Answer):
    """A stretch of a reply: text, code for the calculator, or what that answered."""

    kind: PartKind
    text: str


class LikelyToken(_Answer):
    """A token and the natural logarithm of its probability; `bytes` of a special token is null."""

    token: str
    logprob: float
    bytes: list[int] | None


class SampledToken(LikelyToken):
    """A token of the reply, and the likeliest ones in its place."""

    top_logprobs: list[LikelyToken]


class ChatLogprobs(_Answer):
    """Every token that the model sampled, those of tool calls too."""

    content: list[SampledToken]
    refusal: None


class AssistantMessage(_Answer):
    """The visible text of a reply."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(_Answer):
    """One reply."""

    index: int = Field(ge=0)
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    nanochat_parts: list[ReplyPart]


class ChatCompletion(_Answer):
    """The replies to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[ChatChoice] = Field(min_length=1)
    usage: Usage
    nanochat_dropped_messages: int = Field(ge=0)


class TextLogprobs(_Answer):
    """Tokens of a text, side by side."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(_Answer):
    """One continuation; those of the first prompt come first."""

    index: int = Field(ge=0)
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason


class TextCompletion(_Answer):
    """The continuations of all prompts."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[TextChoice] = Field(min_length=1)
    usage: Usage


class ModelFacts(_Answer):
    """What this project knows of a model beside its name."""

    station: str
    target: str
    is_alias: bool
    is_chat: bool
    loaded: bool


class ModelAnswer(_Answer):
    """A model that can be asked for."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    nanochat: ModelFacts


class ModelList(_Answer):
    """Every model that can be asked for, aliases first."""

    object: Literal["list"]
    data: list[ModelAnswer]


class Queue(_Answer):
    """Replies that run and that wait, of all models; `limit` counts those that wait for one."""

    running: int = Field(ge=0)
    waiting: int = Field(ge=0)
    limit: int = Field(ge=0)


class Health(_Answer):
    """That the server lives, and what it does."""

    status: Literal["ok", "loading", "draining"]
    started: int
    model: str
    device: str | None
    queue: Queue


class Ready(_Answer):
    """That a request for the default model would be answered."""

    status: Literal["ready"]
