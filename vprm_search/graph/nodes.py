"""The five nodes of a search graph: ingest, plan, propose, score, answer.

Each is one batched step over the whole tree. A node reads the state, works on a tree of its own,
and returns the records it changed; what it did is only real once LangGraph has taken that update,
so a node may be killed, repeated or run twice without harm.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import warnings
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, AnyMessage
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import ensure_config, patch_config, var_child_runnable_config
from langgraph.config import get_stream_writer
from langgraph.constants import TAG_NOSTREAM
from langgraph.types import Overwrite, TracePolicy, interrupt
from typing_extensions import TypedDict

from vprm_search import ids
from vprm_search.errors import SearchWarning
from vprm_search.graph import events
from vprm_search.graph.blocking import run_blocking
from vprm_search.graph.light_tracers import callbacks_without_pictures
from vprm_search.graph.loop import Job, Loop
from vprm_search.graph.questions import (
    QuestionOf,
    asked_message,
    question_in_context,
    read_problem,
    restored_conversation,
    storable,
    warn_of_unseen,
)
from vprm_search.graph.review import PERSON, ReviewWhen, apply_review, frontier, review_of
from vprm_search.graph.session import LiveTrees, RunClocks
from vprm_search.graph.state import plan_from_json, plan_to_json, record_table, tree_of_state
from vprm_search.images.messages import ImageIntake
from vprm_search.search.plan import Plan
from vprm_search.types import ImageData, Json, NodeRecord, Problem, SearchResult

State = Mapping[str, Any]
Update = dict[str, Any]
Outcome = tuple[Update, list[events.Event]]


class SearchNodes:
    """The nodes of one search graph, each for synchronous and asynchronous use.

    Args:
        loop: the loop whose phases the nodes are.
        intake: takes pictures out of messages, and brings them back for a round; it knows the key
            of the conversation.
        run_seed: makes the seeds of all candidates.
        candidates: whether the outcome lists all candidates.
        question_of: makes the reward model's question of a conversation.
        review: tells after a round whether a person is asked; None if never.
    """

    def __init__(
        self,
        loop: Loop,
        intake: ImageIntake,
        *,
        run_seed: int = 0,
        candidates: bool = False,
        question_of: QuestionOf = question_in_context,
        review: ReviewWhen | None = None,
    ) -> None:
        self.loop = loop
        self.intake = intake
        self.messages_key = intake.messages_key
        self._run_seed = run_seed
        self._candidates = candidates
        self._question_of = question_of
        self.review = review
        self._trees = LiveTrees(tree_of_state)
        self._clocks = RunClocks()

    def runnables(self) -> dict[str, Node]:
        """Return the nodes by name, in the order of the loop."""
        return {
            "ingest": Node(self._ingest),
            "plan": Node(self._plan),
            "propose": Node(self._propose),
            "score": Node(self._score),
            "answer": Node(self._answer),
            **({"review": Node(self._review)} if self.review is not None else {}),
        }

    async def _ingest(self, state: State) -> Outcome:
        """Read the question, move its pictures out of the state, and start a new search."""
        self._clocks.start()
        key, intake = self.messages_key, self.intake
        given: Sequence[AnyMessage] = state.get(key) or []
        light = await asyncio.to_thread(intake.references, given)
        messages = [storable(message) for message in light]
        problem = read_problem(messages, intake.name_image, self._question_of)
        warn_of_unseen(messages, problem, intake.name_image)
        update: Update = {
            "search_problem": problem.to_json(),
            "search_run_seed": self._run_seed,
            "search_nodes": Overwrite({}),
            "search_size": 0,
            "search_plan": plan_to_json(Plan()),
            "search_seconds": 0.0,
            "search_result": None,
        }
        changed = [new for new, old in zip(messages, given, strict=True) if new is not old]
        return ({key: changed, **update} if changed else update), []

    def _plan(self, state: State) -> Outcome:
        """Ask the strategy what to do next, and put aside what it closes."""
        gap, began = self._clocks.gap(), time.monotonic()
        job = self._job(state, gap=gap)
        records, told = self.loop.plan(job)
        return self._update(state, job, records, began) | _planned(job), told

    async def _propose(self, state: State) -> Outcome:
        """Ask the policy for all children of this round, or wait for the first that are there."""
        gap, began = self._clocks.gap(), time.monotonic()
        job = self._job(state, await self._images(state), gap=gap)
        if job.tree.problem.context:
            talk = (job.tree.problem, state[self.messages_key], self.intake)
            job.messages = await asyncio.to_thread(restored_conversation, *talk)
        with unstreamed():
            ((records, told),) = await self.loop.propose([job])
        left = {} if self.loop.waits else _planned(job)
        return self._update(state, job, records, began) | left, told

    async def _score(self, state: State) -> Outcome:
        """Score all new steps of this round in one batch."""
        gap, began = self._clocks.gap(), time.monotonic()
        job = self._job(state, await self._images(state), gap=gap)
        cut = job.plan.cut
        with unstreamed():
            ((records, told),) = await self.loop.score([job])
        cut_now = _planned(job) if job.plan.cut and not cut else {}
        return self._update(state, job, records, began) | cut_now, told

    def _review(self, state: State) -> Outcome:
        """Let a person decide about this round, if it is time for that.

        A node of its own: an interrupt repeats the node it is in.
        """
        began = time.monotonic()
        job = self._job(state)
        rules = self.loop.rules
        shown = frontier(job.tree, (*rules.strategy.aggregates, rules.selector.aggregate)[0])
        if self.review is None or not shown or not self.review(job.tree):
            return self._update(state, job, [], began), []
        pause = {"search": job.tree.root_id, "round": job.tree.rounds, "frontier": shown}
        answer = interrupt(pause, response_schema=review_of(job.tree))
        records = apply_review(job.tree, answer, rules)
        table = record_table(records)  # the tree is not kept: what strategies made of it is stale
        grown = {"search_nodes": table, "search_size": len(job.tree)} if table else {}
        return grown, events.reviewed(job.tree, records)

    def _answer(self, state: State) -> Outcome:
        """Choose the answer and say it."""
        job = self._job(state)
        result, told = self.loop.conclude(job)
        if result.warning:
            warnings.warn(result.warning, SearchWarning, stacklevel=1)
        key = self.messages_key
        asked = asked_message(state[key]).id or ""
        name = f"vprm-{ids.digest(job.tree.root_id, asked)[:12].hex()}"
        outcome = result.to_json(candidates=self._candidates)
        metadata = {**outcome, "tree": job.tree.digest()}
        return {key: [answer_message(result, name, metadata)], "search_result": outcome}, told

    async def _images(self, state: State) -> tuple[ImageData, ...]:
        if not state["search_problem"].get("images"):
            return ()
        problem = Problem.from_json(state["search_problem"])
        return await asyncio.to_thread(self.intake.images, problem)  # from disk, as a rule

    def _job(self, state: State, images: tuple[ImageData, ...] = (), *, gap: float = 0.0) -> Job:
        tree = self._trees.take(state, _thread())
        plan = plan_from_json(state["search_plan"])
        return Job(tree, images, state["search_seconds"] + gap, plan)

    def _update(
        self, state: State, job: Job, records: Sequence[NodeRecord], began: float
    ) -> Update:
        """Return what a phase that began at `began` changes of the state."""
        table = self._trees.give(state, _thread(), record_table(records), job.tree)
        self._clocks.end()
        seconds = {"search_seconds": job.seconds + time.monotonic() - began}
        grown = {"search_nodes": table, "search_size": len(job.tree)} if table else {}
        return {**seconds, **grown}


class Planned(TypedDict):
    """What decides where `plan` leads: reading less of the state costs less."""

    search_plan: dict[str, Any]


def next_node(state: Planned) -> str:
    """Return the node after `plan`: "answer" when the search is over, else "propose"."""
    return "answer" if state["search_plan"]["finish"] else "propose"


def after_review(state: Mapping[str, Any]) -> str:
    """Return the node after `review`: "score" where a person's step waits for its score."""
    waits = any(
        r.get("policy") == PERSON and "score" not in r and "score_reason" not in r
        for r in state["search_nodes"].values()
    )
    return "score" if waits else "plan"


