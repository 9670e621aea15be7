"""Parts of a tree that do not wait for one another: the same tree, in less time, also resumed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver

from tests.search.world import World, worlds
from vprm_search.budget import Budget
from vprm_search.errors import PolicyError
from vprm_search.graph import create_search_graph, run_jobs, tree_of_state
from vprm_search.graph.blocking import run_blocking
from vprm_search.graph.loop import Job
from vprm_search.graph.parts import SearchRules
from vprm_search.graph.session import CallsInFlight
from vprm_search.search import DVTS, BeamSearch, BestScore
from vprm_search.search.plan import Expand
from vprm_search.tree import SearchTree
from vprm_search.types import Problem, Proposal, ProposeRequest

PROBLEM = Problem("How many tiles?")
WIDE = DVTS(subtrees=4, width=1, expand=3, max_depth=6, stop=None)
THREAD: Any = {"configurable": {"thread_id": "one"}, "recursion_limit": 500}


class Delayed:
    """A server in front of a world: its calls take their own time, drawn from `draws`."""

    batches = False

    def __init__(self, world: World, draws: random.Random, longest_s: float = 0.004) -> None:
        self.world, self.draws, self.longest_s = world, draws, longest_s
        self.asked: list[ProposeRequest] = []
        self.most_at_once = self.now = 0

    async def propose(self, requests: Sequence[ProposeRequest]) -> list[list[Proposal]]:
        self.asked += requests
        self.now += 1
        self.most_at_once = max(self.most_at_once, self.now)
        try:
            await asyncio.sleep(self.draws.random() * self.longest_s)
            return await self.world.propose(requests)
        finally:
            self.now -= 1


def run(world: World, policy: Any, rules: SearchRules, **options: Any) -> Any:
    job = Job(SearchTree(PROBLEM, 0))
    return run_blocking(run_jobs([job], policy, world, rules, **options))[0]


@given(
    worlds,
    st.integers(0, 1000),
    st.builds(
        DVTS,
        subtrees=st.integers(1, 5),
        width=st.integers(1, 2),
        expand=st.integers(1, 3),
        max_depth=st.integers(1, 5),
        refill=st.integers(0, 2),
        stop=st.sampled_from([None, 1, "width"]),
    ),
)
@settings(max_examples=100)
def test_the_tree_does_not_depend_on_who_was_faster(
    world: World, draws: int, strategy: DVTS
) -> None:
    rules = SearchRules(strategy, BestScore())
    calm = run(world, Delayed(world, random.Random(0), 0.0), rules, lockstep=True)
    for seed in (draws, draws + 1):
        free = run(world, Delayed(world, random.Random(seed)), rules, lockstep=False)
        assert free.tree.dumps() == calm.tree.dumps()
        assert free.result.node == calm.result.node
        assert free.result.ended_by == calm.result.ended_by


class Held(Delayed):
    """One subtree's calls do not return before `others` calls of the rest have."""

    def __init__(self, world: World, others: int) -> None:
        super().__init__(world, random.Random(0), 0.0)
        self.others = others
        self.enough = asyncio.Event()
        self.held = ""

    async def propose(self, requests: Sequence[ProposeRequest]) -> list[list[Proposal]]:
        steps = requests[0].steps
        self.held = self.held or (steps[0] if steps else "")
        if steps and steps[0] == self.held:
            await asyncio.wait_for(self.enough.wait(), 30)
        else:
            self.others -= bool(steps)
            if self.others <= 0:
                self.enough.set()
        return await super().propose(requests)


async def test_a_slow_subtree_holds_up_no_other() -> None:
    world = World(seed=3, stop=0.0, words=60)
    policy = Held(world, others=3 * 4)  # three other subtrees, four more levels each
    job = Job(SearchTree(PROBLEM, 0))
    rules = SearchRules(WIDE.model_copy(update={"refill": 0}), BestScore())
    (found,) = await run_jobs([job], policy, world, rules)
    assert policy.enough.is_set()
    assert found.tree.rounds == 6


