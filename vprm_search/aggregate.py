"""Step scores → path score: aggregations by name, and a place for your own.

VisualPRM selects by the mean (its ablation: mean 41.1, min 40.4, max 35.9 on seven benchmarks,
arXiv 2503.10291 §4.5); last and product are common inside step search. A name is stored with every
path score it made, so one name always means one function; the parameters of the length-aware
aggregations are part of the name ("length_product:0.5").
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType

from vprm_search.errors import ConfigError

Aggregation = Callable[[Sequence[float]], float]
"""From the scores of a path's steps (at least one, each in [0, 1]) to a number in [0, 1]."""


def mean(scores: Sequence[float]) -> float:
    """Return the arithmetic mean of the step scores."""
    return math.fsum(scores) / len(scores)


def geometric_mean(scores: Sequence[float]) -> float:
    """Return the geometric mean; 0 if any score is 0."""
    return length_product(scores, 1.0)


def last(scores: Sequence[float]) -> float:
    """Return the score of the last step."""
    return scores[-1]


# --- length-aware ------------------------------------------------------------------------------


def length_product(scores: Sequence[float], alpha: float) -> float:
    """Return product^(1 / n^alpha) for n steps; 0 if any score is 0.

    The product punishes every further step and so favours short paths; `alpha` takes that back:
    0 is the product, 1 the geometric mean. The log-probability divided by length^alpha is the
    length penalty of machine translation (Wu et al., arXiv 1609.08144 §7, where alpha between 0.6
    and 0.7 did best).
    """
    if min(scores) <= 0.0:
        return 0.0
    return math.exp(math.fsum(map(math.log, scores)) / len(scores) ** alpha)


def prior_mean(scores: Sequence[float], prior: float, weight: float) -> float:
    """Return the mean of the scores and of `weight` further steps that would score `prior`.

    A short path has to earn its mean: it is drawn towards the prior more than a long one. With the
    scores read as shares of right steps it is the posterior mean under a
    Beta(weight * prior, weight * (1 - prior)) prior (Gelman et al., Bayesian Data Analysis, §2.4).
    """
    return (math.fsum(scores) + weight * prior) / (len(scores) + weight)


# --- by name -----------------------------------------------------------------------------------

_BUILT_IN: dict[str, Aggregation] = {
    "mean": mean,
    "last": last,
    "min": min,
    "max": max,
    "product": math.prod,
    "geometric_mean": geometric_mean,
}
AGGREGATIONS: Mapping[str, Aggregation] = MappingProxyType(_BUILT_IN)
"""The aggregations without parameters, by name."""

LENGTH_AWARE: Mapping[str, str] = MappingProxyType(
    {
        "length_product:ALPHA": "product^(1 / steps^ALPHA), ALPHA in [0, 1]",
        "prior_mean:PRIOR,STEPS": "mean with STEPS further steps of score PRIOR",
    }
)
"""The aggregations with parameters: how their names are written, and what they mean."""

_registered: dict[str, Aggregation] = {}
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_NUMBER = r"([0-9]{1,4}(?:\.[0-9]{1,6})?)"
_LENGTH_PRODUCT = re.compile(rf"length_product:{_NUMBER}")
_PRIOR_MEAN = re.compile(rf"prior_mean:{_NUMBER},{_NUMBER}")


