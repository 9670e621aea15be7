"""Step scores → path score.

VisualPRM selects by the mean (its ablation: mean 41.1, min 40.4, max 35.9 on seven benchmarks,
arXiv 2503.10291 §4.5); last and product are common inside step search.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from vprm_search.errors import ConfigError

Aggregation = Callable[[Sequence[float]], float]


def mean(scores: Sequence[float]) -> float:
    """Return the arithmetic mean of the step scores."""
    return math.fsum(scores) / len(scores)


def geometric_mean(scores: Sequence[float]) -> float:
    """Return the geometric mean; 0 if any score is 0."""
    if min(scores) <= 0.0:
        return 0.0
    return math.exp(math.fsum(map(math.log, scores)) / len(scores))


def last(scores: Sequence[float]) -> float:
    """Return the score of the last step."""
    return scores[-1]


AGGREGATIONS: Mapping[str, Aggregation] = {
    "mean": mean,
    "last": last,
    "min": min,
    "max": max,
    "product": math.prod,
    "geometric_mean": geometric_mean,
}


def aggregation(name: str) -> Aggregation:
    """Return the aggregation of that name. Raises `ConfigError` if there is none."""
    try:
        return AGGREGATIONS[name]
    except KeyError:
        known = ", ".join(AGGREGATIONS)
        raise ConfigError(f"unknown aggregation {name!r}; choose one of: {known}") from None


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
    """Aggregate the step scores of a path; None if it has no steps or one has no score."""
    known = [score for score in scores if score is not None]
    if not known or len(known) != len(scores):
        return None
    return aggregation(name)(known)
