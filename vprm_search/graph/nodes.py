"""The five nodes of a search graph: ingest, plan, propose, score, answer.

Each is one batched step over the whole tree. A node reads the state, works on a tree of its own,
and returns the records it changed; what it did is only real once LangGraph has taken that update,
so a node may be killed, repeated or run twice without harm.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.messages import AIMessage, AnyMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.runnables import RunnableLambda
from langchain_core.runnables.config import ensure_config, patch_config, var_child_runnable_config
from langgraph.config import get_stream_writer
from langgraph.constants import TAG_NOSTREAM
from langgraph.types import Overwrite

from vprm_search import ids
from vprm_search.budget import usage_of
from vprm_search.graph import events, loop
from vprm_search.graph.loop import Job, score
from vprm_search.graph.parts import SearchRules
from vprm_search.graph.questions import question_of, read_problem
from vprm_search.graph.session import (
    CallsInFlight,
    LiveTrees,
    ScorerMemory,
    propose_some,
    run_blocking,
)
from vprm_search.graph.state import plan_from_json, plan_to_json, record_table
from vprm_search.images.messages import ImageIntake, reference_images
from vprm_search.search.outcome import OnNoAnswer, conclude
from vprm_search.search.plan import Plan
from vprm_search.tree import SearchTree
from vprm_search.types import NodeRecord, Policy, Problem, SearchResult, StepScorer

State = Mapping[str, Any]
Update = dict[str, Any]
Outcome = tuple[Update, list[events.Event]]

_STEPS_PER_ROUND = 3  # plan, propose, score; then plan and answer once more
_STEPS_TO_END = 2
_RECURSION_LIMIT = "recursion_limit of the graph's config reached"


@dataclass(frozen=True, slots=True)
class SearchParts:
    """What a search graph is made of."""

    policy: Policy
    scorer: StepScorer
    rules: SearchRules
    intake: ImageIntake
    messages_key: str = "messages"
    run_seed: int = 0
    on_no_answer: OnNoAnswer = "best_truncated"
    trees: LiveTrees = field(default_factory=LiveTrees)


class SearchNodes:
    """The nodes of one search graph, each for synchronous and asynchronous use."""

    def __init__(self, parts: SearchParts) -> None:
        self._parts = parts
        self._memory = ScorerMemory(parts.scorer)
        self._calls = CallsInFlight(parts.policy)
        self._waits = parts.rules.waits_for_all(parts.policy)

    def runnables(self) -> dict[str, RunnableLambda[Any, Update]]:
        """Return the nodes by name, in the order of the loop."""
        phases_by_name = {
            "ingest": self._ingest,
            "plan": self._plan,
            "propose": self._propose,
            "score": self._score,
            "answer": self._answer,
        }
        return {name: _node(name, phase) for name, phase in phases_by_name.items()}

    async def _ingest(self, state: State) -> Outcome:
        """Read the question, move its pictures out of the state, and start a new search."""
        key = self._parts.messages_key
        given: Sequence[AnyMessage] = state.get(key) or []
        name_image = self._parts.intake.name_image
        messages = await asyncio.to_thread(reference_images, given, name_image)
        update: Update = {
            "search_problem": read_problem(messages, name_image).to_json(),
            "search_run_seed": self._parts.run_seed,
            "search_nodes": Overwrite({}),
            "search_plan": plan_to_json(Plan()),
            "search_seconds": 0.0,
            "search_result": None,
        }
        changed = [new for new, old in zip(messages, given, strict=True) if new is not old]
        return ({key: changed, **update} if changed else update), []

    async def _plan(self, state: State) -> Outcome:
        """Ask the strategy what to do next, and put aside what it closes."""
        tree = self._take(state)
        last = plan_from_json(state["search_plan"])
        plan = loop.next_plan(
            tree,
            self._parts.rules,
            seconds=state["search_seconds"],
            was_cut=last.cut,
            under_way=() if self._waits else last.expand,
        )
        if _out_of_steps(plan, state.get("search_steps_left")):
            plan = loop.ended(plan, tree, self._parts.rules, _RECURSION_LIMIT, cut_short=True)
        loop.check_plan(plan, tree, self._parts.rules)
        closed = loop.close_nodes(tree, plan)
        update = self._give(state, tree, closed)
        if plan.finish:
            self._calls.cancel(_owner(tree))
        told = events.planned(tree, plan, closed, known=() if self._waits else last.expand)
        return {**update, "search_plan": plan_to_json(plan)}, told

    async def _propose(self, state: State) -> Outcome:
        """Ask the policy for all children of this round, or wait for the first that are there."""
        started = time.monotonic()
        tree, job = await self._job(state)
        plan = plan_from_json(state["search_plan"])
        rules = self._parts.rules
        left: Update = {}
        with unstreamed():
            if self._waits:
                (records,) = await loop.propose([job], [plan], self._parts.policy, rules)
            else:
                owner = _owner(tree)
                records, plan = await propose_some(job, plan, self._calls, rules, owner)
                left = {"search_plan": plan_to_json(plan)}
        update = self._give(state, tree, records) | _seconds(state, started) | left
        return update, events.expanded(tree, records)

    async def _score(self, state: State) -> Outcome:
        """Score all new steps of this round in one batch."""
        started = time.monotonic()
        tree, job = await self._job(state)
        with unstreamed():
            await self._memory.restore(job, self._parts.rules)
            (records,) = await score([job], self._parts.scorer, self._parts.rules)
        update = self._give(state, tree, records) | _seconds(state, started)
        return update, events.scored(tree, records)

    async def _answer(self, state: State) -> Outcome:
        """Choose the answer and say it."""
        tree = self._take(state)
        result = conclude(
            tree,
            self._parts.rules.selector,
            usage=usage_of(tree, state["search_seconds"]),
            ended_by=state["search_plan"]["finish"],
            on_no_answer=self._parts.on_no_answer,
        )
        key = self._parts.messages_key
        asked = question_of(state[key]).id or ""
        message = answer_message(result, f"vprm-{ids.digest(tree.root_id, asked)[:12].hex()}")
        return {key: [message], "search_result": result.to_json()}, events.answered(tree, result)

    async def _job(self, state: State) -> tuple[SearchTree, Job]:
        problem = Problem.from_json(state["search_problem"])
        read = self._parts.intake.images  # from disk, as a rule
        images = await asyncio.to_thread(read, problem) if problem.images else ()
        tree = self._take(state)
        return tree, Job(tree, images, state["search_seconds"])

    def _take(self, state: State) -> SearchTree:
        return self._parts.trees.take(state, _thread())

    def _give(self, state: State, tree: SearchTree, records: Sequence[NodeRecord]) -> Update:
        table = record_table(records)
        self._parts.trees.give(state, _thread(), table, tree)
        return {"search_nodes": table}


def next_node(state: State) -> str:
    """Return the node after `plan`: "answer" when the search is over, else "propose"."""
    return "answer" if state["search_plan"]["finish"] else "propose"


def answer_message(result: SearchResult, message_id: str) -> AIMessage:
    """Return the answer as a message; scores, usage and candidates are in its metadata.

    `response_metadata["vprm"]` is the result as plain JSON.
    """
    spent = result.usage
    return AIMessage(
        content=result.text or f"No answer was found ({result.ended_by}).",
        id=message_id,
        response_metadata={"vprm": result.to_json()},
        usage_metadata=UsageMetadata(
            input_tokens=spent.prompt_tokens,
            output_tokens=spent.generated_tokens,
            total_tokens=spent.prompt_tokens + spent.generated_tokens,
        ),
    )


def _node(name: str, phase: Callable[[State], Awaitable[Outcome]]) -> RunnableLambda[Any, Update]:
    async def arun(state: State) -> Update:
        update, told = await phase(state)
        _tell(told)
        return update

    def run(state: State) -> Update:
        update, told = run_blocking(_awaited(phase, state))
        _tell(told)
        return update

    return RunnableLambda(run, arun, name=name)


async def _awaited(phase: Callable[[State], Awaitable[Outcome]], state: State) -> Outcome:
    return await phase(state)


def _tell(told: Sequence[events.Event]) -> None:
    write = get_stream_writer()
    for event in told:
        write(event)


def _out_of_steps(plan: Plan, steps_left: int | None) -> bool:
    """Tell whether LangGraph's recursion limit leaves room for an answer and no further round."""
    if plan.finish or steps_left is None:
        return False
    return steps_left <= _STEPS_PER_ROUND + _STEPS_TO_END


def _seconds(state: State, started: float) -> Update:
    return {"search_seconds": state["search_seconds"] + time.monotonic() - started}


def _owner(tree: SearchTree) -> str:
    return f"{_thread()} {tree.root_id}"


def _thread() -> str:
    """Return the name of the conversation this run belongs to."""
    return str(ensure_config().get("configurable", {}).get("thread_id"))


@contextlib.contextmanager
def unstreamed() -> Iterator[None]:
    """Run a block whose model calls do not show up in `stream_mode="messages"`.

    Calls inherit the tag from their context, so policies and scorers need not know of it.
    """
    config = ensure_config()
    tags = [*(config.get("tags") or []), TAG_NOSTREAM]
    token = var_child_runnable_config.set({**patch_config(config), "tags": tags})
    try:
        yield
    finally:
        var_child_runnable_config.reset(token)
