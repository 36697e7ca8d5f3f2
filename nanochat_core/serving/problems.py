"""What can go wrong with a request, and the one table that says what a client is told.

The shape is that of the OpenAI API: `{"error": {"message", "type", "param", "code"}}`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nanochat_core.errors import ConfigError, DataError, NanochatError

RETRY_AFTER_SECONDS = 2
"""When to knock again at a full queue: about one short reply of a small model."""


class RequestError(ConfigError):
    """A request that cannot be answered; `param` names the field at fault."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param, self.code = param, code


class UnknownModelError(RequestError):
    """A model that is not served here."""


class UnauthorizedError(RequestError):
    """A request without the key that this server was given, or with another one."""


class ForbiddenError(RequestError):
    """A request that another site may have made in the user's name."""


class TooLargeError(RequestError):
    """A body that is longer than any valid one."""


class MediaTypeError(RequestError):
    """A body that does not say that it is JSON, as a form of any page could send it."""


class SlowClientError(RequestError):
    """A request that did not arrive in time."""


class BusyError(NanochatError):
    """So many requests wait that another would only wait in vain."""


class ModelError(NanochatError):
    """A model that is there but cannot be loaded, or does not answer any more."""


class StoppingError(NanochatError):
    """The server was asked to end."""


class FailedError(NanochatError):
    """The engine failed in the middle of a reply."""


class WithdrawnError(NanochatError):
    """Nobody waits for the reply any more, so that nobody reads this."""


@dataclass(frozen=True)
class Answer:
    """An error as a client sees it."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def code(self) -> str:
        """The error in one word, for counting."""
        code: str = self.body["error"]["code"]
        return code


_BAD = "invalid_request_error"
_KNOCK_AGAIN = {"Retry-After": str(RETRY_AFTER_SECONDS)}
_TABLE: tuple[tuple[type[Exception], int, str, str, Mapping[str, str]], ...] = (
    (UnknownModelError, 404, _BAD, "model_not_found", {}),
    (UnauthorizedError, 401, _BAD, "invalid_api_key", {"WWW-Authenticate": "Bearer"}),
    (ForbiddenError, 403, "permission_error", "foreign_origin", {}),
    (SlowClientError, 408, _BAD, "request_timeout", {"Connection": "close"}),
    (TooLargeError, 413, _BAD, "body_too_large", {}),
    (MediaTypeError, 415, _BAD, "unsupported_media_type", {}),
    (BusyError, 429, "rate_limit_error", "server_busy", _KNOCK_AGAIN),
    (ModelError, 503, "server_error", "model_unavailable", _KNOCK_AGAIN),
    (StoppingError, 503, "server_error", "server_stopping", _KNOCK_AGAIN),
    (FailedError, 500, "server_error", "internal_error", {}),
    (WithdrawnError, 499, _BAD, "client_closed_request", {}),
    (ConfigError, 400, _BAD, "invalid_value", {}),
    (DataError, 400, _BAD, "invalid_value", {}),
)
"""The first row that fits counts; what fits none is a mistake of ours, told without
details. 499 is the customary status for a client that has gone."""


def answer_to(error: Exception) -> Answer:
    """Status, body and headers for an error."""
    for kind, status, type_name, code, headers in _TABLE:
        if isinstance(error, kind):
            param, code = getattr(error, "param", None), getattr(error, "code", None) or code
            body = error_body(str(error), type_name, param=param, code=code)
            return Answer(status, body, dict(headers))
    message = "the server failed while it answered; its log has the reason"
    return Answer(500, error_body(message, "server_error", code="internal_error"), {})


def error_body(
    message: str, type_name: str, *, code: str, param: str | None = None
) -> dict[str, Any]:
    """An error as JSON."""
    return {"error": {"message": message, "type": type_name, "param": param, "code": code}}
