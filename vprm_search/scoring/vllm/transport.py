"""Requests to one server: connections, replies of bounded size, repeats, waiting for a restart."""

from __future__ import annotations

import asyncio
import errno
import json
import random
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import httpx
from pydantic import BaseModel, ConfigDict, Field, SecretStr
from pydantic_core import from_json
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_exponential

from vprm_search.chat.failures import is_retryable, one_line, retry_after
from vprm_search.errors import ConfigError, ScorerError
from vprm_search.scoring.reasons import BAD_REPLY, NO_SERVER, REFUSED, SERVER_ERROR

T = TypeVar("T")

_GONE_STATUS = frozenset({502, 503, 504})
_NO_HEALTH_PAGE = frozenset({401, 403, 404, 405})  # whoever says so is up
_HEALTH_TIMEOUT_S = 5.0
_ERROR_BYTES = 1 << 16
_KEEP_ALIVE_S = 4.0
"""Idle connections are dropped before the server does it (uvicorn: after 5 s)."""


class VllmOptions(BaseModel):
    """The limits of a `VllmScorer`.

    Args:
        timeout_s: of one attempt, from a free slot to the last byte of the reply.
        connect_timeout_s: of opening a connection.
        deadline_s: of everything that one `score` call does, waiting included.
        startup_wait_s: how long a server that was never reached is waited for.
        restart_wait_s: how long a server that was lost is waited for.
        poll_s: pause between two questions to /health meanwhile.
        max_attempts: how often a request that fails for a passing reason is sent.
        first_wait_s: pause after the first failure; it doubles with every further one, and is
            shortened by up to a half at random.
        longest_wait_s: bound of that pause.
        longest_retry_after_s: up to which a server's Retry-After is obeyed.
        max_concurrency: POST requests under way at once, in one event loop.
        max_reply_bytes: a longer reply is refused.
        env_proxies: whether proxies of the environment are used.
        remembered_steps: scores kept to fill the rows that a server's prefix cache leaves out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    timeout_s: float = Field(default=120.0, gt=0)
    connect_timeout_s: float = Field(default=5.0, gt=0)
    deadline_s: float = Field(default=900.0, gt=0)
    startup_wait_s: float = Field(default=10.0, ge=0)
    restart_wait_s: float = Field(default=300.0, ge=0)
    poll_s: float = Field(default=0.5, gt=0)
    max_attempts: int = Field(default=5, ge=1)
    first_wait_s: float = Field(default=0.5, ge=0)
    longest_wait_s: float = Field(default=30.0, ge=0)
    longest_retry_after_s: float = Field(default=120.0, ge=0)
    max_concurrency: int = Field(default=32, ge=1)
    max_reply_bytes: int = Field(default=32 << 20, ge=1)
    env_proxies: bool = False
    remembered_steps: int = Field(default=50_000, ge=1)


class RequestFailed(ScorerError):
    """One request to the server that brought no score.

    Args:
        reason: first word of the reason in the step scores, see `scoring.reasons`.
        text: what happened; `self.reason` is both, on one line of bounded length.
        status: HTTP status, 0 without a reply.
        again: whether the same request may succeed later.
        gone: whether the server itself seems to be away.
        wait_s: seconds the server asked to be left alone, None if it did not.
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
        self.reason = f"{reason}: {one_line(text)}"
        super().__init__(self.reason)
        self.status, self.again, self.gone, self.wait_s = status, again, gone, wait_s


@dataclass(slots=True)
class VllmMeter:
    """Running totals of one client, over all threads.

    `requests` are POST requests, `retries` those among them that repeat a
    failed one. `bytes_sent` are bytes of request bodies, `image_bytes_sent` the PNG bytes among
    them (before base64). `images_sent` counts images sent with their pixels, `images_resent` those
    among them the server had been sent before. `steps_filled` are rows that the server's prefix
    cache left out and an earlier score filled, `paths_reasked` the paths asked again for such
    rows. `splits` counts requests cut in two because the server refused them as a whole,
    `server_waits` the times a lost server was waited for.
    """

    requests: int = 0
    retries: int = 0
    bytes_sent: int = 0
    image_bytes_sent: int = 0
    images_sent: int = 0
    images_resent: int = 0
    steps_filled: int = 0
    paths_reasked: int = 0
    splits: int = 0
    server_waits: int = 0
    seconds: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, **amounts: float) -> None:
        """Add to several totals at once; safe from any thread."""
        with self._lock:
            for name, amount in amounts.items():
                setattr(self, name, getattr(self, name) + amount)

    def to_json(self) -> dict[str, float]:
        """Return the totals as plain JSON."""
        with self._lock:
            names = [f.name for f in fields(self) if not f.name.startswith("_")]
            return {name: getattr(self, name) for name in names}


