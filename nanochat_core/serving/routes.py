"""What the server answers to: the OpenAI API as far as a chat needs it, its health, the page."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from nanochat_core.errors import NanochatError
from nanochat_core.inference.streaming import Piece
from nanochat_core.serving.completions import DONE, Completion, event
from nanochat_core.serving.engine_thread import EngineThread, Finished, Job
from nanochat_core.serving.page import load_page
from nanochat_core.serving.problems import UnknownModelError, answer_to, error_body
from nanochat_core.serving.requests import ChatCompletionRequest, read_question
from nanochat_core.serving.settings import ServerSettings


@dataclass(frozen=True)
class Served:
    """What the routes work with."""

    settings: ServerSettings
    thread: EngineThread
    started: int

    @property
    def model(self) -> dict[str, Any]:
        """The model as the API lists it."""
        model = {"id": self.settings.name, "object": "model", "created": self.started}
        return {**model, "owned_by": "nanochat"}


def _served(request: Request) -> Served:
    served: Served = request.app.state.served
    return served


Serves = Annotated[Served, Depends(_served)]
router = APIRouter()


@router.post("/v1/chat/completions", response_class=JSONResponse, response_model=None)
async def chat_completions(
    body: ChatCompletionRequest, request: Request, served: Serves
) -> Response:
    """Continue a conversation, as a whole or as a stream."""
    engine, settings = served.thread.engine, served.settings
    # Long texts take some milliseconds to tokenize; other streams go on meanwhile.
    question = await run_in_threadpool(read_question, body, engine, settings)
    completion, job = Completion(settings.name, question), Job(question)
    served.thread.submit(job)
    if body.stream:
        wants_usage = body.stream_options is not None and body.stream_options.include_usage
        return await _streamed(request, served.thread, job, completion, wants_usage=wants_usage)
    return await _collected(request, served.thread, job, completion)


@router.get("/v1/models")
async def models(served: Serves) -> dict[str, Any]:
    """The one model that is served."""
    return {"object": "list", "data": [served.model]}


@router.get("/v1/models/{name:path}")
async def model(name: str, served: Serves) -> dict[str, Any]:
    """The model by its name."""
    if name != served.settings.name:
        raise UnknownModelError(
            f"the model {name!r} is not served here; there is {served.settings.name!r}",
            param="model",
        )
    return served.model


@router.get("/health")
async def health(served: Serves) -> JSONResponse:
    """Whether replies can be had, and how many wait for one."""
    thread = served.thread
    values = {
        "status": "ok" if thread.is_alive else "stopping",
        "model": served.settings.name,
        "device": str(thread.engine.model.device),
        "queue": {
            "running": thread.num_running,
            "waiting": thread.num_waiting,
            "limit": thread.max_waiting,
        },
    }
    return JSONResponse(values, 200 if thread.is_alive else 503)


@router.get("/", include_in_schema=False)
async def page() -> HTMLResponse:
    """The chat page."""
    shown = load_page()
    return HTMLResponse(shown.html, headers={"Content-Security-Policy": shown.policy})


async def _collected(
    request: Request, thread: EngineThread, job: Job, completion: Completion
) -> Response:
    pieces: list[Piece] = []
    async with _withdrawn_when_gone(request, thread, job):
        async for item in job.events():
            if isinstance(item, Finished):
                return JSONResponse(completion.whole(pieces, item))
            pieces.append(item)
    raise AssertionError("events end with Finished or an exception")


async def _streamed(
    request: Request, thread: EngineThread, job: Job, completion: Completion, *, wants_usage: bool
) -> Response:
    events = job.events()
    async with _withdrawn_when_gone(request, thread, job):
        # An error before the first piece still gets the status that belongs to it.
        first = await anext(events)
    lines = _lines(first, events, completion, wants_usage=wants_usage)
    return EventStream(lines, thread, job)


async def _lines(
    first: Piece | Finished,
    rest: AsyncIterator[Piece | Finished],
    completion: Completion,
    *,
    wants_usage: bool,
) -> AsyncIterator[str]:
    yield event(completion.opening())
    item = first
    try:
        while not isinstance(item, Finished):
            yield event(completion.piece(item))
            item = await anext(rest)
    except NanochatError as error:
        yield event(answer_to(error).body)
        return
    yield event(completion.closing(item))
    if wants_usage:
        yield event(completion.usage_chunk(item))
    yield DONE


class EventStream(StreamingResponse):
    """Server-sent events of a job, which is withdrawn when the stream ends, however it does."""

    media_type = "text/event-stream"

    def __init__(self, lines: AsyncIterator[str], thread: EngineThread, job: Job) -> None:
        # Proxies that collect answers would hold the stream back.
        super().__init__(lines, headers={"X-Accel-Buffering": "no"})
        self._thread, self._job = thread, job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except asyncio.CancelledError:
            # The server ends, and this client did not take the rest in time: no news for the log.
            if self._thread.is_alive:
                raise
        finally:
            self._thread.withdraw(self._job)


@contextlib.asynccontextmanager
async def _withdrawn_when_gone(
    request: Request, thread: EngineThread, job: Job
) -> AsyncIterator[None]:
    """Withdraw the job when the client hangs up, or when this block is left by an error."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        thread.withdraw(job)

    watching = asyncio.create_task(watch())
    try:
        yield
    except BaseException:
        thread.withdraw(job)
        raise
    finally:
        watching.cancel()


async def tell_error(_request: Request, error: Exception) -> JSONResponse:
    """Any error as the table of problems has it."""
    answer = answer_to(error)
    return JSONResponse(answer.body, answer.status, answer.headers)


async def tell_invalid(_request: Request, error: Exception) -> JSONResponse:
    """A body that is no request, with the first field that is wrong."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = "" if first["type"] == "json_invalid" else _place(first["loc"][1:])
    message = f"{place}: {first['msg']}" if place else _not_json(first)
    return JSONResponse(error_body(message, "invalid_request_error", param=place or None), 400)


def _place(steps: Sequence[str | int]) -> str:
    """A field as code has it; of a union's member, which pydantic names last, nothing is said."""
    named = [f"[{s}]" if isinstance(s, int) else f".{s}" for s in steps if _is_field(s)]
    return "".join(named).removeprefix(".")


def _is_field(step: str | int) -> bool:
    return isinstance(step, int) or (step.isidentifier() and step != "str")


def _not_json(problem: dict[str, Any]) -> str:
    return (
        f"the body is no JSON object ({problem['msg']}); send one with "
        "Content-Type: application/json"
    )


async def tell_status(_request: Request, error: Exception) -> JSONResponse:
    """What the framework itself refuses: no such path or method, a body that is too long."""
    assert isinstance(error, HTTPException)
    body = error_body(str(error.detail), "invalid_request_error")
    return JSONResponse(body, error.status_code, error.headers)
