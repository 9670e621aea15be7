"""Which errors a node may try again.

LangGraph's default is wrong for model servers: measured on 1.2.22 it does not repeat a
`TimeoutError` or an HTTP 429, and repeats every error it does not know.
"""

from __future__ import annotations

from collections.abc import Iterator

from langgraph.types import RetryPolicy

from vprm_search.errors import InputError

RETRYABLE_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})


def is_retryable(error: Exception) -> bool:
    """Return whether `error`, or what caused it, is a passing trouble of a model server.

    Passing are: a timeout, a connection that broke, and the HTTP status codes 408, 409, 425, 429,
    500, 502, 503, 504 and 529. A wrong input never is.
    """
    for cause in _chain(error):
        if isinstance(cause, InputError):
            return False
        status = _status(cause)
        if status is not None:
            return status in RETRYABLE_STATUS
        if isinstance(cause, TimeoutError | ConnectionError) or _is_transport(cause):
            return True
    return False


RETRY = RetryPolicy(
    initial_interval=0.5, backoff_factor=2.0, max_interval=8.0, max_attempts=3, retry_on=is_retryable
)
"""Three attempts, 0.5 s and 1 s apart, for errors that `is_retryable`."""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    for holder in (error, response):
        status = getattr(holder, "status_code", None)
        if isinstance(status, int):
            return status
    return None


def _is_transport(error: BaseException) -> bool:
    """Return whether this is a connection error of httpx or of a client built on it."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return not names.isdisjoint({"TransportError", "APIConnectionError"})
