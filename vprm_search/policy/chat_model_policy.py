"""Any LangChain chat model as the policy of a search."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from langchain_core.messages import BaseMessage
from langchain_core.outputs import LLMResult

from vprm_search.chat.calls import DEFAULT_RETRY, Outcome, RetryRules
from vprm_search.chat.capabilities import ModelCapabilities, Prefill, capabilities_of
from vprm_search.errors import ConfigError
from vprm_search.policy.model_call import Ask, ModelCaller, unwrap_model
from vprm_search.policy.prompts import (
    DEFAULT_INSTRUCTION,
    PromptStyle,
    build_messages,
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
from vprm_search.steps import DEFAULT_LIMITS, STEP_SEPARATOR
from vprm_search.types import Proposal, ProposeRequest

Continuation = Literal["auto", "prefill", "instruct"]

_MOST_PER_CALL = 64
_MOST_IN_PROCESS = 1024
_DEFAULT_CONCURRENCY = 16
_OUT_OF_TIME = "cut by budget: the search's seconds were over before the model had answered"


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
    where the model takes seeds. A LangChain cache is not used where it would make siblings equal.

    A call that fails for good costs its own children only: proposals with `finish="error"`.
    Timeouts, broken connections, 408, 409, 429 and 5xx are tried again by `retry`; give the model
    client `max_retries=0` so that only one of the two repeats. See `replies` for how the end of a
    step is told from the end of the solution.

    `max_tokens_per_step` bounds a step and `max_tokens_total` a whole rest (`until="end"`);
    a step of more than `max_step_chars` characters is cut and counts as truncated.
    `max_concurrency` bounds the calls at a time (16; unbounded for a model in this process).
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
        chat_model, bound = unwrap_model(model)
        known = capabilities or capabilities_of(chat_model)
        _check_positive(
            max_tokens_per_step=max_tokens_per_step,
            max_tokens_total=max_tokens_total,
            max_step_chars=max_step_chars,
            max_concurrency=1 if max_concurrency is None else max_concurrency,
            n_per_call=1 if n_per_call == "auto" else n_per_call,
            step_separator=len(step_separator),
        )
        if instruction is None:
            instruction = DEFAULT_INSTRUCTION if known.instructions else ""
        prefill = _prefill(continuation, known)
        self.capabilities = known
        self._style = PromptStyle(
            step_separator, prefill, known.prefill_whitespace, system_prompt, instruction
        )
        asked = prefill == "none"
        self._rules = ReadingRules(step_separator, is_final, max_step_chars, asked=asked)
        self._max_tokens = {"step": max_tokens_per_step, "end": max_tokens_total}
        self._per_call = _per_call(n_per_call, known)
        slots = max_concurrency or (_MOST_IN_PROCESS if known.in_process else _DEFAULT_CONCURRENCY)
        self._caller = ModelCaller(
            chat_model, bound, known, prefill=prefill, retry=retry, max_concurrency=slots
        )
        self._suffix_seen = False  # the server has shown that it keeps stop strings in its output
        self._stop_eats_steps = False  # white space before a step is lost, so stopping at it fails

    @property
    def batches(self) -> bool:
        """Whether one call with many requests is computed faster than many calls."""
        return self.capabilities.in_process

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
        """Ask until every child has an answer: a model that ignores `n` gives fewer at a time.

        What is not there when the search's time is up has failed; what came before it counts.
        """
        proposals: list[Proposal] = []
        try:
            async with asyncio.timeout(call.request.timeout_s):
                while len(proposals) < len(call.seeds):
                    proposals += await self._answer_once(
                        replace(call, seeds=call.seeds[len(proposals) :]), self._stop(call.request)
                    )
        except TimeoutError:  # only of the time above: a call's own time limits are outcomes
            late = failed_proposals(len(call.seeds) - len(proposals), _OUT_OF_TIME, 1)
            proposals += [replace(proposal, out_of_time=True) for proposal in late]
        return proposals

    async def _answer_once(self, call: _Call, stop: tuple[str, ...]) -> list[Proposal]:
        """Make one call; return at least one proposal, at most one per seed."""
        request = call.request
        outcome = await self._caller(
            Ask(
                call.messages,
                call.seeds,
                self._max_tokens[request.until],
                stop,
                continues=self._style.prefill != "none" and bool(request.steps),
                temperature_scale=request.temperature_scale,
            )
        )
        if outcome.value is None:
            return failed_proposals(len(call.seeds), self._explain(outcome), outcome.attempts)
        replies = read_replies(outcome.value)[: len(call.seeds)]
        if not replies:
            return failed_proposals(len(call.seeds), "the model gave no answer", outcome.attempts)
        rules = self._reading(replies, stop)
        usage = read_usage(outcome.value)
        if _white_space_eaten(replies, request, rules):
            self._stop_eats_steps = True
            first, *others = await self._answer_once(call, ())
            return [
                replace(
                    first,
                    requests=first.requests + outcome.attempts,
                    prompt_tokens=first.prompt_tokens + usage.prompt_tokens,
                    generated_tokens=first.generated_tokens + usage.generated_tokens,
                ),
                *others,
            ]
        readings = [read_proposal(reply, request, rules) for reply in replies]
        tokens = share_tokens(replies, usage.generated_tokens)
        return as_proposals(readings, tokens, usage, outcome.attempts)

    def _stop(self, request: ProposeRequest) -> tuple[str, ...]:
        if request.until == "end" or (self._stop_eats_steps and request.steps):
            return ()
        return stop_strings(self._style.separator, self.capabilities.stop)

    def _reading(self, replies: Sequence[Reply], stop: tuple[str, ...]) -> ReadingRules:
        """Return how to read these replies; the suffix is believed once it has been seen."""
        asked_for = self._style.prefill == "server" and bool(stop)
        if asked_for:
            self._suffix_seen |= any(reply.text.endswith(stop) for reply in replies)
        told = asked_for and self._suffix_seen
        return replace(self._rules, stopped=bool(stop), suffix_tells=told)

    def _explain(self, outcome: Outcome[LLMResult]) -> str:
        text = self._caller.explain(outcome.error) if outcome.error else "no answer"
        if self._style.prefill != "none" and outcome.status in (400, 422):
            text += "; if the model cannot continue a partial answer, use continuation='instruct'"
        return text


def _white_space_eaten(
    replies: Sequence[Reply], request: ProposeRequest, rules: ReadingRules
) -> bool:
    """Tell whether every answer stopped at once at the separator it should have started after.

    Some chat templates trim the partial answer; the model then writes the blank line first.
    """
    if rules.asked or not rules.stopped or not request.steps:
        return False
    return all(
        not reply.text.strip()
        and (
            reply.ending == "stop_string"
            or (reply.ending == "unknown" and bool(reply.text or not rules.suffix_tells))
        )
        for reply in replies
    )


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
    if not known.many:
        return 1
    return _MOST_IN_PROCESS if known.in_process else _MOST_PER_CALL


def _check_positive(**options: int) -> None:
    for name, value in options.items():
        if value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1")
