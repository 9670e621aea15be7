"""`Budget(seconds=)` bounds everything a search waits for: calls, pauses, scoring, the framework.

Every part that hangs here hangs until it is cancelled: without the limit these tests do not end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langgraph.checkpoint.memory import InMemorySaver

from tests.policy.models import Script
from vprm_search.budget import Budget
from vprm_search.graph import arun_search, create_search_graph, run_search
from vprm_search.policy import ChatModelPolicy, RetryRules
from vprm_search.search import DVTS, BeamSearch, BestOfN, MajorityVote
from vprm_search.testing import http_error
from vprm_search.types import Proposal, ProposeRequest, ScoreRequest, ScoreResult, StepScore

LIMIT = Budget(seconds=0.2)
WAIT = 60.0
CANCELLED: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_cancelled() -> None:
    CANCELLED.clear()


async def hang(what: str) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        CANCELLED.append(what)


class Scorer:
    """Scores at once for so many rounds, then never again."""

    def __init__(self, rounds: int = 10**6) -> None:
        self.rounds = rounds

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        self.rounds -= 1
        if self.rounds < 0:
            await hang("scorer")
        return [ScoreResult(tuple(StepScore(0.9) for _ in r.steps)) for r in requests]


class OwnPolicy:
    """A policy that keeps no time: it answers so many calls, then never again."""

    def __init__(self, calls: int, *, batches: bool = True) -> None:
        self.calls, self.batches = calls, batches

    async def propose(self, requests: Sequence[ProposeRequest]) -> list[list[Proposal]]:
        self.calls -= 1
        if self.calls < 0:
            await hang("policy")
        return [[Proposal(f"step {seed}", "step") for seed in r.seeds] for r in requests]


class HangingModel(Script):
    """A chat model whose calls never come back."""

    async def _agenerate(self, *args: Any, **kwargs: Any) -> Any:
        await hang("model")


def model(seconds: str) -> ChatModelPolicy:
    """Return a policy whose server asks to be left alone for so long, for ever."""
    patient = RetryRules(max_attempts=10**6, deadline_s=1e6)
    return ChatModelPolicy(
        Script(lambda *_, **__: http_error(429, retry_after=seconds)), retry=patient
    )


def answering() -> Script:
    return Script(lambda *_, **__: AIMessage("It is three.\n\nAnswer: 3"))


HANGING: dict[str, Any] = {
    "scorer at once": lambda: (answering(), Scorer(0), BestOfN(4)),
    "scorer later": lambda: (OwnPolicy(10**6), Scorer(2), BeamSearch()),
    "scorer of parts": lambda: (OwnPolicy(10**6, batches=False), Scorer(3), DVTS()),
    "model": lambda: (HangingModel(lambda *_, **__: ""), Scorer(), BestOfN(4)),
    "own policy": lambda: (OwnPolicy(0), Scorer(), BeamSearch()),
    "own policy later": lambda: (OwnPolicy(3), Scorer(), BeamSearch()),
    "own policy in parts": lambda: (OwnPolicy(3, batches=False), Scorer(), DVTS()),
}
WAITING: dict[str, Any] = {
    "a long pause": lambda: (model("50"), Scorer(), BestOfN(4)),
    "endless repeats": lambda: (model("0.001"), Scorer(), BeamSearch()),
}


async def searched(door: str, policy: Any, scorer: Any, strategy: Any) -> dict[str, Any]:
    """Search by one of the doors; return the outcome as plain JSON."""
    parts: dict[str, Any] = {
        "policy": policy, "scorer": scorer, "strategy": strategy, "budget": LIMIT,
    }  # fmt: skip
    if door == "arun_search":
        run = await asyncio.wait_for(arun_search("1 + 2?", **parts), WAIT)
        return run.result.to_json()
    if door == "run_search":
        run = await asyncio.wait_for(asyncio.to_thread(run_search, "1 + 2?", **parts), WAIT)
        return run.result.to_json()
    graph = create_search_graph(**parts).compile(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "one"}}
    asked: Any = {"messages": [("user", "1 + 2?")]}
    if door == "ainvoke":
        state = await asyncio.wait_for(graph.ainvoke(asked, config), WAIT)
    else:
        state = await asyncio.wait_for(asyncio.to_thread(graph.invoke, asked, config), WAIT)
    outcome: dict[str, Any] = state["search_result"]
    return outcome


@pytest.mark.parametrize("door", ["run_search", "ainvoke"])
@pytest.mark.parametrize("part", [*HANGING, *WAITING])
async def test_the_time_limit_bounds_every_wait(part: str, door: str) -> None:
    policy, scorer, strategy = (HANGING.get(part) or WAITING[part])()
    outcome = await searched(door, policy, scorer, strategy)
    assert outcome["ended_by"].startswith("budget: seconds ")
    assert outcome["usage"]["seconds"] >= 0.2
    if part in HANGING:
        assert CANCELLED  # nothing is left running


@pytest.mark.parametrize("door", ["arun_search", "invoke"])
async def test_at_every_door(door: str) -> None:
    outcome = await searched(door, *HANGING["scorer at once"]())
    assert outcome["ended_by"].startswith("budget: seconds ")


async def test_what_had_come_before_the_limit_counts() -> None:
    """Proposals are there, scores are not: a vote needs none."""
    run = await asyncio.wait_for(
        arun_search(
            "1 + 2?",
            policy=answering(),
            scorer=Scorer(0),
            strategy=BestOfN(4),
            selector=MajorityVote(),
            budget=LIMIT,
        ),
        WAIT,
    )
    assert run.result.answer == "3"
    assert run.result.ended_by.startswith("budget: seconds")
    steps = [record for record in run.tree if record.is_step]
    assert {record.score for record in steps} == {None}
    assert any("seconds were over" in record.score_reason for record in steps)
    assert len(steps) == 8


async def test_a_timeout_of_the_scorers_own_is_not_taken_for_the_limit() -> None:
    class Broken(Scorer):
        async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
            raise TimeoutError("the scorer's own")

    class BrokenPolicy(OwnPolicy):
        async def propose(self, requests: Sequence[ProposeRequest]) -> list[list[Proposal]]:
            raise TimeoutError("the policy's own")

    limit: Any = {"strategy": BestOfN(2), "budget": Budget(seconds=WAIT)}
    with pytest.raises(TimeoutError, match="the scorer's own"):
        await arun_search("?", policy=answering(), scorer=Broken(), **limit)
    with pytest.raises(TimeoutError, match="the policy's own"):
        await arun_search("?", policy=BrokenPolicy(1), scorer=Scorer(), **limit)


def test_the_frameworks_time_is_the_searchs_time() -> None:
    """What LangGraph and a saver do between the nodes counts; a person's pause does not."""

    class SlowSaver(InMemorySaver):
        def put(self, *args: Any, **kwargs: Any) -> Any:
            time.sleep(0.02)
            return super().put(*args, **kwargs)

    parts: Any = {"policy": OwnPolicy(10**6), "scorer": Scorer(), "strategy": BeamSearch()}
    graph = create_search_graph(**parts, budget=Budget(rounds=4)).compile(checkpointer=SlowSaver())
    config: Any = {"configurable": {"thread_id": "one"}}
    asked: Any = {"messages": [("user", "?")]}
    state = graph.invoke(asked, config, durability="sync")
    saved = len(list(graph.get_state_history(config)))
    between = saved - 4  # not before the first plan, nor after the last
    assert state["search_result"]["usage"]["seconds"] >= 0.02 * between > 0.2

    paused: Any = {"configurable": {"thread_id": "two"}}
    graph.invoke(asked, paused, interrupt_before=["score"])
    before = graph.get_state(paused).values["search_seconds"]
    time.sleep(0.5)
    graph.invoke(None, paused, interrupt_before=["plan"])
    assert graph.get_state(paused).values["search_seconds"] < before + 0.5
