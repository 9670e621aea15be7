"""Reference scorers of the tiny world: ground truth, and the strong policy as a verifier.

They are step scorers like any other, so the same searches and selectors run on them. The policy as
a verifier says how likely it finds the steps of given solutions: a reference point for reward
models ("generative verifier") without training, '+' or '-'.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from vprm_search.images import open_rgb
from vprm_search.steps import STEP_SEPARATOR, join_steps
from vprm_search.tiny.sampler import TinySampler
from vprm_search.tiny.world import TinyProblem, exact_labels
from vprm_search.types import Problem, ScoreRequest, ScoreResult, StepScore

# --- likelihoods ---


_ROWS = 128  # per forward pass


@dataclass(frozen=True, slots=True)
class LikelihoodRequest:
    """A solution to judge; `image_features` as in `SampleRequest`."""

    question: str
    steps: tuple[str, ...]
    image_features: Tensor | None = field(default=None, repr=False, compare=False)


@torch.inference_mode()
def step_likelihoods(
    sampler: TinySampler, requests: Sequence[LikelihoodRequest]
) -> list[list[float]]:
    """Return the probability of every step given the problem and the steps before it.

    A step's probability is the product of the model's probabilities (temperature 1) of its tokens,
    its closing blank line included; the end of the last step is not judged.
    """
    prompts = [_prompt(sampler, request) for request in requests]
    results: list[list[float]] = [[] for _ in requests]
    order = sorted(range(len(requests)), key=lambda i: len(prompts[i][0]))
    for start in range(0, len(order), _ROWS):
        chosen = order[start : start + _ROWS]
        width = max(len(prompts[i][0]) for i in chosen)
        ids = torch.zeros(len(chosen), width, dtype=torch.long)
        for row, i in enumerate(chosen):
            ids[row, : len(prompts[i][0])] = torch.tensor(prompts[i][0])
        embeds = sampler.embed(ids, [requests[i].image_features for i in chosen])
        language = sampler.model.model.language_model
        hidden = language(inputs_embeds=embeds, use_cache=False).last_hidden_state
        scores = sampler.decoder.logits(hidden[:, :-1]).log_softmax(-1)
        tokens = scores.gather(-1, ids[:, 1:, None])[..., 0].double()
        for row, i in enumerate(chosen):
            bounds = prompts[i][1]
            results[i] = [
                float(tokens[row, first - 1 : last - 1].sum().exp())
                for first, last in pairwise(bounds)
            ]
    return results


def _prompt(sampler: TinySampler, request: LikelihoodRequest) -> tuple[list[int], list[int]]:
    """Return the ids of prompt and solution, and the bounds of the steps in them, [steps + 1]."""
    images = 0 if request.image_features is None else len(request.image_features)
    bounds = [len(sampler.prompts.build(request.question, images))]
    ids: list[int] = []
    for count in range(1, len(request.steps) + 1):
        text = join_steps(request.steps[:count])
        text += STEP_SEPARATOR if count < len(request.steps) else ""
        ids = sampler.prompts.build(request.question, images, text)
        bounds.append(len(ids))
    return ids, bounds


# --- scorers ---


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
