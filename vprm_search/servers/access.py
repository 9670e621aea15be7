"""Who may come in over HTTP, and with how much: a key, and a body of bounded size.

The servers of this package and the vLLM plugin, whose build takes this file along, use it; it needs
the standard library alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import os
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, MutableMapping
from typing import Any

from vprm_search.errors import ConfigError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_BODY_S = 60.0
"""A body that has not come this long after its head is not waited for."""
_PASS_OVER_S = 5.0
"""How long what is left of a refused body is read and thrown away."""
_BODIES = 16
"""The bodies under way have together at most as many bytes as this many of the largest."""


class Tenants:
    """The clients of a server by name, each with its key; what each sent stays its own.

    Keys are compared in constant time. Without any there is one client, named "", and it is
    everybody.

    Args:
        keys: the key of each; empty for a server that asks for none.

    Raises:
        ConfigError: two have the same key, or a key is empty.
    """

    def __init__(self, keys: Mapping[str, str]) -> None:
        if len(set(keys.values())) < len(keys) or "" in keys.values():
            raise ConfigError("each tenant needs a key of its own")
        self._hashes = {name: _hash(key.encode()) for name, key in keys.items()}

    @classmethod
    def unnamed(cls, keys: Iterable[str]) -> Tenants:
        """Return those of keys that need no name. Raises `ConfigError` for an empty key."""
        return cls({str(number): key for number, key in enumerate(dict.fromkeys(keys))})

    @classmethod
    def from_environment(cls, tenants_variable: str, key_variable: str) -> Tenants:
        """Return those of the one variable, `{"name": "key", …}`, or the one key of the other.

        Raises `ConfigError` when both are set, or when the former is no such object.
        """
        key, text = os.environ.get(key_variable), os.environ.get(tenants_variable)
        if not text:
            return cls({"": key} if key else {})
        if key:
            raise ConfigError(f"{key_variable} and {tenants_variable} are both set; unset one")
        needed = f'{tenants_variable} must be a JSON object like {{"name": "key"}}'
        try:
            keys = json.loads(text)
        except ValueError:
            raise ConfigError(needed) from None  # the text holds keys
        if not isinstance(keys, dict) or not keys or "" in keys:
            raise ConfigError(needed)
        if not all(isinstance(one, str) for one in keys.values()):
            raise ConfigError(needed)
        return cls(keys)

    def __len__(self) -> int:
        """Return how many there are, at least one."""
        return max(1, len(self._hashes))

    def find(self, authorization: bytes | None) -> str | None:
        """Return the name of the tenant with this header's bearer token, None if there is none."""
        if not self._hashes:
            return ""
        scheme, _, token = (authorization or b"").partition(b" ")
        given, found = _hash(token.strip()), None
        for name, wanted in self._hashes.items():  # all of them, whichever it is
            if hmac.compare_digest(given, wanted):
                found = name
        return found if scheme.lower() == b"bearer" else None


