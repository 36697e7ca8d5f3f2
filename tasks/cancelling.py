"""A cancel that nobody passed on: asked for at the server, now and then, by whoever waits.

A worker learns of a cancel by listening to the server. One that has lost the server for a while
does not listen any more, and a run without a worker never had anybody to listen for it.
"""

import logging
import os
import signal
import time

import httpx
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.exceptions import PrefectException

ASK_SECONDS = 10.0

logger = logging.getLogger(__name__)
_SERVER_TROUBLE = (httpx.HTTPError, PrefectException)


class CancelWatch:
    """Call it often: it looks at the state of the flow run of this context every `ask_seconds`.

    When that is being cancelled, this process gets what a worker would have sent: SIGTERM.
    """

    def __init__(self, ask_seconds: float = ASK_SECONDS) -> None:
        self.ask_seconds = ask_seconds
        context = FlowRunContext.get()
        run = None if context is None else context.flow_run
        self._flow_run_id = None if run is None else run.id
        self._next = time.monotonic() + self.ask_seconds

    def __call__(self) -> None:
        """Ask, if it is time to."""
        if self._flow_run_id is None or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self.ask_seconds
        try:
            with get_client(sync_client=True) as client:
                state = client.read_flow_run(self._flow_run_id).state
        except _SERVER_TROUBLE as error:
            logger.debug("the server does not say whether this run is cancelled: %s", error)
            return
        if state is not None and (state.is_cancelling() or state.is_cancelled()):
            logger.warning("this run is being cancelled")
            os.kill(os.getpid(), signal.SIGTERM)
