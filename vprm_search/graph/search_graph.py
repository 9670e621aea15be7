"""`create_search_graph`: reward-guided search as a LangGraph graph."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Literal, cast, get_type_hints

from langchain_core.messages import BaseMessage
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import RetryPolicy, StateSnapshot
from typing_extensions import TypedDict

from vprm_search.answers import extract_answer
from vprm_search.budget import Budget
from vprm_search.chat.failures import is_retryable
from vprm_search.errors import ConfigError
from vprm_search.graph.blocking import in_run, new_run, stream_of_run
from vprm_search.graph.loop import Loop
from vprm_search.graph.nodes import TRACED, SearchNodes, after_review, next_node
from vprm_search.graph.parts import SearchRules, as_policy, as_scorer, choose_rules
from vprm_search.graph.questions import QuestionOf, question_in_context
from vprm_search.graph.review import ReviewWhen
from vprm_search.graph.session import ScoredRounds
from vprm_search.graph.state import SearchState, channels, talk
from vprm_search.images.messages import ImageIntake
from vprm_search.images.store import DiskImageStore, ImageStore
from vprm_search.search.auto import Advice
from vprm_search.search.outcome import OnNoAnswer
from vprm_search.search.plan import Strategy
from vprm_search.search.selectors import Selector
from vprm_search.steps import DEFAULT_LIMITS, Splitter, StepLimits, split_solution
from vprm_search.types import Policy, StepScorer

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

RETRY = RetryPolicy(initial_interval=0.5, max_interval=8.0, max_attempts=3, retry_on=is_retryable)
"""Three attempts for passing troubles; LangGraph's default skips timeouts and HTTP 429."""

_END = object()
_MANY_STEPS = 10**9
"""The recursion limit of every run: a search is ended by its strategy and its budget alone."""