@dataclass(slots=True)
class LoopState:
    """What belongs to one event loop: its connections, its bound on requests, who waits for what.

    `recovery` is the wait for a lost server, shared by `recovery_waiters` requests.
    `images_moving` maps the digest of an image to the event that ends its journey to the server.
    """

    client: httpx.AsyncClient
    slots: asyncio.Semaphore
    connecting: asyncio.Lock = field(default_factory=asyncio.Lock)
    recovery: asyncio.Task[RequestFailed | None] | None = None
    recovery_waiters: int = 0
    images_moving: dict[str, asyncio.Event] = field(default_factory=dict)


class ServerTransport:
    """Asks one server until it answers, fails for good, or time is up; from any loop and thread.

    Redirects are not followed, compressed replies are refused (their size could not be bounded),
    and a reply is read up to the limit only. The key is sent as a bearer token and kept out of
    every message. `losses` counts how often the server was away: whoever remembers something about
    the server compares it.

    Args:
        address: of the server, without a trailing slash; see `vllm_scorer.server_address`.
        api_key: sent with every request, None for none.
        options: limits and pauses.
        meter: where requests are counted.
        seed: of the jitter of pauses, None for any.

    Raises:
        ConfigError: no header can carry the key.
    """

    def __init__(
        self,
        address: str,
        api_key: SecretStr | None,
        options: VllmOptions,
        meter: VllmMeter,
        seed: int | None = None,
    ) -> None:
        self.address = address
        self.options = options
        self.meter = meter
        self.losses = 0
        self._reached = False
        self._secret = "" if api_key is None else api_key.get_secret_value()
        if not (self._secret.isascii() and (self._secret.isprintable() or not self._secret)):
            raise ConfigError("the API key holds characters that no header can carry")
        # Over plain http there is no certificate to check, and loading the roots takes long.
        self._checks_certificates = address.startswith("https:") or options.env_proxies
        self._states: WeakKeyDictionary[asyncio.AbstractEventLoop, LoopState] = WeakKeyDictionary()
        self._lock = threading.Lock()
        self._pause = Pause(options, random.Random(seed))  # noqa: S311 - jitter, not a secret

    @property
    def state(self) -> LoopState:
        """The state of the running event loop, made when it is first asked for."""
        loop = asyncio.get_running_loop()
        with self._lock:
            found = self._states.get(loop)
            if found is None:
                slots = asyncio.Semaphore(self.options.max_concurrency)
                found = self._states[loop] = LoopState(self._client(), slots)
        return found

    async def get(self, path: str, read: Callable[[bytes], T], end: float) -> T:
        """GET until `read` accepts the reply, outside the bound on requests; see `post`."""

        async def send() -> bytes:
            return await self._send("GET", path, None, self.options.timeout_s)

        return await self._repeat(send, read, end, self.options.max_attempts)

    async def post(
        self,
        path: str,
        body: bytes,
        read: Callable[[bytes], T],
        end: float,
        *,
        attempts: int | None = None,
    ) -> T:
        """POST JSON until `read` accepts the reply.

        Args:
            path: on the server, with its slash.
            body: the JSON.
            read: makes a value of the body of a reply with status 200, or raises `RequestFailed`.
            end: time of `time.monotonic` at which no further attempt is begun.
            attempts: instead of `max_attempts` of the options.

        Raises:
            RequestFailed: of the last attempt.
        """

        async def send() -> bytes:
            self.meter.add(requests=1, bytes_sent=len(body))
            async with self.state.slots:  # the time limit of an attempt starts behind it
                return await self._send("POST", path, body, self.options.timeout_s)

        return await self._repeat(send, read, end, attempts or self.options.max_attempts)

    async def aclose(self) -> None:
        """Close the connections of every event loop; the next request opens new ones."""
        with self._lock:
            states = list(self._states.items())
            self._states.clear()
        here = asyncio.get_running_loop()
        for loop, state in states:
            if loop is here:
                await state.client.aclose()
            elif loop.is_running():
                asyncio.run_coroutine_threadsafe(state.client.aclose(), loop)

    async def aclose_here(self) -> None:
        """Close the connections of the running event loop only."""
        with self._lock:
            state = self._states.pop(asyncio.get_running_loop(), None)
        if state is not None:
            await state.client.aclose()

    async def _repeat(
        self,
        send: Callable[[], Awaitable[bytes]],
        read: Callable[[bytes], T],
        end: float,
        attempts: int,
    ) -> T:
        async def attempt() -> T:
            try:
                body = await send()
            except RequestFailed as failure:
                self._reached |= failure.status > 0
                raise
            self._reached = True
            return read(body)

        async def before_next(state: RetryCallState) -> None:
            if _failure_of(state).gone:
                await self._recovered()
            self.meter.add(retries=1)

        retrying = AsyncRetrying(
            retry=retry_if_exception(lambda e: isinstance(e, RequestFailed) and e.again),
            wait=self._pause,
            stop=lambda state: (
                state.attempt_number >= attempts or time.monotonic() + state.upcoming_sleep >= end
            ),
            before_sleep=before_next,
            reraise=True,
        )
        return await retrying(attempt)

    async def _recovered(self) -> None:
        """Wait until the server is healthy; all requests of one event loop wait together.

        Raises `RequestFailed` when it does not come back.
        """
        state = self.state
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
        limit = self.options.restart_wait_s if self._reached else self.options.startup_wait_s
        stop = time.monotonic() + limit
        while True:
            try:
                await self._send("GET", "/health", None, _HEALTH_TIMEOUT_S)
                return None
            except RequestFailed as failure:
                if failure.status in _NO_HEALTH_PAGE:
                    return None
                if time.monotonic() + self.options.poll_s >= stop:
                    text = f"not healthy after {limit:g} s of waiting; last: {failure.reason}"
                    return RequestFailed(NO_SERVER, f"{self.address} is {text}")
            await asyncio.sleep(self.options.poll_s)

    async def _send(self, method: str, path: str, body: bytes | None, timeout_s: float) -> bytes:
        """Return the body of one complete reply with status 200, or raise `RequestFailed`."""
        client = self.state.client
        try:
            async with (
                asyncio.timeout(timeout_s),
                client.stream(method, self.address + path, content=body) as reply,
            ):
                if reply.status_code != 200:
                    raise await self._refused(reply)
                return await self._read(reply)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError) as error:
            failure = failed_transport(error)
            raise failure from None  # its traceback would show headers, the key among them

    async def _read(self, reply: httpx.Response) -> bytes:
        if reply.headers.get("content-encoding", "identity") != "identity":
            raise bad_reply("the reply is compressed, which was not asked for")
        limit = self.options.max_reply_bytes
        data = bytearray()
        async for chunk in reply.aiter_raw():
            data += chunk
            if len(data) > limit:
                text = f"the reply has more than max_reply_bytes={limit} bytes"
                raise bad_reply(text, again=False)
        return bytes(data)

    async def _refused(self, reply: httpx.Response) -> RequestFailed:
        data = bytearray()
        if reply.headers.get("content-encoding", "identity") == "identity":
            async for chunk in reply.aiter_raw():
                data += chunk
                if len(data) > _ERROR_BYTES:
                    break
        text = _error_message(bytes(data[:_ERROR_BYTES])) or reply.reason_phrase
        if self._secret:
            text = text.replace(self._secret, "[secret]")
        return failed_reply(reply, text)

    def _client(self) -> httpx.AsyncClient:
        options = self.options
        headers = {
            "accept": "application/json",
            "accept-encoding": "identity",
            "content-type": "application/json",
        }
        if self._secret:
            headers["authorization"] = f"Bearer {self._secret}"
        return httpx.AsyncClient(
            headers=headers,
            follow_redirects=False,
            trust_env=options.env_proxies,
            verify=self._checks_certificates,
            timeout=httpx.Timeout(options.timeout_s, connect=options.connect_timeout_s),
            limits=httpx.Limits(
                max_connections=options.max_concurrency + 2,  # two beside it, for /health
                max_keepalive_connections=options.max_concurrency,
                keepalive_expiry=_KEEP_ALIVE_S,
            ),
        )