def answer_message(
    result: SearchResult, message_id: str, metadata: Mapping[str, Json]
) -> AIMessage:
    """Return the answer as a message; `response_metadata["vprm"]` is `metadata` without its text.

    A message is stored with every later checkpoint of its conversation, so it has to be small.
    """
    spent = result.usage
    usage = UsageMetadata(
        input_tokens=spent.prompt_tokens,
        output_tokens=spent.generated_tokens,
        total_tokens=spent.prompt_tokens + spent.generated_tokens,
    )
    if spent.cached_tokens:
        usage["input_token_details"] = InputTokenDetails(cache_read=spent.cached_tokens)
    return AIMessage(
        content=str(result),
        id=message_id,
        response_metadata={"vprm": {k: v for k, v in metadata.items() if k != "text"}},
        usage_metadata=usage,
    )


class Node(Runnable[State, Update]):
    """One phase as a node of a graph, for synchronous and asynchronous use.

    A `RunnableLambda` would be a run of its own within the node's, at a cost that shows.
    """

    def __init__(self, phase: Callable[[State], Outcome | Awaitable[Outcome]]) -> None:
        self._phase = phase

    def invoke(self, input: State, config: RunnableConfig | None = None, **kwargs: Any) -> Update:
        """Run the phase."""
        outcome = self._phase(input)
        return _told(run_blocking(outcome) if isinstance(outcome, Awaitable) else outcome)

    async def ainvoke(
        self, input: State, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Update:
        """Run the phase."""
        outcome = self._phase(input)
        return _told(await outcome if isinstance(outcome, Awaitable) else outcome)


def _asked_in_short(state: State) -> dict[str, Json]:
    """Return what a trace shows of the state a node reads: all of it, sent with every node, grows
    with the square of the search.
    """
    return {name: state[name] for name in ("search_size", "search_seconds") if name in state}


def _told_in_short(update: Update) -> dict[str, Any]:
    """Return what a trace shows of what a node did: of the nodes of the tree, their scores."""
    table = update.get("search_nodes")
    if not isinstance(table, dict):
        return {name: value for name, value in update.items() if name != "search_nodes"}
    return {**update, "search_nodes": {node: r.get("score") for node, r in table.items()}}


TRACED = TracePolicy(process_inputs=_asked_in_short, process_outputs=_told_in_short)
"""What traces (LangSmith, OpenTelemetry) hold of a node's run: the outcome has the whole tree."""


def _told(outcome: Outcome) -> Update:
    update, told = outcome
    write = get_stream_writer()
    for event in told:
        write(event)
    return update


def _planned(job: Job) -> Update:
    return {"search_plan": plan_to_json(job.plan)}


def _thread() -> str:
    """Return the name of the conversation this run belongs to."""
    config = var_child_runnable_config.get() or {}
    return str(config.get("configurable", {}).get("thread_id"))


@contextlib.contextmanager
def unstreamed() -> Iterator[None]:
    """Run a block whose model calls do not show up in `stream_mode="messages"`.

    Calls inherit the tag from their context, so policies and scorers need not know of it. What
    they do not inherit is the search's recursion limit: an agent among them keeps a bound. Pictures
    that they send to models of their own are not traced.
    """
    config = patch_config(ensure_config())
    config["tags"] = [*(config.get("tags") or []), TAG_NOSTREAM]
    config["callbacks"] = callbacks_without_pictures(config.get("callbacks"))
    del config["recursion_limit"]
    token = var_child_runnable_config.set(config)
    try:
        yield
    finally:
        var_child_runnable_config.reset(token)
