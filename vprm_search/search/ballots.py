"""Counting votes: candidate paths as ballots, and the election of a class of equal answers.

What every selector shares: answers are compared by class (`answers.answer_classes`), sums are
exact, ties are broken by node id, and a path without a score never wins over one with a score. A
path into which equal siblings were merged votes for them, too: the policy wrote it that often.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from vprm_search.answers import answer_classes
from vprm_search.search.siblings import merged_count
from vprm_search.tree import SearchTree
from vprm_search.types import NodeId, NodeRecord

Weigh = Literal["sum", "mean", "max"]
"""How the path scores of the candidates with one answer make the weight of that answer."""


@dataclass(frozen=True, slots=True)
class Ballot:
    """One candidate path as a selector sees it; `count` is how many equal samples it stands for."""

    node: NodeId
    answer: str | None
    score: float | None
    answer_class: int | None
    count: int = 1


@dataclass(frozen=True, slots=True)
class Selection:
    """The chosen path and the votes of each candidate's answer class, by node id."""

    node: NodeId | None
    votes: dict[NodeId, float]


@runtime_checkable
class Selector(Protocol):
    """A rule that chooses among the candidates of a tree; a pure function."""

    @property
    def aggregate(self) -> str:
        """The name of the aggregation that makes a path's score."""
        ...

    def select(self, tree: SearchTree, candidates: Sequence[NodeRecord]) -> Selection:
        """Choose one of `candidates` (finished paths, or truncated ones as a fallback)."""
        ...


def read_ballots(
    tree: SearchTree, candidates: Sequence[NodeRecord], aggregate: str
) -> list[Ballot]:
    """Return the candidates as ballots, by node id, so that their order never matters."""
    ordered = sorted(candidates, key=lambda record: record.id)
    classes = answer_classes([record.answer for record in ordered])
    return [
        Ballot(
            record.id,
            record.answer,
            tree.path_score(record.id, aggregate),
            group,
            1 + merged_count(tree, record),
        )
        for record, group in zip(ordered, classes, strict=True)
    ]


def best_ballot(ballots: Sequence[Ballot]) -> NodeId | None:
    """Return the node of the highest score, the smallest id on ties; None if none has a score."""
    scored = [(-b.score, b.node) for b in ballots if b.score is not None]
    return min(scored)[1] if scored else None


def by_class(ballots: Sequence[Ballot]) -> dict[int, list[Ballot]]:
    """Return the ballots with an answer by their answer class."""
    groups: dict[int, list[Ballot]] = {}
    for ballot in ballots:
        if ballot.answer_class is not None:
            groups.setdefault(ballot.answer_class, []).append(ballot)
    return groups


def tally(
    ballots: Sequence[Ballot], value: Callable[[Sequence[Ballot]], float]
) -> dict[int, float]:
    """Return the votes of every answer class: `value` of its ballots."""
    return {group: value(members) for group, members in by_class(ballots).items()}


def class_score(members: Sequence[Ballot], weigh: Weigh) -> float:
    """Return the sum, mean or maximum of the path scores of `members`; 0 if none has a score."""
    scores = [(ballot.score, ballot.count) for ballot in members if ballot.score is not None]
    if not scores:
        return 0.0
    if weigh == "max":
        return max(score for score, _ in scores)
    # An exact sum: the same scores in another order must tie, not differ in the last bit.
    total = math.fsum(score for score, count in scores for _ in range(count))
    return total if weigh == "sum" else total / voices([b for b in members if b.score is not None])


def voices(members: Sequence[Ballot]) -> int:
    """Return how many samples the ballots stand for."""
    return sum(ballot.count for ballot in members)


def elect(ballots: Sequence[Ballot], votes: Mapping[int, float]) -> Selection:
    """Take the class with the most votes, and in it the path of the highest score.

    A class without any scored path wins only if no path with an answer has a score. Ties between
    classes go to the one with the better best path, then to the smallest node id.
    """
    chosen = by_node(ballots, votes)
    if not votes:
        return Selection(best_ballot(ballots), chosen)
    group = min(standing(ballots, votes), key=lambda g: class_rank(ballots, votes, g))
    return Selection(best_of_class(ballots, group), chosen)


def by_node(ballots: Sequence[Ballot], votes: Mapping[int, float]) -> dict[NodeId, float]:
    """Return the votes of each candidate's class, by node id."""
    return {b.node: votes[b.answer_class] for b in ballots if b.answer_class is not None}


def standing(ballots: Sequence[Ballot], votes: Mapping[int, float]) -> list[int]:
    """Return the classes that may win: those with a scored path, or all if none has one."""
    known = {b.answer_class for b in ballots if b.score is not None}
    return [group for group in votes if group in known] or list(votes)


def class_rank(
    ballots: Sequence[Ballot], votes: Mapping[int, float], group: int
) -> tuple[float, float, NodeId]:
    """Return the key that sorts classes from the winner down: votes, best path, node id."""
    members = [b for b in ballots if b.answer_class == group]
    top = max((b.score for b in members if b.score is not None), default=-1.0)
    return (-votes[group], -top, min(b.node for b in members))


def best_of_class(ballots: Sequence[Ballot], group: int) -> NodeId:
    """Return the path that speaks for a class: its best one, or the smallest id without scores."""
    members = [b for b in ballots if b.answer_class == group]
    return best_ballot(members) or min(b.node for b in members)
