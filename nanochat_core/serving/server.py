"""From start to end: load, listen, answer; at a signal, let replies come to their end.

The first signal starts the drain: `/ready` says 503, replies that wait and new ones get a 503,
those that run have `drain_seconds`. The second ends everything at once, the third kills.
"""

import asyncio
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from nanochat_core.serving.connections import (
    BACKLOG,
    ConnectionLimits,
    http_protocol,
    sweep_forever,
    watched,
)
from nanochat_core.serving.pool import ModelPool

FLUSH_SECONDS = 2.0
"""How long clients get to take what is left of their answers when nothing runs any more."""
POLL_SECONDS = 0.05


class Server(uvicorn.Server):
    """uvicorn around a pool of models; `ready` makes the line that says where it is."""

    def __init__(
        self,
        app: FastAPI,
        pool: ModelPool,
        limits: ConnectionLimits,
        *,
        drain_seconds: float,
        ready: Callable[[], Awaitable[str]],
    ) -> None:
        config = uvicorn.Config(
            app,
            http=watched(http_protocol(), limits),
            ws="none",
            # The pool is started here, where what goes wrong is told in one line.
            lifespan="off",
            log_level="error",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=limits.idle_seconds,
        )
        super().__init__(config)
        self._pool, self._limits, self._ready = pool, limits, ready
        self._drain_seconds = drain_seconds
        self._stop, self._stop_now = asyncio.Event(), asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Run until a signal; no process of an engine is left, however it ends."""
        self._loop = asyncio.get_running_loop()
        try:
            await super().serve(sockets)
        finally:
            await self._pool.drain(0.0)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Load, listen, and say so; a signal ends that, too."""
        if not await _before(self._pool.start(), self._stop):
            self.should_exit = True
            return
        await super().startup(sockets)
        sys.stdout.write(await self._ready() + "\n")
        sys.stdout.flush()

    async def main_loop(self) -> None:
        """Answer, with an eye on those that only hold their place, until a signal."""
        async with asyncio.TaskGroup() as group:
            state = self.server_state
            sweeping = group.create_task(sweep_forever(state.connections, self._limits))
            await super().main_loop()
            # New requests are answered, too, as long as some run: by "the server is stopping".
            await _before(self._pool.drain(self._drain_seconds), self._stop_now)
            sweeping.cancel()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen no more, let clients take what is theirs, and leave the rest."""
        for server in self.servers:
            server.close()
        for listening in sockets or []:
            listening.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        if not self._stop_now.is_set():
            await self._until_idle(FLUSH_SECONDS)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        # A task whose client is gone ends by itself; one that is cancelled fills the log.
        await self._until_idle(FLUSH_SECONDS)

    async def _until_idle(self, seconds: float) -> None:
        state, deadline = self.server_state, asyncio.get_running_loop().time() + seconds
        while (state.connections or state.tasks) and not self._is_over(deadline):
            await asyncio.sleep(POLL_SECONDS)

    def _is_over(self, deadline: float) -> bool:
        return asyncio.get_running_loop().time() > deadline

    def handle_exit(self, sig: int, _frame: FrameType | None) -> None:
        """Take a signal; unlike uvicorn, do not die of it in the end."""
        assert self._loop is not None, "signals are caught while it serves"
        if self.should_exit:
            self._loop.call_soon_threadsafe(self._stop_now.set)
            signal.signal(sig, signal.SIG_DFL)
        self.should_exit = True
        self._loop.call_soon_threadsafe(self._stop.set)


async def _before(work: Awaitable[None], event: asyncio.Event) -> bool:
    """Do work unless an event comes first, which ends it; raises what the work does."""
    working = asyncio.ensure_future(work)
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
        is_done = working.done()
        if not is_done:
            working.cancel()
            await asyncio.wait({working})
    if is_done:
        working.result()
    return is_done
