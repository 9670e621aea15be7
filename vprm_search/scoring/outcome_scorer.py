"""Outcome scores: the answer so far is scored as one step, whatever it is cut into.

Any scorer becomes an outcome reward model in this way (VisualPRM's own ORM mode puts the whole
response into one user turn). The score of step i is that of the first i steps as one text; it
depends on them alone, so a search can use it like any step score, and the score of the last step
is that of the whole answer. Aggregate with `last`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, islice, pairwise

from vprm_search.errors import ConfigError
from vprm_search.steps import STEP_SEPARATOR
from vprm_search.types import ScoreCost, ScoreRequest, ScoreResult, StepScorer


class OutcomeScorer:
    """Wraps a scorer that scores steps and gives the scores of answers instead.

    Steps are joined by a blank line, at which they are cut. Raises `ConfigError` when the scorer
    has no `identity` and none is given: a step's score must never stand for an answer's.
    """

    def __init__(self, inner: StepScorer, *, identity: str | None = None) -> None:
        name = identity or getattr(inner, "identity", "")
        if not isinstance(name, str) or not name:
            raise ConfigError(
                f"{type(inner).__name__} has no 'identity'; pass identity=..., a name that changes "
                "whenever the scores would"
            )
        self.inner = inner
        self.identity = f"{name}/orm"

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Score the answers so far of all requests: same length, same order."""
        return step_results(requests, await self.inner.score(whole_answers(requests)))


def whole_answers(requests: Sequence[ScoreRequest]) -> list[ScoreRequest]:
    """Return for every step of every request the request that scores the answer up to it."""
    return [
        ScoreRequest(request.problem, (answer,), request.images)
        for request in requests
        for answer in accumulate(request.steps, lambda a, b: f"{a}{STEP_SEPARATOR}{b}")
    ]


def step_results(
    requests: Sequence[ScoreRequest], results: Sequence[ScoreResult]
) -> list[ScoreResult]:
    """Put the results of `whole_answers` together again, one per request."""
    found = iter(results)
    return [_together(list(islice(found, len(request.steps)))) for request in requests]


def _together(answers: list[ScoreResult]) -> ScoreResult:
    """Return one result; a step's tokens are those its answer has more than the one before."""
    totals = [0, *(sum(answer.step_tokens) for answer in answers)]
    costs = [answer.cost for answer in answers]
    return ScoreResult(
        tuple(score for answer in answers for score in answer.scores),
        answers[0].prefix_tokens if answers else 0,
        tuple(max(0, b - a) for a, b in pairwise(totals)),
        ScoreCost(
            sum(cost.tokens_sent for cost in costs),
            sum(cost.tokens_computed for cost in costs),
            sum(cost.images_encoded for cost in costs),
            sum(cost.forward_passes for cost in costs),
        ),
    )
