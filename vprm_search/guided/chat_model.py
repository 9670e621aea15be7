"""`GuidedChatModel`: a reward-guided search in the place of a chat model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing, suppress
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import (
    Runnable,
    RunnableParallel,
    RunnableSequence,
)
from pydantic import ConfigDict, PrivateAttr

from vprm_search.answers import extract_answer
from vprm_search.budget import Budget
from vprm_search.errors import ConfigError
from vprm_search.graph.blocking import iterate_blocking, run_blocking
from vprm_search.graph.events import Event
from vprm_search.graph.loop import Job
from vprm_search.graph.parts import SearchRules, as_policy, as_scorer, choose_rules
from vprm_search.graph.questions import QuestionOf, read_asked
from vprm_search.graph.run import run_jobs
from vprm_search.guided.messages import (
    messages_of,
    pieces_of,
    progress_of,
    progress_piece,
    with_progress,
)
from vprm_search.guided.model_run import ModelRun, stream_run
from vprm_search.guided.policies import (
    bound_arguments,
    cache_name,
    chat_model_of,
    first_policy,
)
from vprm_search.guided.traced_model import TracedChatModel
from vprm_search.guided.turns import (
    KeptReplies,
    Turn,
    WholeReplies,
    question_so_far,
)
from vprm_search.steps import Splitter, split_solution
from vprm_search.tree import SearchTree
from vprm_search.types import Policy

_STANDARD = ("temperature", "max_tokens")
_NOT_FOR_POLICIES = ("stream", "n")
_KEPT_POLICIES = 16


class GuidedChatModel(TracedChatModel):
    """A chat model whose every answer is found by a search: `prompt | guided | parser`.

    Each call is one search: the policy proposes candidates, the reward model scores their steps,
    the strategy says which to go on with, and the selector which one is the answer. The policy is
    shown the very messages of the call; no instruction is added to them, unless a strategy that
    goes step by step asks a model that cannot continue a text for its next step. The answer is the
    policy's own message. Its `response_metadata["vprm"]` tells the score, the scores of its steps,
    what the search cost and why it ended, `usage_metadata` what all candidates cost together, and
    `generate` gives all candidates, best first.

    Tools and structured output are the policy's (`bind_tools`, `with_structured_output`). With
    either, candidates are whole replies: as many as the strategy begins with. Calls are compared
    as calls and scored as sentences (`vprm_search.chat.tool_calls`).

    A call that fails for every candidate raises the client's own error, so retries and fallbacks
    work as they do around the policy. Where replies came and none is a candidate (a refusal), the
    first of them is the answer, with a warning and without a score. Cut or unfinished searches
    warn (`SearchWarning`), and say so in `response_metadata["vprm"]["warning"]`.

    Args:
        policy: what proposes: a chat model, also with arguments bound to it, a `ChatModelPolicy`
            for its options, any other `Policy`, or several by name.
        scorer: what gives each step P('+'); None if neither strategy nor selector reads scores.
        strategy: which candidates to go on with. Default: "auto", as in `run_search`.
        selector: which candidate is the answer. Default: as in `run_search`.
        budget: limits of one call, which end its search with the best answer so far.
        run_seed: makes the seeds of all candidates: a seeded policy answers equal calls equally.
            An argument `seed` of a call takes its place.
        extract: reads the final answer out of a text, None if there is none, for votes.
        split: cuts a text into steps.
        question_of: makes the reward model's question of the messages. Default:
            `vprm_search.guided.turns.question_so_far`.
        progress: whether the search tells of its rounds as reasoning (`reasoning_content`, before
            the answer in a stream).
        streaming: whether `invoke` gives the answer to handlers in pieces even if none is known to
            stream.
        temperature: of every call of the policy. Default: its own.
        max_tokens: of every answer of the policy. Default: its own.
        stop: strings that end an answer. Default: the policy's.

    Raises:
        ConfigError: an option is none of what is asked for, or there is no scorer where one is
            needed.
        InputError: a call has no human message, or one with something else than text and pictures.
        ImageError: a picture cannot be read; one given by address is never fetched.
        NoAnswerError: nothing was proposed at all.
    """

    policy: Any
    scorer: Any = None
    strategy: Any = "auto"
    selector: Any = None
    budget: Budget | None = None
    run_seed: int = 0
    extract: Callable[[str], str | None] = extract_answer
    split: str | Splitter = split_solution
    question_of: QuestionOf = question_so_far
    progress: bool = False
    streaming: bool = False
    temperature: float | None = None
    max_tokens: int | None = None
    stop: list[str] | None = None

    _reader: Runnable[Any, Any] | None = PrivateAttr(default=None)
    _turns: dict[str, tuple[Any, Policy, Turn]] = PrivateAttr(default_factory=dict)

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        policy, turn = self._turn({})  # here and not in a validator, which would hide the error
        self._rules(policy, turn, None)

    # --- what LangChain asks about it ---

    @property
    def _llm_type(self) -> str:
        return "vprm-guided"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        rules = {"strategy": self.strategy, "selector": self.selector, "budget": self.budget}
        policy = self._get_ls_params()["ls_model_name"]
        told = {name: str(rule) for name, rule in rules.items() if rule is not None}
        own = {name: getattr(self, name) for name in (*_STANDARD, "stop")}
        set_here = {name: value for name, value in own.items() if value is not None}
        scorer = type(self.scorer).__name__
        return {"policy": policy, "scorer": scorer, **told, "run_seed": self.run_seed, **set_here}

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        """Return what a cache keeps answers apart by: all that an answer depends on."""
        parts = (self.policy, self.scorer, self.extract, self.split, self.question_of)
        named = "---".join(map(cache_name, parts))
        return f"{super()._get_llm_string(stop=stop, **kwargs)}---{named}"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = "vprm_search"
        name = kwargs.get("model")
        if name is None and (model := chat_model_of(self.policy)) is not None:
            name = model._get_ls_params().get("ls_model_name") or type(model).__name__
        params["ls_model_name"] = str(name or type(self.policy).__name__)
        return params

    def _resolve_model_profile(self) -> Any:
        return getattr(chat_model_of(self.policy), "profile", None)

    # --- tools and structured output ---

    def bind_tools(
        self, tools: Sequence[Any], *, tool_choice: Any = None, **kwargs: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Return the model with tools, in the shape that the policy's client gives them.

        Args:
            tools: as the policy's `bind_tools` takes them.
            tool_choice: which of them must be called. Default: the model decides.
            kwargs: further arguments of the policy's `bind_tools`.

        Raises:
            ConfigError: the policy is no chat model.
            NotImplementedError: its client knows no tools.
        """
        choice = {} if tool_choice is None else {"tool_choice": tool_choice}
        bound = self._client("bind_tools").bind_tools(tools, **choice, **kwargs)
        return self.bind(**bound_arguments(bound))

    def with_structured_output(
        self, schema: dict[str, Any] | type, *, include_raw: bool = False, **kwargs: Any
    ) -> Runnable[LanguageModelInput, Any]:
        """Return a runnable whose answers are read into `schema`, as the policy's client does it.

        Args:
            schema: as the policy's `with_structured_output` takes it.
            include_raw: whether the message is returned beside what was read from it.
            kwargs: further arguments of the policy's method, such as `method`.

        Raises:
            ConfigError: the policy is no chat model.
        """
        client = self._client("with_structured_output")
        own = type(client).with_structured_output is not BaseChatModel.with_structured_output
        make = client.with_structured_output if own else super().with_structured_output
        plain = make(schema, **kwargs)
        chain = make(schema, include_raw=True, **kwargs) if include_raw else plain
        if not (isinstance(plain, RunnableSequence) and isinstance(chain, RunnableSequence)):
            raise ConfigError(
                f"{type(client).__name__} gives structured output in a way that is not known here; "
                "bind its arguments, and parse the answers behind the model"
            )
        model = self.model_copy()
        model._turns, model._reader = {}, _chain(plain.steps[1:])
        first: Any = chain.first
        if include_raw:
            raw = model.bind(**bound_arguments(first.steps__["raw"]))
            first = RunnableParallel(raw=raw)
        else:
            first = model.bind(**bound_arguments(first))
        return RunnableSequence(first, *chain.steps[1:])

    # --- calls ---

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return run_blocking(self._result(messages, stop, ModelRun.of(run_manager), kwargs))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return await self._result(messages, stop, ModelRun.of(run_manager), kwargs)

    async def _result(
        self, messages: list[BaseMessage], stop: list[str] | None, run: ModelRun, kwargs: Any
    ) -> ChatResult:
        """Search; give the answer to handlers in pieces where they take it so."""
        in_pieces = run.streams or self.streaming
        told, answers = "", list[AIMessage]()
        async with aclosing(self._search(messages, stop, run, kwargs)) as items:
            async for item in items:
                if isinstance(item, str):
                    told += item
                    pieces: Iterable[ChatGenerationChunk] = [progress_piece(item, run.message_id)]
                else:
                    answers = item
                    pieces = pieces_of(answers[0], run.message_id)
                for piece in pieces if in_pieces else ():
                    await run.stream(piece)
        best = with_progress(answers[0], told) if told else answers[0]
        if in_pieces:
            best.id = run.message_id
        generations = [ChatGeneration(message=message) for message in (best, *answers[1:])]
        return ChatResult(generations=generations)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        run = stream_run() if run_manager is None else ModelRun.of(run_manager)
        yield from iterate_blocking(self._pieces(messages, stop, run, kwargs))

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        run = stream_run() if run_manager is None else ModelRun.of(run_manager)
        async with aclosing(self._pieces(messages, stop, run, kwargs)) as pieces:
            async for piece in pieces:
                yield piece

    async def _pieces(
        self, messages: list[BaseMessage], stop: list[str] | None, run: ModelRun, kwargs: Any
    ) -> AsyncGenerator[ChatGenerationChunk]:
        async with aclosing(self._search(messages, stop, run, kwargs)) as items:
            async for item in items:
                if isinstance(item, str):
                    yield progress_piece(item, run.message_id)
                else:
                    for piece in pieces_of(item[0], run.message_id):
                        yield piece

    # --- the search ---

    async def _search(
        self, messages: list[BaseMessage], stop: list[str] | None, run: ModelRun, kwargs: Any
    ) -> AsyncGenerator[str | list[AIMessage]]:
        """Yield what is told of the search's progress, if it is wished for, then the candidates.

        The search is a task of its own: it is cancelled with the caller.
        """
        events: asyncio.Queue[Event | None] = asyncio.Queue()
        task = asyncio.create_task(self._searched(messages, stop, run, kwargs, events.put_nowait))
        task.add_done_callback(lambda _: events.put_nowait(None))
        try:
            while (event := await events.get()) is not None:
                await run.tell(event)
                line = progress_of(event) if self.progress else ""
                if line:
                    yield line
            yield task.result()
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task

    async def _searched(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        run: ModelRun,
        kwargs: Mapping[str, Any],
        on_event: Callable[[Event], None],
    ) -> list[AIMessage]:
        own = {name: getattr(self, name) for name in _STANDARD if getattr(self, name) is not None}
        arguments = {**own, **kwargs}
        for name in _NOT_FOR_POLICIES:
            arguments.pop(name, None)
        seed = arguments.pop("seed", None)
        stops = stop if stop is not None else self.stop
        if stops is not None:
            arguments["stop"] = stops
        with run.nested():
            policy, turn = self._turn(arguments)
            kept = KeptReplies(policy, turn)
            problem, images, _ = read_asked(messages, self.question_of)
            tree = SearchTree(problem, self.run_seed if seed is None else int(seed))
            rules = self._rules(policy, turn, tree)
            scorer = as_scorer(self.scorer, rules)
            job = Job(tree, images, messages=tuple(messages))
            (found,) = await run_jobs([job], kept, scorer, rules, on_event=on_event)
        return messages_of(found, kept)

    def _turn(self, arguments: dict[str, Any]) -> tuple[Policy, Turn]:
        """Return the policy whose calls carry `arguments`, and how its replies are read.

        It is kept for later calls with the same, since a policy learns what its client takes.
        """
        key = json.dumps(arguments, sort_keys=True, default=repr)
        kept = self._turns.get(key)
        if kept is not None and kept[0] is self.policy:
            return kept[1], kept[2]
        bound = bound_arguments(first_policy(self.policy))
        turn = Turn({**bound, **arguments}, self.extract, self._reader)
        if isinstance(self.policy, Mapping):
            policies = {n: turn.policy(one, arguments) for n, one in self.policy.items()}
            policy = as_policy(policies)
        else:
            policy = turn.policy(self.policy, arguments)
        while len(self._turns) >= _KEPT_POLICIES:
            self._turns.pop(next(iter(self._turns)), None)
        self._turns[key] = (self.policy, policy, turn)
        return policy, turn

    def _rules(self, policy: Policy, turn: Turn, tree: SearchTree | None) -> SearchRules:
        asked = WholeReplies(policy) if turn.is_whole else policy
        strategy, selector = choose_rules(
            self.strategy, self.selector, policy=asked, scorer=self.scorer, budget=self.budget
        )
        budget = self.budget or Budget()
        rules = SearchRules(strategy, selector, budget, extract=turn.answer_of, split=self.split)
        as_scorer(self.scorer, rules)
        if tree is None:
            return rules
        whole = turn.strategy(rules.strategy, tree.problem)
        return SearchRules(whole, selector, budget, extract=turn.answer_of, split=self.split)

    def _client(self, method: str) -> BaseChatModel:
        model = chat_model_of(self.policy)
        if model is None:
            raise ConfigError(
                f"{method} needs a policy that is a chat model, and the policy is "
                f"{type(first_policy(self.policy)).__name__}"
            )
        return model


def _chain(steps: Sequence[Runnable[Any, Any]]) -> Runnable[Any, Any]:
    return steps[0] if len(steps) == 1 else RunnableSequence(*steps)
