"""Which path is the answer: argmax, majority, weighted and hybrid votes (`knockout` has its own).

All of them vote over classes of equal answers, break ties by node id, and never let a path without
a score win over one with a score (`ballots`). The default path score of each is the mean, as
VisualPRM selects (arXiv 2503.10291 §4.5).
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field, field_validator

from vprm_search.aggregate import aggregation
from vprm_search.search.ballots import (
    Ballot,
    Selection,
    Selector,
    Weigh,
    best_ballot,
    by_class,
    class_score,
    elect,
    read_ballots,
    tally,
    voices,
)
from vprm_search.tree import SearchTree
from vprm_search.types import NodeRecord

__all__ = [
    "BestScore",
    "HybridVote",
    "MajorityVote",
    "Selection",
    "Selector",
    "WeightedVote",
]


class Voting(BaseModel):
    """What all selectors share: the aggregation that makes a path's score."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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
    """

    def select(self, tree: SearchTree, candidates: Sequence[NodeRecord]) -> Selection:
        """Choose the candidate with the highest path score."""
        ballots = self._ballots(tree, candidates)
        scores = {b.node: b.score for b in ballots if b.score is not None}
        return Selection(best_ballot(ballots), scores)


class MajorityVote(Voting):
    """Self-consistency: the answer given most often; the scores only break ties.

    Wang et al., arXiv 2203.11171. Works without any scorer.
    """

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
    """

    aggregate: str = "last"
    weigh: Weigh = "sum"

    def select(self, tree: SearchTree, candidates: Sequence[NodeRecord]) -> Selection:
        """Choose the answer of the largest weight, and in its class the best path."""
        scored = [b for b in self._ballots(tree, candidates) if b.score is not None]
        return elect(scored, tally(scored, lambda members: class_score(members, self.weigh)))


class HybridVote(Voting):
    """Agreement and score together: agreement^a * score^(1 - a), with a = `agreement`.

    The agreement of an answer is the share of all candidates with an answer that give it (those
    without a score agree, too); its score is the best path score among them (`weigh="max"`) or
    their mean. `agreement=0` is a weighted vote by that score alone and `agreement=1` the majority
    among answers with a scored path. With `weigh="mean"` and `agreement=0.5` the answers rank as
    in `WeightedVote` when every path has a score. The product is a logarithmic opinion pool of two
    judges (Genest & Zidek, Statistical Science 1(1), 1986).
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
