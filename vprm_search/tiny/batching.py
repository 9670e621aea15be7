"""One tiny sampler shared by all callers: calls that arrive together are sampled together.

A search asks for many prefixes at once, each in a call of its own. A worker thread takes what has
arrived, waits a moment for more, and samples it as one batch. Every child draws from its own seed,
so a caller cannot tell (up to float rounding) who else was in the batch.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vprm_search.errors import CheckpointError, PromptTooLongError, VprmError
from vprm_search.tiny.sampler import PictureFeatures, Sample, SampleRequest, TinySampler

if TYPE_CHECKING:
    from vprm_search.types import ImageData

_WINDOW_S = 0.002
_MAX_CHILDREN = 1024


@dataclass(frozen=True, slots=True)
class SampleCall:
    """One caller's request (its `image_features` are filled in here) and its images."""

    request: SampleRequest
    images: tuple[ImageData, ...] = ()


@dataclass(frozen=True, slots=True)
class _Job:
    call: SampleCall
    result: Future[list[Sample]]


class BatchedSampler:
    """Samples for many threads and event loops with one model; starts its thread on first use."""

    def __init__(self, sampler: TinySampler) -> None:
        self.sampler = sampler
        self.batches = 0
        """How many batches were sampled so far."""
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._features = PictureFeatures(sampler)
        self._start = threading.Lock()
        self._worker: threading.Thread | None = None

    def submit(self, call: SampleCall) -> Future[list[Sample]]:
        """Queue `call`; the future gives one sample per seed, in order, or the error."""
        future: Future[list[Sample]] = Future()
        self._jobs.put(_Job(call, future))
        with self._start:
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="tiny-sampler", daemon=True)
                self._worker.start()
        return future

    def _work(self) -> None:
        while True:
            batch = [job for job in self._next_jobs() if job.result.set_running_or_notify_cancel()]
            try:
                self._sample(batch)
            except Exception as error:  # a bug here must not leave callers waiting for ever
                for job in batch:
                    if not job.result.done():
                        job.result.set_exception(error)

    def _next_jobs(self) -> list[_Job]:
        """Return the waiting jobs, up to the size of one batch; block until there is one."""
        jobs = [self._jobs.get()]
        children = len(jobs[0].call.request.seeds)
        end = time.monotonic() + _WINDOW_S
        while children < _MAX_CHILDREN:
            try:
                jobs.append(self._jobs.get(timeout=max(0.0, end - time.monotonic())))
            except queue.Empty:
                break
            children += len(jobs[-1].call.request.seeds)
        return jobs

    def _sample(self, batch: Sequence[_Job]) -> None:
        ready: list[tuple[_Job, SampleRequest]] = []
        for job in batch:
            try:
                ready.append((job, self._prepared(job.call)))
            except VprmError as error:
                job.result.set_exception(error)
        if not ready:
            return
        self.batches += 1
        answers = self.sampler.sample([request for _, request in ready])
        for (job, _), samples in zip(ready, answers, strict=True):
            job.result.set_result(samples)

    def _prepared(self, call: SampleCall) -> SampleRequest:
        """Return the request with its image features, its token limit cut to the room there is."""
        found, errors = self._features(call.images)
        for error in errors.values():
            raise error
        features = [found[image.digest] for image in call.images]
        request = replace(call.request, image_features=torch.stack(features) if features else None)
        positions: int = self.sampler.model.config.text_config.max_position_embeddings
        prompt = len(self.sampler.prompts.build(request.question, len(features), request.prefix))
        if prompt >= positions:
            raise PromptTooLongError(
                f"the prompt has {prompt} tokens, but the tiny policy has {positions} positions; "
                "shorten the question or the solution"
            )
        request = replace(request, max_new_tokens=min(request.max_new_tokens, positions - prompt))
        self.sampler.check(request)
        return request


@lru_cache(maxsize=4)
def _loaded(path: Path) -> BatchedSampler:
    try:
        return BatchedSampler(TinySampler.from_pretrained(path))
    except VprmError:
        raise
    except Exception as error:  # the loaders raise their own kinds for damaged files
        raise CheckpointError(f"{path} is not a readable tiny policy: {error}") from error


_loading = threading.Lock()  # loading twice at a time leaves weights out, without an error


def shared_sampler(path: Path) -> BatchedSampler:
    """Return the process's one sampler for the checkpoint in `path`; load it on first use.

    Raises `CheckpointError` when there is none.
    """
    folder = path.resolve()
    missing = [n for n in ("model.safetensors", "tokenizer.json") if not (folder / n).is_file()]
    if missing:
        raise CheckpointError(f"{path} is not a tiny policy: {', '.join(missing)} missing")
    with _loading:
        return _loaded(folder)


def _start_afresh() -> None:
    """Forget the samplers after a fork: their worker threads stayed in the parent."""
    global _loading
    _loading = threading.Lock()
    _loaded.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_afresh)
