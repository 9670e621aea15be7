"""`VllmScorer`: steps scored by a vLLM server, all paths of a problem in one request."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from pydantic import SecretStr

from vprm_search.errors import ConfigError, ScorerError
from vprm_search.scoring.prompt.layout import PrmLayout
from vprm_search.scoring.prompt.text_encoder import without_surrogates
from vprm_search.scoring.reasons import IMAGE_MISSING, NO_SERVER
from vprm_search.scoring.vllm.calls import ServerCalls
from vprm_search.scoring.vllm.connection import ServerConnection
from vprm_search.scoring.vllm.failures import RequestFailed
from vprm_search.scoring.vllm.meter import VllmMeter
from vprm_search.scoring.vllm.options import VllmOptions, server_address
from vprm_search.scoring.vllm.round import ProblemRound
from vprm_search.scoring.vllm.routes import Route, RouteName, RouteSetup, choose_route
from vprm_search.scoring.vllm.together import all_done
from vprm_search.types import ScoreRequest, ScoreResult

_LOG = logging.getLogger(__name__)


class VllmScorer:
    """Scores steps on a vLLM server; implements `types.StepScorer`.

    All requests of a `score` call that share a problem travel in one POST, an image travels once
    per server and as its digest afterwards. Requests that fail for a passing reason are repeated,
    and a server that is restarted is waited for (see `VllmOptions`); a path that cannot be scored
    is a failed result with a reason. Which way the scores come is chosen once, `route` tells it:

    - "plugin": a server started by `vprm-search serve`, or with the plugin of integrations/vllm;
    - "pooling": a stock pooling server (token_classify over '-' and '+'), one request per path;
    - "generate": a stock server with --enable-scale-out, one request per step.

    The last two need `tokenizer`, the directory of the served checkpoint (tokenizer and config
    files, no weights), since the prompt is then built here. `model` is the served name (None: the
    only one there is). `identity` and `layout`, if given, must be the server's. `cache_salt` keeps
    the server's prefix cache apart from other users', `use_prefix_cache=False` does without it.
    `seed` makes the jitter of pauses. May be used from several event loops and threads.

    Raises `ConfigError` for options that contradict each other. `score` raises `ScorerError` when
    the server cannot be reached or used at first, and `ModelChangedError` when it serves another
    model later.
    """

    def __init__(
        self,
        base_url: str,
        *,
        model: str | None = None,
        api_key: str | SecretStr | None = None,
        tokenizer: str | Path | None = None,
        route: RouteName | None = None,
        identity: str | None = None,
        layout: PrmLayout | None = None,
        cache_salt: str | None = None,
        use_prefix_cache: bool = True,
        options: VllmOptions | None = None,
        seed: int | None = None,
    ) -> None:
        if cache_salt is not None and not 1 <= len(cache_salt) <= 1024:
            raise ConfigError(f"cache_salt has {len(cache_salt)} characters; 1 to 1024 are allowed")
        if route not in (None, "plugin", "pooling", "generate"):
            raise ConfigError(f"route is {route!r}; use 'plugin', 'pooling', 'generate' or None")
        if route in ("pooling", "generate") and tokenizer is None:
            raise ConfigError(
                f"route {route!r} needs tokenizer=PATH, the directory of the served checkpoint: "
                "the prompt is then built on this side"
            )
        self.options = options or VllmOptions()
        self.meter = VllmMeter()
        self.address = server_address(base_url)
        key = SecretStr(api_key) if isinstance(api_key, str) else api_key
        self._connection = ServerConnection(self.address, key, self.options)
        self._calls = ServerCalls(self._connection, self.meter, seed)
        self._setup = RouteSetup(
            model=model,
            tokenizer=None if tokenizer is None else Path(tokenizer),
            route=route,
            identity=identity,
            layout=layout,
            cache_salt=cache_salt,
            use_prefix_cache=use_prefix_cache,
        )
        self._route: Route | None = None
        self._lock = threading.Lock()

    @property
    def identity(self) -> str:
        """A name for everything a score depends on besides the request; memo keys start with it.

        Asks the server, blocking, if it was not asked before. On a stock server the name covers
        the model's name, the tokenizer and the layout, but not the weights.
        """
        return self._connected().identity

    @property
    def route(self) -> RouteName:
        """The way scores come: "plugin", "pooling" or "generate"; asks the server if need be."""
        return self._connected().name

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
            async with self._connection.state.connecting:
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
                await all_done(self._score(round_, end) for round_ in rounds.values())
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
        await self._connection.aclose()

    async def __aenter__(self) -> VllmScorer:
        await self.connect()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _connect_once(self) -> None:
        if self._route is not None:
            return
        end = time.monotonic() + self.options.deadline_s
        try:
            route = await choose_route(self._calls, self._setup, end)
        except RequestFailed as failure:
            raise ScorerError(
                f"the scoring server at {self.address} cannot be used: {failure.reason}; start one "
                "with `vprm-search serve`, and pass its address and key"
            ) from failure
        with self._lock:
            first = self._route is None  # another thread may have been faster
            self._route = self._route or route
        if first:
            _LOG.info("%s serves %s by route %s", self.address, route.model, route.name)

    async def _score(self, round_: ProblemRound, end: float) -> None:
        await self._chosen().score(round_, end)

    def _place(
        self,
        request: ScoreRequest,
        rounds: dict[tuple[str, tuple[str, ...]], ProblemRound],
    ) -> ProblemRound | str:
        """Return the round a request belongs to, or the reason why it can have no scores."""
        digests = tuple(image.digest for image in request.images)
        if digests != request.problem.images:
            return (
                f"{IMAGE_MISSING}: the problem names {len(request.problem.images)} images, the "
                f"request holds {len(digests)}, or others; pass the problem's images"
            )
        question = without_surrogates(request.problem.question)
        round_ = rounds.setdefault((question, digests), ProblemRound(question, request.images))
        if request.steps:
            round_.want(request.steps)
        return round_

    def _give_up(self, rounds: Iterable[ProblemRound]) -> None:
        limit = self.options.deadline_s
        for round_ in rounds:
            round_.fail(round_.open_paths(), f"{NO_SERVER}: no score within deadline_s={limit:g}")

    def _connected(self) -> Route:
        """Return the route, from code that cannot await: a loop of its own asks the server."""
        if self._route is None:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(asyncio.run, self._connect_in_passing()).result()
        return self._chosen()

    def _chosen(self) -> Route:
        if self._route is None:
            raise ScorerError("the scorer is not connected")
        return self._route

    async def _connect_in_passing(self) -> None:
        try:
            await self.connect()
        finally:
            await self._connection.aclose_here()

    def __repr__(self) -> str:
        return f"VllmScorer({self.address!r})"
