"""The embedded policy as a LangChain chat model: pictures and a question in, a solution out."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import ConfigDict, Field

from vprm_search.chat.capabilities import ModelCapabilities
from vprm_search.errors import InputError
from vprm_search.images.messages import read_message
from vprm_search.steps import normalise_text
from vprm_search.tiny.batching import BatchedSampler, SampleCall, shared_sampler
from vprm_search.tiny.sampler import Sample, SampleRequest
from vprm_search.tiny.weights import weights_path

_SEED_MASK = (1 << 63) - 1
_SEED_STRIDE = 0x9E3779B97F4A7C15  # odd, so that the children of one seed all differ


class TinyChatModel(BaseChatModel):
    """The tiny visual-maths policy behind LangChain's chat model interface.

    It reads one picture question: the last human message with an image (else the last one) and,
    if the conversation ends in an AI message, that message as the beginning of its answer. Other
    messages are not read. Call arguments: `stop`, `n`, `seed` (child i derives its own from it) or
    `seeds` (one per child, which makes each child independent of the others), `temperature`,
    `max_tokens`.

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
        samples: list[Sample] = await asyncio.wrap_future(sampler.submit(call))
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
    """Return the text and the images of the human message that asks the picture question."""
    read = [read_message(m) for m in messages if isinstance(m, HumanMessage)]
    if not read:
        raise InputError("the messages have no human message, so there is no question")
    text, images = next((item for item in reversed(read) if item[1]), read[-1])
    return text, tuple(images)


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
