"""Scoring requests on their way in: read, checked and planned in threads.

vLLM calls a plugin on its event loop, which must stay free for `/health`. The access middleware
therefore has a request prepared here; vLLM is given a stand-in with a ticket, and the plugin takes
the prepared request for the ticket. A stand-in may be given more than once.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from vprm_search_vllm.images import ImageCache, KnownImage
from vprm_search_vllm.scoring_requests import RequestPlan
from vprm_search_vllm.shared.scoring.vllm.contract import (
    DescribeBody,
    Limits,
    RequestError,
    ScoringBody,
    check_fields,
    parse_body,
    read_request,
)

DECODERS = 2
"""Pictures decoded side by side: each takes up to three times its pixels in memory meanwhile."""
_TICKET = "ticket"
_NAMES = "multi_modal_uuids"


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """What the engine is asked for a request: its plan, and a prompt for every planned path."""

    plan: RequestPlan
    prompts: tuple[dict[str, Any], ...] = ()
    use_prefix_cache: bool = True

    @property
    def shows_pictures(self) -> bool:
        """Whether there is a picture in the prompts: then there is one in each."""
        return any(_NAMES in prompt for prompt in self.prompts)

    def with_new_names(self) -> PreparedRequest:
        """Return the same request with its pictures under names that vLLM has never seen."""
        mark = secrets.token_hex(16)

        def renamed(prompt: dict[str, Any]) -> dict[str, Any]:
            names = {kind: [f"{n}-{mark}" for n in some] for kind, some in prompt[_NAMES].items()}
            return {**prompt, _NAMES: names}

        return replace(self, prompts=tuple(map(renamed, self.prompts)))


@dataclass(frozen=True, slots=True)
class StandIn:
    """What vLLM is given in the place of a request: its `body`.

    `renew` makes it stand for the same request with its pictures under new names; None where there
    are none.
    """

    body: bytes
    renew: Callable[[], None] | None = None


Planner = Callable[[ScoringBody | DescribeBody, str, dict[str, KnownImage]], PreparedRequest]


class RequestIntake:
    """Prepares the requests of a server process, each tenant's with its own images.

    Args:
        limits: of a request; `kept_image_bytes` is shared out evenly among the tenants.
        tenants: how many there are.
        plan: makes a prepared request of a body, the tenant's name, and the images that are known;
            called in one thread at a time.
    """

    def __init__(self, limits: Limits, tenants: int, plan: Planner) -> None:
        self._limits = limits
        share = limits.kept_image_bytes // tenants
        self._tenant_limits = limits.model_copy(update={"kept_image_bytes": share})
        self._plan = plan
        self._images: dict[str, ImageCache] = {}
        self._planning = ThreadPoolExecutor(1, "vprm-plan")
        self._decoding = ThreadPoolExecutor(DECODERS, "vprm-decode")
        self._waiting: dict[str, PreparedRequest] = {}

    def images(self, tenant: str) -> ImageCache:
        """Return the images that this tenant has sent."""
        return self._images.setdefault(tenant, ImageCache(self._tenant_limits))

    def take(self, data: object) -> PreparedRequest:
        """Return the request whose ticket `data` holds; without one, prepare `data` here and now.

        The latter is for vLLM's `LLM` class and for servers without the access middleware. Raises
        `RequestError`.
        """
        ticket = data.get(_TICKET) if isinstance(data, dict) else None
        if isinstance(ticket, str) and ticket in self._waiting:
            return self._waiting[ticket]
        body = parse_body(data, self._limits)
        images = self.images("")
        sent = body.image_data if isinstance(body, ScoringBody) else {}
        checked = {digest: images.checked(digest, text) for digest, text in sent.items()}
        return self._plan(body, "", images.take(_wanted(body), checked))

    @asynccontextmanager
    async def prepared(self, raw: bytes, tenant: str, *, others: bool) -> AsyncIterator[StandIn]:
        """Prepare a request and yield what vLLM is given in its place.

        Args:
            raw: the body that came.
            tenant: whose it is.
            others: whether vLLM's own requests, which have no `data`, are passed on as they are.

        Raises:
            RequestError: the request is not served.
        """
        body = await self._in_thread(self._planning, read_request, raw)
        if others and "data" not in body:
            yield StandIn(raw)
            return
        check_fields(body)
        data = body.pop("data")
        del raw
        request = await self._prepare(data, tenant)
        del data
        ticket = secrets.token_hex(16)
        self._waiting[ticket] = request

        def renew() -> None:
            self._waiting[ticket] = request.with_new_names()

        shown = json.dumps({**body, "task": "plugin", "data": {_TICKET: ticket}}).encode()
        try:
            yield StandIn(shown, renew if request.shows_pictures else None)
        finally:
            del self._waiting[ticket]

    async def _prepare(self, data: object, tenant: str) -> PreparedRequest:
        body = await self._in_thread(self._planning, parse_body, data, self._limits)
        images, checked = self.images(tenant), {}
        if isinstance(body, ScoringBody):
            for digest, text in body.image_data.items():  # one by one: others have their turn
                checked[digest] = await self._in_thread(
                    self._decoding, images.checked, digest, text
                )
        known = images.take(_wanted(body), checked)
        return await self._in_thread(self._planning, self._plan, body, tenant, known)

    @staticmethod
    async def _in_thread(pool: ThreadPoolExecutor, call: Callable[..., Any], *given: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(pool, call, *given)


def _wanted(body: ScoringBody | DescribeBody) -> list[str]:
    return list(dict.fromkeys(body.images)) if isinstance(body, ScoringBody) else []


_intake: RequestIntake | None = None


def open_intake(intake: RequestIntake) -> None:
    """Make `intake` the one that this process's access middleware uses."""
    global _intake
    _intake = intake


def prepared(raw: bytes, tenant: str, *, others: bool) -> AbstractAsyncContextManager[StandIn]:
    """Return `RequestIntake.prepared` of this process's intake. Raises `RequestError` 503."""
    if _intake is None:
        raise RequestError(503, "the server has no reward model yet; ask again later")
    return _intake.prepared(raw, tenant, others=others)
