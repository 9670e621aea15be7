"""The embedded policy as a LangChain chat model: pictures and a question in, a solution out.

A search asks for many prefixes at once, each in a call of its own. A worker thread takes what has
arrived, waits a moment for more, and samples it as one batch. Every child draws from its own seed,
so a caller cannot tell (up to float rounding) who else was in the batch.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import queue
import secrets
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import ConfigDict, Field

from vprm_search.chat.capabilities import ModelCapabilities
from vprm_search.errors import CheckpointError, InputError, PromptTooLongError, VprmError
from vprm_search.images.messages import read_message
from vprm_search.steps import normalise_text
from vprm_search.tiny.sampler import PictureFeatures, Sample, SampleRequest, TinySampler
from vprm_search.tiny.weights import weights_path

if TYPE_CHECKING:
    from vprm_search.types import ImageData

# --- one sampler for all callers ---


_WINDOW_S = 0.002
_END_S = 10.0
_MAX_CHILDREN = 1024


@dataclass(frozen=True, slots=True)
class SampleCall:
    """One caller's request (its `image_features` are filled in here) and its images."""

    request: SampleRequest
    images: tuple[ImageData, ...] = ()


@dataclass(slots=True)
class _Job:
    call: SampleCall
    result: Future[list[Sample]]
    abandoned: bool = False


_samplers: weakref.WeakSet[BatchedSampler] = weakref.WeakSet()


@atexit.register
def _end_sampling() -> None:
    """Let no thread compute while the interpreter goes: torch would abort the process."""
    for sampler in list(_samplers):
        sampler.end()


class BatchedSampler:
    """Samples for many threads and event loops with one model; starts its thread on first use.

    A batch that nobody waits for any more (`abandon`) ends at its next token.
    """

    def __init__(self, sampler: TinySampler) -> None:
        self.sampler = sampler
        self.batches = 0
        """How many batches were sampled so far."""
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._features = PictureFeatures(sampler)
        self._start = threading.Lock()
        self._worker: threading.Thread | None = None
        self._sampled: Sequence[_Job] = ()
        self._idle = threading.Event()
        self._idle.set()
        self._ended = False
        sampler.is_abandoned = self._is_abandoned
        _samplers.add(self)

    def abandon(self, future: Future[list[Sample]]) -> None:
        """Note that nobody waits for this call any more."""
        if not future.cancel():  # it is being sampled
            for job in self._sampled:
                job.abandoned |= job.result is future

    def end(self) -> None:
        """Give up what is being sampled; return when nothing is, or after a few seconds."""
        self._ended = True
        self._idle.wait(_END_S)

    def _is_abandoned(self) -> bool:
        sampled = self._sampled
        return self._ended or (bool(sampled) and all(job.abandoned for job in sampled))

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
        while not self._ended:
            batch = [job for job in self._next_jobs() if job.result.set_running_or_notify_cancel()]
            self._sampled = batch
            self._idle.clear()
            try:
                self._sample(batch)
            except Exception as error:  # a bug here must not leave callers waiting for ever
                for job in batch:
                    if not job.result.done():
                        job.result.set_exception(error)
            finally:
                self._sampled = ()
                self._idle.set()

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
    _samplers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_afresh)


# --- the chat model ---


_SEED_MASK = (1 << 63) - 1
_SEED_STRIDE = 0x9E3779B97F4A7C15  # odd, so that the children of one seed all differ


