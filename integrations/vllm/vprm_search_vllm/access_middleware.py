"""Who may come in, to which routes, with how much.

vLLM asks for its API key on `/v1/…` only, so `/pooling` would be open to everyone, and it reads a
body of any size. This middleware, which vLLM is given with
`--middleware vprm_search_vllm.access_middleware.AccessMiddleware`, wants the key on every route but
`/health`, leaves out the routes that scoring does not need, and bounds the body.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from typing import Any

from fastapi import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vprm_search_vllm.shared.scoring.vllm.contract import Limits

API_KEY_VARIABLE = "VLLM_API_KEY"
ALL_ROUTES_VARIABLE = "VPRM_SEARCH_VLLM_ALL_ROUTES"

_OPEN = frozenset({"/health", "/ping"})
_ROUTES = _OPEN | {"/pooling", "/v1/models", "/metrics", "/version", "/load"}


class AccessMiddleware:
    """ASGI middleware; settings come from the environment when the server starts.

    `VLLM_API_KEY` is the key (vLLM's own variable), `VPRM_SEARCH_VLLM_ALL_ROUTES=1` keeps vLLM's
    other routes, and `max_body_bytes` of the limits bounds a body.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        key = os.environ.get(API_KEY_VARIABLE, "")
        self._key = hashlib.sha256(key.encode()).digest() if key else None
        self._all_routes = os.environ.get(ALL_ROUTES_VARIABLE) == "1"
        self._limit = Limits.from_environment().max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer 401, 404 or 413."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, send)
        else:
            await self.app(scope, self._bounded(receive), send)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if scope["type"] != "http" or not (self._all_routes or path in _ROUTES):
            return _error(404, "there is no such route")
        headers = {name.lower(): value for name, value in scope["headers"]}
        if self._key is not None and path not in _OPEN:
            scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
            given = hashlib.sha256(token.strip()).digest()
            if scheme.lower() != b"bearer" or not hmac.compare_digest(given, self._key):
                return _error(401, "the API key is missing or wrong")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._limit:
            return _error(413, self._too_large(), close=True)
        return None

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


def _error(status: int, message: str, *, close: bool = False) -> JSONResponse:
    body: dict[str, Any] = {"message": message, "type": "RequestError", "code": status}
    headers = {"connection": "close"} if close else None  # the body is not read
    return JSONResponse({"error": body}, status_code=status, headers=headers)
