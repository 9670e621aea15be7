"""The in-process scorer: a native checkpoint, all candidates of a round in one forward pass."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vprm_search.errors import ConfigError
from vprm_search.scoring.engine.attention import AttentionName
from vprm_search.scoring.engine.call_queue import CallQueue
from vprm_search.scoring.engine.checkpoint import PrmCheckpoint, Quantization, load_checkpoint
from vprm_search.scoring.engine.engine import Call, ScoringEngine
from vprm_search.scoring.engine.forward import ScoringMeter
from vprm_search.scoring.families import Layout
from vprm_search.scoring.solution import ImageSource, solution_request
from vprm_search.scoring.wrappers import step_results, whole_answers
from vprm_search.types import ScoreRequest, ScoreResult

if TYPE_CHECKING:
    from PIL.Image import Image

DEFAULT_BATCH_TOKENS = 16_384
DEFAULT_IMAGE_TOKENS = 32_768
DEFAULT_PREFIX_CACHE_BYTES = 2 << 30
"""Room for about 37,000 tokens of an 8B model in bfloat16: ten problems of 13 tiles."""
DEFAULT_WINDOW_MS = 3.0


class TransformersScorer:
    """Scores steps with a process reward model in this process.

    All requests of a call are packed into one forward pass (or a few, beyond `max_batch_tokens`):
    an image is encoded once, every shared prefix of tokens is computed once, and each path attends
    along itself only. Only the '+' and '-' rows of the head are computed, in float32, at the read
    positions. Images are known by their digests, and the embeddings of the latest are kept
    (`image_cache_tokens`). `Problem.system` is not used: the system turn belongs to the layout,
    since the model was trained with one.

    Keys, values and scores of what was computed are kept within `prefix_cache_bytes`, so a round
    of a search computes its new steps only; 0 keeps nothing. What was dropped is computed again
    when it is needed. Where a path is split between passes changes the last bits of a score (below
    1e-6 in float32). With one caller, scores are a function of the calls since the scorer was
    made: the same calls in the same order give the same bits.

    Calls that arrive while another is computed are put into one forward pass; when several were,
    the next pass waits up to `window_ms` for as many. With 0 every call is computed alone. A lone
    caller never waits. Calls may come from any thread and any event loop.

    A request that cannot be scored (too long, a broken image, not finite, out of memory) is a
    failed result with a reason; the others are scored. When memory runs out, half of the prefix
    cache is given up, then passes get smaller, then the blocks of attention, before a path fails.

    Args:
        checkpoint: a loaded model, of `load_checkpoint`; `from_pretrained` loads one.
        max_batch_tokens: bound of a forward pass, in tokens of its tree, at least 1 (default
            16,384). One path is always tried, however long.
        image_cache_tokens: bound of the image embeddings kept between calls, in image tokens
            (default 32,768: nine images of 13 tiles); 0 keeps none.
        prefix_cache_bytes: bound of the keys and values kept between calls, in bytes (default
            2 GiB); 0 keeps none.
        window_ms: how long a pass waits for as many callers as the last one had, in milliseconds
            (default 3); 0 computes every call alone.
        attention: "blocks" (dense attention in blocks, everywhere), "flex" (FlexAttention) or
            "auto" (default): FlexAttention on CUDA if it works there, settled now.

    Raises:
        ConfigError: a bound is out of range, or "flex" does not work here.
    """

    def __init__(
        self,
        checkpoint: PrmCheckpoint,
        *,
        max_batch_tokens: int = DEFAULT_BATCH_TOKENS,
        image_cache_tokens: int = DEFAULT_IMAGE_TOKENS,
        prefix_cache_bytes: int = DEFAULT_PREFIX_CACHE_BYTES,
        window_ms: float = DEFAULT_WINDOW_MS,
        attention: AttentionName = "auto",
    ) -> None:
        if max_batch_tokens < 1 or min(image_cache_tokens, prefix_cache_bytes, window_ms) < 0:
            raise ConfigError(
                f"max_batch_tokens is {max_batch_tokens}, image_cache_tokens {image_cache_tokens}, "
                f"prefix_cache_bytes {prefix_cache_bytes}, window_ms {window_ms}; at least 1, 0, 0 "
                "and 0 are needed"
            )
        self.checkpoint = checkpoint
        self._engine = ScoringEngine(
            checkpoint,
            max_batch_tokens=max_batch_tokens,
            image_cache_tokens=image_cache_tokens,
            prefix_cache_bytes=prefix_cache_bytes,
            attention=attention,
        )
        self._queue: CallQueue[Call, list[ScoreResult]] = CallQueue(
            self._engine.step, window_ms / 1000
        )
        self._engine.is_abandoned = self._queue.is_abandoned

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        revision: str | None = None,
        family: str | None = None,
        device: str = "auto",
        dtype: str | torch.dtype | None = None,
        device_map: str | Mapping[str, Any] | None = None,
        quantization: Quantization | None = None,
        layout: Layout | None = None,
        system_prompt: str | None = None,
        orm: bool = False,
        max_batch_tokens: int = DEFAULT_BATCH_TOKENS,
        image_cache_tokens: int = DEFAULT_IMAGE_TOKENS,
        prefix_cache_bytes: int = DEFAULT_PREFIX_CACHE_BYTES,
        window_ms: float = DEFAULT_WINDOW_MS,
        attention: AttentionName = "auto",
    ) -> TransformersScorer:
        """Load a checkpoint and make its scorer.

        Args:
            path: a local directory, or a repository `Owner/Name`.
            revision: the commit of a repository, 40 hex digits.
            family: a row of `FAMILIES`; None takes the one in `vprm.json`; without
                that the checkpoint is refused, since it may be a chat model.
            device: "auto" (CUDA when there is one), or a torch device such as "cuda:1".
            dtype: of the computation; None is float32 on a CPU, bfloat16 elsewhere.
            device_map: "auto" or a map of modules spreads the layers; needs accelerate.
            quantization: "8bit" or "4bit"; needs bitsandbytes and a GPU.
            layout: replaces the prompt layout in `vprm.json`.
            system_prompt: replaces the layout's system message.
            orm: score the answer so far as one step, as an outcome reward model.
            max_batch_tokens: as for the class, like all that follow.
            image_cache_tokens: bound of kept image embeddings, in image tokens.
            prefix_cache_bytes: bound of kept keys and values, in bytes.
            window_ms: wait for other callers, in milliseconds.
            attention: "auto", "blocks" or "flex".

        Raises:
            CheckpointError: the directory is missing, incomplete, unsafe or of another kind.
            ConfigError: options contradict each other, or a system prompt must be given.
            MissingDependencyError: an option needs a library that is not installed.
        """
        return cls(
            load_checkpoint(
                path,
                revision=revision,
                family=family,
                device=device,
                dtype=dtype,
                device_map=device_map,
                quantization=quantization,
                layout=layout,
                system_prompt=system_prompt,
                orm=orm,
            ),
            max_batch_tokens=max_batch_tokens,
            image_cache_tokens=image_cache_tokens,
            prefix_cache_bytes=prefix_cache_bytes,
            window_ms=window_ms,
            attention=attention,
        )

    @property
    def identity(self) -> str:
        """A name for all a score depends on besides the request; cache keys start with it."""
        return self.checkpoint.identity

    @property
    def layout(self) -> Layout:
        """The prompt layout in use."""
        return self.checkpoint.builder.layout

    @property
    def meter(self) -> ScoringMeter:
        """Running totals of what scoring has cost."""
        return self._engine.meter

    @property
    def has_prefix_cache(self) -> bool:
        """Whether what a call computed is kept for later calls."""
        return self._engine.cache.enabled

    @property
    def attention(self) -> str:
        """The attention in use: "blocks" or "flex"."""
        return self._engine.forward.attention

    def prompt_ids(self, request: ScoreRequest) -> list[int]:
        """Return the tokens of a request up to its last score, `[tokens]`, for looking at them.

        Empty if it cannot be scored. Encodes the images; not to be called while `score` runs.
        """
        return self._engine.prompt_ids(request)

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Score all requests without blocking the event loop: same length, same order.

        When it is cancelled, passes that have not begun are not made.
        """
        future = self._queue.submit(self._asked(requests))
        try:
            results = await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            self._queue.abandon(future)
            raise
        return step_results(requests, results) if self.checkpoint.orm else results

    def score_sync(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Score all requests and wait for them: same length, same order."""
        results = self._queue.submit(self._asked(requests)).result()
        return step_results(requests, results) if self.checkpoint.orm else results

    def _asked(self, requests: Sequence[ScoreRequest]) -> list[ScoreRequest]:
        return whole_answers(requests) if self.checkpoint.orm else list(requests)

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
