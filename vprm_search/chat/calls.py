"""Calls to a model, repeated where that can help."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from vprm_search.chat.failures import is_retryable, retry_after, status_of

T = TypeVar("T")


class RetryRules(BaseModel):
    """How patient a call is.

    One attempt may take `timeout_s`, all attempts and pauses together `deadline_s`. The pause
    doubles from `first_wait_s` to `longest_wait_s`; a server's Retry-After is obeyed if the
    deadline allows, and the call is given up at once if it does not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_attempts: int = Field(default=4, ge=1)
    timeout_s: float = Field(default=120.0, gt=0)
    deadline_s: float = Field(default=300.0, gt=0)
    first_wait_s: float = Field(default=0.5, ge=0)
    longest_wait_s: float = Field(default=30.0, ge=0)


DEFAULT_RETRY = RetryRules()


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """What a call came to: a value or an error, after `attempts` attempts."""

    value: T | None
    error: Exception | None
    attempts: int

    @property
    def status(self) -> int | None:
        """The HTTP status of the error, if it has one."""
        return None if self.error is None else status_of(self.error)


async def call_with_retries(
    attempt: Callable[[], Awaitable[T]], rules: RetryRules, *, jitter: float = 1.0
) -> Outcome[T]:
    """Call `attempt` until it succeeds, fails for good, or time is up.

    An error is a value of the outcome; only a cancellation is raised. `jitter` in [0, 1] shortens
    the pauses by up to a half, so that many callers do not return together.
    """
    clock = asyncio.get_running_loop().time
    end = clock() + rules.deadline_s
    for number in range(1, rules.max_attempts + 1):
        try:
            async with asyncio.timeout_at(min(end, clock() + rules.timeout_s)):
                return Outcome(await attempt(), None, number)
        except Exception as error:
            wait = retry_after(error)
            if wait is None:
                wait = min(rules.longest_wait_s, rules.first_wait_s * 2 ** (number - 1))
                wait *= 0.5 + 0.5 * jitter
            hopeless = not is_retryable(error) or clock() + wait >= end
            if hopeless or number == rules.max_attempts:
                return Outcome(None, error, number)
        await asyncio.sleep(wait)
    raise AssertionError("the last attempt returns")