def create_search_graph(
    *,
    policy: Policy | BaseChatModel | Mapping[str, Policy | BaseChatModel],
    scorer: StepScorer | None,
    strategy: Strategy | Literal["auto"] = "auto",
    selector: Selector | None = None,
    advice: Advice | None = None,
    budget: Budget | None = None,
    image_store: ImageStore | None = None,
    messages_key: str = "messages",
    run_seed: int = 0,
    on_no_answer: OnNoAnswer = "best_truncated",
    extract: Callable[[str], str | None] = extract_answer,
    split: str | Splitter = split_solution,
    limits: StepLimits = DEFAULT_LIMITS,
    question_of: QuestionOf | None = None,
    state_schema: type[Any] | None = None,
    context_schema: type[Any] | None = None,
    retry_policy: RetryPolicy = RETRY,
    candidates: bool = False,
    delta_checkpoints: bool = True,
    review: bool | ReviewWhen = False,
) -> SearchGraph:
    """Return the graph ingest → plan → propose → score → plan … → answer, not yet compiled.

    It takes a conversation under `messages_key` that ends with a question, with or without
    images, and appends the answer as an `AIMessage` whose `response_metadata["vprm"]` holds the
    answer, its path score, the usage and the digest of the tree, in less than 2 kB. Pictures are
    moved into `image_store`, and references stay in the messages (`restore_images` brings them
    back for a model that needs them; `ImageIntake` moves them out of a parent graph's state). A
    new human message on the same thread starts a new search; the tree of the one before
    (`tree_of_state`) is in the checkpoint that it ended with.

    Compile it with a checkpointer and a killed search goes on where it was
    (`invoke(None, config)`); with `durability="sync"` at most one node is repeated. The tree is
    then the same, byte for byte, if policy and scorer answer equal requests equally.

    Args:
        policy: what proposes steps: any LangChain chat model, or a `Policy`; or several by name,
            for a strategy that names them (`Cascade`).
        scorer: what gives each step P('+'); None if neither strategy nor selector reads scores;
            the default then is best-of-N with a majority vote.
        strategy: which paths to go on with. Default: "auto", an `AutoSearch`, or best-of-N where
            there is no scorer or nothing can be searched (`choose_rules`).
        selector: which finished path is the answer. Default: `WeightedVote()`, which is
            `BestScore("last")` when no two answers agree; for "auto" the one of `choose_rules`.
        advice: what a pre-flight check found the scorer good for with this policy, for "auto":
            "search", "vote" or "majority". Default: None, nothing was checked.
        budget: limits (candidates, tokens, requests, seconds) that end a search with the best
            answer so far. Default: none.
        image_store: where pictures are kept. Default: `DiskImageStore()`, so that a search can be
            resumed in another process.
        messages_key: the key of the conversation; its reducer must be `add_messages`.
        run_seed: makes the seeds of all candidates; equal searches draw equally.
        on_no_answer: what to do when no path finished: take the best unfinished one
            ("best_truncated", with `fallback` set) or raise `NoAnswerError` ("error").
        extract: reads the final answer out of a solution, None if there is none.
        split: cuts a whole solution into steps, which are scored as they are returned; a function,
            or the name of a splitter (`steps.SPLITTERS`, "auto"), whose steps are merged to at most
            12. Default: `split_solution`, as VisualPRM's own code does it (at every blank line, at
            most 12).
        limits: what a step (characters) and a solution (bytes, steps) may measure (`StepLimits`).
            Default: 8,000 characters, 200,000 bytes and 128 steps.
        question_of: makes the question that the reward model is shown of the messages (their
            pictures are references). The policy is shown the messages themselves. Default:
            `graph.questions.question_in_context`, the last human turn below a line for each turn
            before it.
        state_schema: a state of your own that has `messages_key`; the search's keys are added.
            Inherit `SearchState` to have them in the output, too.
        context_schema: passed on to the `StateGraph`.
        retry_policy: when a node whose policy or scorer raised is tried again. Default: `RETRY`,
            three attempts, .5 s and more apart, for passing troubles only.
        candidates: list every candidate path with its scores in `search_result` and in the
            answer's metadata, too, which is then stored with every later message. Default: False.
        delta_checkpoints: store in each checkpoint only the records and messages that are new in
            it (LangGraph's `DeltaChannel`), so that each is stored once and not once a step. False
            for a saver that keeps only the last checkpoint of a thread, or where old ones are
            deleted: tree and messages are then whole in every one. Records that are missing are
            noticed (`RecordError`). The messages of a `state_schema` are stored as it says.
            Default: True.
        review: pause after a round, once it is scored, and let a person prune, prefer or edit steps
            (`Review`): True for every round, or a function of the tree that tells. The pause is
            LangGraph's interrupt: it needs a checkpointer, shows the paths that may be chosen from,
            and goes on with `Command(resume={"prune": [...]})`. Every round then waits for all its
            replies. Default: False.

    Raises:
        ConfigError: the policy is neither, there is no scorer where one is needed, or
            `state_schema` does not fit the other options.
    """
    proposer = as_policy(policy)
    chosen = choose_rules(
        strategy, selector, policy=proposer, scorer=scorer, budget=budget, advice=advice
    )
    rules = SearchRules(*chosen, budget or Budget(), extract=extract, split=split, limits=limits)
    loop = Loop(
        proposer,
        as_scorer(scorer, rules),
        rules,
        waits=bool(review) or rules.waits_for_all(proposer),
        on_no_answer=on_no_answer,
        scored=ScoredRounds(),
    )
    intake = ImageIntake(DiskImageStore() if image_store is None else image_store, messages_key)
    nodes = SearchNodes(
        loop,
        intake,
        run_seed=run_seed,
        candidates=candidates,
        question_of=question_of or question_in_context,
        review=(lambda tree: True) if review is True else review or None,
    )
    schema = _state_schema(state_schema, messages_key, delta=delta_checkpoints)
    graph = SearchGraph(schema, context_schema, nodes)
    _wire(graph, retry_policy, delta=delta_checkpoints)
    return graph


