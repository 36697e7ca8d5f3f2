"""A cancel that nobody passed on: asked for at the server, now and then, beside the work.

A worker learns of a cancel by listening to the server. One that has lost the server for a while
does not listen any more, and a run without a worker never had anybody to listen for it.
"""

import contextvars
import logging
import os
import signal
import threading
from types import TracebackType
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.exceptions import PrefectException

ASK_SECONDS = 10.0

logger = logging.getLogger(__name__)
_SERVER_TROUBLE = (httpx.HTTPError, PrefectException)


class CancelWatch:
    """While its block runs, a thread looks at the state of the flow run every `ask_seconds`.

    When that is being cancelled, this process gets what a worker would have sent: SIGTERM. It is a
    thread, because a server that is away keeps whoever asks waiting for a minute.
    """

    def __init__(self, ask_seconds: float = ASK_SECONDS) -> None:
        self.ask_seconds = ask_seconds
        self._ended = threading.Event()

    def __enter__(self) -> None:
        context = FlowRunContext.get()
        if context is None or context.flow_run is None:
            return
        # Prefect finds its settings, and the run to which a log line belongs, in the context.
        copied = contextvars.copy_context()
        threading.Thread(
            target=copied.run,
            args=(self._watch, context.flow_run.id),
            name="cancel-watch",
            daemon=True,
        ).start()

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._ended.set()

    def _watch(self, flow_run_id: UUID) -> None:
        while not self._ended.wait(self.ask_seconds):
            if _is_cancelled(flow_run_id) and not self._ended.is_set():
                logger.warning("this run is being cancelled")
                os.kill(os.getpid(), signal.SIGTERM)
                return


def _is_cancelled(flow_run_id: UUID) -> bool:
    try:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(flow_run_id).state
    except _SERVER_TROUBLE as error:
        logger.debug("the server does not say whether this run is cancelled: %s", error)
        return False
    return state is not None and (state.is_cancelling() or state.is_cancelled())
