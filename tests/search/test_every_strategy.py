"""What every strategy keeps to, in a simulated world with failures, duplicates and cut steps."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.search.strategies import EVERY, inner
from tests.search.world import PROBLEM, World, run, worlds
from vprm_search.budget import Budget, usage_of
from vprm_search.graph import loop
from vprm_search.graph.loop import Job, score
from vprm_search.graph.parts import SearchRules
from vprm_search.search import BestOfN, BestScore, MajorityVote, Strategy, WeightedVote, conclude
from vprm_search.search.outcome import ends
from vprm_search.tree import SearchTree

pytestmark = pytest.mark.parametrize("name", EVERY)
few = settings(max_examples=12)
some = settings(max_examples=8)


def run_resumed(
    world: World, make: Callable[[], Strategy], budget: Budget | None = None
) -> SearchTree:
    """Run a search that is interrupted before and after every round: nothing lives but JSON."""
    text = SearchTree(PROBLEM).dumps()
    was_cut = False

    async def rounds() -> str:
        nonlocal text, was_cut
        while True:
            tree = SearchTree.loads(text)
            rules = SearchRules(make(), BestScore(), budget or Budget())
            plan = loop.next_plan(tree, rules, was_cut=was_cut)
            assert rules.strategy.plan(tree) == make().plan(SearchTree.loads(text))
            loop.check_plan(plan, tree, rules)
            loop.close_nodes(tree, plan)
            was_cut = plan.cut
            if plan.finish:
                return tree.dumps()
            tree = SearchTree.loads(tree.dumps())
            await loop.propose([Job(tree)], [plan], world, rules)
            tree = SearchTree.loads(tree.dumps())
            await score([Job(tree)], world, rules)
            text = tree.dumps()

    return SearchTree.loads(asyncio.run(rounds()))


@given(worlds)
@few
def test_a_search_resumed_at_every_round_grows_the_same_tree(name: str, world: World) -> None:
    assert run_resumed(world, EVERY[name]).dumps() == run(world, EVERY[name]()).tree.dumps()


@given(worlds, st.randoms(use_true_random=False))
@some
def test_a_plan_is_a_function_of_the_tree_alone(name: str, world: World, rng: Random) -> None:
    strategy = EVERY[name]()
    trace = run(world, strategy)
    for text in trace.before:
        tree = SearchTree.loads(text)
        plan = strategy.plan(tree)
        assert strategy.plan(tree) == plan  # asked twice, a cache in between
        assert tree.dumps() == text  # planning changes nothing
        records = [*tree]
        rng.shuffle(records)
        other = SearchTree(tree.problem, tree.run_seed)
        other.merge([*records, *records[::3]])
        assert EVERY[name]().plan(other) == plan
    assert run(world, strategy).tree.dumps() == trace.tree.dumps()  # and is not used up


@given(worlds)
@few
def test_every_path_ends_in_one_way_and_says_why(name: str, world: World) -> None:
    trace = run(world, EVERY[name]())
    tree = trace.tree
    assert trace.ended_by
    found = ends(tree)
    counts = Counter(end.node for end in found)
    assert not counts or max(counts.values()) == 1
    paths = {r.id for end in found for r in tree.path(end.node)}
    rest = {r.id for r in tree if r.parent and r.role != "lookahead"} - paths
    assert {tree[node].status for node in rest} <= {"failed"}
    for end in found:
        assert end.reason != "the search has not ended"
        assert end.fate != "cut" or not any(
            tree.path_score(r.id, "mean") is not None for r in tree.finished()
        )
    for record in tree:
        assert record.reason or record.status not in ("pruned", "failed")
        if record.role == "lookahead":
            assert record.status != "open" or tree.child_count(record.id)


@given(worlds)
@few
def test_no_path_is_there_twice_and_ended_paths_are_not_gone_on_with(
    name: str, world: World
) -> None:
    strategy = EVERY[name]()
    tree = run(world, strategy).tree
    for record in tree:
        below = [c for c in tree.children(record.id) if c.role != "lookahead"]
        if below and record.parent is not None:
            assert record.status == "open"  # never below what finished, failed or was put aside
        if isinstance(strategy, BestOfN):
            continue  # equal samples are votes, and so are other strategies' whole ones
        gone = ("failed", "pruned")
        living = [c.text for c in below if c.status not in gone and c.role != "completion"]
        assert len(living) == len(set(living))
        own = [step for step in tree.path(record.id) if step.role != "completion"]
        ahead = 2 if record.role == "lookahead" else 0  # two steps of lookahead
        # A whole rest is as long as the policy writes it, but it begins within the depth.
        assert len(own) <= inner(strategy).max_depth + ahead


@given(worlds, st.integers(1, 25))
@some
def test_a_budget_of_candidates_is_exact_and_leaves_the_best_answer(
    name: str, world: World, limit: int
) -> None:
    capped = run(world, EVERY[name](), budget=Budget(candidates=limit))
    tree = capped.tree
    if capped.ended_by.startswith("budget"):
        assert tree.totals.candidates == limit
    assert tree.totals.candidates <= limit
    scored = [r for r in tree.finished() if tree.path_score(r.id, "mean") is not None]
    for selector in (BestScore(), WeightedVote(), MajorityVote()):
        result = conclude(tree, selector, usage=usage_of(tree), ended_by=capped.ended_by)
        if scored:
            assert result.node in {r.id for r in tree.finished()}
            assert not result.fallback
        elif result.node is not None and not tree.finished():
            assert result.fallback


@given(worlds, st.integers(1, 12), st.integers(1, 12))
@some
def test_a_search_cut_by_the_budget_goes_on_under_a_larger_one(
    name: str, world: World, first: int, more: int
) -> None:
    """The cut rounds differ from those of one go, so the tree may; but it is a search as any."""
    rules = SearchRules(EVERY[name](), BestScore(), Budget(candidates=first + more))
    tree = SearchTree.loads(run(world, EVERY[name](), budget=Budget(candidates=first)).tree.dumps())

    async def go_on() -> None:
        while True:
            plan = loop.next_plan(tree, rules)
            loop.check_plan(plan, tree, rules)
            loop.close_nodes(tree, plan)
            if plan.finish:
                return
            await loop.propose([Job(tree)], [plan], world, rules)
            await score([Job(tree)], world, rules)

    asyncio.run(go_on())
    tree.check()
    assert tree.totals.candidates <= first + more


def test_when_everything_fails_the_search_ends_without_an_answer(name: str) -> None:
    trace = run(World(error=1.0), EVERY[name]())
    assert trace.ended_by
    assert {r.status for r in trace.tree if r.parent} == {"failed"}
