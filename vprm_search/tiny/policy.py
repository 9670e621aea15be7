"""The tiny policy behind the `Policy` seam: batched, seeded, in process."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from vprm_search.errors import ImageError, VprmError
from vprm_search.images import open_rgb
from vprm_search.steps import STEP_SEPARATOR, join_steps
from vprm_search.tiny.rendering import IMAGE_SIZE
from vprm_search.tiny.sampler import Sample, SampleRequest, TinySampler
from vprm_search.types import ImageData, Proposal, ProposeRequest

_FEATURES_KEPT = 2048  # 8 kB each


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
        self._features: OrderedDict[str, Tensor] = OrderedDict()
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
            features, errors = self._image_features(requests)
            chosen: list[SampleRequest] = []
            places: list[int] = []
            for place, request in enumerate(requests):
                if place in errors:
                    continue
                sample = self._sample_request(request, features)
                try:
                    self.sampler.check(sample)
                except VprmError as error:
                    errors[place] = str(error)
                    continue
                chosen.append(sample)
                places.append(place)
            answers = dict(zip(places, self.sampler.sample(chosen), strict=True))
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
        return SampleRequest(
            question=request.problem.question,
            seeds=request.seeds,
            image_features=torch.stack(images) if images else None,
            prefix=join_steps(request.steps) + STEP_SEPARATOR if request.steps else "",
            temperature=self.temperature * request.temperature_scale,
            max_new_tokens=self.max_step_tokens if one_step else self.max_solution_tokens,
            stop=(STEP_SEPARATOR,) if one_step else (),
        )

    def _image_features(
        self, requests: Sequence[ProposeRequest]
    ) -> tuple[dict[str, Tensor], dict[int, str]]:
        """Encode the images not seen before; return features by digest and failed requests."""
        wanted: dict[str, Tensor] = {}
        errors: dict[int, str] = {}
        new: dict[str, Image.Image] = {}
        for place, request in enumerate(requests):
            for image in request.images:
                if image.digest in self._features:
                    self._features.move_to_end(image.digest)
                    wanted[image.digest] = self._features[image.digest]
                elif image.digest not in new:
                    try:
                        new[image.digest] = _open(image)
                    except ImageError as error:
                        errors[place] = f"image {image.digest} cannot be read: {error}"
        if new:
            encoded = self.sampler.encode_images(list(new.values()))
            wanted.update(zip(new, encoded.unbind(), strict=True))
            self._features.update((digest, wanted[digest]) for digest in new)
            while len(self._features) > _FEATURES_KEPT:
                self._features.popitem(last=False)
        return wanted, errors


def _open(image: ImageData) -> Image.Image:
    """Read a normalised image and bring it to the size the tiny model sees."""
    rgb = open_rgb(image.png)
    size = (IMAGE_SIZE, IMAGE_SIZE)
    return rgb if rgb.size == size else rgb.resize(size, Image.Resampling.BICUBIC)


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