class TinyChatModel(BaseChatModel):
    """The tiny visual-maths policy behind LangChain's chat model interface.

    It reads one picture question: the last human message with an image or a question mark (else
    the last one), with its images or the nearest before it, and, if the conversation ends in an AI
    message, that message as the beginning of its answer. Other messages are not read. Call
    arguments: `stop`, `n`, `seed` (child i derives its own from it) or `seeds` (one per child,
    which makes each child independent of the others), `temperature`, `max_tokens`.

    Each generation has `finish_reason` ("stop" or "length"), `stop_reason` (the stop string, or
    None when the model ended its answer; absent after "length") and `generated_tokens` in its
    `response_metadata`. `usage_metadata` of the whole call is on the first one.
    """

    model_config = ConfigDict(populate_by_name=True)

    checkpoint: str | None = None
    """The checkpoint folder; None means the packaged policy."""
    model_name: str = Field(default="vprm-tiny-policy", alias="model")
    temperature: float = Field(default=0.7, ge=0)
    max_tokens: int = Field(default=256, ge=1)
    stop: list[str] | None = Field(default=None, alias="stop_sequences")
    n: int = Field(default=1, ge=1)
    seed: int | None = None
    """Seed of a call without `seed` or `seeds`; None draws a fresh one for every call."""

    policy_capabilities: ClassVar[ModelCapabilities] = ModelCapabilities(
        prefill="message", many=True, seeds="children", instructions=False, in_process=True
    )

    @property
    def _llm_type(self) -> str:
        return "vprm-tiny"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        names = ("model_name", "checkpoint", "temperature", "max_tokens", "stop", "n", "seed")
        return {name: getattr(self, name) for name in names}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = "vprm-search"
        params["ls_model_name"] = str(kwargs.get("model") or self.model_name)
        return params

    @property
    def sampler(self) -> BatchedSampler:
        """The sampler behind this model, shared in the process. Raises `CheckpointError`."""
        return shared_sampler(Path(self.checkpoint) if self.checkpoint else weights_path("policy"))

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call = self._read_call(messages, stop, kwargs)
        return self._result(self.sampler.submit(call).result(), call)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        # Pictures to decode, and on first use weights to load: not on the event loop.
        call = await asyncio.to_thread(self._read_call, messages, stop, kwargs)
        sampler = await asyncio.to_thread(lambda: self.sampler)
        future = sampler.submit(call)
        try:
            samples: list[Sample] = await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            sampler.abandon(future)
            raise
        return self._result(samples, call)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        result = self._generate(messages, stop, **{**kwargs, **_one_answer(kwargs)})
        chunk = _as_chunk(result)
        if run_manager:
            run_manager.on_llm_new_token(chunk.text, chunk=chunk)
        yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        result = await self._agenerate(messages, stop, **{**kwargs, **_one_answer(kwargs)})
        chunk = _as_chunk(result)
        if run_manager:
            await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
        yield chunk

    def _read_call(
        self, messages: Sequence[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]
    ) -> SampleCall:
        *_, last = messages
        prefix = normalise_text(str(last.text)) if isinstance(last, AIMessage) else ""
        question, images = _question(messages)
        temperature, limit = kwargs.get("temperature"), kwargs.get("max_tokens")
        stops = self.stop if stop is None else stop
        request = SampleRequest(
            question=normalise_text(question).strip(),
            seeds=self._seeds(kwargs),
            prefix=prefix,
            temperature=self.temperature if temperature is None else float(temperature),
            max_new_tokens=self.max_tokens if limit is None else int(limit),
            stop=tuple(stops or ()),
        )
        return SampleCall(request, images)

    def _seeds(self, kwargs: dict[str, Any]) -> tuple[int, ...]:
        seeds, count = kwargs.get("seeds"), kwargs.get("n")
        if seeds is not None:
            seeds = tuple(int(seed) & _SEED_MASK for seed in seeds)
            if not seeds or (count is not None and int(count) != len(seeds)):
                raise InputError(f"{len(seeds)} seeds for n = {count}; give one seed per answer")
            return seeds
        count = self.n if count is None else int(count)
        if count < 1:
            raise InputError(f"n is {count}; it must be at least 1")
        seed = kwargs.get("seed")
        seed = self.seed if seed is None else int(seed)
        base = secrets.randbits(63) if seed is None else seed
        return tuple((base + index * _SEED_STRIDE) & _SEED_MASK for index in range(count))

    def _result(self, samples: Sequence[Sample], call: SampleCall) -> ChatResult:
        prompt, generated = samples[0].prompt_tokens, sum(sample.tokens for sample in samples)
        usage = UsageMetadata(
            input_tokens=prompt, output_tokens=generated, total_tokens=prompt + generated
        )
        generations = [
            self._generation(sample, call.request.stop, usage if place == 0 else None)
            for place, sample in enumerate(samples)
        ]
        return ChatResult(generations=generations, llm_output={"model_name": self.model_name})

    def _generation(
        self, sample: Sample, stop: tuple[str, ...], usage: UsageMetadata | None
    ) -> ChatGeneration:
        info: dict[str, Any] = {
            "finish_reason": "length" if sample.finish == "length" else "stop",
            "generated_tokens": sample.tokens,
            "model_name": self.model_name,
            "model_provider": "vprm-search",
        }
        if sample.finish == "step":
            info["stop_reason"] = stop[0] if len(stop) == 1 else "stop_string"
        elif sample.finish == "stop":
            info["stop_reason"] = None
        message = AIMessage(sample.text, response_metadata=info, usage_metadata=usage)
        return ChatGeneration(message=message)


def _question(messages: Sequence[BaseMessage]) -> tuple[str, tuple[Any, ...]]:
    """Return the text of the last question and the images that it is about."""
    read = [read_message(m) for m in messages if isinstance(m, HumanMessage)]
    if not read:
        raise InputError("the messages have no human message, so there is no question")
    asks = [place for place, (text, images) in enumerate(read) if images or _asks(text)]
    last = asks[-1] if asks else len(read) - 1
    pictured = (images for _, images in reversed(read[: last + 1]) if images)
    return read[last][0], tuple(next(pictured, ()))


def _asks(text: str) -> bool:
    return text.rstrip().endswith("?")


def _one_answer(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that keep a stream to one answer."""
    seeds = kwargs.get("seeds")
    return {"n": 1, "seeds": list(seeds)[:1] if seeds else None}


def _as_chunk(result: ChatResult) -> ChatGenerationChunk:
    message = result.generations[0].message
    assert isinstance(message, AIMessage)  # noqa: S101
    chunk = AIMessageChunk(
        content=message.content,
        response_metadata=message.response_metadata,
        usage_metadata=message.usage_metadata,
        chunk_position="last",
    )
    return ChatGenerationChunk(message=chunk)
