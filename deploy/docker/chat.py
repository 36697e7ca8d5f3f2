"""Serve a model as soon as there is one: until then, a page that says how to make it.

    python chat.py MODEL --host ADDRESS --port PORT

`nanochat serve` ends at once when the store has no such model, as a command should; as a service it
would be started again and again. What follows is `nanochat serve` itself, in this process.
"""

import argparse
import html
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from flows.looking import open_store, resolve_model
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.errors import ArtifactNotFoundError, NanochatError, StoreUnavailableError
from nanochat_core.logs import configure_logging

log = logging.getLogger("chat")

LOOK_SECONDS = 5
PAGE = """<!doctype html>
<meta charset="utf-8">
<meta http-equiv="refresh" content="5">
<title>nanochat</title>
<h1>There is no model {model} yet</h1>
<p>Make one, and the chat opens here by itself:</p>
<pre>docker compose exec cpu-worker prefect deployment run speedrun/speedrun -p preset=demo</pre>
"""


class WaitingPage(BaseHTTPRequestHandler):
    """`/health` is well, as there is nothing wrong; all else can be had later."""

    server: "WaitingServer"

    def do_GET(self) -> None:
        """Answer a look."""
        if self.path == "/health":
            values = {"status": "waiting", "model": self.server.model}
            self._answer(HTTPStatus.OK, "application/json", json.dumps(values))
        elif self.path.startswith("/v1/"):
            self.do_POST()
        else:
            page = PAGE.format(model=html.escape(self.server.model))
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "text/html; charset=utf-8", page)

    def do_POST(self) -> None:
        """Refuse a question, in the words of the API that is to come."""
        message = f"there is no model {self.server.model} yet"
        error = {"message": message, "type": "server_error", "param": None, "code": "no_model"}
        body = json.dumps({"error": error})
        self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "application/json", body)

    def _answer(self, status: HTTPStatus, kind: str, body: str) -> None:
        data = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cache-Control", "no-store")
        if status != HTTPStatus.OK:
            self.send_header("Retry-After", str(LOOK_SECONDS))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Keep health checks out of the log."""


class WaitingServer(ThreadingHTTPServer):
    """Knows the model that is waited for."""

    def __init__(self, address: tuple[str, int], model: str) -> None:
        super().__init__(address, WaitingPage)
        self.model = model


@contextmanager
def waiting_page(host: str, port: int, model: str) -> Iterator[None]:
    """The page is shown until the block is left; then the port is free."""
    with WaitingServer((host, port), model) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def is_there(model: str, store: ArtifactStore) -> bool:
    """Whether a model can be served; it has been fetched then."""
    try:
        resolve_model(store, model)
    except ArtifactNotFoundError:
        return False
    except StoreUnavailableError as error:
        log.warning("%s", error)
        return False
    return True


def wait_for(model: str, host: str, port: int) -> None:
    """Return once a model can be served; the page is shown meanwhile."""
    store = open_store("default", os.environ)  # noqa: TID251  an entry
    if is_there(model, store):
        return
    log.info("waiting for a model %s in %s", model, store.url)
    with waiting_page(host, port, model):
        while not is_there(model, store):
            time.sleep(LOOK_SECONDS)


def main() -> None:
    """Entry point; ends as `nanochat serve`."""
    parser = argparse.ArgumentParser(prog="chat")
    parser.add_argument("model")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    configure_logging()
    try:
        wait_for(arguments.model, arguments.host, arguments.port)
    except NanochatError as error:
        sys.exit(f"error: {error}")
    options = ["--host", arguments.host, "--port", str(arguments.port)]
    serve = ["-m", "flows.cli", "serve", arguments.model, *options]
    os.execv(sys.executable, [sys.executable, *serve])


if __name__ == "__main__":
    main()
