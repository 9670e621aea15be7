"""Any LangChain chat model as the policy of a search."""

from __future__ import annotations

import asyncio
import copy
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, Literal, get_args

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.outputs import LLMResult

from vprm_search.answers import has_final_answer
from vprm_search.chat.arguments import CallSettings
from vprm_search.chat.calls import (
    DEFAULT_RETRY,
    BoundedCalls,
    Outcome,
    RetryRules,
    unwrap_model,
)
from vprm_search.chat.capabilities import ModelCapabilities, capabilities_of, recognised
from vprm_search.chat.context_window import ContextWindow, read_overrun
from vprm_search.chat.failures import explain, is_retryable, remedy, secrets_of
from vprm_search.chat.outgoing import outgoing
from vprm_search.errors import ConfigError
from vprm_search.images.messages import content_blocks, is_image
from vprm_search.policy.manner import Client, Manner
from vprm_search.policy.prompts import (
    DEFAULT_INSTRUCTION,
    PromptStyle,
    build_messages,
    stop_strings,
)
from vprm_search.policy.replies import (
    ReadingRules,
    Reply,
    Speak,
    as_proposals,
    cut_too_early,
    failed_proposals,
    read_proposal,
    read_replies,
    read_usage,
    share_tokens,
)
from vprm_search.steps import DEFAULT_LIMITS, STEP_SEPARATOR, Splitter
from vprm_search.steps.splitters import ends_at_blank_lines, proposed_by
from vprm_search.types import Proposal, ProposeRequest

Continuation = Literal["auto", "prefill", "instruct"]

_MOST_PER_CALL = 64
_MOST_IN_PROCESS = 1024
_DEFAULT_CONCURRENCY = 16
_MOST_REFUSALS = 16  # of one call as too long, before it is given up
_OUT_OF_TIME = "cut by budget: the search's seconds were over before the model had answered"


@dataclass(frozen=True, slots=True)
class _Call:
    """One call to the model: the children `seeds` of `request`, asked with `messages`.

    `manner` is what was known of the client when it was made.
    """

    request: ProposeRequest
    seeds: tuple[int, ...]
    messages: list[BaseMessage]
    manner: Manner


