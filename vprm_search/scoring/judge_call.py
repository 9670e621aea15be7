"""Calls to a judge: bounded in number and time, repeated when that can help."""

from __future__ import annotations

import asyncio
import re
import weakref
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, SecretStr

T = TypeVar("T")

_RETRYABLE_STATUS = frozenset({408, 409, 425, 429})
_RETRYABLE_NAMES = frozenset({"APIConnectionError", "TransportError", "ServiceUnavailable"})
_CAUSES_FOLLOWED = 4
_SHOWN_CHARS = 200
_SECRET = re.compile(
    r"(?:Bearer|Basic)\s+\S{6,}|\b(?:sk|pk|rk|key|gsk|hf|ghp|xai)[-_][\w*-]{6,}|\bAIza[\w-]{20,}"
    r"|(?<=://)[^\s/@]+:[^\s/@]+(?=@)",
    re.IGNORECASE,
)


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
                    if number == rules.max_attempts or not may_pass(error):
                        raise
                    wait = retry_after(error)
                if wait is None:
                    wait = min(rules.longest_wait_s, rules.first_wait_s * 2.0 ** (number - 1))
                await asyncio.sleep(min(wait, rules.longest_wait_s))
        raise AssertionError("the last attempt returns or raises")


def may_pass(error: BaseException) -> bool:
    """Tell whether the same call may succeed later: 408, 409, 425, 429, 5xx, time or connection."""
    for cause in _causes(error):
        if getattr(cause, "code", None) == "insufficient_quota":
            return False
        status = status_of(cause)
        if status is not None:
            return status in _RETRYABLE_STATUS or status >= 500
        if isinstance(cause, TimeoutError | ConnectionError):
            return True
        if _RETRYABLE_NAMES & {kind.__name__ for kind in type(cause).__mro__}:
            return True
    return False


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status an error carries, or None."""
    for holder in (error, getattr(error, "response", None)):
        status = getattr(holder, "status_code", None)
        if isinstance(status, int) and 100 <= status <= 599:
            return status
    return None


def retry_after(error: BaseException) -> float | None:
    """Return the seconds a server asked to wait, or None."""
    for cause in _causes(error):
        headers = getattr(getattr(cause, "response", None), "headers", None)
        try:
            seconds = float(headers["retry-after"]) if headers is not None else -1.0
        except (KeyError, TypeError, ValueError):
            continue
        if 0 <= seconds < 1e6:
            return seconds
    return None


def explained(error: BaseException, secrets: Sequence[str] = ()) -> str:
    """Return an error as one short line without keys: none of `secrets`, nothing that looks so."""
    text = " ".join(str(error).split())
    for secret in secrets:
        text = text.replace(secret, "[secret]")
    text = _SECRET.sub("[secret]", text)
    status = status_of(error)
    where = f"HTTP {status}" if status is not None else type(error).__name__
    if status in (401, 403):
        return f"{where}: the judge refuses the credentials"
    text = text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "…"
    return f"{where}: {text}" if text else f"{where}: no reply within the time limit"


def secrets_of(model: object) -> tuple[str, ...]:
    """Return the values of a model's secret fields, longest first."""
    names = getattr(type(model), "model_fields", {})
    found = [getattr(model, name, None) for name in names]
    values = {value.get_secret_value() for value in found if isinstance(value, SecretStr)}
    return tuple(sorted((value for value in values if len(value) > 3), key=len, reverse=True))


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    for _ in range(_CAUSES_FOLLOWED):
        if cause is None:
            return
        yield cause
        cause = cause.__cause__ or cause.__context__
