"""The connections to a scoring server: one client per event loop, replies of bounded size."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import httpx
from pydantic import SecretStr

from vprm_search.errors import ConfigError
from vprm_search.scoring.vllm.failures import (
    RequestFailed,
    bad_reply,
    failed_reply,
    failed_transport,
)
from vprm_search.scoring.vllm.options import VllmOptions

_ERROR_BYTES = 1 << 16
_KEEP_ALIVE_S = 4.0
"""Idle connections are dropped before the server does it (uvicorn: after 5 s)."""


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


class ServerConnection:
    """Sends single requests to one server, from any number of event loops and threads.

    Redirects are not followed, compressed replies are refused (their size could not be bounded),
    and a reply is read up to the limit only. The key is sent as a bearer token and kept out of
    every message.
    """

    def __init__(self, address: str, api_key: SecretStr | None, options: VllmOptions) -> None:
        self.address = address
        self.options = options
        self._secret = "" if api_key is None else api_key.get_secret_value()
        if not (self._secret.isascii() and (self._secret.isprintable() or not self._secret)):
            raise ConfigError("the API key holds characters that no header can carry")
        # Over plain http there is no certificate to check, and loading the roots takes long.
        self._checks_certificates = address.startswith("https:") or options.env_proxies
        self._states: WeakKeyDictionary[asyncio.AbstractEventLoop, LoopState] = WeakKeyDictionary()
        self._lock = threading.Lock()

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

    async def get(self, path: str, timeout_s: float | None = None) -> bytes:
        """Return the body of a GET, outside the bound on requests; see `post`."""
        return await self._send(self.state, "GET", path, None, timeout_s)

    async def post(self, path: str, body: bytes) -> bytes:
        """Return the body of the reply to one POST of JSON.

        Waits for a free slot first; the time limit starts behind it. Raises `RequestFailed` for
        any other outcome than a complete reply with status 200.
        """
        state = self.state
        async with state.slots:
            return await self._send(state, "POST", path, body, None)

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

    async def _send(
        self, state: LoopState, method: str, path: str, body: bytes | None, timeout_s: float | None
    ) -> bytes:
        try:
            async with (
                asyncio.timeout(timeout_s or self.options.timeout_s),
                state.client.stream(method, self.address + path, content=body) as reply,
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
                failure = bad_reply(f"the reply has more than max_reply_bytes={limit} bytes")
                failure.again = False
                raise failure
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
        return failed_reply(reply.status_code, text, reply.headers)

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
