"""Which path is the answer: argmax, majority, weighted and hybrid votes, and a knockout.

All of them vote over classes of equal answers (`answers.answer_classes`); sums are exact, ties are
broken by node id, and a path without a score never wins over one with a score. A path into which
equal siblings were merged votes for them, too: the policy wrote it that often. The default path
score of each is the mean, as VisualPRM selects (arXiv 2503.10291 §4.5).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field, field_validator

from vprm_search.aggregate import aggregation
from vprm_search.answers import answer_classes, choices_of
from vprm_search.search.stepwise import merged_into
from vprm_search.tree import SearchTree
from vprm_search.types import NodeId, NodeRecord

_SUREST = 0.99  # no path weighs more than the odds of this: it would be the only vote

Weigh = Literal["sum", "mean", "max"]
"""How the path scores of the candidates with one answer make the weight of that answer."""


@dataclass(frozen=True, slots=True)
class Ballot:
    """One candidate path as a selector sees it; `count` is how many equal samples it stands for.

    `first` is the smallest node id among them: it breaks ties the same way, merged or not.
    """

    node: NodeId
    answer: str | None
    score: float | None
    answer_class: int | None
    count: int
    first: NodeId


@dataclass(frozen=True, slots=True)
class Selection:
    """The chosen path and the votes of each candidate's answer class, by node id."""

    node: NodeId | None
    votes: dict[NodeId, float]


@runtime_checkable
class Selector(Protocol):
    """A rule that chooses among the candidates of a tree; a pure function.

    A selector that can choose without any score may say so with an attribute
    `needs_scores = False`.
    """

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
    classes = answer_classes([r.answer for r in ordered], choices=choices_of(tree.problem))
    ballots = []
    for record, group in zip(ordered, classes, strict=True):
        samples = [record.id, *merged_into(tree, record)]
        score = tree.path_score(record.id, aggregate)
        ballots.append(Ballot(record.id, record.answer, score, group, len(samples), min(samples)))
    return ballots


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
    classes go to the one with the better best path, then to the best path with the smallest id.
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
    """Return the key that sorts classes from the winner down: votes, best score, first sample."""
    members = [b for b in ballots if b.answer_class == group]
    top = max((b.score for b in members if b.score is not None), default=-1.0)
    first = min(b.first for b in members if top < 0 or b.score == top)
    return (-votes[group], -top, first)


def best_of_class(ballots: Sequence[Ballot], group: int) -> NodeId:
    """Return the path that speaks for a class: its best one, or the smallest id without scores."""
    members = [b for b in ballots if b.answer_class == group]
    return best_ballot(members) or min(b.node for b in members)


# --- the selectors -------------------------------------------------------------------------------


