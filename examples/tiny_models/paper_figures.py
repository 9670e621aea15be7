"""What the checks of the paper share: scores of given steps, shares with intervals, tables.

Intervals (95 %) come from resampled problems.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from vprm_search.compare.intervals import Estimate, percentiles, resampled_means, share_estimate
from vprm_search.errors import ScorerError
from vprm_search.images.normalise import normalise_image
from vprm_search.scoring.transformers_scorer import TransformersScorer
from vprm_search.tiny.weights import weights_path
from vprm_search.tiny.world import TinyProblem, render
from vprm_search.types import Problem, ScoreRequest, StepScorer

THRESHOLD = 0.5
FIRST_INDEX = 3000
"""First problem of each family, so that no problem of another evaluation is used again."""
RESAMPLES = 2000
_BATCH = 64

Counts = NDArray[np.float64]
"""`[problems, columns]`: what is counted of each problem."""
Figure = Callable[[Counts], Counts]
"""From sums `[…, columns]` to a share."""


def reward_model() -> TransformersScorer:
    """Load the packaged reward model."""
    return TransformersScorer.from_pretrained(weights_path("prm"), device="cpu")


def step_scores(
    scorer: StepScorer, solutions: Sequence[tuple[TinyProblem, Sequence[str]]]
) -> list[list[float]]:
    """Return P('+') of the steps of solutions, which are scored as they are given."""
    found: list[list[float]] = []
    for start in range(0, len(solutions), _BATCH):
        requests = []
        for problem, steps in solutions[start : start + _BATCH]:
            image = normalise_image(render(problem))
            asked = Problem(problem.question, (image.digest,))
            requests.append(ScoreRequest(asked, tuple(steps), (image,)))
        for result in asyncio.run(scorer.score(requests)):
            found.append([known(score.value) for score in result.scores])
    return found


def share(over: int, of: int) -> Figure:
    """Return the figure that divides one column by another; NaN where there is nothing."""

    def figure(sums: Counts) -> Counts:
        whole = sums[..., of]
        found: Counts = np.full_like(whole, np.nan)
        np.divide(sums[..., over], whole, out=found, where=whole > 0)
        return found

    return figure


def estimate(counts: Counts, figure: Figure) -> Estimate:
    """Return a figure with its 95 % interval; figures of the columns of one `counts` are paired."""
    means = figure(resampled_means(counts, resamples=RESAMPLES))
    return percentiles(float(figure(counts.sum(axis=0))), means[~np.isnan(means)], len(counts))


def share_of(counts: Counts, over: int, of: int) -> Estimate:
    """Return a share with its 95 % interval: Wilson's where fewer than 50 problems have it."""
    figure = share(over, of)
    means = figure(resampled_means(counts, resamples=RESAMPLES))
    problems = int((counts[:, of] > 0).sum())
    if not problems:
        return Estimate(np.nan, np.nan, np.nan, 0)
    return share_estimate(float(figure(counts.sum(axis=0))), means[~np.isnan(means)], problems)


def shown(found: Estimate, sign: str = "") -> str:
    """Return an estimate in %, with its interval; "–" where there is nothing to measure."""
    if np.isnan(found.mean):
        return "–"
    mean, low, high = (format(100 * x, f"{sign}.1f") for x in (found.mean, found.low, found.high))
    return f"{mean} [{low}, {high}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def known(score: float | None) -> float:
    """Return a score that must be there. Raises `ScorerError` if it is not."""
    if score is None:
        raise ScorerError("a step has no score: the reward model cannot read such a solution")
    return score
