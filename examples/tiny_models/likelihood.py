"""The policy as a verifier: how likely it finds the steps of given solutions.

A reference point for reward models ("generative verifier"): no training, no '+' and '-'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from vprm_search.steps import STEP_SEPARATOR, join_steps
from vprm_search.tiny.sampler import TinySampler

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
