"""What the server answers to: the OpenAI API as far as this model goes, its health, the page."""

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from nanochat_core.serving.answering import Answering
from nanochat_core.serving.answers import (
    ChatCompletion,
    Health,
    ModelAnswer,
    ModelList,
    Ready,
    TextCompletion,
)
from nanochat_core.serving.bodies import ChatCompletionRequest, CompletionRequest
from nanochat_core.serving.catalog import CatalogEntry
from nanochat_core.serving.completions import ChatWriter, Origin, TextWriter
from nanochat_core.serving.metrics import Metrics
from nanochat_core.serving.page import load_page
from nanochat_core.serving.pool import ModelPool
from nanochat_core.serving.problems import ModelError, StoppingError, UnknownModelError
from nanochat_core.serving.refusals import ERROR_RESPONSES
from nanochat_core.serving.requests import read_chat, read_completion
from nanochat_core.serving.settings import ServerSettings
from nanochat_core.serving.strict_json import StrictRoute


@dataclass(frozen=True)
class Served:
    """What the routes work with."""

    settings: ServerSettings
    pool: ModelPool
    started: int
    metrics: Metrics


async def _served(request: Request) -> Served:
    served: Served = request.app.state.served
    return served


_EVENT = {
    "type": "object",
    "required": ["data"],
    "properties": {
        "data": {
            "type": "string",
            "description": "JSON: a chunk as the OpenAI API has it, or an error; at last [DONE]",
        }
    },
}


def _answers(model: type, *, streams: bool = False) -> dict[int | str, dict[str, Any]]:
    """What a route says of its answers."""
    content = {"text/event-stream": {"schema": _EVENT}} if streams else {}
    return {200: {"model": model, "content": content}, **ERROR_RESPONSES}


Serves = Annotated[Served, Depends(_served)]
router = APIRouter(route_class=StrictRoute)


@router.post(
    "/v1/chat/completions",
    response_class=JSONResponse,
    response_model=None,
    responses=_answers(ChatCompletion, streams=True),
)
async def chat_completions(
    body: ChatCompletionRequest, request: Request, served: Serves
) -> Response:
    """Continue a conversation, once or n times, as a whole or as a stream."""
    model = await served.pool.open(body.model)
    # Long texts take some milliseconds to tokenize; other streams go on meanwhile.
    question = await run_in_threadpool(
        read_chat, body, model.tokenizer, model.facts.max_length, served.settings
    )
    origin = Origin(body.model or model.name, model.target, model.tokenizer)
    answering = Answering(model, question, ChatWriter(origin, question), served.metrics)
    return await answering.respond(request.receive)


@router.post(
    "/v1/completions",
    response_class=JSONResponse,
    response_model=None,
    responses=_answers(TextCompletion, streams=True),
)
async def completions(body: CompletionRequest, request: Request, served: Serves) -> Response:
    """Continue texts, or token ids, without the format of a chat."""
    model = await served.pool.open(body.model)
    question = await run_in_threadpool(
        read_completion, body, model.tokenizer, model.facts.max_length, served.settings
    )
    origin = Origin(body.model or model.name, model.target, model.tokenizer)
    answering = Answering(model, question, TextWriter(origin, question), served.metrics)
    return await answering.respond(request.receive)


@router.get("/v1/models", response_model=None, responses=_answers(ModelList))
async def models(served: Serves) -> JSONResponse:
    """Every model that can be asked for; those that are not loaded are, when they are asked."""
    entries = await run_in_threadpool(served.pool.catalog.models)
    loaded = _loaded(served)
    data = [_as_json(entry, loaded) for entry in entries]
    return JSONResponse({"object": "list", "data": data})


@router.get("/v1/models/{name:path}", response_model=None, responses=_answers(ModelAnswer))
async def model(name: str, served: Serves) -> JSONResponse:
    """A model by its name."""
    if not name:
        raise UnknownModelError("no name was given; GET /v1/models lists them", param="model")
    entry = await run_in_threadpool(served.pool.catalog.entry, name)
    return JSONResponse(_as_json(entry, _loaded(served)))


@router.get("/health", response_model=None, responses=_answers(Health))
async def health(served: Serves) -> JSONResponse:
    """That the server lives, how much it has to do, and where."""
    pool, loaded = served.pool, served.pool.loaded()
    default = pool.catalog.known(None)
    name = default.id if default else served.settings.model
    return JSONResponse(
        {
            "status": "draining" if pool.is_draining else "ok" if pool.is_ready else "loading",
            "started": served.started,
            "model": name,
            "device": loaded[0].facts.device if loaded else None,
            "queue": {
                "running": sum(model.num_running for model in loaded),
                "waiting": sum(model.num_waiting for model in loaded),
                "limit": served.settings.max_waiting,
            },
        }
    )


@router.get("/ready", response_model=None, responses=_answers(Ready))
async def ready(served: Serves) -> JSONResponse:
    """Whether a request for the default model would be answered; 503 when not."""
    if served.pool.is_draining:
        raise StoppingError("the server is stopping and takes no new requests")
    if not served.pool.is_ready:
        raise ModelError("the default model is not loaded, or does not answer; try again later")
    return JSONResponse({"status": "ready"})


@router.get("/", include_in_schema=False)
async def page() -> HTMLResponse:
    """The chat page."""
    shown = load_page()
    return HTMLResponse(shown.html, headers={"Content-Security-Policy": shown.policy})


def _loaded(served: Served) -> set[str]:
    return {model.target for model in served.pool.loaded()}


def _as_json(entry: CatalogEntry, loaded: set[str]) -> dict[str, Any]:
    return {
        "id": entry.id,
        "object": "model",
        "created": entry.created,
        "owned_by": "nanochat",
        "nanochat": {
            "station": entry.station,
            "target": entry.target,
            "is_alias": entry.is_alias,
            "is_chat": entry.is_chat,
            "loaded": entry.target in loaded,
        },
    }
