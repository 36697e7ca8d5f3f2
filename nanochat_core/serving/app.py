"""A chat model behind HTTP: `python -m nanochat_core.serving.app --model … --tokenizer …`.

Prints `serving NAME on DEVICE: URL` when it is ready, and ends within seconds on SIGTERM or
Ctrl-C, with streams open too. Modules that need torch are imported after the arguments are read.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError

from nanochat_core.errors import ConfigError, NanochatError
from nanochat_core.logs import configure_logging
from nanochat_core.serving.guards import Guards, is_loopback
from nanochat_core.serving.settings import ServerSettings

if TYPE_CHECKING:
    from nanochat_core.inference.engine import InferenceEngine
    from nanochat_core.serving.engine_thread import EngineThread

EXIT_USER_ERROR, EXIT_INTERRUPTED = 2, 130
GRACE_SECONDS = 2
"""How long clients that read slowly get to take what is left when the server ends."""
MAX_CONNECTIONS = 256
"""More than the queue, as a page and a health check hold connections too; the rest get a 503."""
READY = "serving"
"""The first word of the line that says where the server is."""


def create_app(settings: ServerSettings, thread: EngineThread) -> FastAPI:
    """The application; the engine's thread runs from its start-up to its shutdown."""
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException

    from nanochat_core.serving import routes

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        thread.start()
        yield
        thread.stop()
        thread.join()

    # The framework's own pages of documentation load scripts from elsewhere.
    app = FastAPI(title="nanochat", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.served = routes.Served(settings, thread, int(time.time()))
    app.include_router(routes.router)
    app.add_exception_handler(RequestValidationError, routes.tell_invalid)
    app.add_exception_handler(HTTPException, routes.tell_status)
    app.add_exception_handler(NanochatError, routes.tell_error)
    app.add_exception_handler(Exception, routes.tell_error)
    app.add_middleware(
        Guards,
        is_private=is_loopback(settings.host),
        max_body_bytes=settings.limits.max_body_bytes,
    )
    return app


class Server(uvicorn.Server):
    """uvicorn, which says when it is ready, and ends replies before it waits for their readers."""

    def __init__(self, app: FastAPI, thread: EngineThread, ready: str) -> None:
        config = uvicorn.Config(
            app,
            log_level="warning",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        super().__init__(config)
        self._engine_thread, self._ready = thread, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen, and say so."""
        await super().startup(sockets)
        sys.stdout.write(self._ready + "\n")
        sys.stdout.flush()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End every reply, then the server."""
        self._engine_thread.stop()
        await super().shutdown(sockets)


def bind(host: str, port: int) -> socket.socket:
    """A socket at that address, before minutes go into a model that nobody could reach."""
    try:
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(
            f"host={host!r} is no address of this machine ({error}); give 127.0.0.1, or 0.0.0.0 "
            "for all"
        ) from error
    bound = socket.socket(address[0], socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address[4])
        # Bound is not yet taken: only the second of two that listen gets an error.
        bound.listen()
    except OSError as error:
        bound.close()
        raise ConfigError(
            f"cannot listen on {host} port {port} ({error.strerror}); end what runs there, or give "
            "another --port (0 takes a free one)"
        ) from error
    return bound


def url_of(bound: socket.socket) -> str:
    """Where a browser on this machine finds a socket."""
    host, port = bound.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def serve(settings: ServerSettings, arguments: argparse.Namespace) -> None:
    """Load, listen and answer until a signal."""
    from nanochat_core.inference.opening import open_engine

    with bind(settings.host, settings.port) as bound:
        engine = open_engine(arguments.model, arguments.tokenizer, arguments.device)
        _answer(settings, engine, bound)


def _answer(settings: ServerSettings, engine: InferenceEngine, bound: socket.socket) -> None:
    from nanochat_core.serving.engine_thread import EngineThread

    thread = EngineThread(engine, settings.max_waiting)
    if not is_loopback(settings.host):
        sys.stderr.write(
            f"warning: {settings.host} can be reached from other machines, and this server asks "
            "nobody for a key: whoever reaches it can use the model\n"
        )
    ready = f"{READY} {settings.name} on {engine.model.device}: {url_of(bound)}"
    configure_logging()
    Server(create_app(settings, thread), thread, ready).run(sockets=[bound])


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(prog="serve", description="Serve a chat model over HTTP.")
    parser.add_argument("--model", type=Path, required=True, help="folder of the model")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of its tokenizer")
    parser.add_argument("--name", default="nanochat", help="what clients call it (%(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address (%(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0: a free one (%(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cuda, mps or cpu")
    parser.add_argument("--max-waiting", type=int, default=16, help="queued requests (%(default)s)")
    return parser.parse_args(argv)


def read_settings(arguments: argparse.Namespace) -> ServerSettings:
    """The server's settings; ConfigError for one that cannot work."""
    given = {name: getattr(arguments, name) for name in ("name", "host", "port", "max_waiting")}
    try:
        return ServerSettings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0]).replace("_", "-")
        raise ConfigError(f"--{option} {first['input']!r}: {first['msg']}") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server; returns its exit code."""
    arguments = parse_arguments(argv)
    try:
        serve(read_settings(arguments), arguments)
    except NanochatError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