class ChatModelPolicy:
    """Proposes steps with any LangChain chat model; implements `types.Policy`.

    All children of a path are asked for in one call where the model takes `n`; each child, or each
    call, gets its seed where the model takes seeds. A LangChain cache is not used where it would
    make siblings equal. See `replies` for how the end of a step is told from the end of the
    solution.

    A model server is asked once what it is (`/v1/models`): vLLM and SGLang continue partial answers
    and tell the length of their context. A call that asks for more tokens than the context leaves
    is made again with fewer, and so are later ones.

    A call that fails for good costs its own children only: proposals with `finish="error"`.
    Timeouts, broken connections, 408, 409, 425, 429 and 5xx are tried again; give the model client
    `max_retries=0` so that only one of the two repeats.

    Args:
        model: a `BaseChatModel`, or one with arguments bound by `.bind(...)`.
        step_separator: what stands between two steps (a blank line).
        split: what cuts a reply into steps, by name (`steps.SPLITTERS`), where the separator is a
            blank line. Default: "blank-lines", no formula, table or list inside.
        max_tokens_per_step: tokens one step may have (512).
        max_tokens_total: tokens a whole rest of a solution may have (4096), for strategies that
            ask for it at once (best-of-N, rollouts). None: as many as the client allows by itself.
        max_step_chars: characters one step may have (8,000); a longer one is cut and counts as
            truncated.
        continuation: how a path is continued: "prefill", as the model's own unfinished message;
            "instruct", with the steps shown in the question and the next one asked for; "auto"
            (the default), prefill where `capabilities` says that the model can.
        n_per_call: answers asked for in one call. Default "auto": 64 where the model takes `n`
            (1024 in this process), else 1.
        max_concurrency: calls at a time in one event loop. Default: 16, and 1024 for a model in
            this process.
        system_prompt: the system message of problems that have none of their own. Default: none.
        instruction: follows the question. Default: `DEFAULT_INSTRUCTION` where the model follows
            instructions; "" means none.
        is_final: tells whether a step states the final answer, for models that do not say why
            they stopped. Default: it has "Answer: …" or a box.
        speak: returns the text by which a reply that is more than text is scored: one that calls
            tools (`chat.tool_calls`) or fills in a form; None for one that is text. Such a reply
            ends its path. Default: nothing is, and a reply that calls tools has failed.
        retry: how often a call is repeated and how long it may take.
        capabilities: what the model can do. Default: `capabilities_of(model)`, and what its server
            says.

    Attributes:
        continues: whether a path goes on as the model's own message, by what is known when the
            policy is made; where it does not, the default strategy samples whole solutions.

    Raises:
        ConfigError: `model` is not a chat model, or an option is out of range.
    """

    def __init__(
        self,
        model: Any,
        *,
        step_separator: str = STEP_SEPARATOR,
        split: str | Splitter = "blank-lines",
        max_tokens_per_step: int = 512,
        max_tokens_total: int | None = 4096,
        max_step_chars: int = DEFAULT_LIMITS.max_step_chars or 8_000,
        continuation: Continuation = "auto",
        n_per_call: int | Literal["auto"] = "auto",
        max_concurrency: int | None = None,
        system_prompt: str | None = None,
        instruction: str | None = None,
        is_final: Callable[[str], bool] = has_final_answer,
        speak: Speak | None = None,
        retry: RetryRules = DEFAULT_RETRY,
        capabilities: ModelCapabilities | None = None,
    ) -> None:
        self._model, bound = unwrap_model(model, "policy model")
        known = capabilities or capabilities_of(self._model)
        _check_positive(
            max_tokens_per_step=max_tokens_per_step,
            max_tokens_total=1 if max_tokens_total is None else max_tokens_total,
            max_step_chars=max_step_chars,
            max_concurrency=1 if max_concurrency is None else max_concurrency,
            n_per_call=1 if n_per_call == "auto" else n_per_call,
            step_separator=len(step_separator),
        )
        if continuation not in get_args(Continuation):
            raise ConfigError(
                f"continuation is {continuation!r}; use 'auto', 'prefill' or 'instruct'"
            )
        self._client = Client(self._model, bound, continuation)
        self._n_per_call: int | Literal["auto"] = n_per_call
        self._separator = step_separator
        self._split = proposed_by(split)
        self._stops = bool(step_separator.strip()) or ends_at_blank_lines(split)
        self._system_prompt = system_prompt
        self._instruction = instruction
        self._is_final = is_final
        self._speak = speak
        self._max_step_chars = max_step_chars
        self._max_tokens = {"step": max_tokens_per_step, "end": max_tokens_total}
        self._window = ContextWindow(known.context_tokens)
        self._adopt(Manner(known))
        self.continues = self._client.prefill(known) != "none"
        slots = max_concurrency or (_MOST_IN_PROCESS if known.in_process else _DEFAULT_CONCURRENCY)
        self._bounded = BoundedCalls(retry, slots)
        self._asked_server = capabilities is not None  # or it is known without asking
        self._asking: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Task[None]] = (
            weakref.WeakKeyDictionary()
        )
        self._suffix_seen = False  # the server has shown that it keeps stop strings in its output
        self._stop_fails: set[bool] = set()  # where stopping loses steps: behind steps, or not

    @property
    def capabilities(self) -> ModelCapabilities:
        """What the model can do, as far as is known by now."""
        return self._manner.known

    def bind(self, *, speak: Speak | None = None, **arguments: Any) -> ChatModelPolicy:
        """Return a policy whose calls carry `arguments`, as `model.bind(**arguments)` does it.

        It shares this one's limits on concurrent calls; what it learns of the client is its own.

        Args:
            speak: in place of this policy's. Default: the same.
            arguments: of every call, beside those bound to the model before: tools, stop strings.
        """
        bound = copy.copy(self)
        client = self._client
        bound._client = Client(client.model, {**client.bound, **arguments}, client.continuation)
        bound._speak = speak or self._speak
        bound._asking = weakref.WeakKeyDictionary()
        bound._stop_fails = set()
        bound._window = ContextWindow(self.capabilities.context_tokens)
        return bound

    @property
    def model(self) -> BaseChatModel:
        """The chat model, without the arguments bound to it."""
        return self._client.model

    @property
    def arguments(self) -> dict[str, Any]:
        """The call arguments bound to the model."""
        return dict(self._client.bound)

    def _adopt(self, manner: Manner) -> None:
        """Ask and read from now on as a model that can do this is asked and read."""
        known = manner.known
        instruction = self._instruction
        if instruction is None:
            instruction = DEFAULT_INSTRUCTION if known.instructions else ""
        prefill = self._client.prefill(known)
        self._manner = manner
        self._style = PromptStyle(
            self._separator, prefill, known.prefill_whitespace, self._system_prompt, instruction
        )
        self._rules = ReadingRules(
            self._separator,
            self._is_final,
            self._max_step_chars,
            self._split,
            asked=prefill == "none",
        )
        self._per_call = 1 if "n" in manner.refused else _per_call(self._n_per_call, known)

    async def _recognise(self, requests: Sequence[ProposeRequest]) -> list[ProposeRequest]:
        """Let the server say what it is, before the first call; return what is left to do then."""
        if self._asked_server:
            return list(requests)

        async def ask() -> None:
            known = await recognised(self._model, self.capabilities)
            if not self._asked_server:
                self._asked_server = True
                self._window = ContextWindow(known.context_tokens)
                self._adopt(replace(self._manner, known=known))

        loop = asyncio.get_running_loop()
        started = loop.time()
        task = self._asking.get(loop)
        if task is None:
            task = self._asking[loop] = loop.create_task(ask())
        limits = [r.timeout_s for r in requests if r.timeout_s is not None]
        await asyncio.wait([task], timeout=min(limits, default=None))
        spent = loop.time() - started
        return [
            r if r.timeout_s is None else replace(r, timeout_s=max(0.0, r.timeout_s - spent))
            for r in requests
        ]

    @property
    def batches(self) -> bool:
        """Whether one call with many requests is computed faster than many calls."""
        return self.capabilities.in_process

    async def propose(self, requests: Sequence[ProposeRequest]) -> list[list[Proposal]]:
        """Answer all requests: one list per request, one proposal per seed, in order."""
        requests = await self._recognise(requests)
        async with asyncio.TaskGroup() as group:
            tasks = [
                [group.create_task(self._answer(call)) for call in self._calls(request)]
                for request in requests
            ]
        return [[p for task in row for p in task.result()] for row in tasks]

    def _calls(self, request: ProposeRequest) -> list[_Call]:
        messages = self._messages(request)
        size = self._per_call
        starts = range(0, len(request.seeds), size)
        return [_Call(request, request.seeds[s : s + size], messages, self._manner) for s in starts]

    def _messages(self, request: ProposeRequest) -> list[BaseMessage]:
        messages = build_messages(request, self._style)
        shared = request.problem.question
        if request.messages:
            shared = str(request.messages[-1].text)
        if self._style.prefill != "none":  # the steps are a message of their own
            asked = [message for message in messages if isinstance(message, HumanMessage)]
            content = asked[-1].content if asked else ""
            shared = str(asked[-1].text) if isinstance(content, str) else _last_text(content)
        return outgoing(messages, self.capabilities, shared)

    def _afresh(self, call: _Call) -> _Call:
        """Return a call as it is made by what is known of the client by now."""
        if call.manner is self._manner:
            return call
        messages = self._messages(call.request)
        return replace(call, messages=messages, manner=self._manner)

    async def _answer(self, call: _Call) -> list[Proposal]:
        """Ask until every child has an answer: a model that ignores `n` gives fewer at a time.

        What is not there when the search's time is up has failed; what came before it counts.
        """
        proposals: list[Proposal] = []
        try:
            async with asyncio.timeout(call.request.timeout_s):
                await self._answers(call, None, proposals)
        except TimeoutError:  # only of the time above: a call's own time limits are outcomes
            late = failed_proposals(len(call.seeds) - len(proposals), _OUT_OF_TIME, 1)
            proposals += [replace(proposal, out_of_time=True) for proposal in late]
        return proposals

    async def _answers(
        self,
        call: _Call,
        stop: tuple[str, ...] | None,
        proposals: list[Proposal] | None = None,
    ) -> list[Proposal]:
        """Fill `proposals` with one answer a seed; by default with the stop strings as known."""
        found = [] if proposals is None else proposals
        while len(found) < len(call.seeds):
            words = self._stop(call.request) if stop is None else stop
            rest = replace(self._afresh(call), seeds=call.seeds[len(found) :])
            found += await self._answer_once(rest, words)
        return found

    async def _answer_once(self, call: _Call, stop: tuple[str, ...]) -> list[Proposal]:
        """Make one call; return at least one proposal, at most one per seed."""
        request = call.request
        outcome = await self._within_context(call, stop)
        if outcome.error is not None and self._learns(call, stop, outcome.error):
            again = await self._answer_once(self._afresh(call), self._stop(request))
            return [_charged(again[0], again[0], requests=outcome.attempts), *again[1:]]
        if outcome.value is None:
            reason, attempts = self._explain(outcome), outcome.attempts
            return failed_proposals(len(call.seeds), reason, attempts, outcome.error)
        replies = read_replies(outcome.value, self._speak)[: len(call.seeds)]
        if not replies:
            return failed_proposals(len(call.seeds), "the model gave no answer", outcome.attempts)
        self._client.note_ends(replies)
        rules = self._reading(replies, stop)
        usage = read_usage(outcome.value)
        readings = [read_proposal(reply, request, rules) for reply in replies]
        tokens = share_tokens(replies, usage.generated_tokens)
        proposals = as_proposals(replies, readings, tokens, usage, outcome.attempts)
        cut = [n for n, reply in enumerate(replies) if cut_too_early(reply, request, rules)]
        if cut:
            if rules.asked or not any(replies[n].text.strip() for n in cut):
                self._stop_fails.add(bool(request.steps))  # as a rule, not for once
            seeds = tuple(call.seeds[n] for n in cut)
            again = await self._answers(replace(call, seeds=seeds), ())
            for n, proposal in zip(cut, again, strict=True):
                better = proposal if proposal.text or not proposals[n].text else proposals[n]
                proposals[n] = _charged(better, proposal, proposals[n])
        return proposals

    async def _within_context(self, call: _Call, stop: tuple[str, ...]) -> Outcome[LLMResult]:
        """Make one call; ask for fewer tokens while the model's context is too short for them."""
        jitter = (call.seeds[0] % 1024) / 1023
        own, share = self._max_tokens[call.request.until], call.request.max_tokens
        if own is None and share is None:
            return await self._bounded(partial(self._generate, call, stop, None), jitter=jitter)
        own = self._client.limit if own is None else own
        wanted = min(n for n in (own, share) if n is not None)
        chars = sum(len(str(message.text)) for message in call.messages)
        images = sum(map(is_image, chain.from_iterable(map(_blocks, call.messages))))
        size = (wanted, chars, images)
        tokens = self._window.room(*size)
        attempts, refusals = 0, 0
        while True:
            outcome = await self._bounded(
                partial(self._generate, call, stop, tokens), jitter=jitter
            )
            attempts += outcome.attempts
            if outcome.error is None and refusals:
                self._window.note(tokens, *size)
            told = None
            if outcome.error is not None and call.manner.known.max_tokens_key:
                told = None if is_retryable(outcome.error) else read_overrun(str(outcome.error))
            fewer = None if told is None else self._window.learn(told, tokens, *size)
            if fewer is None or refusals == _MOST_REFUSALS:
                return replace(outcome, attempts=attempts)
            tokens, refusals = fewer, refusals + 1

    async def _generate(self, call: _Call, stop: tuple[str, ...], tokens: int | None) -> LLMResult:
        settings = self._settings(call, stop, tokens)
        return await self._client.generate(call.messages, settings, call.manner.known, stop)

    def _settings(self, call: _Call, stop: tuple[str, ...], tokens: int | None) -> CallSettings:
        return self._client.settings(
            call.manner, call.request, call.seeds, stop=stop, tokens=tokens
        )

    def _learns(self, call: _Call, stop: tuple[str, ...], error: Exception) -> bool:
        """Tell whether a call failed for an argument that need not be sent; note that."""
        sent = self._settings(call, stop, tokens=1)
        name = self._client.refused(error, sent, stop)
        if name is None:
            return False
        text = explain(error, secrets_of(self._model))
        manner = call.manner.without(name, sent, self._client, text)
        if manner is None or manner == call.manner:
            return False
        if self._manner is call.manner:  # else another call has learnt something meanwhile
            self._client.warn(name, call.manner, manner, text)
            self._adopt(manner)
        return True

    def _stop(self, request: ProposeRequest) -> tuple[str, ...]:
        if request.until == "end" or not self._stops or bool(request.steps) in self._stop_fails:
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
        if outcome.error is None:
            return "no answer"
        text = explain(outcome.error, secrets_of(self._model))
        if read_overrun(str(outcome.error)) is not None and not is_retryable(outcome.error):
            return f"{text}; the prompt leaves no room for an answer in the model's context"
        if self._style.prefill != "none" and outcome.status in (400, 422):
            text += "; if the model cannot continue a partial answer, use continuation='instruct'"
        advice = remedy(outcome.error)
        return f"{text}; {advice}" if advice else text


def _charged(proposal: Proposal, *asked: Proposal, requests: int = 0) -> Proposal:
    """Return a proposal with what it cost to ask for all of `asked`, and `requests` more."""
    return replace(
        proposal,
        requests=requests + sum(one.requests for one in asked),
        prompt_tokens=sum(one.prompt_tokens for one in asked),
        cached_tokens=sum(one.cached_tokens for one in asked),
        generated_tokens=sum(one.generated_tokens for one in asked),
    )


def _last_text(content: Sequence[Any]) -> str:
    last = content[-1] if content else ""
    return str(last.get("text", "")) if isinstance(last, dict) else str(last)


def _blocks(message: BaseMessage) -> list[dict[str, Any]]:
    return [] if isinstance(message.content, str) else content_blocks(message)


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
