"""The tiny policy behind the `Policy` seam: batched, seeded, in process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from vprm_search.errors import VprmError
from vprm_search.steps import STEP_SEPARATOR, join_steps
from vprm_search.tiny.sampler import PictureFeatures, Sample, SampleRequest, TinySampler
from vprm_search.types import Proposal, ProposeRequest


class TinyPolicy:
    """Proposes steps with a tiny InternVL checkpoint; implements `types.Policy`.

    A child depends on the problem, the steps before it, its seed and the temperature, never on
    what else is in the batch. Calls from several threads wait for one another.
    """

    def __init__(
        self,
        sampler: TinySampler,
        *,
        temperature: float = 0.7,
        max_step_tokens: int = 48,
        max_solution_tokens: int = 160,
    ) -> None:
        self.sampler = sampler
        self.temperature = temperature
        self.max_step_tokens, self.max_solution_tokens = max_step_tokens, max_solution_tokens
        self._features = PictureFeatures(sampler)
        self._lock = threading.Lock()

    @classmethod
    def from_pretrained(cls, path: str | Path, *, temperature: float = 0.7) -> TinyPolicy:
        """Load a policy folder. Raises `CheckpointError`."""
        return cls(TinySampler.from_pretrained(path), temperature=temperature)

    def at_temperature(self, temperature: float) -> TinyPolicy:
        """Return a policy on the same weights that samples at another temperature."""
        return TinyPolicy(
            self.sampler,
            temperature=temperature,
            max_step_tokens=self.max_step_tokens,
            max_solution_tokens=self.max_solution_tokens,
        )

    async def propose(self, requests: Sequence[ProposeRequest]) -> list[list[Proposal]]:
        """Answer all requests: one list per request, one proposal per seed, in order."""
        return await asyncio.to_thread(self.propose_now, requests)

    def propose_now(self, requests: Sequence[ProposeRequest]) -> list[list[Proposal]]:
        """Do what `propose` does, in the calling thread."""
        with self._lock:
            features, unread = self._features(i for request in requests for i in request.images)
            chosen: dict[int, SampleRequest] = {}
            errors: dict[int, str] = {}
            for place, request in enumerate(requests):
                bad = [image.digest for image in request.images if image.digest in unread]
                if bad:
                    errors[place] = f"image {bad[-1]} cannot be read: {unread[bad[-1]]}"
                    continue
                sample = self._sample_request(request, features)
                try:
                    self.sampler.check(sample)
                    chosen[place] = sample
                except VprmError as error:
                    errors[place] = str(error)
            sampled = self.sampler.sample(list(chosen.values()))
            answers = dict(zip(chosen, sampled, strict=True))
        return [
            _proposals(answers[place])
            if place in answers
            else [Proposal("", "error", error=errors[place]) for _ in request.seeds]
            for place, request in enumerate(requests)
        ]

    def _sample_request(
        self, request: ProposeRequest, features: dict[str, Tensor]
    ) -> SampleRequest:
        images = [features[image.digest] for image in request.images]
        one_step = request.until == "step"
        own = self.max_step_tokens if one_step else self.max_solution_tokens
        return SampleRequest(
            question=request.problem.question,
            seeds=request.seeds,
            image_features=torch.stack(images) if images else None,
            prefix=join_steps(request.steps) + STEP_SEPARATOR if request.steps else "",
            temperature=self.temperature * request.temperature_scale,
            max_new_tokens=min(own, request.max_tokens or own),
            stop=(STEP_SEPARATOR,) if one_step else (),
        )


def _proposals(samples: Sequence[Sample]) -> list[Proposal]:
    return [
        Proposal(
            text=sample.text,
            finish=sample.finish,
            generated_tokens=sample.tokens,
            prompt_tokens=sample.prompt_tokens if place == 0 else 0,
            requests=1 if place == 0 else 0,
        )
        for place, sample in enumerate(samples)
    ]
