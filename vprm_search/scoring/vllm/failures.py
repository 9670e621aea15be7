"""Which failed requests to a scoring server are worth another try, and how long to wait."""

from __future__ import annotations

import email.utils
import math
import random
from datetime import UTC, datetime

import httpx

from vprm_search.errors import ScorerError
from vprm_search.scoring.reasons import BAD_REPLY, NO_SERVER, REFUSED, SERVER_ERROR
from vprm_search.scoring.vllm.options import VllmOptions

_RETRYABLE_STATUS = frozenset({408, 409, 425, 429})
_GONE_STATUS = frozenset({502, 503, 504})
_SHOWN_CHARS = 300


class RequestFailed(ScorerError):
    """One request to the server that brought no score; `reason` goes into the step scores.

    `status` is the HTTP status, 0 without a reply. `again` tells whether the same request may
    succeed later, `gone` whether the server itself seems to be away, and `wait_s` how long it
    asked to be left alone.
    """

    def __init__(
        self,
        reason: str,
        text: str,
        *,
        status: int = 0,
        again: bool = False,
        gone: bool = False,
        wait_s: float | None = None,
    ) -> None:
        self.reason = f"{reason}: {shortened(text)}"
        super().__init__(self.reason)
        self.status, self.again, self.gone, self.wait_s = status, again, gone, wait_s


def failed_reply(status: int, text: str, headers: httpx.Headers) -> RequestFailed:
    """Classify a reply whose status is not 200.

    408, 409, 425, 429 and 5xx may succeed later; 502, 503 and 504 mean that the server behind the
    address is away; redirects are refused, since the next address was never named by the user.
    """
    again = status in _RETRYABLE_STATUS or status >= 500
    if 300 <= status < 400:
        text = f"HTTP {status}: the server redirects, which is never followed; give its own address"
    else:
        text = f"HTTP {status}: {text}"
    return RequestFailed(
        SERVER_ERROR if again else REFUSED,
        text,
        status=status,
        again=again,
        gone=status in _GONE_STATUS and "retry-after" not in headers,
        wait_s=retry_after(headers),
    )


def failed_transport(error: Exception) -> RequestFailed:
    """Classify a request without a complete reply: a timeout or a broken connection."""
    name = type(error).__name__
    timeout = isinstance(error, TimeoutError | httpx.TimeoutException)
    connecting = isinstance(error, httpx.ConnectTimeout | httpx.PoolTimeout)
    text = f"{name}: {' '.join(str(error).split())}" if str(error) else name
    if timeout and not connecting:
        return RequestFailed(NO_SERVER, f"no reply in time ({name})", again=True)
    return RequestFailed(NO_SERVER, f"the connection failed ({text})", again=True, gone=True)


def bad_reply(text: str) -> RequestFailed:
    """A complete reply that is not what was agreed; a passing proxy page may cause it."""
    return RequestFailed(BAD_REPLY, text, again=True)


def retry_after(headers: httpx.Headers) -> float | None:
    """Return the seconds a server asks to wait: milliseconds, seconds or an HTTP date; or None."""
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    if value is None:
        return None
    seconds = _number(value)
    return seconds if seconds is not None else _seconds_until(value)


def pause_s(
    failure: RequestFailed, attempt: int, options: VllmOptions, draw: random.Random
) -> float:
    """Return the seconds to wait after attempt number `attempt` (from 1).

    The pause doubles with every attempt and is shortened by up to a half at random, so that many
    clients do not return together. What the server asks for is obeyed, up to a limit.
    """
    if failure.wait_s is not None:
        return min(failure.wait_s, options.longest_retry_after_s)
    doubled = options.first_wait_s * 2.0 ** min(attempt - 1, 60)  # a float has an end
    wait = min(options.longest_wait_s, doubled)
    return wait * (0.5 + 0.5 * draw.random())


def shortened(text: str) -> str:
    """Return `text` as one line of bounded length."""
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARS else line[:_SHOWN_CHARS] + "…"


def _number(value: str | None) -> float | None:
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _seconds_until(value: str) -> float | None:
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
