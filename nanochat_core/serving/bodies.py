"""Bodies of requests as the OpenAI API writes them: types are checked here, values in `requests`.

Types are strict: `true` is no number and `"5"` is none either. Fields that are not named here are
kept aside, so that those which would change the reply can be refused (requests.py).
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from nanochat_core.conversation.types import Part
from nanochat_core.serving.settings import Limits

_LIMITS = Limits()


def _told(**limits: float) -> Any:
    """A field's limits for readers of the schema; the request is refused where they are used."""
    return Field(json_schema_extra=dict(limits))


def _whole(given: object) -> object:
    return int(given) if isinstance(given, float) and given.is_integer() else given


Whole = Annotated[int, BeforeValidator(_whole)]
"""An integer as JSON knows it: 5.0 is the same number as 5, and some clients write it so."""
Int64 = Annotated[Whole, Field(json_schema_extra={"format": "int64"})]
"""Without limits in the schema, where the framework makes floats of them: 2**63 - 1 is none."""


class StreamOptions(BaseModel):
    """What a stream brings beside the reply."""

    model_config = ConfigDict(strict=True)

    include_usage: bool | None = None


class ReplyBody(BaseModel):
    """What both kinds of request may say about the replies."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    model: Annotated[str | None, Field(description="as /v1/models lists it; none: the default")] = (
        None
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float | None, _told(minimum=0, maximum=_LIMITS.max_temperature)] = None
    top_p: Annotated[float | None, _told(minimum=0, maximum=1)] = None
    top_k: Annotated[Whole | None, _told(minimum=0, maximum=_LIMITS.max_top_k)] = None
    max_tokens: Annotated[Whole | None, _told(minimum=1, maximum=_LIMITS.max_tokens)] = None
    n: Annotated[Whole | None, _told(minimum=1, maximum=_LIMITS.max_choices)] = None
    seed: Int64 | None = None
    stop: Annotated[str | list[str] | None, _told(maxItems=_LIMITS.max_stop_strings)] = None


class ContentPart(BaseModel):
    """A part of a message's content; this API reads text only."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: str
    text: str | None = None


class ChatMessage(BaseModel):
    """One message; `nanochat_parts` of an earlier reply may stand in for its `content`."""

    model_config = ConfigDict(extra="ignore", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ContentPart] | None = None
    nanochat_parts: list[Part] | None = None


class ChatCompletionRequest(ReplyBody):
    """A conversation to continue: an optional system message, then user and assistant in turn."""

    messages: Annotated[list[ChatMessage], _told(minItems=1, maxItems=_LIMITS.max_messages)]
    max_completion_tokens: Annotated[Whole | None, _told(minimum=1, maximum=_LIMITS.max_tokens)] = (
        None
    )
    logprobs: bool | None = None
    top_logprobs: Annotated[Whole | None, _told(minimum=0, maximum=_LIMITS.max_top_logprobs)] = None


class CompletionRequest(ReplyBody):
    """A text to continue, or several; token ids must be ordinary ones, and bos comes by itself."""

    prompt: str | list[str] | list[Whole] | list[list[Whole]] | None
    logprobs: Annotated[Whole | None, _told(minimum=0, maximum=5)] = None
    echo: bool | None = None
    best_of: Whole | None = None
    suffix: str | None = None
