"""What can be compared: strategies by name, each made for a size N, and the rules that choose.

At size N a strategy is set so that it proposes about N children per level, which costs about as
many tokens as N whole solutions; the budget sees to the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, ValidationError

from vprm_search.errors import ConfigError
from vprm_search.search import (
    DVTS,
    MCTS,
    REBASE,
    AutoSearch,
    BeamSearch,
    BestFirst,
    BestOfN,
    BestScore,
    Cascade,
    HybridVote,
    Knockout,
    Lookahead,
    MajorityVote,
    ParticleFilter,
    Selector,
    Strategy,
    WeightedVote,
)

REFERENCE = "best-of-n"
"""The entrant whose tokens are everybody's budget."""

SEARCH_CHOICES = ("best-score:product", "weighted-vote:last", "weighted-vote:product")
SAMPLE_CHOICES = (
    "majority",
    "best-score:mean",
    "best-score:product",
    "weighted-vote:mean",
    "weighted-vote:product",
    "hybrid:product",
    "knockout:product",
)


@dataclass(frozen=True, slots=True)
class Entrant:
    """A strategy under a name. `make` returns it for a size; `choices` are its selectors."""

    name: str
    make: Callable[[int], Strategy]
    choices: tuple[str, ...] = SEARCH_CHOICES


def expand_of(size: int) -> int:
    """Return the children per path at a size: 4, as in the sources of beam and DVTS, or 2."""
    return 4 if size >= 8 else 2


def _width(size: int) -> int:
    return max(1, size // expand_of(size))


def _beam(size: int, **options: Any) -> BeamSearch:
    return BeamSearch(width=_width(size), expand=expand_of(size), stop=None, **options)


def _dvts(size: int, **options: Any) -> Strategy:
    return DVTS(subtrees=_width(size), expand=expand_of(size), stop=None, **options)


def _adaptive(size: int) -> Strategy:
    return BestOfN(n=size, confidence=0.95, min_n=min(4, size), wave=max(1, min(4, size // 4)))


def _mcts(size: int) -> Strategy:
    wide = expand_of(size)
    return MCTS(simulations=4 * size, batch=_width(size), expand=wide, root_expand=2 * wide)


def _lookahead(size: int) -> Strategy:
    return Lookahead(strategy=_beam(max(2, size // 2)), steps=1)


def _best_first(size: int) -> Strategy:
    width = _width(size)
    return BestFirst(batch=width, expand=expand_of(size), expansions=128 * width, stop=size)


_LIST = (
    Entrant(REFERENCE, lambda size: BestOfN(n=size), SAMPLE_CHOICES),
    Entrant("auto", lambda size: AutoSearch(n=size), (*SEARCH_CHOICES, "odds-vote:product")),
    Entrant("adaptive-best-of-n", _adaptive, SAMPLE_CHOICES),
    Entrant("beam", _beam),
    Entrant("beam-last", lambda size: _beam(size, aggregate="last")),
    Entrant("beam-product", lambda size: _beam(size, aggregate="product")),
    Entrant("beam-annealed", lambda size: _beam(size, anneal=max(1, _width(size) // 8))),
    Entrant("dvts", _dvts),
    Entrant("dvts-last", lambda size: _dvts(size, aggregate="last")),
    Entrant("rebase", lambda size: REBASE(width=size)),
    Entrant("rebase-paper", lambda size: REBASE(width=size, temperature=0.2)),
    Entrant("rebase-product", lambda size: REBASE(width=size, aggregate="product")),
    Entrant("particles", lambda size: ParticleFilter(particles=size)),
    Entrant(
        "particles-half",
        lambda size: ParticleFilter(particles=size, ess_threshold=0.5),
    ),
    Entrant("lookahead-beam", _lookahead),
    Entrant("cascade-beam", lambda size: Cascade(strategy=_beam(size))),
    Entrant("mcts", _mcts),
    Entrant("best-first", _best_first),
)
ENTRANTS: Mapping[str, Entrant] = MappingProxyType({entrant.name: entrant for entrant in _LIST})
"""The entrants by name."""

DEFAULT_ENTRANTS = (
    REFERENCE,
    "auto",
    "adaptive-best-of-n",
    "beam",
    "beam-last",
    "dvts",
    "rebase",
    "particles",
    "lookahead-beam",
    "cascade-beam",
    "mcts",
    "best-first",
)

SELECTORS: Mapping[str, Callable[..., Selector]] = MappingProxyType(
    {
        "majority": MajorityVote,
        "best-score": BestScore,
        "weighted-vote": WeightedVote,
        "odds-vote": partial(WeightedVote, weight="odds"),
        "hybrid": HybridVote,
        "knockout": Knockout,
    }
)
"""The selectors by name."""


def entrants_of(names: Sequence[str]) -> tuple[Entrant, ...]:
    """Return entrants by name, the reference first. Raises `ConfigError` for an unknown name."""
    unknown = sorted(set(names) - set(ENTRANTS))
    if unknown:
        raise ConfigError(
            f"no strategy {', '.join(unknown)} to compare; there are: {', '.join(ENTRANTS)}"
        )
    return tuple(ENTRANTS[name] for name in dict.fromkeys((REFERENCE, *names)))


def choice_of(text: str) -> Selector:
    """Return the selector that "NAME" or "NAME:AGGREGATION" stands for. Raises `ConfigError`."""
    name, _, aggregate = text.partition(":")
    if name not in SELECTORS:
        raise ConfigError(f"no selector {name!r}; there are: {', '.join(SELECTORS)}")
    try:
        return SELECTORS[name](**({"aggregate": aggregate} if aggregate else {}))
    except ValidationError as error:
        said = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ConfigError(f"selector {text!r}: {said}") from error


def described(strategy: Strategy) -> dict[str, Any]:
    """Return a strategy's name and options as plain JSON, to tell two of them apart."""
    options = strategy.model_dump() if isinstance(strategy, BaseModel) else {}
    return {"strategy": type(strategy).__name__, **{k: _plain(v) for k, v in options.items()}}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return getattr(value, "__name__", repr(value)) if callable(value) else value