class Voting(BaseModel):
    """What all selectors share: the aggregation that makes a path's score."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    needs_scores: ClassVar[bool] = True

    aggregate: str = "mean"

    @field_validator("aggregate")
    @classmethod
    def _known(cls, name: str) -> str:
        aggregation(name)
        return name

    def _ballots(self, tree: SearchTree, candidates: Sequence[NodeRecord]) -> list[Ballot]:
        return read_ballots(tree, candidates, self.aggregate)


class BestScore(Voting):
    """Naive argmax: the path with the highest path score.

    This is best-of-N as VisualPRM reports it (mean of the step scores, arXiv 2503.10291 §4).

    Args:
        aggregate: name of the aggregation that makes a path's score of its step scores. Default:
            "mean".
    """

    def select(self, tree: SearchTree, candidates: Sequence[NodeRecord]) -> Selection:
        """Choose the candidate with the highest path score, among those with an answer if any."""
        ballots = self._ballots(tree, candidates)
        scores = {b.node: b.score for b in ballots if b.score is not None}
        answered = best_ballot([b for b in ballots if b.answer is not None])
        return Selection(answered or best_ballot(ballots), scores)


class MajorityVote(Voting):
    """Self-consistency: the answer given most often; the scores only break ties.

    Wang et al., arXiv 2203.11171. Works without any scorer.

    Args:
        aggregate: name of the aggregation whose path score breaks ties. Default: "mean".
    """

    needs_scores: ClassVar[bool] = False

    def select(self, tree: SearchTree, candidates: Sequence[NodeRecord]) -> Selection:
        """Choose the most frequent answer, and in its class the best-scored path."""
        ballots = self._ballots(tree, candidates)
        return elect(ballots, tally(ballots, lambda members: float(voices(members))))


class WeightedVote(Voting):
    """The answer whose paths have the largest sum of path scores; unscored paths weigh nothing.

    Li et al., arXiv 2206.02336 (weighted voting by a step-aware verifier). `weigh="max"` takes the
    answer of the best path, `weigh="mean"` the answer whose paths are best on average: how often
    an answer was given then counts for nothing. A path weighs its last score: means of good and bad
    paths differ too little to outweigh a frequent wrong answer (docs/selection.md).

    Args:
        aggregate: name of the aggregation that makes a path's score. Default: "last".
        weigh: how the path scores of an answer make its weight: "sum", "mean" or "max". Default:
            "sum".
        weight: what a path with the score p weighs: p ("probability") or p / (1 - p), at most 99
            ("odds"), which tells paths apart where all scores are high. Default: "probability".
    """

    aggregate: str = "last"
    weigh: Weigh = "sum"
    weight: Literal["probability", "odds"] = "probability"

    def select(self, tree: SearchTree, candidates: Sequence[NodeRecord]) -> Selection:
        """Choose the answer of the largest weight, and in its class the best path."""
        scored = [b for b in self._ballots(tree, candidates) if b.score is not None]
        weighed = scored if self.weight == "probability" else [_odds(b) for b in scored]
        return elect(scored, tally(weighed, lambda members: class_score(members, self.weigh)))


def _odds(ballot: Ballot) -> Ballot:
    score = min(ballot.score or 0.0, _SUREST)
    return replace(ballot, score=score / (1 - score))


class HybridVote(Voting):
    """Agreement and score together: agreement^a * score^(1 - a), with a = `agreement`.

    The agreement of an answer is the share of all candidates with an answer that give it (those
    without a score agree, too); its score is the best path score among them (`weigh="max"`) or
    their mean. `agreement=0` is a weighted vote by that score alone and `agreement=1` the majority
    among answers with a scored path. With `weigh="mean"` and `agreement=0.5` the answers rank as
    in `WeightedVote` when every path has a score. The product is a logarithmic opinion pool of two
    judges (Genest & Zidek, Statistical Science 1(1), 1986).

    Args:
        aggregate: name of the aggregation that makes a path's score. Default: "last".
        agreement: the exponent of the agreement, in [0, 1]; the rest is that of the score. Default:
            0.5.
        weigh: how the path scores of an answer make its score: "max" or "mean". Default: "max".
    """

    aggregate: str = "last"
    agreement: float = Field(default=0.5, ge=0, le=1)
    weigh: Weigh = Field(default="max")

    @field_validator("weigh")
    @classmethod
    def _no_sum(cls, weigh: Weigh) -> Weigh:
        if weigh == "sum":
            raise ValueError(
                "a sum counts the agreement a second time; use 'max' or 'mean', or WeightedVote"
            )
        return weigh

    def select(self, tree: SearchTree, candidates: Sequence[NodeRecord]) -> Selection:
        """Choose the answer of the largest product, and in its class the best path."""
        ballots = self._ballots(tree, candidates)
        scored = [ballot for ballot in ballots if ballot.score is not None]
        given = {group: voices(members) for group, members in by_class(ballots).items()}
        whole = sum(given.values())

        def pooled(members: Sequence[Ballot]) -> float:
            share = given[members[0].answer_class or 0] / whole
            score = class_score(members, self.weigh)
            return float(share**self.agreement * score ** (1 - self.agreement))

        return elect(scored, tally(scored, pooled))


class Knockout(Voting):
    """A single-elimination tournament between answers, each pair judged by a jury.

    Chen et al., arXiv 2411.19477 §2: candidates meet in pairs, every pair is compared K times, and
    the majority of the comparisons sends one of them on until one is left. There a language model
    compares; here the K comparisons are K readings of the same step scores, one per aggregation in
    `jury`, so that an answer which one aggregation happens to love must also convince the others.

    Precisely: the contestants are the classes of equal answers with a scored path. A juror prefers
    the class with the larger weight (`weigh` of the path scores under the juror's aggregation, as
    in `WeightedVote`). The class most jurors prefer wins the duel; if as many prefer the one as
    the other, the better seeded wins. Seeds are the ranks under `aggregate`, and in every round
    the best meets the worst, so the bracket does not depend on the order of the candidates. A
    class that wins against every other one always wins the tournament; with `aggregate` as the
    only juror this is `WeightedVote`.

    Args:
        aggregate: name of the aggregation that seeds the answers and breaks ties. Default: "mean".
        jury: names of the aggregations that compare each pair, each one juror. Default: "mean",
            "min", "last".
        weigh: how the path scores of an answer make its weight: "sum", "mean" or "max". Default:
            "sum".
    """

    jury: tuple[str, ...] = Field(default=("mean", "min", "last"), min_length=1)
    weigh: Weigh = "sum"

    @field_validator("jury")
    @classmethod
    def _jurors_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            aggregation(name)
        if len(set(names)) < len(names):
            raise ValueError("an aggregation sits in the jury twice")
        return names

    def select(self, tree: SearchTree, candidates: Sequence[NodeRecord]) -> Selection:
        """Choose the answer that wins the tournament, and in its class the best path."""
        scored = [b for b in self._ballots(tree, candidates) if b.score is not None]
        votes = self._votes(scored)
        if not votes:
            return Selection(best_ballot(scored), {})
        juries = [self._votes(self._seen_by(name, tree, scored)) for name in self.jury]
        seeded = sorted(votes, key=lambda group: class_rank(scored, votes, group))
        winner = tournament(
            len(seeded), lambda better, worse: _upset(juries, seeded[better], seeded[worse])
        )
        return Selection(best_of_class(scored, seeded[winner]), by_node(scored, votes))

    def _votes(self, ballots: Sequence[Ballot]) -> dict[int, float]:
        return tally(ballots, lambda members: class_score(members, self.weigh))

    def _seen_by(self, name: str, tree: SearchTree, scored: Sequence[Ballot]) -> list[Ballot]:
        """Return the same ballots scored by one juror; the answer classes stay as they are."""
        if name == self.aggregate:
            return list(scored)
        again = read_ballots(tree, [tree[ballot.node] for ballot in scored], name)
        return [replace(old, score=new.score) for old, new in zip(scored, again, strict=True)]


def tournament(contestants: int, upset: Callable[[int, int], bool]) -> int:
    """Return the seed (0 the best) that wins a single-elimination bracket.

    In each round the best meets the worst, the second best the second worst, and so on; with an
    odd number the one in the middle goes on unopposed. `upset(better, worse)` tells whether the
    worse seeded one wins.
    """
    field = list(range(contestants))
    while len(field) > 1:
        half = len(field) // 2
        pairs = zip(field[:half], reversed(field), strict=False)
        winners = [worse if upset(better, worse) else better for better, worse in pairs]
        field = sorted(winners + field[half : len(field) - half])
    return field[0]


def _upset(juries: Sequence[Mapping[int, float]], better: int, worse: int) -> bool:
    for_worse = sum(votes[worse] > votes[better] for votes in juries)
    return for_worse > sum(votes[better] > votes[worse] for votes in juries)
