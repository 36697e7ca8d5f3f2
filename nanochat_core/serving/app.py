"""Chat models behind HTTP: `python -m nanochat_core.serving.app --store URL --model NAME`.

Prints `serving NAME on DEVICE: URL` when it is ready. This process has no torch in it: engines are
processes of their own. A key that clients must send comes by NANOCHAT_API_KEY alone: arguments are
for everybody on a machine to read.
"""

import argparse
import contextlib
import os
import re
import sys
import time
from collections.abc import AsyncIterator, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import Response
from pydantic import SecretStr, ValidationError

from nanochat_core.errors import ConfigError, NanochatError
from nanochat_core.logs import configure_logging
from nanochat_core.serving import routes
from nanochat_core.serving.catalog import open_catalog
from nanochat_core.serving.connections import (
    ConnectionLimits,
    bind,
    raise_file_limit,
    url_of,
    within_files,
)
from nanochat_core.serving.guards import ANY_ORIGIN, Guards, Rules, is_loopback
from nanochat_core.serving.metrics import CONTENT_TYPE, Metrics
from nanochat_core.serving.pool import ModelPool
from nanochat_core.serving.refusals import add_error_handlers
from nanochat_core.serving.server import Server
from nanochat_core.serving.settings import ServerSettings

EXIT_USER_ERROR, EXIT_INTERRUPTED = 2, 130
READY = "serving"
"""The first word of the line that says where the server is."""
KEY_VARIABLE = "NANOCHAT_API_KEY"
_KEY = re.compile(r"[!-~]+")
_ORIGIN = re.compile(r"https?://[a-z0-9.\-\[\]:]+")


def create_app(
    settings: ServerSettings,
    pool: ModelPool,
    limits: ConnectionLimits = ConnectionLimits(),  # noqa: B008  it is frozen
) -> FastAPI:
    """The application; a server that runs its lifespan need not start and drain the pool."""

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await pool.start()
        yield
        await pool.drain(0.0)

    # The framework's own pages of documentation load scripts from elsewhere.
    app = FastAPI(title="nanochat", lifespan=lifespan, docs_url=None, redoc_url=None)
    metrics = Metrics(pool)
    app.state.served = routes.Served(settings, pool, int(time.time()), metrics)
    app.include_router(routes.router)

    @app.get("/metrics", include_in_schema=False)
    async def numbers() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    add_error_handlers(app)
    key = settings.api_key
    rules = Rules(
        is_private=is_loopback(settings.host),
        max_body_bytes=settings.limits.max_body_bytes,
        api_key=None if key is None else key.get_secret_value(),
        origins=settings.cors_origins,
    )
    app.add_middleware(Guards, rules=rules, limits=limits, metrics=metrics)
    return app


def serve(settings: ServerSettings, limits: ConnectionLimits = ConnectionLimits()) -> None:  # noqa: B008
    """Load, listen and answer until a signal."""
    kept = within_files(limits, raise_file_limit())
    with bind(settings.host, settings.port) as bound:
        _warn(settings)
        pool = ModelPool(open_catalog(settings), settings)

        async def ready() -> str:
            model = await pool.open()
            return f"{READY} {model.name} on {model.facts.device}: {url_of(bound)}"

        server = Server(
            create_app(settings, pool, kept),
            pool,
            kept,
            drain_seconds=settings.drain_seconds,
            ready=ready,
        )
        server.run(sockets=[bound])


def _warn(settings: ServerSettings) -> None:
    if not is_loopback(settings.host) and settings.api_key is None:
        sys.stderr.write(
            f"warning: {settings.host} can be reached from other machines, and this server asks "
            f"nobody for a key: whoever reaches it can use the model. Set {KEY_VARIABLE} to ask\n"
        )


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(prog="serve", description="Serve chat models over HTTP.")
    given = ServerSettings()
    add = parser.add_argument
    add("--store", help="URL of the store whose models are served")
    add("--by-hand", type=Path, help="folder of models that were made by hand")
    add("--model", default="", help="alias, station/fingerprint, tag or folder; the newest")
    add("--tokenizer", type=Path, help="folder of its tokenizer, for a folder without one")
    add("--host", default=given.host, help="address (%(default)s)")
    add("--port", type=int, default=given.port, help="0: a free one (%(default)s)")
    add("--device", default=given.device, help="auto, cuda, mps or cpu")
    add("--rows", dest="num_rows", type=int, default=given.num_rows, help="replies at once")
    add("--max-waiting", type=int, default=given.max_waiting, help="queued replies (%(default)s)")
    add("--replicas", type=_number_or_word, default=given.replicas, help="of each model, or auto")
    add("--max-loaded", type=int, default=given.max_loaded, help="models in memory (%(default)s)")
    add("--drain-seconds", type=float, default=given.drain_seconds, help="for running replies")
    add("--cors-origin", dest="cors_origins", action="append", default=[], type=_origin)
    add("--exact", dest="is_exact", action="store_true", help="replies depend on no other one")
    return parser.parse_args(argv)


def _number_or_word(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def _origin(text: str) -> str:
    """An origin as browsers send it."""
    origin = text.lower().removesuffix("/")
    if origin != ANY_ORIGIN and not _ORIGIN.fullmatch(origin):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no origin; give scheme and host as in https://chat.example.com, or *"
        )
    return origin


def read_settings(
    arguments: argparse.Namespace, environ: MutableMapping[str, str]
) -> ServerSettings:
    """The server's settings; ConfigError for one that cannot work.

    The key leaves the environment: what the server starts has no use for it.
    """
    key = environ.pop(KEY_VARIABLE, "").strip()
    if key and not _KEY.fullmatch(key):
        raise ConfigError(
            f"{KEY_VARIABLE} can be no header of HTTP; use letters, digits and signs of ASCII, "
            "without spaces"
        )
    values: dict[str, Any] = {**vars(arguments), "cors_origins": tuple(arguments.cors_origins)}
    try:
        return ServerSettings(**values, api_key=SecretStr(key) if key else None)
    except ValidationError as error:
        first = error.errors()[0]
        option = OPTIONS.get(str(first["loc"][0]), str(first["loc"][0]).replace("_", "-"))
        raise ConfigError(f"--{option} {first['input']!r}: {first['msg']}") from error


OPTIONS = {"num_rows": "rows", "cors_origins": "cors-origin", "is_exact": "exact"}
"""Settings whose option has another name."""


def main(
    argv: Sequence[str] | None = None,
    limits: ConnectionLimits = ConnectionLimits(),  # noqa: B008  it is frozen
) -> int:
    """Run the server; returns its exit code."""
    arguments = parse_arguments(argv)
    try:
        serve(read_settings(arguments, os.environ), limits)  # noqa: TID251  the process's entry
    except NanochatError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    configure_logging()
    sys.exit(main())
