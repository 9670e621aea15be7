"""Any LangChain chat model as the policy of a search."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from langchain_core.globals import get_llm_cache
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.outputs import LLMResult
from langchain_core.runnables import RunnableBinding
from langchain_core.runnables.config import ensure_config

from vprm_search.errors import ConfigError
from vprm_search.policy.capabilities import ModelCapabilities, Prefill, capabilities_of
from vprm_search.policy.prompts import (
    DEFAULT_INSTRUCTION,
    PromptStyle,
    build_messages,
    server_body,
    stop_strings,
)
from vprm_search.policy.replies import (
    ReadingRules,
    Reply,
    as_proposals,
    failed_proposals,
    has_final_answer,
    read_proposal,
    read_replies,
    read_usage,
    share_tokens,
)
from vprm_search.policy.retry import (
    DEFAULT_RETRY,
    RetryRules,
    call_with_retries,
    explain,
    secrets_of,
    status_of,
)
from vprm_search.steps import DEFAULT_LIMITS, STEP_SEPARATOR
from vprm_search.types import Proposal, ProposeRequest

Continuation = Literal["auto", "prefill", "instruct"]

_MOST_PER_CALL = 64
_MOST_IN_PROCESS = 1024
_DEFAULT_CONCURRENCY = 16
_HIDDEN = "nostream"  # LangGraph's tag for calls whose tokens stay out of message streams
_CALL_SEED_MASK = (1 << 31) - 1  # some servers keep seeds in 32 bits


@dataclass(frozen=True, slots=True)
class _Call:
    """One call to the model: the children `seeds` of `request`, asked with `messages`."""

    request: ProposeRequest
    seeds: tuple[int, ...]
    messages: list[BaseMessage]


class ChatModelPolicy:
    """Proposes steps with any LangChain chat model; implements `types.Policy`.

    A path is continued either as the model's own unfinished message ("prefill") or by showing the
    steps in the question and asking for the next one ("instruct"); "auto" takes prefill where
    `capabilities_of` knows that the model can. All children of a path are asked for in one call
    where the model takes `n` (`n_per_call` bounds them); each child, or each call, gets its seed
    where the model takes seeds. A global LangChain cache is not used where it would make siblings
    equal.

    A call that fails for good costs its own children only: proposals with `finish="error"`.
    Timeouts, broken connections, 408, 409, 429 and 5xx are tried again by `retry`; give the model
    client `max_retries=0` so that only one of the two repeats. See `replies` for how the end of a
    step is told from the end of the solution.

    `max_tokens_per_step` bounds a step, `max_tokens_total` a whole rest (`until="end"`);
    `max_concurrency` the calls at a time (16; unbounded for a model in this process).
    `instruction` follows the question; None means `DEFAULT_INSTRUCTION`, "" means none.
    `capabilities` replaces what is known about the model. Raises `ConfigError` when `model` is not
    a chat model or an option is out of range.
    """

    def __init__(
        self,
        model: Any,
        *,
        step_separator: str = STEP_SEPARATOR,
        max_tokens_per_step: int = 512,
        max_tokens_total: int = 4096,
        max_step_chars: int = DEFAULT_LIMITS.max_step_chars or 8_000,
        continuation: Continuation = "auto",
        n_per_call: int | Literal["auto"] = "auto",
        max_concurrency: int | None = None,
        system_prompt: str | None = None,
        instruction: str | None = None,
        is_final: Callable[[str], bool] = has_final_answer,
        retry: RetryRules = DEFAULT_RETRY,
        capabilities: ModelCapabilities | None = None,
    ) -> None:
        self.model, self._bound = _unwrapped(model)
        self.capabilities = capabilities or capabilities_of(self.model)
        _check_positive(
            max_tokens_per_step=max_tokens_per_step,
            max_tokens_total=max_tokens_total,
            max_step_chars=max_step_chars,
            max_concurrency=1 if max_concurrency is None else max_concurrency,
            n_per_call=1 if n_per_call == "auto" else n_per_call,
            step_separator=len(step_separator),
        )
        if instruction is None:
            instruction = DEFAULT_INSTRUCTION if self.capabilities.instructions else ""
        self._style = PromptStyle(
            step_separator,
            _prefill(continuation, self.capabilities),
            self.capabilities.prefill_whitespace,
            system_prompt,
            instruction,
        )
        asked = self._style.prefill == "none"
        self._rules = ReadingRules(step_separator, is_final, max_step_chars, asked=asked)
        self._max_tokens = {"step": max_tokens_per_step, "end": max_tokens_total}
        self._per_call = _per_call(n_per_call, self.capabilities)
        in_process = self.capabilities.in_process
        self._slots = _Slots(
            max_concurrency or (_MOST_IN_PROCESS if in_process else _DEFAULT_CONCURRENCY)
        )
        self._retry = retry
        self._secrets = secrets_of(self.model)
        self._suffix_seen = False  # the server has shown that it keeps stop strings in its output
        self._stop_eats_steps = False  # white space before a step is lost, so stopping at it fails

    async def propose(self, requests: Sequence[ProposeRequest]) -> list[list[Proposal]]:
        """Answer all requests: one list per request, one proposal per seed, in order."""
        async with asyncio.TaskGroup() as group:
            tasks = [
                [group.create_task(self._answer(call)) for call in self._calls(request)]
                for request in requests
            ]
        return [[p for task in row for p in task.result()] for row in tasks]

    def _calls(self, request: ProposeRequest) -> list[_Call]:
        messages = build_messages(request, self._style)
        size = self._per_call
        starts = range(0, len(request.seeds), size)
        return [_Call(request, request.seeds[s : s + size], messages) for s in starts]

    async def _answer(self, call: _Call) -> list[Proposal]:
        """Ask until every child has an answer or the model stops giving any."""
        proposals: list[Proposal] = []
        while len(proposals) < len(call.seeds):
            left = replace(call, seeds=call.seeds[len(proposals) :])
            proposals += await self._answer_once(left)
        return proposals

    async def _answer_once(self, call: _Call) -> list[Proposal]:
        """Make one call; a model that ignores `n` gives fewer answers than asked for."""
        stop = self._stop(call.request)
        result, proposals = await self._ask(call, stop)
        if result is None:
            return proposals
        replies = read_replies(result)[: len(call.seeds)]
        if not replies:
            return failed_proposals(len(call.seeds), "the model gave no answer", 1)
        rules = self._reading(replies, call.request, stop)
        if stop and self._white_space_eaten(replies, call.request, rules):
            self._stop_eats_steps = True
            return await self._answer_once(call)
        usage = read_usage(result)
        readings = [read_proposal(reply, call.request, rules) for reply in replies]
        tokens = share_tokens(replies, usage.generated_tokens)
        return as_proposals(readings, tokens, usage, proposals[0].requests)

    async def _ask(
        self, call: _Call, stop: list[str] | None
    ) -> tuple[LLMResult | None, list[Proposal]]:
        """Return the result and a placeholder with the requests made, or failed proposals."""

        async def attempt() -> LLMResult:
            async with self._slots.one():
                return await self._generate(call, stop)

        jitter = (call.seeds[0] % 1024) / 1023
        outcome = await call_with_retries(attempt, self._retry, jitter=jitter)
        if outcome.error is not None:
            text = explain(outcome.error, self._secrets) + self._advice(outcome.error)
            return None, failed_proposals(len(call.seeds), text, outcome.attempts)
        return outcome.value, failed_proposals(1, "", outcome.attempts)

    async def _generate(self, call: _Call, stop: list[str] | None) -> LLMResult:
        model = self.model
        if self._siblings_would_share_a_cache():
            model = model.model_copy(update={"cache": False})
        return await model.agenerate(
            [call.messages],
            stop=stop,
            callbacks=ensure_config().get("callbacks"),
            tags=[_HIDDEN],
            run_name="propose",
            **self._arguments(call, stop),
        )

    def _arguments(self, call: _Call, stop: list[str] | None) -> dict[str, Any]:
        known, arguments = self.capabilities, dict(self._bound)
        if known.max_tokens_key:
            arguments[known.max_tokens_key] = self._max_tokens[call.request.until]
        if known.seeds == "children":
            arguments["seeds"] = list(call.seeds)
        elif known.seeds == "call":
            arguments["seed"] = call.seeds[0] & _CALL_SEED_MASK
        if self._per_call > 1 or known.many:
            arguments["n"] = len(call.seeds)
        if _can_stream(self.model):
            arguments["stream"] = False  # a streaming caller must not turn off `n`
        if self._style.prefill == "server":
            own = arguments.get("extra_body") or getattr(self.model, "extra_body", None) or {}
            body = server_body(
                self._style, own, continues=bool(call.request.steps), stops=stop is not None
            )
            if body:
                arguments["extra_body"] = body
        return arguments

    def _stop(self, request: ProposeRequest) -> list[str] | None:
        if request.until == "end" or (self._stop_eats_steps and request.steps):
            return None
        return stop_strings(self._style.separator, self.capabilities.stop)

    def _reading(
        self, replies: Sequence[Reply], request: ProposeRequest, stop: list[str] | None
    ) -> ReadingRules:
        """Return how to read these replies; the suffix is believed once it has been seen."""
        if self._style.prefill == "server" and stop:
            separator = self._style.separator
            self._suffix_seen |= any(reply.text.endswith(separator) for reply in replies)
        told = self._style.prefill == "server" and stop is not None and self._suffix_seen
        return replace(self._rules, stopped=stop is not None, suffix_tells=told)

    def _white_space_eaten(
        self, replies: Sequence[Reply], request: ProposeRequest, rules: ReadingRules
    ) -> bool:
        """Tell whether every answer stopped at once at the separator it should have started after.

        Some chat templates trim the partial answer; the model then writes the blank line first.
        """
        if rules.asked or not request.steps or any(reply.text.strip() for reply in replies):
            return False
        return all(
            reply.ending == "stop_string"
            or (reply.ending == "unknown" and not (rules.suffix_tells and not reply.text))
            for reply in replies
        )

    def _siblings_would_share_a_cache(self) -> bool:
        if self.capabilities.seeds != "none" or self.model.cache is False:
            return False
        return bool(self.model.cache) or get_llm_cache() is not None

    def _advice(self, error: Exception) -> str:
        if self._style.prefill == "none" or status_of(error) not in (400, 422):
            return ""
        return "; if the server cannot continue a partial answer, use continuation='instruct'"


class _Slots:
    """A limit on simultaneous calls, one for every event loop that uses the policy."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._by_loop: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = (
            weakref.WeakKeyDictionary()
        )

    def one(self) -> asyncio.Semaphore:
        loop = asyncio.get_running_loop()
        return self._by_loop.setdefault(loop, asyncio.Semaphore(self._limit))


