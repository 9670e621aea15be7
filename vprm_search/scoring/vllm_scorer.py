"""`VllmScorer`: steps scored by a vLLM server, all paths of a problem in one request."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import SecretStr

from vprm_search.errors import ConfigError, ScorerError
from vprm_search.scoring.prompt.layout import PrmLayout
from vprm_search.scoring.prompt.text_encoder import without_surrogates
from vprm_search.scoring.reasons import NO_SERVER, lack_of_images
from vprm_search.scoring.vllm.plugin_route import PluginRoute, describe
from vprm_search.scoring.vllm.pooling_route import PoolingRoute, ServedModel, served_model
from vprm_search.scoring.vllm.round import ProblemRound, all_done
from vprm_search.scoring.vllm.transport import (
    RequestFailed,
    ServerTransport,
    VllmMeter,
    VllmOptions,
)
from vprm_search.types import ScoreRequest, ScoreResult

Route = Literal["plugin", "pooling"]
"""A way to score rounds on one server."""

_LOG = logging.getLogger(__name__)
_NO_SUCH_ROUTE = frozenset({400, 403, 404, 405, 422, 501})
_WRONG_KEY = frozenset({401, 403})
_NO_POOLING = frozenset({404, 405, 501})


class VllmScorer:
    """Scores steps on a vLLM server; implements `types.StepScorer`.

    All requests of a `score` call that share a problem travel in one POST, an image travels once
    per server and as its digest afterwards. Requests that fail for a passing reason are repeated,
    and a server that is restarted is waited for (see `VllmOptions`); a path that cannot be scored
    is a failed result with a reason. May be used from several event loops and threads.

    Which way the scores come is chosen once, `route` tells it:

    - "plugin": a server started by `vprm-search serve`, or with the plugin of integrations/vllm;
    - "pooling": a stock pooling server (token_classify over '-' and '+'), one request per path. It
      needs `tokenizer`, since the prompt is then built here.

    Args:
        base_url: address of the server, with or without "/v1"; http or https.
        model: served name; None takes the only one there is.
        api_key: sent as a bearer token, never shown; None for none.
        tokenizer: directory of the served checkpoint, with its tokenizer and configuration; weights
            are not needed. None can use the plugin only.
        route: "plugin" or "pooling"; None tries them in this order.
        identity: which model the server must have (its `identity`); None takes any.
        layout: which prompt layout the server must have; None takes any.
        cache_salt: 1 to 1024 characters that keep the server's prefix cache apart from other
            users', so that its speed tells nobody what was asked; None shares it.
        use_prefix_cache: False has the plugin compute every row of every request.
        options: time limits, repeats and bounds; None for `VllmOptions()`.
        seed: of the jitter of pauses; None for any.

    Raises:
        ConfigError: options contradict each other, or the address or the key cannot be used.
    """

    def __init__(
        self,
        base_url: str,
        *,
        model: str | None = None,
        api_key: str | SecretStr | None = None,
        tokenizer: str | Path | None = None,
        route: Route | None = None,
        identity: str | None = None,
        layout: PrmLayout | None = None,
        cache_salt: str | None = None,
        use_prefix_cache: bool = True,
        options: VllmOptions | None = None,
        seed: int | None = None,
    ) -> None:
        if cache_salt is not None and not 1 <= len(cache_salt) <= 1024:
            raise ConfigError(f"cache_salt has {len(cache_salt)} characters; 1 to 1024 are allowed")
        if route not in (None, "plugin", "pooling"):
            raise ConfigError(f"route is {route!r}; use 'plugin', 'pooling' or None")
        if route == "pooling" and tokenizer is None:
            raise ConfigError(
                "route 'pooling' needs tokenizer=PATH, the directory of the served checkpoint: the "
                "prompt is then built on this side"
            )
        self.options = options or VllmOptions()
        self.meter = VllmMeter()
        self.address = server_address(base_url)
        key = SecretStr(api_key) if isinstance(api_key, str) else api_key
        self._transport = ServerTransport(self.address, key, self.options, self.meter, seed)
        self._model, self._tokenizer = model, None if tokenizer is None else Path(tokenizer)
        self._wanted, self._wanted_identity, self._wanted_layout = route, identity, layout
        self._cache_salt, self._use_prefix_cache = cache_salt, use_prefix_cache
        self._route: PluginRoute | PoolingRoute | None = None
        self._served = ServedModel("")
        self._lock = threading.Lock()

    @property
    def identity(self) -> str:
        """A name for everything a score depends on besides the request, as score caches use it.

        Asks the server, blocking, if it was not asked before. On a stock server the name covers
        the model's name, the tokenizer and the layout, but not the weights.
        """
        return self._connected().identity

    @property
    def route(self) -> Route:
        """The way scores come, "plugin" or "pooling"; asks the server if need be."""
        return self._connected().name

    @property
    def served_from(self) -> str:
        """What the server says it loaded its model from: a path there, or a repository; or ""."""
        self._connected()
        return self._served.root

    @property
    def layout(self) -> PrmLayout | None:
        """The server's prompt layout, None for a kind this version does not know."""
        return self._connected().layout

    async def connect(self) -> None:
        """Ask the server what it is and choose the route, once.

        Raises `ConfigError` for a server no route can use, `ScorerError` for one that cannot be
        reached, `ModelChangedError` when it is not the model that was named.
        """
        if self._route is None:
            async with self._transport.state.connecting:
                await self._connect_once()

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Score all requests: same length, same order."""
        started = time.monotonic()
        await self.connect()
        rounds: dict[tuple[str, tuple[str, ...]], ProblemRound] = {}
        places = [self._place(request, rounds) for request in requests]
        try:
            async with asyncio.timeout(self.options.deadline_s):
                end = started + self.options.deadline_s
                route = self._chosen()
                await all_done(route.score(round_, end) for round_ in rounds.values())
        except TimeoutError:
            self._give_up(rounds.values())
        finally:
            self.meter.add(seconds=time.monotonic() - started)
        return [
            ScoreResult.failed(len(request.steps), place)
            if isinstance(place, str)
            else place.result(request.steps)
            for request, place in zip(requests, places, strict=True)
        ]

    async def aclose(self) -> None:
        """Close the connections; the scorer may be used again afterwards."""
        await self._transport.aclose()

    async def __aenter__(self) -> VllmScorer:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _connect_once(self) -> None:
        if self._route is not None:
            return
        end = time.monotonic() + self.options.deadline_s
        try:
            route = await self._choose_route(end)
        except RequestFailed as failure:
            advice = "start one with `vprm-search serve`, and pass its address and key"
            if failure.status in _WRONG_KEY:
                advice = "pass the key it was started with: api_key=, or --scorer-api-key"
            raise ScorerError(
                f"the scoring server at {self.address} cannot be used: {failure.reason}; {advice}"
            ) from failure
        with self._lock:
            first = self._route is None  # another thread may have been faster
            self._route = self._route or route
        if first:
            _LOG.info("%s serves %s by route %s", self.address, route.model, route.name)

    async def _choose_route(self, end: float) -> PluginRoute | PoolingRoute:
        """Return the first route the server offers, tried out on it.

        Raises `ConfigError` when there is none, or when the model is not the one that was named,
        and `RequestFailed` when the server gives no answer that tells.
        """
        served = await served_model(self._transport, self._model, end)
        self._served = served
        refusals: dict[Route, RequestFailed] = {}
        for name in ("plugin", "pooling"):
            if self._wanted in (None, name) and (name == "plugin" or self._tokenizer is not None):
                try:
                    route = await self._open(name, served, end)
                except RequestFailed as failure:
                    if failure.status not in _NO_SUCH_ROUTE:
                        raise
                    refusals[name] = failure
                else:
                    self._check_named(route)
                    return route
        raise ConfigError(_no_route(self.address, served, refusals))

    async def _open(
        self, name: Route, served: ServedModel, end: float
    ) -> PluginRoute | PoolingRoute:
        if name == "plugin" or self._tokenizer is None:
            return PluginRoute(
                self._transport,
                served.name,
                await describe(self._transport, served.name, end),
                cache_salt=self._cache_salt,
                use_prefix_cache=self._use_prefix_cache,
            )
        route = PoolingRoute(self._transport, served, self._tokenizer, self._cache_salt)
        await route.try_out(end)
        return route

    def _check_named(self, route: PluginRoute | PoolingRoute) -> None:
        if self._wanted_identity not in (None, route.identity):
            raise ConfigError(
                f"the server's model is {route.identity}, asked for was {self._wanted_identity}; "
                "check the address, or leave identity out"
            )
        if self._wanted_layout not in (None, route.layout):
            raise ConfigError("the server's layout is not the one that was given; leave layout out")

    def _place(
        self,
        request: ScoreRequest,
        rounds: dict[tuple[str, tuple[str, ...]], ProblemRound],
    ) -> ProblemRound | str:
        """Return the round a request belongs to, or the reason why it can have no scores."""
        if lack := lack_of_images(request):
            return lack
        digests = request.problem.images
        question = without_surrogates(request.problem.question)
        round_ = rounds.setdefault((question, digests), ProblemRound(question, request.images))
        if request.steps:
            round_.want(request.steps)
        return round_

    def _give_up(self, rounds: Iterable[ProblemRound]) -> None:
        limit = self.options.deadline_s
        for round_ in rounds:
            round_.fail(round_.open_paths(), f"{NO_SERVER}: no score within deadline_s={limit:g}")

    def _connected(self) -> PluginRoute | PoolingRoute:
        """Return the route, from code that cannot await: a loop of its own asks the server."""
        if self._route is None:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(asyncio.run, self._connect_in_passing()).result()
        return self._chosen()

    def _chosen(self) -> PluginRoute | PoolingRoute:
        if self._route is None:
            raise ScorerError("the scorer is not connected")
        return self._route

    async def _connect_in_passing(self) -> None:
        try:
            await self.connect()
        finally:
            await self._transport.aclose_here()

    def __repr__(self) -> str:
        return f"VllmScorer({self.address!r})"


def server_address(base_url: str) -> str:
    """Return the address all paths are appended to: no trailing slash, no "/v1".

    Raises `ConfigError` for anything but a plain http or https address: a name and a password in
    it would end up in messages, and a query could not be kept.
    """
    try:
        parts = urlsplit(base_url)
        host = parts.hostname
        port = parts.port
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"the server's address cannot be read: {error}") from error
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            "the server's address holds a user name or a password; pass api_key instead"
        )
    plain = not (parts.query or parts.fragment or any(c.isspace() for c in base_url))
    if parts.scheme not in ("http", "https") or not host or not plain or port == 0:
        raise ConfigError(
            f"the server's address is {base_url!r}; give one like 'http://127.0.0.1:8000'"
        )
    return base_url.rstrip("/").removesuffix("/v1").rstrip("/")


def _no_route(address: str, served: ServedModel, refusals: dict[Route, RequestFailed]) -> str:
    """Say why no route works on a server, and what to do about it."""
    reasons = [f"{name}: {failure.reason}" for name, failure in refusals.items()]
    statuses = {failure.status for failure in refusals.values()}
    if statuses <= _NO_POOLING:
        reasons.append("it has no /pooling, so it can only write text, which gives no step scores")
    elif "pooling" not in refusals:
        reasons.append(
            "pooling: needs tokenizer=PATH, the directory of the served checkpoint, because the "
            "prompt is then built on this side"
        )
    return (
        f"{address} serves {served.name!r}, but no route to step scores works there "
        f"({'; '.join(reasons)}); start a server with `vprm-search serve`, or vLLM with --runner "
        'pooling as docs/serving.md shows under "Plain vllm serve"'
    )
