"""A flow that is a server: the same as `nanochat serve`, started and ended from Prefect.

Called in the flow's main thread, so that a cancellation reaches it, and under the supervisor, so
that the server ends with this process however that ends.
"""

import logging
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from prefect import flow
from prefect.artifacts import create_link_artifact
from prefect.exceptions import PrefectException
from prefect.logging import get_run_logger

from flows.looking import open_store, resolve_model
from flows.serve_command import Door, server_command
from nanochat_core import supervise
from nanochat_core.errors import JobLostError, NanochatError
from nanochat_core.inference.by_hand import by_hand_base
from tasks.cancelling import CancelWatch
from tasks.torchrun import LogTail, last_lines

GRACE_SECONDS = 16.0
"""The server itself gives replies that run ten, and slow readers two."""
POLL_SECONDS = 0.2
USER_ERROR = 2
READY = re.compile(r"^serving .*: (?P<url>http://\S+)$")


@flow(name="serve", flow_run_name="{model}", persist_result=False)
def serve(
    model: str = "latest",
    store: str = "default",
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str = "auto",
) -> None:
    """Serve a model until the flow is cancelled; its page is linked from the flow run.

    Args:
        model: alias, station/fingerprint, or tag as d4
        store: folder or fsspec URL of the artifact store
        host: address to listen on; 0.0.0.0 lets other machines in, with the key that the
            environment of the worker has as NANOCHAT_API_KEY
        port: 0 takes a free one
        device: auto takes cuda, then mps, then cpu
    """
    environ = dict(os.environ)  # noqa: TID251  an entry: read here, passed down as values
    opened, by_hand = open_store(store, environ), by_hand_base(environ)
    # A model that is not there is said before anything starts.
    resolve_model(opened, model, by_hand)
    command = server_command(model, opened.url, by_hand, Door(host, port, device))
    with running_server(command, environ) as (process, log), CancelWatch():
        _follow(process, log, model)


@contextmanager
def running_server(
    command: list[str], environ: dict[str, str]
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """The server under the supervisor, with its log; it has ended when the block is left."""
    with tempfile.TemporaryDirectory(prefix="nanochat-serve-") as folder:
        log = Path(folder, "server.log")
        process = subprocess.Popen(
            supervise.command_line(command, log=log, grace_seconds=GRACE_SECONDS, mark=folder),
            stdin=subprocess.PIPE,
            start_new_session=True,
            env=environ,
        )
        try:
            yield process, log
        finally:
            # The supervisor reads the end of its stdin as the end of its parent.
            if process.stdin is not None:
                process.stdin.close()
            try:
                process.wait(GRACE_SECONDS + supervise.HARD_KILL_SECONDS)
            finally:
                process.kill()
                supervise.end_marked(folder, 0.0)


def _follow(process: subprocess.Popen[bytes], log: Path, model: str) -> None:
    logger, tail = get_run_logger(), LogTail(log)
    is_running = True
    while is_running:
        # Asked before the last look, which then sees every line.
        is_running = process.poll() is None
        for line in tail.new_lines():
            if ready := READY.match(line):
                _publish_link(ready["url"], model)
            logger.log(_level(line), line)
        time.sleep(POLL_SECONDS)
    last = "\n".join(f"  {line}" for line in last_lines(log))
    if process.returncode == USER_ERROR:
        raise NanochatError(f"the server did not start:\n{last}")
    raise JobLostError(f"the server ended with exit code {process.returncode}:\n{last}")


def _level(line: str) -> int:
    return (
        logging.WARNING if re.search(r"\b(WARNING|ERROR|warning|error)\b", line) else logging.INFO
    )


def _publish_link(url: str, model: str) -> None:
    try:
        create_link_artifact(url, link_text=f"chat with {model}", key="serve-page")
    except (httpx.HTTPError, PrefectException) as error:
        get_run_logger().warning("the link to %s is not shown: %s", url, error)