def register_aggregation(name: str, function: Aggregation) -> Aggregation:
    """Make `function` known under `name` in this process, and return it.

    It must be pure, and should never rise when a score falls: that is what keeps a repeated step
    from raising a path. Register it before a search, and again in every process that resumes one.
    Registering an equal one again changes nothing.

    Raises:
        ConfigError: the name is not of lower-case letters, digits and "_", or is taken.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot name an aggregation; use lower-case letters, digits and '_'"
        )
    known = _BUILT_IN.get(name) or _registered.get(name)
    if (known is not None and known != function) or name in ("length_product", "prior_mean"):
        raise ConfigError(
            f"an aggregation {name!r} is there already; path scores are stored under the name, so "
            "choose another one"
        )
    _registered[name] = function
    return function


def aggregation(name: str) -> Aggregation:
    """Return the aggregation of that name. Raises `ConfigError` if there is none."""
    known = _BUILT_IN.get(name) or _registered.get(name) or _length_aware(name)
    if known is None:
        names = ", ".join([*_BUILT_IN, *LENGTH_AWARE, *_registered])
        raise ConfigError(
            f"unknown aggregation {name!r}; choose one of: {names}; or give your own a name with "
            "register_aggregation"
        )
    return known


@lru_cache(maxsize=256)
def _length_aware(name: str) -> Aggregation | None:
    if match := _LENGTH_PRODUCT.fullmatch(name):
        alpha = float(match[1])
        if alpha > 1:
            raise ConfigError(f"{name}: ALPHA is {alpha}; it must be between 0 and 1")
        return lambda scores: length_product(scores, alpha)
    if match := _PRIOR_MEAN.fullmatch(name):
        prior, weight = float(match[1]), float(match[2])
        if prior > 1:
            raise ConfigError(f"{name}: PRIOR is {prior}; it must be between 0 and 1")
        return lambda scores: prior_mean(scores, prior, weight)
    return None


# --- paths -------------------------------------------------------------------------------------


def counted_scores(
    steps: Sequence[str], scores: Sequence[float | None]
) -> tuple[float | None, ...]:
    """Return the scores that count: a step repeated word for word counts once.

    It counts where it first stands, with the lowest score of its repeats (None if one of them has
    none), so that no aggregation can be raised by saying the same thing again.
    """
    counted: dict[str, float | None] = {}
    for text, score in zip(steps, scores, strict=True):
        known = counted.get(text, score)
        counted[text] = None if score is None or known is None else min(known, score)
    return tuple(counted.values())


def path_score(name: str, scores: Sequence[float | None]) -> float | None:
    """Aggregate the step scores of a path; None if it has no steps or one has no score.

    Raises what `aggregated` raises.
    """
    known = [score for score in scores if score is not None]
    return aggregated(name, known) if known and len(known) == len(scores) else None


def aggregated(name: str, scores: Sequence[float]) -> float:
    """Aggregate the step scores of a path, at least one.

    Raises `ConfigError` for an unknown name, or if an aggregation of your own returns anything
    but a number in [0, 1].
    """
    return _checked(name, (_BUILT_IN.get(name) or aggregation(name))(scores), len(scores))


def _checked(name: str, value: float, steps: int) -> float:
    if not 0.0 <= value <= 1.0:  # a NaN fails this test, too
        raise ConfigError(
            f"aggregation {name!r} made {value!r} of {steps} step scores; a path score must be "
            "between 0 and 1"
        )
    return float(value)


class ScoresAbove:
    """The scores of the steps above some siblings, put together once for all of them.

    What one more step makes of them is to the bit what `aggregated` makes of all; by a built-in
    name without parameters it costs the same at any depth.

    Args:
        scores: the step scores from the first step on, each in [0, 1]; maybe none.
    """

    __slots__ = ("_parts", "_scores")

    def __init__(self, scores: Sequence[float]) -> None:
        self._scores = scores
        self._parts: dict[str, tuple[float, ...]] = {}

    def then(self, name: str, score: float) -> float:
        """Return the path score with one more step. Raises what `aggregated` raises."""
        if name not in _BY_PARTS or not self._scores:
            return aggregated(name, [*self._scores, score])
        parts = self._parts.get(name)
        if parts is None:
            parts = self._parts[name] = _exact_parts(name, self._scores)
        count, scores = len(self._scores) + 1, (*parts, score)
        value = math.fsum(scores) / count if name == "mean" else _BUILT_IN[name](scores)
        return _checked(name, value, count)


_BY_PARTS = ("mean", "last", "min", "max", "product")


def _exact_parts(name: str, scores: Sequence[float]) -> tuple[float, ...]:
    """Return a few numbers of which an aggregation makes what it makes of `scores`.

    For the mean they have the same exact sum; `math.fsum` rounds once, so more may be added.
    """
    if name != "mean":
        return (_BUILT_IN[name](scores),)
    parts: list[float] = []
    while part := math.fsum([*scores, *(-known for known in parts)]):
        parts.append(part)
    return tuple(parts)
