"""Options that several commands share, and what they stand for."""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from pydantic import ValidationError

from vprm_search.errors import ConfigError
from vprm_search.search import (
    DVTS,
    MCTS,
    REBASE,
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
    WeightedVote,
)
from vprm_search.search.stepwise import StepwiseSearch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vprm_search.search import Strategy
    from vprm_search.types import ImageData, StepScorer

T = TypeVar("T")


class StrategyName(StrEnum):
    """Strategies by name."""

    beam = "beam"
    best_of_n = "best-of-n"
    dvts = "dvts"
    rebase = "rebase"
    particles = "particles"
    best_first = "best-first"
    mcts = "mcts"


class SelectorName(StrEnum):
    """Selectors by name."""

    weighted_vote = "weighted-vote"
    best_score = "best-score"
    majority = "majority"
    hybrid = "hybrid"
    knockout = "knockout"


class ContinuationName(StrEnum):
    """Ways to continue a partial answer by name."""

    auto = "auto"
    prefill = "prefill"
    instruct = "instruct"


_STRATEGIES: dict[StrategyName, type[BestOfN] | type[StepwiseSearch]] = {
    StrategyName.beam: BeamSearch,
    StrategyName.best_of_n: BestOfN,
    StrategyName.dvts: DVTS,
    StrategyName.rebase: REBASE,
    StrategyName.particles: ParticleFilter,
    StrategyName.best_first: BestFirst,
    StrategyName.mcts: MCTS,
}

_SELECTORS: dict[SelectorName, Callable[..., Selector]] = {
    SelectorName.weighted_vote: WeightedVote,
    SelectorName.best_score: BestScore,
    SelectorName.majority: MajorityVote,
    SelectorName.hybrid: HybridVote,
    SelectorName.knockout: Knockout,
}

Images = Annotated[
    list[Path],
    typer.Option("--image", metavar="FILE", help="PNG, JPEG or WEBP of the problem; repeatable."),
]
Question = Annotated[str, typer.Option("--question", "-q", help="What is asked.")]
Scorer = Annotated[
    str,
    typer.Option(
        metavar="tiny|PATH|vllm:URL",
        help="Reward model: the packaged one, a folder, or a vLLM server (vllm:http://HOST:PORT).",
    ),
]
ScorerKey = Annotated[
    str | None,
    typer.Option(
        "--scorer-api-key",
        envvar="VPRM_SEARCH_API_KEY",
        help="Key of the server behind --scorer vllm:URL.",
    ),
]
ScorerTokenizer = Annotated[
    Path | None,
    typer.Option(
        "--scorer-tokenizer",
        help="The served checkpoint's folder, for a vLLM server without the plugin.",
    ),
]
Device = Annotated[str, typer.Option(help="Where the reward model runs: auto, cpu, cuda, cuda:1.")]
CalibrationFile = Annotated[
    Path | None,
    typer.Option("--calibration", help="JSON of vprm-search calibrate: scores are mapped by it."),
]
CalibrationPolicy = Annotated[
    str | None,
    typer.Option(help="Which policy of the calibration; default: the only one there."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def strategy_of(
    name: StrategyName,
    given: dict[str, Any],
    settings: Sequence[str] = (),
    *,
    aggregate: str | None = None,
    lookahead: int | None = None,
    threshold: float | None = None,
) -> Strategy:
    """Return a strategy from the options given for it; `None` means not given.

    `settings` are further options as "NAME=VALUE", values in JSON ("particles=32"). `aggregate`
    names the path score that the strategy ranks by, if it ranks paths at all. `lookahead`
    judges steps by rollouts of so many steps, `threshold` makes a `Cascade`. Raises `ConfigError`
    for an option of another strategy or a value out of range.
    """
    kind: type[Any] = _STRATEGIES[name]
    options = {key: value for key, value in given.items() if value is not None}
    options |= dict(map(_setting, settings))
    if "pruning" in kind.model_fields:
        flags = {"below": "prune_below", "margin": "prune_margin"}
        rules = {rule: options.pop(flag) for rule, flag in flags.items() if flag in options}
        options |= {"pruning": rules} if rules else {}
    foreign = sorted(set(options) - set(kind.model_fields))
    if foreign:
        shown = ", ".join(f"--{key.replace('_', '-')}" for key in foreign)
        raise ConfigError(
            f"{shown} is no option of --strategy {name.value}; "
            f"its options are: {', '.join(kind.model_fields)}"
        )
    if kind is not BestOfN or "good_enough" in options:
        options = {"aggregate": aggregate, **options} if aggregate is not None else options
    strategy: BestOfN | StepwiseSearch = checked(kind, options)
    if lookahead is None and threshold is None:
        return strategy
    if isinstance(strategy, BestOfN):
        raise ConfigError("--lookahead and --strong need a strategy that goes step by step")
    inside = (
        strategy
        if lookahead is None
        else checked(Lookahead, {"strategy": strategy, "steps": lookahead})
    )
    if threshold is None:
        return inside
    return checked(Cascade, {"strategy": inside, "threshold": threshold})


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ConfigError(f"--set {text!r} is not NAME=VALUE")
    try:
        return name.replace("-", "_"), json.loads(value)
    except ValueError:
        return name.replace("-", "_"), value


def selector_of(name: SelectorName, aggregate: str | None) -> Selector:
    """Return a selector, by default with its own path score.

    Raises `ConfigError` for an unknown aggregation.
    """
    return checked(_SELECTORS[name], {} if aggregate is None else {"aggregate": aggregate})


def checked(kind: Callable[..., T], options: dict[str, Any]) -> T:
    """Make a configuration; pydantic's report becomes a one-line `ConfigError`."""
    try:
        return kind(**options)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        name = name.replace("pruning.", "prune_").replace("_", "-")
        where = f"--{name} {first['input']!r}: " if name else ""  # none: options that do not fit
        raise ConfigError(f"{where}{first['msg'].removeprefix('Value error, ')}") from error


def calibrated(scorer: StepScorer, file: Path | None, policy: str | None) -> StepScorer:
    """Return the scorer, wrapped in the calibration of `policy` if a file is given.

    Raises `RecordError` for a damaged file, `ConfigError` for one that does not fit.
    """
    if file is None:
        if policy is not None:
            raise ConfigError("--calibration-policy is given without --calibration")
        return scorer
    from vprm_search.scoring.wrappers import CalibratedScorer, read_calibration

    return CalibratedScorer(scorer, read_calibration(file).of(policy))


def read_images(paths: Sequence[Path]) -> tuple[ImageData, ...]:
    """Read and normalise image files. Raises `ImageError`."""
    from vprm_search.images.normalise import normalise_image

    return tuple(normalise_image(path) for path in paths)
