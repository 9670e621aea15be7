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

from vprm_search_vllm import intake
from vprm_search_vllm.shared.scoring.vllm.contract import Limits, RequestError
from vprm_search_vllm.shared.servers import access

API_KEY_VARIABLE = "VLLM_API_KEY"
TENANTS_VARIABLE = "VPRM_SEARCH_VLLM_TENANTS"
ALL_ROUTES_VARIABLE = "VPRM_SEARCH_VLLM_ALL_ROUTES"
SERVER_VARIABLE = "VPRM_SEARCH_VLLM_SERVER"
SERVER_HEADER = b"vprm-search-server"

_UNAVAILABLE = 503
_PICTURE_LOST = b"Multi-modal processor cache miss"
"""What vLLM says, with that status, of a picture that its engine does not have."""
_OPEN = frozenset({"/health", "/ping"})
_SCORING = "/pooling"
_ROUTES = _OPEN | {_SCORING, "/v1/models", "/metrics", "/version", "/load"}


def tenants() -> access.Tenants:
    """Return those of the environment. Raises `ConfigError` when they are not told apart."""
    return access.Tenants.from_environment(TENANTS_VARIABLE, API_KEY_VARIABLE)


class AccessMiddleware(access.AccessMiddleware):
    """ASGI middleware; settings come from the environment when the server starts.

    The keys are those of `tenants`, `VPRM_SEARCH_VLLM_ALL_ROUTES=1` keeps vLLM's other routes, and
    `max_body_bytes` of the limits bounds a body. `/health` is answered with the value of
    `VPRM_SEARCH_VLLM_SERVER`, by which whoever started the server knows it again.
    """

    def __init__(self, app: access.App) -> None:
        limit = Limits.from_environment().max_body_bytes
        super().__init__(app, tenants=tenants(), max_body_bytes=limit, open_paths=_OPEN)
        self._all_routes = os.environ.get(ALL_ROUTES_VARIABLE) == "1"
        self._name = os.environ.get(SERVER_VARIABLE, "").encode("latin-1", "replace")

    def admit(self, scope: access.Scope, path: str) -> str:
        """Return whose request it is. Raises `AccessError` 404, 401 or 415."""
        if scope["type"] != "http" or not (self._all_routes or path in _ROUTES):
            raise access.AccessError(404, "there is no such route", "unknown_url")
        tenant = super().admit(scope, path)
        if _scores(scope, path):
            kind = access.headers_of(scope).get(b"content-type", b"").partition(b";")[0]
            if kind.strip().lower() != b"application/json":
                said = "send the request with content-type: application/json"
                raise access.AccessError(415, said)
        return tenant

    async def serve(
        self, scope: access.Scope, tenant: str, receive: access.Receive, send: access.Send
    ) -> None:
        """Have a scoring request prepared and give vLLM the stand-in; others as they are."""
        path = access.path_of(scope)
        if not _scores(scope, path):
            named = self._named(send) if path in _OPEN else send
            await super().serve(scope, tenant, receive, named)
            return
        raw = (await receive())["body"]
        try:
            async with intake.prepared(raw, tenant, others=self._all_routes) as stand_in:
                del raw  # many pictures
                await self._answered(scope, stand_in, receive, send)
        except RequestError as error:
            raise access.AccessError(error.status, str(error)) from error

    async def _answered(
        self,
        scope: access.Scope,
        stand_in: intake.StandIn,
        receive: access.Receive,
        send: access.Send,
    ) -> None:
        """Have vLLM answer a stand-in, once more where it has lost a picture.

        vLLM sends a picture's tiles to its engine with the first prompt that shows it, and the
        name alone afterwards; but it takes them for sent before they are. If that prompt's client
        leaves in between, or the two sides have dropped different pictures from their caches, the
        next client that asks about the picture would get a 503. Under new names the tiles go along
        again, whatever others do meanwhile.
        """
        kept: list[access.Message] = []

        async def send_unless_503(message: access.Message) -> None:
            if kept or message.get("status") == _UNAVAILABLE:
                kept.append(message)
            else:
                await send(message)

        again = dict(scope)  # vLLM's app writes into the one that it is given
        await self._app(scope, access.replayed(stand_in.body, receive), send_unless_503)
        said = b"".join(message.get("body", b"") for message in kept)
        if stand_in.renew is not None and _PICTURE_LOST in said:
            stand_in.renew()
            await self._app(again, access.replayed(stand_in.body, receive), send)
            return
        for message in kept:
            await send(message)

    def _named(self, send: access.Send) -> access.Send:
        async def named(message: access.Message) -> None:
            if message["type"] == "http.response.start" and self._name:
                message["headers"] = [*message.get("headers", ()), (SERVER_HEADER, self._name)]
            await send(message)

        return named


def _scores(scope: access.Scope, path: str) -> bool:
    return path == _SCORING and scope["method"] == "POST"
