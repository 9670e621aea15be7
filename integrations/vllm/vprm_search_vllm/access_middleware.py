"""Who may come in, to which routes, with how much; and the way in for scoring requests.

vLLM asks for its API key on `/v1/…` only, so `/pooling` would be open to everyone, and it reads a
body of any size. This middleware, which vLLM is given with
`--middleware vprm_search_vllm.access_middleware.AccessMiddleware`, wants the key on every route but
`/health`, leaves out the routes that scoring does not need, and bounds the body.

vLLM also calls a plugin on its event loop, where large pictures would keep `/health` waiting for
seconds. So scoring requests are prepared here, in threads, and what vLLM gets is a stand-in.
"""

from __future__ import annotations

import os
from typing import Any

from fastapi import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vprm_search_vllm import intake
from vprm_search_vllm.shared.scoring.vllm.contract import Limits, RequestError
from vprm_search_vllm.tenants import Tenants

ALL_ROUTES_VARIABLE = "VPRM_SEARCH_VLLM_ALL_ROUTES"
SERVER_VARIABLE = "VPRM_SEARCH_VLLM_SERVER"
SERVER_HEADER = b"vprm-search-server"

_OPEN = frozenset({"/health", "/ping"})
_SCORING = "/pooling"
_ROUTES = _OPEN | {_SCORING, "/v1/models", "/metrics", "/version", "/load"}


class AccessMiddleware:
    """ASGI middleware; settings come from the environment when the server starts.

    The keys are those of `Tenants.from_environment`, `VPRM_SEARCH_VLLM_ALL_ROUTES=1` keeps vLLM's
    other routes, and `max_body_bytes` of the limits bounds a body. `/health` is answered with the
    value of `VPRM_SEARCH_VLLM_SERVER`, by which whoever started the server knows it again.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._tenants = Tenants.from_environment()
        self._all_routes = os.environ.get(ALL_ROUTES_VARIABLE) == "1"
        self._limit = Limits.from_environment().max_body_bytes
        self._name = os.environ.get(SERVER_VARIABLE, "").encode("latin-1", "replace")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer 400, 401, 404, 413 or 415."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        receive = self._bounded(receive)
        try:
            tenant = self._admit(scope, path)
            if path == _SCORING and scope["method"] == "POST":
                await self._score(scope, receive, send, tenant)
                return
        except RequestError as error:
            refusal = _refusal(error.status, str(error))
            await refusal(scope, receive, send)
            return
        await self.app(scope, receive, self._named(send) if path in _OPEN else send)

    def _admit(self, scope: Scope, path: str) -> str:
        """Return whose request it is. Raises `RequestError` for one that may not come in."""
        if scope["type"] != "http" or not (self._all_routes or path in _ROUTES):
            raise RequestError(404, "there is no such route")
        headers = _headers(scope)
        tenant = self._tenants.find(headers.get(b"authorization", b""))
        if tenant is None and path not in _OPEN:
            raise RequestError(401, "the API key is missing or wrong")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._limit:
            raise RequestError(413, self._too_large())
        return tenant or ""

    async def _score(self, scope: Scope, receive: Receive, send: Send, tenant: str) -> None:
        """Read a scoring request, have it prepared, and give vLLM the stand-in."""
        kind = _headers(scope).get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != b"application/json":
            raise RequestError(415, "send the request with content-type: application/json")
        try:
            raw = await _read(receive)
        except HTTPException as error:
            raise RequestError(error.status_code, error.detail) from None
        if raw is None:  # the client is gone
            return
        async with intake.prepared(raw, tenant, others=self._all_routes) as stand_in:
            del raw  # many pictures
            await self.app(scope, _replayed(stand_in, receive), send)

    def _bounded(self, receive: Receive) -> Receive:
        read = 0

        async def bounded() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._limit:
                raise HTTPException(413, self._too_large())
            return message

        return bounded

    def _too_large(self) -> str:
        return f"the body is larger than {self._limit} bytes; send fewer paths or smaller images"

    def _named(self, send: Send) -> Send:
        async def named(message: Message) -> None:
            if message["type"] == "http.response.start" and self._name:
                message["headers"] = [*message.get("headers", ()), (SERVER_HEADER, self._name)]
            await send(message)

        return named


def _headers(scope: Scope) -> dict[bytes, bytes]:
    return {name.lower(): value for name, value in scope["headers"]}


async def _read(receive: Receive) -> bytes | None:
    """Return the whole body, None when the client went away before its end."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(body)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives `body` at first, and then what comes of the client."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return messages.pop() if messages else await receive()

    return replayed


def _refusal(status: int, message: str) -> JSONResponse:
    body: dict[str, Any] = {"message": message, "type": "RequestError", "code": status}
    headers = {"connection": "close"} if status == 413 else None  # the body is not read
    return JSONResponse({"error": body}, status_code=status, headers=headers)
