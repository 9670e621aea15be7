"""`Knockout`: answers meet in pairs, several juries judge each pair, the loser is out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pydantic import Field, field_validator

from vprm_search.aggregate import aggregation
from vprm_search.search.ballots import (
    Ballot,
    Selection,
    Weigh,
    best_ballot,
    best_of_class,
    by_node,
    class_rank,
    class_score,
    read_ballots,
    tally,
)
from vprm_search.search.selectors import Voting
from vprm_search.tree import SearchTree
from vprm_search.types import NodeRecord


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
        return [
            Ballot(old.node, old.answer, new.score, old.answer_class, old.count)
            for old, new in zip(scored, again, strict=True)
        ]


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
