"""What can go wrong with a request, and the one table that says what a client is told.

The shape is that of the OpenAI API: `{"error": {"message", "type", "param", "code"}}`.
"""

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


class ForbiddenError(RequestError):
    """A request that another site may have made in the user's name."""


class TooLargeError(RequestError):
    """A body that is longer than any valid one."""


class BusyError(NanochatError):
    """So many requests wait that another would only wait in vain."""


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


_TABLE: tuple[tuple[type[Exception], int, str, str | None], ...] = (
    (UnknownModelError, 404, "invalid_request_error", "model_not_found"),
    (ForbiddenError, 403, "permission_error", "foreign_origin"),
    (TooLargeError, 413, "invalid_request_error", "body_too_large"),
    (BusyError, 429, "rate_limit_error", "server_busy"),
    (StoppingError, 503, "server_error", "server_stopping"),
    (FailedError, 500, "server_error", "internal_error"),
    (WithdrawnError, 499, "invalid_request_error", "client_closed_request"),
    (ConfigError, 400, "invalid_request_error", None),
    (DataError, 400, "invalid_request_error", None),
)
"""The first row that fits counts; what fits none is a mistake of ours, told without
details. 499 is the customary status for a client that has gone."""


def answer_to(error: Exception) -> Answer:
    """Status, body and headers for an error."""
    for kind, status, type_name, code in _TABLE:
        if isinstance(error, kind):
            param, code = getattr(error, "param", None), getattr(error, "code", None) or code
            body = error_body(str(error), type_name, param=param, code=code)
            retry = {"Retry-After": str(RETRY_AFTER_SECONDS)} if kind is BusyError else {}
            return Answer(status, body, retry)
    message = "the server failed while it answered; its log has the reason"
    return Answer(500, error_body(message, "server_error", code="internal_error"), {})


def error_body(
    message: str, type_name: str, *, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """An error as JSON."""
    return {"error": {"message": message, "type": type_name, "param": param, "code": code}}
