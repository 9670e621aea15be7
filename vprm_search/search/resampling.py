"""Dividing slots by weight: effective sample size, systematic resampling, apportionment."""

from __future__ import annotations

import math
from collections.abc import Sequence


def effective_sample_size(weights: Sequence[float], counts: Sequence[int] | None = None) -> float:
    """Return (Σ w)² / Σ w², the number of equal particles worth as much as these.

    `counts[i]` particles have the weight `weights[i]` each (default: one). 0 if all weights are
    0. Kong, Liu and Wong, JASA 89 (1994).
    """
    many = [1] * len(weights) if counts is None else counts
    total = math.fsum(c * w for w, c in zip(weights, many, strict=True))
    squares = math.fsum(c * w * w for w, c in zip(weights, many, strict=True))
    return total * total / squares if squares > 0.0 else 0.0


def systematic_counts(weights: Sequence[float], slots: int, u: float) -> list[int]:
    """Return how many of `slots` each weight gets: slots * share, rounded up or down.

    One draw `u` in [0, 1) places a comb of `slots` equally spaced teeth over the cumulated
    weights, so each expectation is exactly slots * share. Kitagawa, J. Comput. Graph. Stat. 5
    (1996). All zeros if all weights are 0.
    """
    total = math.fsum(weights)
    if total <= 0.0:
        return [0] * len(weights)
    last = max(i for i, weight in enumerate(weights) if weight > 0.0)
    counts = []
    reached, passed = 0.0, 0
    for place, weight in enumerate(weights):
        reached += weight
        teeth = slots if place >= last else _teeth_below(reached / total * slots, u, slots)
        counts.append(max(0, teeth - passed))
        passed = max(passed, teeth)
    return counts


def _teeth_below(position: float, u: float, slots: int) -> int:
    """Return how many of the teeth u, u + 1, … are below `position`."""
    return max(0, min(slots, math.ceil(position - u)))


def largest_remainders(weights: Sequence[float], slots: int) -> list[int]:
    """Return whole numbers that sum to `slots`, each within one of slots * share.

    The largest fractions are rounded up (Hamilton's method); on ties the earlier one is. Even
    shares if all weights are 0.
    """
    if not weights:
        return []
    total = math.fsum(weights)
    shares = [slots * w / total for w in weights] if total > 0.0 else []
    if not shares:
        return even_shares(slots, len(weights))
    counts = [math.floor(share) for share in shares]
    order = sorted(range(len(shares)), key=lambda i: (counts[i] - shares[i], i))
    for place in order[: slots - sum(counts)]:
        counts[place] += 1
    return counts


def even_shares(slots: int, parts: int) -> list[int]:
    """Return `parts` whole numbers that sum to `slots` and differ by at most one."""
    return [slots // parts + (place < slots % parts) for place in range(parts)]


def softmax(scores: Sequence[float], temperature: float) -> list[float]:
    """Return exp(score / temperature), normalised to sum to 1."""
    top = max(scores)
    weights = [math.exp((score - top) / temperature) for score in scores]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def tempered(
    scores: Sequence[float], effective: float, *, low: float = 0.05, high: float = 20.0
) -> float:
    """Return the temperature at which softmax(scores) has this effective sample size.

    The size grows with the temperature, so it is found by bisection, in logarithms, to 1 part in
    10^9. The nearer limit where none between `low` and `high` has that size; scores that differ by
    less than `low` are not told apart sharply.
    """
    if effective_sample_size(softmax(scores, low)) >= effective:
        return low
    if effective_sample_size(softmax(scores, high)) <= effective:
        return high
    bottom, top = math.log(low), math.log(high)
    for _ in range(33):
        middle = (bottom + top) / 2
        if effective_sample_size(softmax(scores, math.exp(middle))) < effective:
            bottom = middle
        else:
            top = middle
    return math.exp(top)