class CompiledSearchGraph(CompiledStateGraph[Any, Any, Any, Any]):
    """A compiled graph that moves pictures into the store before LangGraph sees its input.

    LangGraph stores an input as it came, before any node runs; a picture in it would stay in the
    checkpoints for good. And a run that ends in whatever way (a closed stream, an exception, a
    cancelled task) ends the calls to the policy that it left under way.

    No `recursion_limit` ends a search: LangChain fills in 25 wherever it makes a config (`batch`,
    `with_retry`, chains), a parent graph hands its own down, and neither can be told from a
    limit that somebody set. Set `Budget(rounds=...)`. Nodes of your own in this graph are not
    bounded either: put a loop of your own into a graph around it.
    """

    def stream(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[Any]:
        """Stream the graph as `CompiledStateGraph.stream` does; so do all other ways to run it."""
        run = new_run()
        try:
            light = self._light(input)
            chunks = super().stream(light, _unbounded(config), **kwargs)
            yield from stream_of_run(chunks, run)
        finally:
            self._nodes.loop.calls.end_run(run)

    async def astream(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        """Stream the graph as `CompiledStateGraph.astream` does."""
        run = new_run()
        try:
            light = await asyncio.to_thread(self._light, input)
            async with aclosing(
                cast("Any", super().astream(light, _unbounded(config), **kwargs))
            ) as chunks:
                while True:
                    with in_run(run):
                        chunk = await anext(chunks, _END)
                    if chunk is _END:
                        return
                    yield chunk
        except NotImplementedError as error:
            await self._explain(error)
            raise
        finally:
            self._nodes.loop.calls.end_run(run)

    async def aget_state(self, config: RunnableConfig, *, subgraphs: bool = False) -> StateSnapshot:
        """Return the state as `CompiledStateGraph.aget_state` does."""
        try:
            return await super().aget_state(config, subgraphs=subgraphs)
        except NotImplementedError as error:
            await self._explain(error)
            raise

    async def aupdate_state(
        self,
        config: RunnableConfig,
        values: Any,
        as_node: str | None = None,
        task_id: str | None = None,
    ) -> RunnableConfig:
        """Change the state as `CompiledStateGraph.aupdate_state` does."""
        try:
            return await super().aupdate_state(config, values, as_node, task_id)
        except NotImplementedError as error:
            await self._explain(error)
            raise

    async def _explain(self, error: NotImplementedError) -> None:
        """Raise `ConfigError` if the error is the saver's, whose own has no text, as a rule."""
        saver = self.checkpointer
        if not isinstance(saver, BaseCheckpointSaver):
            return
        try:
            await saver.aget_tuple({"configurable": {"thread_id": "", "checkpoint_ns": ""}})
        except NotImplementedError:
            name = type(saver).__name__
            place = type(saver).__module__.removesuffix(".base")
            known = name in ("SqliteSaver", "PostgresSaver")
            other = f"Async{name} ({place}.aio)" if known else "a saver with asynchronous methods"
            raise ConfigError(
                f"the checkpointer {name} has no asynchronous methods, and the graph was called "
                f"asynchronously: compile it with {other}, or call invoke, stream and get_state"
            ) from error

    @property
    def _nodes(self) -> SearchNodes:
        return cast("SearchGraph", self.builder).search_nodes

    def _light(self, given: Any) -> Any:
        intake = self._nodes.intake
        if isinstance(given, PromptValue):
            given = given.to_messages()
        if isinstance(given, str | BaseMessage | list | tuple):  # what a chat model takes
            given = {intake.messages_key: given}
        return intake.lighten(given)


def _unbounded(config: RunnableConfig | None) -> RunnableConfig:
    return {**(config or {}), "recursion_limit": _MANY_STEPS}


class SearchGraph(StateGraph[Any, Any, Any, Any]):
    """The `StateGraph` of a search; compile it like any other, or add to it before."""

    def __init__(
        self, state_schema: type[Any], context_schema: type[Any] | None, nodes: SearchNodes
    ) -> None:
        super().__init__(state_schema, context_schema)
        self.search_nodes = nodes

    def compile(self, *args: Any, **kwargs: Any) -> CompiledSearchGraph:
        """Compile as `StateGraph.compile` does."""
        kwargs.setdefault("name", "vprm-search")
        compiled = super().compile(*args, **kwargs)
        light = CompiledSearchGraph.__new__(CompiledSearchGraph)
        light.__dict__.update(compiled.__dict__)  # StateGraph names the class it makes itself
        return light


def _wire(graph: SearchGraph, retry_policy: RetryPolicy, *, delta: bool) -> None:
    nodes = graph.search_nodes
    hints = get_type_hints(graph.state_schema, include_extras=True)
    said = {nodes.messages_key: hints[nodes.messages_key]}
    read = _typed_dict("SearchInput", {**said, **channels(delta=delta)})
    for name, node in nodes.runnables().items():
        graph.add_node(
            name, node, input_schema=read, retry_policy=retry_policy, trace_policy=TRACED
        )
    graph.add_edge(START, "ingest")
    graph.add_edge("ingest", "plan")
    graph.add_conditional_edges("plan", next_node, {"propose": "propose", "answer": "answer"})
    graph.add_edge("propose", "score")
    if nodes.review is None:
        graph.add_edge("score", "plan")
    else:
        graph.add_edge("score", "review")
        graph.add_conditional_edges("review", after_review, {"score": "score", "plan": "plan"})
    graph.add_edge("answer", END)


def _state_schema(given: type[Any] | None, messages_key: str, *, delta: bool) -> type[Any]:
    if given is None and messages_key == "messages" and delta:
        return SearchState
    if given is None:
        keys = {messages_key: talk(delta=delta), **channels(delta=delta)}
        return _typed_dict("SearchState", keys)
    hints = get_type_hints(given)
    if messages_key not in hints:
        raise ConfigError(
            f"state_schema {given.__name__} has no key {messages_key!r}; declare it as "
            "Annotated[list[AnyMessage], add_messages], or name another messages_key"
        )
    if not delta and "search_nodes" in hints:
        raise ConfigError(
            f"state_schema {given.__name__} declares search_nodes, which delta_checkpoints=False "
            "declares in its own way; leave one of them out"
        )
    return given


def _typed_dict(name: str, keys: dict[str, Any]) -> type[Any]:
    return cast("type[Any]", TypedDict(name, keys, total=False))  # type: ignore[operator]
