"""Which way scores come from a server: asked once, from the best route to the slowest."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from vprm_search.errors import ConfigError
from vprm_search.scoring.prompt.layout import PrmLayout
from vprm_search.scoring.vllm.calls import ServerCalls
from vprm_search.scoring.vllm.failures import RequestFailed
from vprm_search.scoring.vllm.plugin_route import PluginRoute, describe
from vprm_search.scoring.vllm.round import ProblemRound
from vprm_search.scoring.vllm.served_model import ServedModel, served_model

RouteName = Literal["plugin", "pooling", "generate"]

_NO_SUCH_ROUTE = frozenset({400, 403, 404, 405, 422, 501})


class Route(Protocol):
    """A way to score rounds on one server."""

    @property
    def name(self) -> RouteName:
        """The route's name."""
        ...

    @property
    def model(self) -> str:
        """The served model's name."""
        ...

    @property
    def identity(self) -> str:
        """A name for everything a score depends on besides the request."""
        ...

    @property
    def layout(self) -> PrmLayout | None:
        """The prompt layout in use, None where this version cannot read the server's."""
        ...

    async def score(self, round_: ProblemRound, end: float) -> None:
        """Give every path of a round its values or a reason."""
        ...


@dataclass(frozen=True, slots=True)
class RouteSetup:
    """What the user said about the server; see `VllmScorer`."""

    model: str | None = None
    tokenizer: Path | None = None
    route: RouteName | None = None
    identity: str | None = None
    layout: PrmLayout | None = None
    cache_salt: str | None = None
    use_prefix_cache: bool = True


async def choose_route(calls: ServerCalls, setup: RouteSetup, end: float) -> Route:
    """Return the first route the server offers, tried out on it.

    Raises `ConfigError` when there is none, or when the model is not the one that was named, and
    `RequestFailed` when the server gives no answer that tells.
    """
    served = await served_model(calls, setup.model, end)
    refusals: list[str] = []
    for name, opener in _OPENERS:
        if setup.route not in (None, name):
            continue
        try:
            route = await opener(calls, setup, served, end)
        except RequestFailed as failure:
            if failure.status not in _NO_SUCH_ROUTE:
                raise
            refusals.append(f"{name}: {failure.reason}")
            if name == "plugin" and setup.route is None and setup.tokenizer is None:
                refusals.append(
                    "pooling, generate: these need tokenizer=PATH, the directory of the served "
                    "checkpoint, because the prompt is then built on this side"
                )
                break
        else:
            _check_named(route, setup)
            return route
    raise ConfigError(
        f"{calls.connection.address} serves {served.name!r}, but no route to step scores works "
        f"there ({'; '.join(refusals)}); start a server with `vprm-search serve`"
    )


def _check_named(route: Route, setup: RouteSetup) -> None:
    if setup.identity is not None and route.identity != setup.identity:
        raise ConfigError(
            f"the server's model is {route.identity}, asked for was {setup.identity}; check the "
            "address, or leave identity out"
        )
    if setup.layout is not None and route.layout != setup.layout:
        raise ConfigError("the server's layout is not the one that was given; leave layout out")


async def _plugin(calls: ServerCalls, setup: RouteSetup, served: ServedModel, end: float) -> Route:
    return PluginRoute(
        calls,
        served.name,
        await describe(calls, served.name, end),
        cache_salt=setup.cache_salt,
        use_prefix_cache=setup.use_prefix_cache,
    )


async def _pooling(calls: ServerCalls, setup: RouteSetup, served: ServedModel, end: float) -> Route:
    from vprm_search.scoring.vllm.pooling_route import PoolingRoute

    route = PoolingRoute(calls, served, _tokenizer_of(setup), setup.cache_salt)
    await route.try_out(end)
    return route


async def _generate(
    calls: ServerCalls, setup: RouteSetup, served: ServedModel, end: float
) -> Route:
    from vprm_search.scoring.vllm.generate_route import GenerateRoute

    route = GenerateRoute(calls, served, _tokenizer_of(setup), setup.cache_salt)
    await route.try_out(end)
    return route


def _tokenizer_of(setup: RouteSetup) -> Path:
    if setup.tokenizer is None:
        raise ConfigError("this route needs tokenizer=PATH, the directory of the served checkpoint")
    return setup.tokenizer


Opener = Callable[[ServerCalls, RouteSetup, ServedModel, float], Awaitable[Route]]
_OPENERS: tuple[tuple[RouteName, Opener], ...] = (
    ("plugin", _plugin),
    ("pooling", _pooling),
    ("generate", _generate),
)
