"""A chat model that knows its own run: candidates are nested below it, traces hold no picture.

LangChain gives a model its run in `invoke` and not in `stream`, and gives tracers the messages of
every call, pictures and all. Here every way of calling a model begins with a manager of our own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import uuid4

from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForLLMRun,
    CallbackManager,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.outputs import LLMResult
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config

from vprm_search.graph.light_tracers import Manager, light_config, light_manager
from vprm_search.guided.model_run import ModelRun, as_stream_run


class TracedChatModel(BaseChatModel):
    """The part of a guided model that begins its runs."""

    def _should_stream(
        self,
        *,
        async_api: bool,
        run_manager: CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> bool:
        """Return whether LangChain is to call `_stream`: not where a run could be lost by it.

        Within `invoke` it would call it without the run. There the answer is given to handlers in
        pieces by `_generate`, which returns all candidates besides.
        """
        if run_manager is not None:
            return False
        return super()._should_stream(async_api=async_api, **kwargs)

    def generate(
        self,
        messages: list[list[BaseMessage]],
        stop: list[str] | None = None,
        callbacks: Any = None,
        **kwargs: Any,
    ) -> LLMResult:
        """Return all candidates for each list of messages, best first."""
        light = light_manager(CallbackManager, callbacks, self.callbacks)
        return super().generate(messages, stop, light, **kwargs)

    async def agenerate(
        self,
        messages: list[list[BaseMessage]],
        stop: list[str] | None = None,
        callbacks: Any = None,
        **kwargs: Any,
    ) -> LLMResult:
        """Return all candidates for each list of messages, best first."""
        light = light_manager(AsyncCallbackManager, callbacks, self.callbacks)
        return await super().agenerate(messages, stop, light, **kwargs)

    def stream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessageChunk]:
        """Stream the answer of the search; candidates are runs below the model's own."""
        config, run = self._with_run(config, CallbackManager)
        chunks = super().stream(input, config, stop=stop, **kwargs)
        with as_stream_run(run):
            first = next(chunks, None)
        if first is not None:
            yield first
            yield from chunks

    async def astream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        """Stream the answer of the search; candidates are runs below the model's own."""
        config, run = self._with_run(config, AsyncCallbackManager)
        chunks = super().astream(input, config, stop=stop, **kwargs)
        with as_stream_run(run):
            first = await anext(chunks, None)
        if first is not None:
            yield first
            async for chunk in chunks:
                yield chunk

    def stream_events(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Any:
        """Stream events of the call, in the version that is asked for."""
        light = light_config(CallbackManager, config, self.callbacks)
        return super().stream_events(input, light, **kwargs)

    def astream_events(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Any:
        """Stream events of the call, in the version that is asked for."""
        light = light_config(AsyncCallbackManager, config, self.callbacks)
        return super().astream_events(input, light, **kwargs)

    def _with_run(
        self, config: RunnableConfig | None, manager: type[Manager]
    ) -> tuple[RunnableConfig, ModelRun]:
        """Return a config that says which run a call of `stream` will be, and that run."""
        config = ensure_config(config)
        run_id = config.get("run_id") or uuid4()
        handlers = light_manager(
            manager,
            config.get("callbacks"),
            self.callbacks,
            inheritable_tags=config.get("tags"),
            inheritable_metadata=config.get("metadata"),
        )
        told = RunnableConfig(**{**config, "run_id": run_id, "callbacks": handlers})
        return told, ModelRun.of(handlers, run_id)