class Pause:
    """The seconds to wait after a failed attempt.

    They double with every attempt and are shortened by up to a half at random, so that many clients
    do not return together. What the server asks for is obeyed, up to a limit.
    """

    def __init__(self, options: VllmOptions, draw: random.Random) -> None:
        self._most = options.longest_retry_after_s
        self._doubled = wait_exponential(options.first_wait_s, options.longest_wait_s)
        self._draw = draw

    def __call__(self, state: RetryCallState) -> float:
        """Return the seconds."""
        asked = _failure_of(state).wait_s
        if asked is not None:
            return min(asked, self._most)
        return self._doubled(state) * (0.5 + 0.5 * self._draw.random())


def failed_reply(reply: httpx.Response, text: str) -> RequestFailed:
    """Classify a reply whose status is not 200, by the rule for all calls to models.

    502, 503 and 504 mean that the server behind the address is away; redirects are refused, since
    the next address was never named by the user.
    """
    status = reply.status_code
    error = httpx.HTTPStatusError(text, request=httpx.Request("POST", "/"), response=reply)
    again = is_retryable(error)
    if 300 <= status < 400:
        text = "the server redirects, which is never followed; give its own address"
    return RequestFailed(
        SERVER_ERROR if again else REFUSED,
        f"HTTP {status}: {text}",
        status=status,
        again=again,
        gone=status in _GONE_STATUS and "retry-after" not in reply.headers,
        wait_s=retry_after(error),
    )


