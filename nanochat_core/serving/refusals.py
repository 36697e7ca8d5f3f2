"""Every error as an answer of one shape: ours by the table of problems, the framework's, too."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from nanochat_core.errors import NanochatError
from nanochat_core.serving.answers import ErrorAnswer
from nanochat_core.serving.problems import Answer, RequestError, answer_to, error_body

MAX_REASONS = 4
"""A field of several types gets a reason from each; so many of them are told."""
_ERRORS = {
    400: "A value that cannot work: the message says which, what was expected, what to do.",
    401: "The server asks for a key, and this was none or another.",
    403: "The request comes from a page of another site.",
    404: "There is no such model, or no such address.",
    408: "The request did not arrive in time.",
    413: "The body is longer than any valid one.",
    415: "The body is not JSON by its Content-Type.",
    429: "As many replies wait as may; Retry-After says when to ask again.",
    500: "The server failed; its log says why.",
    503: "The model cannot be had now, or the server is stopping.",
}
ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    **{status: {"model": ErrorAnswer, "description": told} for status, told in _ERRORS.items()},
    # Its presence also keeps the framework from promising a 422 of its own shape.
    "4XX": {"model": ErrorAnswer, "description": "Any other refusal, as 405."},
}
"""What any route may answer instead, for the API's description."""


def add_error_handlers(app: FastAPI) -> None:
    """Tell all errors of an application in the shape of the OpenAI API."""
    app.add_exception_handler(RequestValidationError, tell_invalid)
    app.add_exception_handler(HTTPException, tell_status)
    app.add_exception_handler(NanochatError, tell_error)
    app.add_exception_handler(Exception, tell_error)


async def tell_error(request: Request, error: Exception) -> JSONResponse:
    """Any error as the table of problems has it."""
    return _told(request, answer_to(error))


async def tell_invalid(request: Request, error: Exception) -> JSONResponse:
    """A body that is no request, with the first field that is wrong."""
    assert isinstance(error, RequestValidationError)
    problems = error.errors()
    place = _fields(problems[0])
    # A field of several types has a complaint of each, about itself or about what it holds.
    complaints = [p for p in problems if _fields(p)[: len(place)] == place]
    told = "; or ".join(dict.fromkeys(map(_told_of, complaints[:MAX_REASONS])))
    param = _name(place) or None
    return _told(request, answer_to(RequestError(told, param=param, code="invalid_value")))


async def tell_status(request: Request, error: Exception) -> JSONResponse:
    """What the framework itself refuses: no such path or method."""
    assert isinstance(error, HTTPException)
    code, message = _MESSAGES.get(error.status_code, ("invalid_request", str(error.detail)))
    asked = {"method": request.method, "path": request.url.path[:200]}
    body = error_body(message.format(**asked), "invalid_request_error", code=code)
    return _told(request, Answer(error.status_code, body, dict(error.headers or {})))


_MESSAGES = {
    404: ("not_found", "there is no {path!r} here; /openapi.json lists what there is"),
    405: ("method_not_allowed", "{path!r} takes no {method}; see the header Allow"),
}


def _told(request: Request, answer: Answer) -> JSONResponse:
    request.app.state.served.metrics.refused(answer.code)
    return JSONResponse(answer.body, answer.status, answer.headers)


def _told_of(problem: dict[str, Any]) -> str:
    return f"{_name(_fields(problem)) or 'the body'}: {problem['msg']}"


def _fields(problem: dict[str, Any]) -> list[str | int]:
    """Where in the body; of a union's member, which pydantic names, too, nothing is said."""
    steps = problem["loc"][1:]
    return [s for s in steps if isinstance(s, int) or (s.isidentifier() and s != "str")]


def _name(fields: Sequence[str | int]) -> str:
    """A field as code has it."""
    named = [f"[{s}]" if isinstance(s, int) else f".{s}" for s in fields]
    return "".join(named).removeprefix(".")
