"""What the figures are made of: problems with their candidates, scored and graded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

NO_ANSWER = -1
"""The `vote_class` of a candidate without an answer."""


@dataclass(frozen=True, slots=True)
class PooledCandidate:
    """One candidate solution, scored and graded.

    Args:
        index: its place in the order of sampling, from 0.
        text: the whole solution.
        answer: the answer read out of it, "" if it has none.
        vote_class: candidates of a problem with the same number say the same under voting;
            `NO_ANSWER` says nothing.
        right: whether the set's grader calls the answer right.
        scores: by critic ("prm:mean", "prm:min", ..., "orm", "judge", "likelihood"): larger is
            better; None where it could not score this candidate.
        generated_tokens: of the solution.
        scored_tokens: what the process reward model read to score it.
        seconds: of generating and scoring it.
        cost: of generating and scoring it, in the currency of the run.
    """

    index: int
    text: str
    answer: str
    vote_class: int
    right: bool
    scores: Mapping[str, float | None]
    generated_tokens: int
    scored_tokens: int
    seconds: float
    cost: float


@dataclass(frozen=True, slots=True)
class PooledProblem:
    """One problem with all its candidates.

    Args:
        id: of the problem in its set.
        row: its row in the file, from 0.
        group: what it belongs to ("" for itself alone): DynaMath's seed, WeMath's problem.
        variant: which of its group it is.
        category: "" if the set has none.
        candidates: in the order of sampling.
    """

    id: str
    row: int
    group: str
    variant: str
    category: str
    candidates: tuple[PooledCandidate, ...]
