"""Requests that are tried again: after failures that pass, and after the server was away."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from vprm_search.scoring.reasons import NO_SERVER
from vprm_search.scoring.vllm.connection import ServerConnection
from vprm_search.scoring.vllm.failures import RequestFailed, pause_s
from vprm_search.scoring.vllm.meter import VllmMeter

T = TypeVar("T")

_HEALTH_TIMEOUT_S = 5.0
_NO_HEALTH_PAGE = frozenset({401, 403, 404, 405})  # whoever says so is up


class ServerCalls:
    """Asks one server until it answers, fails for good, or time is up.

    `losses` counts how often the server was away: whoever remembers something about the server
    compares it. `seed` makes the jitter of the pauses.
    """

    def __init__(self, connection: ServerConnection, meter: VllmMeter, seed: int | None) -> None:
        self.connection = connection
        self.options = connection.options
        self.meter = meter
        self.losses = 0
        self.reached = False
        self._draw = random.Random(seed)  # noqa: S311 - jitter, not a secret

    async def post(
        self,
        path: str,
        body: bytes,
        read: Callable[[bytes], T],
        end: float,
        *,
        attempts: int | None = None,
    ) -> T:
        """POST until `read` accepts the reply; `end` is a time of `time.monotonic`.

        `attempts` replaces `max_attempts`. Raises `RequestFailed`, also one that `read` raised.
        """

        async def send() -> bytes:
            self.meter.add(requests=1, bytes_sent=len(body))
            return await self.connection.post(path, body)

        return await self._repeat(send, read, end, attempts or self.options.max_attempts)

    async def get(self, path: str, read: Callable[[bytes], T], end: float) -> T:
        """GET until `read` accepts the reply. Raises `RequestFailed`."""

        async def send() -> bytes:
            return await self.connection.get(path)

        return await self._repeat(send, read, end, self.options.max_attempts)

    async def _repeat(
        self,
        send: Callable[[], Awaitable[bytes]],
        read: Callable[[bytes], T],
        end: float,
        attempts: int,
    ) -> T:
        for attempt in range(1, attempts + 1):
            try:
                body = await send()
                self.reached = True
                return read(body)
            except RequestFailed as failure:
                self.reached |= failure.status > 0
                pause = pause_s(failure, attempt, self.options, self._draw)
                hopeless = not failure.again or time.monotonic() + pause >= end
                if hopeless or attempt == attempts:
                    raise
                if failure.gone:
                    await self._recovered()
            self.meter.add(retries=1)
            await asyncio.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    async def _recovered(self) -> None:
        """Wait until the server is healthy; all requests of one event loop wait together.

        Raises `RequestFailed` when it does not come back.
        """
        state = self.connection.state
        if state.recovery is None or state.recovery.done():
            state.recovery = asyncio.create_task(self._poll_health())
        recovery = state.recovery
        state.recovery_waiters += 1
        try:
            failure = await asyncio.shield(recovery)
        finally:
            state.recovery_waiters -= 1
            if state.recovery_waiters == 0 and not recovery.done():
                recovery.cancel()  # whoever waited was cancelled: leave no work behind
        if failure is not None:
            raise failure

    async def _poll_health(self) -> RequestFailed | None:
        """Ask /health until it answers; return the failure when the limit is reached."""
        self.losses += 1
        self.meter.add(server_waits=1)
        limit = self.options.restart_wait_s if self.reached else self.options.startup_wait_s
        stop = time.monotonic() + limit
        while True:
            try:
                await self.connection.get("/health", _HEALTH_TIMEOUT_S)
                return None
            except RequestFailed as failure:
                if failure.status in _NO_HEALTH_PAGE:
                    return None
                if time.monotonic() + self.options.poll_s >= stop:
                    text = f"not healthy after {limit:g} s of waiting; last: {failure.reason}"
                    return RequestFailed(NO_SERVER, f"{self.connection.address} is {text}")
            await asyncio.sleep(self.options.poll_s)
