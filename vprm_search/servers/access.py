"""Who may come in over HTTP, and with how much: a key, and a body of bounded size."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class AccessMiddleware:
    """ASGI middleware that answers 401 without the key and 413 to a body that is too large.

    A body is read before the app sees the request, so that one that turns out to be too large
    has no effect.
    """

    def __init__(
        self,
        app: App,
        *,
        keys: Collection[str] = (),
        max_body_bytes: int,
        open_paths: Collection[str] = ("/health",),
    ) -> None:
        """Guard `app`.

        Args:
            app: the ASGI application behind.
            keys: the keys that are let in, as `Authorization: Bearer KEY`; none: everybody is.
            max_body_bytes: most bytes of a request's body.
            open_paths: paths that ask for no key.
        """
        self._app = app
        self._keys = [hashlib.sha256(key.encode()).digest() for key in keys]
        self._limit = max_body_bytes
        self._open = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        if scope["path"] not in self._open and not self._lets_in(headers.get(b"authorization")):
            await _refuse(send, 401, "the API key is missing or wrong", "invalid_api_key")
            return
        body = await self._body(headers.get(b"content-length", b""), receive)
        if body is None:  # the client is gone
            return
        if len(body) > self._limit:
            said = f"the body is larger than {self._limit} bytes; send fewer or smaller pictures"
            await _refuse(send, 413, said, "too_large")
            return
        read = False

        async def receive_read() -> Message:
            nonlocal read
            if read:
                return await receive()
            read = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, receive_read, send)

    async def _body(self, announced: bytes, receive: Receive) -> bytes | None:
        """Return the body, as much of it as shows that it is too large; None if it never came."""
        if announced.isdigit() and int(announced) > self._limit:
            return bytes(self._limit + 1)
        body, more = b"", True
        while more and len(body) <= self._limit:
            message = await receive()
            if message["type"] != "http.request":
                return None
            body += message.get("body", b"")
            more = message.get("more_body", False)
        return body

    def _lets_in(self, authorization: bytes | None) -> bool:
        scheme, _, token = (authorization or b"").partition(b" ")
        given = hashlib.sha256(token.strip()).digest()
        known = [hmac.compare_digest(given, key) for key in self._keys]  # all of them, always
        return not self._keys or (scheme.lower() == b"bearer" and any(known))


async def _refuse(send: Send, status: int, message: str, code: str) -> None:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