def _hash(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


class AccessError(Exception):
    """A request that is not let in, or not served: its HTTP status, and why."""

    def __init__(self, status: int, message: str, code: str = "invalid_request") -> None:
        super().__init__(message)
        self.status, self.code = status, code


class AccessMiddleware:
    """ASGI middleware that wants a key, and bounds a body in size and in time.

    A body is read before the app sees the request, so that one that turns out to be too large
    has no effect; nothing is read of a client without a key. It answers 401, 413, 408 to a body
    that does not come, and 429 where others have sent too much at the same time.
    """

    def __init__(
        self,
        app: App,
        *,
        tenants: Tenants,
        max_body_bytes: int,
        open_paths: Collection[str] = ("/health",),
    ) -> None:
        """Guard `app`.

        Args:
            app: the ASGI application behind.
            tenants: whose keys are let in, as `Authorization: Bearer KEY`.
            max_body_bytes: most bytes of a request's body.
            open_paths: paths that ask for no key.
        """
        self._app = app
        self._tenants = tenants
        self._limit = max_body_bytes
        self._open = frozenset(open_paths)
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        path = path_of(scope)
        size, incoming = 0, _Incoming(receive, more=scope["type"] == "http")
        try:
            tenant = self.admit(scope, path)
            if scope["type"] == "http":
                body = await self._read(scope, incoming)
                if body is None:  # the client is gone
                    return
                size, receive = len(body), replayed(body, receive)
                del body  # many pictures
            await self.serve(scope, tenant, receive, send)
        except AccessError as error:
            await self._pass_over(incoming)
            await _refuse(scope, send, error)
        finally:
            self._held -= size

    def admit(self, scope: Scope, path: str) -> str:
        """Return whose request it is. Raises `AccessError` for one that may not come in."""
        tenant = self._tenants.find(headers_of(scope).get(b"authorization"))
        if tenant is None and path not in self._open:
            raise AccessError(401, "the API key is missing or wrong", "invalid_api_key")
        return tenant or ""

    async def serve(self, scope: Scope, tenant: str, receive: Receive, send: Send) -> None:
        """Give the app a request that was let in; `receive` gives the whole body at first."""
        await self._app(scope, receive, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """Return a body, None if it never came. Raises `AccessError`: it is too large or slow."""
        announced = headers_of(scope).get(b"content-length", b"0")
        if announced.isdigit() and int(announced[:20]) > self._limit:
            raise self._too_large()
        body, whole = bytearray(), False
        try:
            async with asyncio.timeout(_BODY_S):
                while not whole:
                    message = await receive()
                    if message["type"] != "http.request":
                        return None
                    piece = message.get("body", b"")
                    body += piece
                    self._held += len(piece)
                    if len(body) > self._limit:
                        raise self._too_large()
                    if self._held > _BODIES * self._limit:
                        raise AccessError(429, "others send too much just now; try again", "busy")
                    whole = not message.get("more_body", False)
        except TimeoutError:
            said = f"the body did not come within {_BODY_S:g} seconds"
            raise AccessError(408, said, "timeout") from None
        finally:
            if not whole:
                self._held -= len(body)
        return bytes(body)

    async def _pass_over(self, incoming: _Incoming) -> None:
        """Let go of the rest of a body, as much as is borne: a client in the midst of sending it
        would see a broken connection, and no answer."""
        passed = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PASS_OVER_S):
                while incoming.more and passed <= self._limit:
                    passed += len((await incoming()).get("body", b""))

    def _too_large(self) -> AccessError:
        said = f"the body is larger than {self._limit} bytes; send fewer or smaller pictures"
        return AccessError(413, said, "too_large")


class _Incoming:
    """What comes of a request; `more` tells whether there is more of its body to come."""

    def __init__(self, receive: Receive, *, more: bool) -> None:
        self._receive, self.more = receive, more

    async def __call__(self) -> Message:
        message = await self._receive()
        self.more = message.get("more_body", False)
        return message


def path_of(scope: Scope) -> str:
    """Return a request's path below the place where the app is mounted."""
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))


def headers_of(scope: Scope) -> dict[bytes, bytes]:
    """Return a request's headers by their names in small letters."""
    return {name.lower(): value for name, value in scope["headers"]}


def replayed(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives `body` at first, and then what comes of the client."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return messages.pop() if messages else await receive()

    return next_message


async def _refuse(scope: Scope, send: Send, error: AccessError) -> None:
    told = {"message": str(error), "type": "invalid_request_error", "param": None}
    body = json.dumps({"error": {**told, "code": error.code}}).encode()
    # a body that was not read is not waited for
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    headers += [(b"retry-after", b"5")] if error.status == 429 else []
    kind = "websocket.http" if scope["type"] == "websocket" else "http"
    start = {"type": f"{kind}.response.start", "status": error.status, "headers": headers}
    await send(start)
    await send({"type": f"{kind}.response.body", "body": body})
