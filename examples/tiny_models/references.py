"""Reference scorers of the tiny world: ground truth, and the strong policy as a verifier.

They are step scorers like any other, so the same searches and selectors run on them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from examples.tiny_models.likelihood import LikelihoodRequest, step_likelihoods
from vprm_search.images import open_rgb
from vprm_search.tiny.problem import TinyProblem, exact_labels
from vprm_search.tiny.sampler import TinySampler
from vprm_search.types import Problem, ScoreRequest, ScoreResult, StepScore


class ExactScorer:
    """Scores 1 while every step so far is right, else 0: the best any step scorer could do."""

    def __init__(self, truths: Mapping[Problem, TinyProblem]) -> None:
        self._truths = truths

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Compare every step with the gold steps of its problem."""
        results = []
        for request in requests:
            labels = exact_labels(self._truths[request.problem], request.steps)
            results.append(ScoreResult(tuple(StepScore(float(label)) for label in labels)))
        return results


class LikelihoodScorer:
    """Scores a step with the probability a (stronger) policy gives its text.

    A generative verifier without any training; not a process reward model.
    """

    def __init__(self, sampler: TinySampler) -> None:
        self._sampler = sampler

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Return each step's likelihood given the problem and the steps before it."""
        return await asyncio.to_thread(self._score, requests)

    def _score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        pictures = {image.digest: image.png for request in requests for image in request.images}
        digests = list(pictures)
        encoded = self._sampler.encode_images([open_rgb(pictures[d]) for d in digests])
        features = dict(zip(digests, encoded, strict=True))
        asked = [
            LikelihoodRequest(
                request.problem.question, request.steps, features[request.images[0].digest][None]
            )
            for request in requests
        ]
        return [
            ScoreResult(tuple(StepScore(min(1.0, value)) for value in values))
            for values in step_likelihoods(self._sampler, asked)
        ]
