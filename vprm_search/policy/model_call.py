"""One call to a chat model: its arguments, its place in the queue, its repeats."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.globals import get_llm_cache
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.outputs import LLMResult
from langchain_core.runnables import RunnableBinding
from langchain_core.runnables.config import ensure_config

from vprm_search.chat.calls import Outcome, RetryRules, call_with_retries
from vprm_search.chat.capabilities import ModelCapabilities, Prefill
from vprm_search.chat.failures import explain, secrets_of
from vprm_search.errors import ConfigError

_HIDDEN = "nostream"  # LangGraph's tag for calls whose tokens stay out of message streams
_CALL_SEED_MASK = (1 << 31) - 1  # some servers keep seeds in 32 bits


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked in one call: one answer to `messages` for each of `seeds`.

    `continues` is True when the last message is a partial answer. `temperature_scale` is a factor
    on the temperature, where the model tells one.
    """

    messages: Sequence[BaseMessage]
    seeds: tuple[int, ...]
    max_tokens: int
    stop: tuple[str, ...] = ()
    continues: bool = False
    temperature_scale: float = 1.0


class ModelCaller:
    """Calls one chat model with a bounded number of calls at a time, and repeats failed ones.

    Runs are nested under the caller's run (tracing) and tagged so that LangGraph keeps their
    tokens out of message streams.
    """

    def __init__(
        self,
        model: BaseChatModel,
        bound: dict[str, Any],
        capabilities: ModelCapabilities,
        *,
        prefill: Prefill,
        retry: RetryRules,
        max_concurrency: int,
    ) -> None:
        self.model = model
        self._bound, self._known, self._prefill = bound, capabilities, prefill
        self._retry = retry
        self._slots = _Slots(max_concurrency)
        self._secrets = secrets_of(model)

    async def __call__(self, ask: Ask) -> Outcome[LLMResult]:
        """Return the model's answers, or the error after the last attempt.

        The time limits start with the call's turn. The turn is kept during pauses: a server that
        asks for patience is not asked by others meanwhile.
        """
        jitter = (ask.seeds[0] % 1024) / 1023
        async with self._slots.one():
            return await call_with_retries(lambda: self._generate(ask), self._retry, jitter=jitter)

    def explain(self, error: Exception) -> str:
        """Return one line about `error` without the model's keys."""
        return explain(error, self._secrets)

    async def _generate(self, ask: Ask) -> LLMResult:
        model = self.model
        if self._siblings_would_share_a_cache():
            model = model.model_copy(update={"cache": False})
        return await model.agenerate(
            [list(ask.messages)],
            stop=list(ask.stop) or None,
            callbacks=ensure_config().get("callbacks"),
            tags=[_HIDDEN],
            run_name="propose",
            **self.arguments(ask),
        )

    def arguments(self, ask: Ask) -> dict[str, Any]:
        """Return the call arguments beyond messages and stop strings."""
        known, arguments = self._known, dict(self._bound)
        if known.max_tokens_key:
            arguments[known.max_tokens_key] = ask.max_tokens
        if known.seeds == "children":
            arguments["seeds"] = list(ask.seeds)
        elif known.seeds == "call":
            arguments["seed"] = ask.seeds[0] & _CALL_SEED_MASK
        temperature = arguments.get("temperature", getattr(self.model, "temperature", None))
        if ask.temperature_scale != 1 and temperature is not None:
            arguments["temperature"] = min(
                known.max_temperature, temperature * ask.temperature_scale
            )
        if known.many or len(ask.seeds) > 1:
            arguments["n"] = len(ask.seeds)
        if _can_stream(self.model):
            arguments["stream"] = False  # a streaming caller must not switch off `n`
        if self._prefill == "server":
            body = self._server_body(ask, arguments.get("extra_body"))
            if body:
                arguments["extra_body"] = body
        return arguments

    def _server_body(self, ask: Ask, bound: dict[str, Any] | None) -> dict[str, Any]:
        """Return the extra fields by which a vLLM-like server continues a partial answer.

        A call-time body replaces the client's, so the client's is copied. The stop string is asked
        for in the output because the client drops the server's word on what ended a reply.
        """
        body = dict(bound or getattr(self.model, "extra_body", None) or {})
        if ask.continues:
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        if ask.stop:
            body["include_stop_str_in_output"] = True
        return body

    def _siblings_would_share_a_cache(self) -> bool:
        """Tell whether a LangChain cache would give every sibling the first one's answer."""
        if self._known.seeds != "none" or self.model.cache is False:
            return False
        return bool(self.model.cache) or get_llm_cache() is not None


class _Slots:
    """A limit on simultaneous calls, one for every event loop that uses it."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._by_loop: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = (
            weakref.WeakKeyDictionary()
        )

    def one(self) -> asyncio.Semaphore:
        loop = asyncio.get_running_loop()
        return self._by_loop.setdefault(loop, asyncio.Semaphore(self._limit))


def unwrap_model(model: Any) -> tuple[BaseChatModel, dict[str, Any]]:
    """Return the chat model inside `model.bind(...)`, and the bound call arguments.

    Raises `ConfigError` when there is no chat model inside.
    """
    bound: dict[str, Any] = {}
    while isinstance(model, RunnableBinding):
        bound = {**model.kwargs, **bound}
        model = model.bound
    if not isinstance(model, BaseChatModel):
        raise ConfigError(
            f"the policy model must be a LangChain chat model, not {type(model).__name__}"
        )
    return model, bound


def _can_stream(model: BaseChatModel) -> bool:
    kind = type(model)
    return kind._stream is not BaseChatModel._stream or kind._astream is not BaseChatModel._astream
