"""Which failed calls to a model are worth another try, how long to wait, and what may be said.

LangGraph's default retry rule skips timeouts and "429 Too Many Requests", which are what a search
meets most, so the classification is ours, and the only one: policies, judges and the clients of
scoring servers ask it.
"""

from __future__ import annotations

import email.utils
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import SecretStr

_RETRYABLE_STATUS = frozenset({408, 409, 425, 429})
_RETRYABLE_NAMES = frozenset(
    {
        "APIConnectionError",  # openai, anthropic
        "TransportError",  # httpx: timeouts, connection and protocol errors
        "ServiceUnavailable",  # google
        "ResourceExhausted",
        "TooManyRequests",
    }
)
_UNREACHABLE = frozenset({"APIConnectionError", "TransportError", "ServiceUnavailable"})
_REMEDIES = {
    400: "look at the server's log for what it refuses",
    401: "check the API key",
    403: "check the API key and what it may use",
    404: "check the model's name and the server's address (base_url)",
    408: "raise the time limit (retry.timeout_s), or ask for less at a time",
    429: "lower max_concurrency, or raise the server's quota",
}
_CAUSES_FOLLOWED = 4
_SHOWN_CHARS = 300
_SECRET_WORDS = re.compile(
    r"""(?:Bearer|Basic)\s+[\w.~+/=-]{6,}      # an authorization header
      | \b(?:sk|pk|rk|key|lsv2|gsk|xai|AIza|hf|ghp)[-_][\w*-]{6,}
      | \bAIza[\w-]{20,}
      | (?<=://)[^\s/@]+:[^\s/@]+(?=@)         # user:password@ in an address
      | (?<=[?&]key=)[^&\s]+
    """,
    re.VERBOSE | re.IGNORECASE,
)


def is_retryable(error: BaseException) -> bool:
    """Tell whether the same call may succeed later.

    True for the replies of `is_retryable_status`, for timeouts and for broken connections; False
    for other replies (400, 401, 404, …), a used-up quota, bugs, and cancellations.
    """
    if not isinstance(error, Exception):
        return False  # a cancellation may have been raised while a timeout was handled
    for cause in causes_of(error):
        if getattr(cause, "code", None) == "insufficient_quota":
            return False
        status = status_of(cause)
        if status is not None:
            return is_retryable_status(status)
        if isinstance(cause, TimeoutError | ConnectionError):
            return True
        if _RETRYABLE_NAMES & {kind.__name__ for kind in type(cause).__mro__}:
            return True
    return False


def is_retryable_status(status: int) -> bool:
    """Tell whether a reply with this HTTP status may be another one later.

    True for 408, 409, 425, 429 and 5xx.
    """
    return status in _RETRYABLE_STATUS or status >= 500


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status an error carries, or None."""
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):  # botocore
        response = response.get("ResponseMetadata")
        found = [response.get("HTTPStatusCode") if isinstance(response, Mapping) else None]
    else:
        found = [getattr(error, "status_code", None), getattr(response, "status_code", None)]
    for status in (*found, getattr(error, "code", None)):
        if isinstance(status, int) and 100 <= status <= 599:
            return int(status)
    return None


def retry_after(error: BaseException) -> float | None:
    """Return the seconds the server behind `error` asked to wait, or None; see `seconds_asked`."""
    for cause in causes_of(error):
        headers: Any = getattr(getattr(cause, "response", None), "headers", None)
        if headers is not None and hasattr(headers, "get"):
            return seconds_asked(headers)
    return None


def seconds_asked(headers: Mapping[str, str]) -> float | None:
    """Return the seconds a server asks to wait: `retry-after-ms` or `Retry-After`; or None.

    `Retry-After` is a number of seconds or an HTTP date (RFC 9110, 10.2.3); nonsense is None.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    seconds = _number(value)
    return seconds if seconds is not None else _seconds_until(value)


def explain(error: BaseException, secrets: Iterable[str] = ()) -> str:
    """Return one line about `error` that is fit for a record: no keys, no tokens, no passwords.

    It begins with the HTTP status or the kind of error.
    """
    status, text = status_of(error), str(error)
    where = type(error).__name__ if status is None else f"HTTP {status}"
    if isinstance(error, TimeoutError) and not text:
        text = "no reply within the time limit"
    return one_line(without_secrets(f"{where}: {text}" if text else where, secrets))


def remedy(error: BaseException) -> str:
    """Return what to do about a call that failed for good, "" where nothing is known."""
    for cause in causes_of(error):
        status = status_of(cause)
        if status is not None:
            return _REMEDIES.get(status, "look at the server's log" if status >= 500 else "")
        if isinstance(cause, TimeoutError) or "Timeout" in type(cause).__name__:
            return "raise the time limit (retry.timeout_s), or ask for less at a time"
        kinds = {kind.__name__ for kind in type(cause).__mro__}
        if isinstance(cause, ConnectionError) or _UNREACHABLE & kinds:
            return "check that the server runs and its address (base_url)"
    return ""


def one_line(text: str) -> str:
    """Return `text` on one line of bounded length."""
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARS else line[:_SHOWN_CHARS] + "…"


def without_secrets(text: str, secrets: Iterable[str] = ()) -> str:
    """Return `text` with "[secret]" for each of `secrets` and for all that looks like a key."""
    for secret in secrets:
        text = text.replace(secret, "[secret]")
    return _SECRET_WORDS.sub("[secret]", text)


def secrets_of(model: object) -> tuple[str, ...]:
    """Return the values of a model's secret fields, longest first, to keep them out of texts."""
    fields = getattr(type(model), "model_fields", {})
    values = (getattr(model, name, None) for name in fields)
    found = {v.get_secret_value() for v in values if isinstance(v, SecretStr)}
    return tuple(sorted((secret for secret in found if len(secret) >= 4), key=len, reverse=True))


def causes_of(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what caused it, the error first."""
    cause: BaseException | None = error
    for _ in range(_CAUSES_FOLLOWED):
        if cause is None:
            return
        yield cause
        cause = cause.__cause__ or cause.__context__


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if 0 <= number < 1e6 else None


def _seconds_until(value: Any) -> float | None:
    """Return the seconds until an HTTP date."""
    try:
        moment = email.utils.parsedate_to_datetime(str(value))
    except (TypeError, ValueError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
