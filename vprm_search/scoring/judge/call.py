"""Calls to a judge: bounded in number and time, repeated when that can help."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field

from vprm_search.chat.failures import is_retryable, retry_after, status_of, without_secrets

T = TypeVar("T")

_SHOWN_CHARS = 200


class JudgePatience(BaseModel):
    """How patient a call to a judge is; pauses double from `first_wait_s` to `longest_wait_s`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_attempts: int = Field(default=4, ge=1)
    timeout_s: float = Field(default=120.0, gt=0)
    first_wait_s: float = Field(default=0.5, ge=0)
    longest_wait_s: float = Field(default=30.0, ge=0)


class JudgeCalls:
    """Runs calls with at most `limit` of them at a time in each event loop."""

    def __init__(self, patience: JudgePatience, limit: int) -> None:
        self._patience = patience
        self._limit = limit
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = (
            weakref.WeakKeyDictionary()
        )

    async def __call__(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Call until it succeeds; raises the last error when it fails for good."""
        rules, loop = self._patience, asyncio.get_running_loop()
        async with self._loops.setdefault(loop, asyncio.Semaphore(self._limit)):
            for number in range(1, rules.max_attempts + 1):
                try:
                    async with asyncio.timeout(rules.timeout_s):
                        return await attempt()
                except Exception as error:
                    if number == rules.max_attempts or not is_retryable(error):
                        raise
                    wait = retry_after(error)
                if wait is None:
                    wait = min(rules.longest_wait_s, rules.first_wait_s * 2.0 ** (number - 1))
                await asyncio.sleep(min(wait, rules.longest_wait_s))
        raise AssertionError("the last attempt returns or raises")


def explained(error: BaseException, secrets: Sequence[str] = ()) -> str:
    """Return an error as one short line without keys: none of `secrets`, nothing that looks so."""
    text = without_secrets(" ".join(str(error).split()), secrets)
    status = status_of(error)
    where = f"HTTP {status}" if status is not None else type(error).__name__
    if status in (401, 403):
        return f"{where}: the judge refuses the credentials"
    text = text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "…"
    return f"{where}: {text}" if text else f"{where}: no reply within the time limit"
