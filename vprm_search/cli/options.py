"""Options that several commands share, and what they stand for."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from pydantic import ValidationError

from vprm_search.errors import ConfigError
from vprm_search.search import BeamSearch, BestOfN, BestScore, MajorityVote, Selector, WeightedVote

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vprm_search.search import Strategy
    from vprm_search.types import ImageData

T = TypeVar("T")


class StrategyName(StrEnum):
    """Strategies by name."""

    beam = "beam"
    best_of_n = "best-of-n"


class SelectorName(StrEnum):
    """Selectors by name."""

    weighted_vote = "weighted-vote"
    best_score = "best-score"
    majority = "majority"


class ContinuationName(StrEnum):
    """Ways to continue a partial answer by name."""

    auto = "auto"
    prefill = "prefill"
    instruct = "instruct"


_SELECTORS: dict[SelectorName, Callable[..., Selector]] = {
    SelectorName.weighted_vote: WeightedVote,
    SelectorName.best_score: BestScore,
    SelectorName.majority: MajorityVote,
}

Images = Annotated[
    list[Path],
    typer.Option("--image", metavar="FILE", help="PNG, JPEG or WEBP of the problem; repeatable."),
]
Question = Annotated[str, typer.Option("--question", "-q", help="What is asked.")]
Scorer = Annotated[
    str, typer.Option(metavar="tiny|PATH", help="Reward model: the packaged one or a folder.")
]
Device = Annotated[str, typer.Option(help="Where the reward model runs: auto, cpu, cuda, cuda:1.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def strategy_of(name: StrategyName, given: dict[str, Any]) -> Strategy:
    """Return a strategy from the options given for it; `None` means not given.

    Raises `ConfigError` for an option of the other strategy or a value out of range.
    """
    options = {key: value for key, value in given.items() if value is not None}
    own = BestOfN.model_fields if name is StrategyName.best_of_n else BeamSearch.model_fields
    foreign = sorted(set(options) - set(own))
    if foreign:
        shown = ", ".join(f"--{key.replace('_', '-')}" for key in foreign)
        raise ConfigError(f"{shown} is no option of --strategy {name.value}")
    if name is StrategyName.best_of_n:
        return checked(BestOfN, options)
    return checked(BeamSearch, options)


def selector_of(name: SelectorName, aggregate: str) -> Selector:
    """Return a selector. Raises `ConfigError` for an unknown aggregation."""
    return checked(_SELECTORS[name], {"aggregate": aggregate})


def checked(kind: Callable[..., T], options: dict[str, Any]) -> T:
    """Make a configuration; pydantic's report becomes a one-line `ConfigError`."""
    try:
        return kind(**options)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]).replace("_", "-")
        raise ConfigError(f"--{name} {first['input']!r}: {first['msg']}") from error


def read_images(paths: Sequence[Path]) -> tuple[ImageData, ...]:
    """Read and normalise image files. Raises `ImageError`."""
    from vprm_search.images import normalise_image

    return tuple(normalise_image(path) for path in paths)