def _unwrapped(model: Any) -> tuple[BaseChatModel, dict[str, Any]]:
    """Return the chat model inside `model.bind(...)` and the bound call arguments."""
    bound: dict[str, Any] = {}
    while isinstance(model, RunnableBinding):
        bound = {**model.kwargs, **bound}
        model = model.bound
    if not isinstance(model, BaseChatModel):
        raise ConfigError(
            f"the policy model must be a LangChain chat model, not {type(model).__name__}"
        )
    return model, bound


def _prefill(continuation: Continuation, known: ModelCapabilities) -> Prefill:
    if continuation == "auto":
        return known.prefill
    if continuation == "instruct":
        return "none"
    if continuation == "prefill":
        return "message" if known.prefill == "none" else known.prefill
    raise ConfigError(f"continuation is {continuation!r}; use 'auto', 'prefill' or 'instruct'")


def _per_call(n_per_call: int | Literal["auto"], known: ModelCapabilities) -> int:
    if n_per_call != "auto":
        return n_per_call
    if known.in_process:
        return _MOST_IN_PROCESS
    return _MOST_PER_CALL if known.many else 1


def _can_stream(model: BaseChatModel) -> bool:
    kind = type(model)
    return kind._stream is not BaseChatModel._stream or kind._astream is not BaseChatModel._astream


def _check_positive(**options: int) -> None:
    for name, value in options.items():
        if value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1")
