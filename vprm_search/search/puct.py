"""PUCT: which arm to try next, and how a value is backed up. Nothing here knows about trees.

The formula is that of AlphaZero and MuZero (Schrittwieser et al., arXiv 1911.08265, appendix B)
as DeepMind's mctx computes it, so that its recorded searches can be replayed step by step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

QTransform = Callable[[float, Sequence[float], Sequence[int]], Sequence[float]]
"""From a node's value, its arms' values and their visits to numbers comparable with the bonus.

The value of an arm that was never visited is 0 unless the caller knows better.
"""


@dataclass(slots=True)
class Stats:
    """What is known of a node: its visits and the mean of the values backed up through it.

    `pending` counts the simulations under way below it: each stands for a visit of value 0 until
    it is backed up (virtual loss; Chaslot, Winands and van den Herik, "Parallel Monte-Carlo Tree
    Search", 2008).
    """

    visits: int = 0
    value: float = 0.0
    pending: int = 0


@dataclass(frozen=True, slots=True)
class Arm:
    """One choice at a node: its prior share, its visits, and its value as seen from the node."""

    prior: float
    visits: int
    value: float


def as_is(node_value: float, values: Sequence[float], visits: Sequence[int]) -> Sequence[float]:
    """Return the values: right when they are probabilities already, unvisited arms included."""
    return values


def by_min_max(low: float, high: float) -> QTransform:
    """Return the transform that maps [low, high] to [0, 1]; an unvisited arm is worth `low`."""

    def transform(
        node_value: float, values: Sequence[float], visits: Sequence[int]
    ) -> Sequence[float]:
        seen = (q if count else low for q, count in zip(values, visits, strict=True))
        return [(q - low) / (high - low) for q in seen]

    return transform


def by_parent_and_siblings(
    node_value: float, values: Sequence[float], visits: Sequence[int]
) -> Sequence[float]:
    """Return the values over the range of the node's and its visited arms' values.

    An unvisited arm is worth the least of them.
    """
    seen = [q if count else node_value for q, count in zip(values, visits, strict=True)]
    low, high = min([node_value, *seen]), max([node_value, *seen])
    span = max(high - low, 1e-8)
    filled = (q if count else low for q, count in zip(values, visits, strict=True))
    return [(q - low) / span for q in filled]


def puct_scores(
    node: Stats, arms: Sequence[Arm], *, c_init: float, c_base: float, qtransform: QTransform
) -> list[float]:
    """Return Q(a) + P(a) · √N / (1 + n(a)) · (c_init + log((N + c_base + 1) / c_base)) per arm.

    N are the visits of the node, n(a) those of the arm.
    """
    count = node.visits + node.pending
    weight = math.sqrt(count) * (c_init + math.log((count + c_base + 1.0) / c_base))
    values = qtransform(node.value, [arm.value for arm in arms], [arm.visits for arm in arms])
    return [
        value + weight * arm.prior / (1.0 + arm.visits)
        for value, arm in zip(values, arms, strict=True)
    ]


def back_up(
    path: Sequence[Stats],
    value: float,
    rewards: Sequence[float] = (),
    discounts: Sequence[float] = (),
) -> None:
    """Count one visit for every node of a path, the last of which was found to be worth `value`.

    `rewards[i]` and `discounts[i]` belong to the edge into `path[i + 1]`; without them a node is
    worth what comes after it.
    """
    for place in range(len(path) - 1, -1, -1):
        node = path[place]
        node.value = (node.value * node.visits + value) / (node.visits + 1)
        node.visits += 1
        if place and rewards:
            value = rewards[place - 1] + discounts[place - 1] * value
