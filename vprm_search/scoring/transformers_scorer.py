"""The in-process scorer: a native InternVL checkpoint, all candidates of a round in one pass."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vprm_search.errors import ConfigError, InputError
from vprm_search.scoring.batching import TokenBatcher
from vprm_search.scoring.checkpoint import PrmCheckpoint, load_checkpoint
from vprm_search.scoring.image_features import ImageFeatures
from vprm_search.scoring.kept_context import KeptContext
from vprm_search.scoring.layout import PrmLayout, ScoringPrompt
from vprm_search.scoring.meter import ScoringMeter
from vprm_search.scoring.reasons import (
    BAD_INPUT,
    IMAGE_MISSING,
    NOT_FINITE,
    OUT_OF_MEMORY,
    TOO_LONG,
)
from vprm_search.scoring.solution import ImageSource, solution_request
from vprm_search.scoring.token_tree import TokenPath
from vprm_search.scoring.tree_forward import PathJob, TreeForward
from vprm_search.types import ScoreRequest, ScoreResult, StepScore

if TYPE_CHECKING:
    from PIL.Image import Image

DEFAULT_BATCH_TOKENS = 16_384
DEFAULT_IMAGE_TOKENS = 32_768
DEFAULT_CONTEXT_TOKENS = 0
"""Nothing is kept: a search that is killed and resumed then gets the very same scores."""


class TransformersScorer:
    """Scores steps with a process reward model in this process.

    All requests of a call are packed into one forward pass (or a few, beyond `max_batch_tokens`):
    an image is encoded once, every shared prefix of tokens is computed once, and each path attends
    along itself only. Only the '+' and '-' rows of the head are computed, in float32, at the read
    positions. The embeddings of the latest images are kept (`kept_image_tokens`). With
    `kept_context_tokens` above 0 the keys and values of the latest tree are kept too, so a round
    of a search computes its new steps only; that changes the last bits of a float32 score (below
    1e-6), and a search resumed in another process is then no longer equal bit for bit.
    Images are known by their digests. `Problem.system` is not used: the system turn belongs
    to the layout, since the model was trained with one.

    A request that cannot be scored (too long, a broken image, not finite, out of memory) is a
    failed result with a reason; the others are scored.
    """

    def __init__(
        self,
        checkpoint: PrmCheckpoint,
        *,
        max_batch_tokens: int = DEFAULT_BATCH_TOKENS,
        kept_image_tokens: int = DEFAULT_IMAGE_TOKENS,
        kept_context_tokens: int = DEFAULT_CONTEXT_TOKENS,
    ) -> None:
        if max_batch_tokens < 1 or min(kept_image_tokens, kept_context_tokens) < 0:
            raise ConfigError(
                f"max_batch_tokens is {max_batch_tokens}, kept_image_tokens {kept_image_tokens}, "
                f"kept_context_tokens {kept_context_tokens}; at least 1, 0 and 0 are needed"
            )
        self.checkpoint = checkpoint
        self.meter = ScoringMeter()
        self._batcher = TokenBatcher(max_batch_tokens)
        self._images = ImageFeatures(checkpoint, self.meter, kept_image_tokens)
        self._forward = TreeForward(checkpoint, self.meter, KeptContext(kept_context_tokens))
        self._lock = threading.Lock()  # the model and the tokenizer serve one thread at a time

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: str = "auto",
        dtype: str | torch.dtype | None = None,
        layout: PrmLayout | None = None,
        max_batch_tokens: int = DEFAULT_BATCH_TOKENS,
        kept_image_tokens: int = DEFAULT_IMAGE_TOKENS,
        kept_context_tokens: int = DEFAULT_CONTEXT_TOKENS,
    ) -> TransformersScorer:
        """Load a local checkpoint directory; see `load_checkpoint` for the options and errors."""
        return cls(
            load_checkpoint(path, device=device, dtype=dtype, layout=layout),
            max_batch_tokens=max_batch_tokens,
            kept_image_tokens=kept_image_tokens,
            kept_context_tokens=kept_context_tokens,
        )

    @property
    def identity(self) -> str:
        """A name for everything a score depends on besides the request; memo keys start with it."""
        return self.checkpoint.identity

    @property
    def layout(self) -> PrmLayout:
        """The prompt layout in use."""
        return self.checkpoint.builder.layout

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Score all requests in a worker thread: same length, same order."""
        return await asyncio.to_thread(self.score_sync, list(requests))

    def score_sync(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Score all requests in the calling thread: same length, same order."""
        with self._lock, torch.inference_mode():
            started = time.perf_counter()
            results = self._score(requests)
            self.meter.seconds += time.perf_counter() - started
        return results

    async def score_solution(
        self,
        *,
        question: str,
        solution: str | Sequence[str],
        images: Sequence[ImageSource | Image] = (),
    ) -> ScoreResult:
        """Score one written solution, a text cut into at most the layout's `max_steps` steps.

        Raises `ImageError` or `InputError` for an image or a text that cannot be used.
        """
        max_steps = self.layout.max_steps
        request = solution_request(question, solution, images, max_steps=max_steps)
        return (await self.score([request]))[0]

    def _score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        features = self._images.encode(image for r in requests for image in r.images)
        prompts = [self._prompt(request, features) for request in requests]
        jobs: dict[TokenPath, PathJob] = {}
        for request, prompt in zip(requests, prompts, strict=True):
            if isinstance(prompt, ScoringPrompt):
                job = _job(request, prompt, features)
                jobs.setdefault(job.path, job)
                self.meter.tokens_requested += len(job.path.ids)
        scores = self._run(jobs)
        results = []
        for request, prompt in zip(requests, prompts, strict=True):
            self.meter.requests += 1
            self.meter.steps += len(request.steps)
            if isinstance(prompt, ScoringPrompt):
                path = TokenPath(request.problem.images, prompt.scored_ids)
                results.append(_result(prompt, scores[path]))
            else:
                results.append(ScoreResult.failed(len(request.steps), prompt))
        return results

    def _run(self, jobs: dict[TokenPath, PathJob]) -> dict[TokenPath, list[float] | None]:
        todo = list(jobs.values())
        computed = self._batcher.run(
            list(jobs), lambda chosen: self._forward([todo[i] for i in chosen])
        )
        for number, values in enumerate(computed):
            if values is not None and any(map(math.isnan, values)):
                computed[number] = self._isolated(todo[number])
        self.meter.out_of_memory = self._batcher.out_of_memory
        return dict(zip(jobs, computed, strict=True))

    def _isolated(self, job: PathJob) -> list[float]:
        """Score one path step by step, each in a pass of its own, up to the first NaN.

        A NaN spreads to every row of its pass, because a masked weight of 0 times NaN is NaN: only
        so is it known which steps really are without a score.
        """
        values: list[float] = []
        for read in job.reads:
            path = TokenPath(job.path.group, job.path.ids[: read + 1])
            values.append(self._alone(replace(job, path=path, reads=(read,))))
            if math.isnan(values[-1]):
                break
        return values + [math.nan] * (len(job.reads) - len(values))

    def _alone(self, job: PathJob) -> float:
        found = self._batcher.run([job.path], lambda _: self._forward([job]))[0]
        return math.nan if found is None else found[0]

    def _prompt(
        self, request: ScoreRequest, features: dict[str, Tensor | str]
    ) -> ScoringPrompt | str:
        """Return the prompt of a request, or the reason why it cannot be scored."""
        if tuple(image.digest for image in request.images) != request.problem.images:
            return (
                f"{IMAGE_MISSING}: the problem names {len(request.problem.images)} images, the "
                f"request holds {len(request.images)}, or others; pass the problem's images"
            )
        counts = []
        for digest in request.problem.images:
            feature = features[digest]
            if isinstance(feature, str):
                return feature
            counts.append(len(feature))
        try:
            prompt = self.checkpoint.builder.build(request.problem.question, request.steps, counts)
        except InputError as error:
            return f"{BAD_INPUT}: {error}"
        size, limit = len(prompt.scored_ids), self.checkpoint.max_tokens
        if size > limit:
            return (
                f"{TOO_LONG}: problem and solution take {size} tokens ({sum(counts)} for images), "
                f"the model's limit is {limit}; use fewer tiles, or merge or shorten the steps"
            )
        return prompt


def _job(
    request: ScoreRequest, prompt: ScoringPrompt, features: dict[str, Tensor | str]
) -> PathJob:
    parts = [f for d in request.problem.images if isinstance(f := features[d], Tensor)]
    return PathJob(
        TokenPath(request.problem.images, prompt.scored_ids),
        prompt.read_positions,
        prompt.image_spans,
        torch.cat(parts) if parts else None,
    )


def _result(prompt: ScoringPrompt, values: list[float] | None) -> ScoreResult:
    if values is None:
        reason = (
            f"{OUT_OF_MEMORY}: {len(prompt.scored_ids)} tokens do not fit into the device's memory"
        )
        scores = tuple(StepScore(None, reason) for _ in prompt.read_positions)
    else:
        scores = tuple(_step_score(value) for value in values)
    return ScoreResult(scores, prompt.prefix_tokens, prompt.step_tokens)


def _step_score(value: float) -> StepScore:
    if math.isfinite(value):
        return StepScore(value)
    return StepScore(None, f"{NOT_FINITE}: the model's logits for '+' and '-' are NaN or infinite")
