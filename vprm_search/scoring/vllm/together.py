"""Run coroutines side by side; the first error ends them all and is raised as it is."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any


async def all_done(coroutines: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Wait for all coroutines; on an error or a cancellation none is left running.

    A task group would wrap a single error into a group, which callers of a scorer do not expect.
    """
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
