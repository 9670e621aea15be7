"""Which path is the answer: argmax, majority, or a vote weighted by the scores.

All of them vote over classes of equal answers (`answers.answer_classes`), break ties by node id,
and never let a path without a score win over one with a score.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, field_validator

from vprm_search.aggregate import aggregation
from vprm_search.answers import answer_classes
from vprm_search.tree import SearchTree
from vprm_search.types import NodeId, NodeRecord

AnswerClasses = Callable[[Sequence[str | None]], list[int | None]]


@dataclass(frozen=True, slots=True)
class Ballot:
    """One candidate path as a selector sees it."""

    node: NodeId
    answer: str | None
    score: float | None
    answer_class: int | None


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


class _Voting(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    aggregate: str = "mean"

    @field_validator("aggregate")
    @classmethod
    def _known(cls, name: str) -> str:
        aggregation(name)
        return name

    def _ballots(self, tree: SearchTree, candidates: Sequence[NodeRecord]) -> list[Ballot]:
        ordered = sorted(candidates, key=lambda record: record.id)
        classes = answer_classes([record.answer for record in ordered])
        return [
            Ballot(record.id, record.answer, tree.path_score(record.id, self.aggregate), group)
            for record, group in zip(ordered, classes, strict=True)
        ]


def _best(ballots: Sequence[Ballot]) -> NodeId | None:
    """Return the node of the highest score, the smallest id on ties; None if none has a score."""
    scored = [(-b.score, b.node) for b in ballots if b.score is not None]
    return min(scored)[1] if scored else None


def _tally(ballots: Sequence[Ballot], weight: Callable[[Ballot], float]) -> dict[int, float]:
    weights: dict[int, list[float]] = {}
    for ballot in ballots:
        if ballot.answer_class is not None:
            weights.setdefault(ballot.answer_class, []).append(weight(ballot))
    # An exact sum: the same scores in another order must tie, not differ in the last bit.
    return {group: math.fsum(parts) for group, parts in weights.items()}


def _elect(ballots: Sequence[Ballot], votes: dict[int, float]) -> Selection:
    """Take the class with the most votes, and in it the path of the highest score.

    A class without any scored path wins only if no path with an answer has a score.
    """
    by_node = {b.node: votes[b.answer_class] for b in ballots if b.answer_class is not None}

    def rank(group: int) -> tuple[float, float, NodeId]:
        members = [b for b in ballots if b.answer_class == group]
        top = max((b.score for b in members if b.score is not None), default=-1.0)
        return (-votes[group], -top, min(b.node for b in members))

    if not votes:
        return Selection(_best(ballots), by_node)
    known = {b.answer_class for b in ballots if b.score is not None}
    group = min([group for group in votes if group in known] or votes, key=rank)
    members = [b for b in ballots if b.answer_class == group]
    return Selection(_best(members) or min(b.node for b in members), by_node)


class BestScore(_Voting):
    """Naive argmax: the path with the highest path score.

    This is best-of-N as VisualPRM reports it (mean of the step scores, arXiv 2503.10291 §4).
    """

    def select(self, tree: SearchTree, candidates: Sequence[NodeRecord]) -> Selection:
        """Choose the candidate with the highest path score."""
        ballots = self._ballots(tree, candidates)
        return Selection(_best(ballots), {b.node: b.score for b in ballots if b.score is not None})


class MajorityVote(_Voting):
    """Self-consistency: the answer given most often; the scores only break ties.

    Wang et al., arXiv 2203.11171. Works without any scorer.
    """

    def select(self, tree: SearchTree, candidates: Sequence[NodeRecord]) -> Selection:
        """Choose the most frequent answer, and in its class the best-scored path."""
        ballots = self._ballots(tree, candidates)
        return _elect(ballots, _tally(ballots, lambda _: 1.0))


class WeightedVote(_Voting):
    """The answer whose paths have the largest sum of path scores; unscored paths weigh nothing.

    Li et al., arXiv 2206.02336 (weighted voting by a step-aware verifier).
    """

    def select(self, tree: SearchTree, candidates: Sequence[NodeRecord]) -> Selection:
        """Choose the answer with the largest sum of scores, and in its class the best path."""
        ballots = self._ballots(tree, candidates)
        scored = [ballot for ballot in ballots if ballot.score is not None]
        return _elect(scored, _tally(scored, lambda ballot: ballot.score or 0.0))