@given(worlds, st.integers(0, 1000))
@settings(max_examples=20)
def test_the_graph_grows_the_same_tree(world: World, draws: int) -> None:
    calm = run(world, Delayed(world, random.Random(0), 0.0), SearchRules(WIDE, BestScore()))
    policy = Delayed(world, random.Random(draws))
    graph = create_search_graph(policy=policy, scorer=world, strategy=WIDE, selector=BestScore())
    app = graph.compile(checkpointer=InMemorySaver())
    state = app.invoke({"messages": [("user", PROBLEM.question)]}, THREAD)
    assert tree_of_state(state).dumps() == calm.tree.dumps()
    assert state["search_result"]["node"] == calm.result.node


class Dying(Delayed):
    """Raises at its n-th call, as a process that dies would."""

    def __init__(self, world: World, draws: random.Random, dies_at: int) -> None:
        super().__init__(world, draws)
        self.dies_at = dies_at

    async def propose(self, requests: Sequence[ProposeRequest]) -> list[list[Proposal]]:
        if len(self.asked) + 1 >= self.dies_at:
            raise PolicyError("the process dies here")
        return await super().propose(requests)


@given(st.integers(0, 50), st.lists(st.integers(2, 7), min_size=1, max_size=4))
@settings(max_examples=15, deadline=None)
def test_what_was_under_way_is_asked_again_with_the_same_seeds(
    tmp_path_factory: pytest.TempPathFactory, seed: int, deaths: list[int]
) -> None:
    world = World(seed=seed, stop=0.1, words=60)
    rules = SearchRules(WIDE, BestScore())
    calm = run(world, Delayed(world, random.Random(0), 0.0), rules)
    file: Path = tmp_path_factory.mktemp("state") / "state.sqlite"
    given: Any = {"messages": [("user", PROBLEM.question)]}
    asked: list[ProposeRequest] = []
    state: Any = None
    for dies_at in (*deaths, 10_000):
        policy = Dying(world, random.Random(dies_at), dies_at)
        with SqliteSaver.from_conn_string(str(file)) as saver:
            graph = create_search_graph(
                policy=policy, scorer=world, strategy=WIDE, selector=BestScore()
            )
            app = graph.compile(checkpointer=saver)
            try:
                state = app.invoke(given, THREAD, durability="sync")
            except PolicyError:
                state = None
            given = None if saver.get_tuple(THREAD) is not None else given
        asked += policy.asked
        if state is not None:
            break
    assert tree_of_state(state).dumps() == calm.tree.dumps()
    again = len(asked) - len({(r.steps, r.seeds) for r in asked})
    assert again <= 4 * len(deaths)  # at most what was under way, one call a subtree


def test_with_a_budget_every_round_waits() -> None:
    rules = SearchRules(WIDE, BestScore(), Budget(candidates=30))
    world = World(seed=5, stop=0.0, words=60)
    assert rules.waits_for_all(Delayed(world, random.Random(0)))
    trees = {
        run(world, Delayed(world, random.Random(seed)), rules).tree.dumps() for seed in range(4)
    }
    assert len(trees) == 1
    unlimited = SearchRules(WIDE, BestScore(), Budget(seconds=60.0))
    assert not unlimited.waits_for_all(Delayed(world, random.Random(0)))
    assert SearchRules(BeamSearch(), BestScore()).waits_for_all(Delayed(world, random.Random(0)))


async def test_an_error_cancels_what_is_under_way() -> None:
    class Failing(Delayed):
        async def propose(self, requests: Sequence[ProposeRequest]) -> list[list[Proposal]]:
            if requests[0].seeds[0] == 1:
                raise PolicyError("no")
            await asyncio.sleep(60)
            return []

    calls = CallsInFlight(Failing(World(), random.Random(0)))
    before = asyncio.all_tasks()
    requests = {Expand(str(seed), 1): ProposeRequest(PROBLEM, (), (seed,)) for seed in (1, 2)}
    with pytest.raises(PolicyError, match="no"):
        await calls.replies(requests)
    for _ in range(3):
        await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
