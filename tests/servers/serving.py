"""An ASGI application on a port of this machine, for the tests of this folder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[str]:
    running = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    task = asyncio.ensure_future(running.serve())
    while not running.started:  # noqa: ASYNC110 - uvicorn's own flag
        await asyncio.sleep(0.01)
    port = running.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        running.should_exit = True
        await task