def failed_transport(error: Exception) -> RequestFailed:
    """Classify a request without a complete reply: a timeout or a broken connection."""
    name = type(error).__name__
    timeout = isinstance(error, TimeoutError | httpx.TimeoutException)
    connecting = isinstance(error, httpx.ConnectTimeout | httpx.PoolTimeout)
    text = f"{name}: {' '.join(str(error).split())}" if str(error) else name
    if timeout and not connecting:
        return RequestFailed(NO_SERVER, f"no reply in time ({name})", again=True)
    again = is_retryable(error)
    return RequestFailed(NO_SERVER, f"the connection failed ({text})", again=again, gone=again)


def bad_reply(text: str, *, again: bool = True) -> RequestFailed:
    """A complete reply that is not what was agreed; a passing proxy page may cause it."""
    return RequestFailed(BAD_REPLY, text, again=again)


def read_json(body: bytes) -> Any:
    """Parse JSON without the numbers JSON does not know. Raises `RequestFailed`."""
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        text = one_line(body[:80].decode("utf-8", "replace"))
        raise bad_reply(f"the reply is no JSON ({one_line(str(error))}): {text!r}") from None


def health_headers(base_url: str, *, timeout_s: float = 2.0) -> httpx.Headers | None:
    """Return the headers of `GET /health` at `base_url`, None unless it answers 200 now."""
    try:
        reply = httpx.get(f"{base_url}/health", timeout=timeout_s, trust_env=False)
    except httpx.HTTPError:
        return None
    return reply.headers if reply.status_code == httpx.codes.OK else None


def check_port(host: str, port: int) -> None:
    """Raise `ConfigError` unless a server could listen at `host` and `port` now."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} of {host} is taken by another program; end it, or choose another "
                "with --port"
            ) from error
        reason = error.strerror or str(error)
        raise ConfigError(f"no server can listen at {host} port {port}: {reason}") from error


def _failure_of(state: RetryCallState) -> RequestFailed:
    """Return why an attempt failed: only failures are waited for."""
    error = None if state.outcome is None else state.outcome.exception()
    if not isinstance(error, RequestFailed):
        raise TypeError(f"an attempt that did not fail has no pause, but {error!r} came")
    return error


def _error_message(data: bytes) -> str:
    """Return the message in an error body: vLLM's and FastAPI's shapes, or the text itself."""
    text = data.decode("utf-8", "replace")
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return text
    while isinstance(body, dict):
        body = next((body[k] for k in ("error", "message", "detail") if k in body), str(body))
    return body if isinstance(body, str) else json.dumps(body)
