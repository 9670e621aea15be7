"""Calls to a chat model: bounded in number and time, repeated when that can help."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from langchain_core.globals import get_llm_cache
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.runnables import RunnableBinding
from langchain_core.runnables.config import ensure_config
from pydantic import BaseModel, ConfigDict, Field
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    wait_exponential,
)

from vprm_search.chat.failures import is_retryable, retry_after, status_of
from vprm_search.errors import ConfigError

T = TypeVar("T")

HIDDEN = "nostream"
"""LangGraph's tag for calls whose tokens stay out of message streams."""


class RetryRules(BaseModel):
    """How often a call is tried, how long it may take, and how long it waits in between.

    Args:
        max_attempts: attempts of one call, the first one included (4).
        timeout_s: seconds one attempt may take (120).
        deadline_s: seconds all attempts and pauses of one call may take together (300), from its
            turn on: waiting for a free slot does not count. A pause that a server asks for with
            `Retry-After` is made in full if it ends before the deadline; if not, the call is
            given up at once.
        first_wait_s: seconds of the first pause (0.5), which doubles with every attempt.
        longest_wait_s: seconds of the longest pause that no server asked for (30).
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


class BoundedCalls:
    """Makes calls with at most `max_concurrency` of them at a time in each event loop.

    A run whose config has a lower `max_concurrency` keeps to that; runs with the same share it. A
    call keeps its turn during pauses: a server that asks to be left alone is not asked by others
    meanwhile.
    """

    def __init__(self, rules: RetryRules, max_concurrency: int) -> None:
        self._rules = rules
        self._limit = max_concurrency
        self._slots: weakref.WeakKeyDictionary[
            asyncio.AbstractEventLoop, dict[int, asyncio.Semaphore]
        ] = weakref.WeakKeyDictionary()

    async def __call__(
        self, attempt: Callable[[], Awaitable[T]], *, jitter: float = 1.0
    ) -> Outcome[T]:
        """Call `attempt` until it succeeds, fails for good, or time is up.

        An error is a value of the outcome; only a cancellation is raised. `jitter` in [0, 1]
        shortens the pauses by up to a half, so that many callers do not return together.
        """
        slots = self._slots.setdefault(asyncio.get_running_loop(), {})
        of_run = ensure_config().get("max_concurrency")
        limits = {self._limit} if of_run is None else {self._limit, max(1, of_run)}
        async with AsyncExitStack() as turns:
            for limit in sorted(limit for limit in limits if limit <= self._limit):
                turn = slots.setdefault(limit, asyncio.Semaphore(limit))
                await turns.enter_async_context(turn)
            return await _repeated(attempt, self._rules, jitter)


async def _repeated(
    attempt: Callable[[], Awaitable[T]], rules: RetryRules, jitter: float
) -> Outcome[T]:
    clock = asyncio.get_running_loop().time
    end = clock() + rules.deadline_s
    doubling = wait_exponential(multiplier=rules.first_wait_s, max=rules.longest_wait_s)
    attempts = 0

    async def once() -> T:
        nonlocal attempts
        attempts += 1
        async with asyncio.timeout_at(min(end, clock() + rules.timeout_s)):
            return await attempt()

    def pause_s(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = None if error is None else retry_after(error)
        return doubling(state) * (0.5 + 0.5 * jitter) if asked is None else asked

    def over(state: RetryCallState) -> bool:
        return attempts == rules.max_attempts or clock() + state.upcoming_sleep >= end

    retrying = AsyncRetrying(
        retry=retry_if_exception(is_retryable),
        wait=pause_s,
        stop=over,
        reraise=True,
    )
    try:
        return Outcome(await retrying(once), None, attempts)
    except Exception as error:
        return Outcome(None, error, attempts)


def unwrap_model(model: Any, role: str) -> tuple[BaseChatModel, dict[str, Any]]:
    """Return the chat model inside `model.bind(...)`, and the bound call arguments.

    Raises `ConfigError`, which names the `role` of the model, when no chat model is inside.
    """
    bound: dict[str, Any] = {}
    while isinstance(model, RunnableBinding):
        bound = {**model.kwargs, **bound}
        model = model.bound
    if not isinstance(model, BaseChatModel):
        raise ConfigError(f"the {role} must be a LangChain chat model, not {type(model).__name__}")
    return model, bound


def without_cache(model: BaseChatModel) -> BaseChatModel:
    """Return `model` as it answers anew every time: a LangChain cache makes equal calls equal."""
    if model.cache is False or not (model.cache or get_llm_cache() is not None):
        return model
    return model.model_copy(update={"cache": False})
