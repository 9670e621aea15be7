"""Best-first search: always the best open path of the whole tree, recomputed by brute force."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.search.world import World, exact_score, run, worlds, worths
from vprm_search.compare.worlds import (
    SyntheticPolicy,
    SyntheticScorer,
    SyntheticWorld,
    WorldSettings,
)
from vprm_search.graph.loop import Job
from vprm_search.graph.parts import SearchRules
from vprm_search.graph.run import run_jobs
from vprm_search.search import BestFirst, Pruning, WeightedVote
from vprm_search.search.rebase import logit
from vprm_search.tree import SearchTree
from vprm_search.types import NodeRecord, Problem


@given(worlds, st.integers(1, 3), st.integers(1, 3), st.sampled_from([None, 1, 3]))
@settings(max_examples=50)
def test_it_goes_on_with_the_best_open_paths_wherever_they_are(
    world: World, batch: int, expand: int, stop: int | None
) -> None:
    strategy = BestFirst(batch=batch, expand=expand, expansions=15, stop=stop, max_depth=5)
    trace = run(world, strategy)
    for plan, text in zip(trace.plans[1:], trace.before[1:], strict=True):
        tree = SearchTree.loads(text)
        if any(tree.child_count(e.node) for e in plan.expand):
            continue  # slots asked for again
        if any(e.role == "completion" for e in plan.expand):
            continue  # all expansions are made and nothing has finished
        gone = {c.node for c in plan.close}
        queue = [(-_worth(tree, r), r.id) for r in tree.open_leaves() if r.id not in gone]
        made = sum(1 for r in tree if r.parent and _grown(tree, r.id))
        left = 15 - made
        usual = _usual(tree)
        waiting, expected = sorted(queue), []
        for place in range(made, made + min(batch, left, len(queue))):
            key = None if place % 2 == 0 else _for_its_depth(tree, usual)
            expected.append(min(waiting, key=key))
            waiting.remove(expected[-1])
        if not plan.finish:
            assert [e.node for e in plan.expand] == [node for _, node in expected]
        better = []
        for r in tree.finished() if queue else []:
            score, best = exact_score(tree, r.id, "mean"), min(queue)
            blind = tree[best[1]].score is None
            better += [r] * (blind if score is None else score >= -best[0])
        if queue and left > 0 and stop is not None:
            assert bool(plan.finish) == (len(better) >= stop)


def _worth(tree: SearchTree, leaf: NodeRecord) -> float:
    """Return what a path is worth among the children of one node."""
    assert leaf.parent is not None
    by_text: dict[str, NodeRecord] = {}
    for child in tree.children(leaf.parent):
        if child.merged_into is None and child.status not in ("failed", "finished", "truncated"):
            by_text.setdefault(child.text, child)
    return worths(tree, [child.id for child in by_text.values()], "mean")[leaf.id]


def _grown(tree: SearchTree, node: str) -> bool:
    return any(not child.is_aside for child in tree.children(node))


def _usual(tree: SearchTree) -> dict[int, float]:
    """By how much the best child of a path scores above it, on average, summed up to each depth."""
    usual = {1: 0.0}
    for depth in range(2, 7):
        changes = []
        for record in tree:
            if record.parent is None or tree.depth(record.id) != depth - 1:
                continue
            below_it = tree.children(record.id)
            children = [c for c in below_it if c.status != "failed" and not c.is_aside]
            below = [exact_score(tree, c.id, "mean") for c in children]
            known = [value for value in below if value is not None]
            above = exact_score(tree, record.id, "mean")
            if known and above is not None:
                changes.append(logit(max(known)) - logit(above))
        usual[depth] = usual[depth - 1] + (fmean(changes) if changes else 0.0)
    return usual


def _for_its_depth(
    tree: SearchTree, usual: dict[int, float]
) -> Callable[[tuple[float, str]], tuple[float, str]]:
    return lambda entry: (usual[tree.depth(entry[1])] - logit(-entry[0]), entry[1])


def test_it_comes_back_to_a_path_it_left_behind() -> None:
    """In some world a path is expanded after deeper ones were: there is no level barrier."""
    back = 0
    for seed in range(20):
        world = World(seed=seed, words=50, stop=0.05)
        trace = run(world, BestFirst(batch=1, expand=3, expansions=20, max_depth=8))
        depths = [trace.tree.depth(e.node) for plan in trace.plans for e in plan.expand]
        back += any(later < earlier for earlier, later in itertools.pairwise(depths))
    assert back >= 15


def test_the_number_of_expansions_is_a_limit() -> None:
    trace = run(World(stop=0.0, words=50), BestFirst(batch=4, expand=2, expansions=10, stop=None))
    root = trace.tree.root_id
    grown = [e for plan in trace.plans for e in plan.expand if e.node != root]
    asked = [e for e in grown if e.role != "completion"]
    assert len({e.node for e in asked}) == 10
    rests = [e for e in grown if e.role == "completion"]
    assert [(e.until, e.count) for e in rests] == [("end", 1)] * 4
    assert trace.ended_by == "10 expansions made"


WORLDS = {
    "hard": (WorldSettings(seed=5), 0.85),
    "early": (WorldSettings(seed=5, early=3.0), 0.8),
    "saturated": (WorldSettings(seed=5, level=4.4), 0.85),
    "long": (WorldSettings(seed=5, depth=30, p_step=0.9), 0.1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WORLDS)
def test_it_finishes_wherever_a_path_is_scored_high(name: str) -> None:
    """Without a budget, and with scores that fall along every path."""
    made, least = WORLDS[name]
    world = SyntheticWorld(made)
    jobs = [Job(SearchTree(Problem(world.question(number)))) for number in range(40)]
    rules = SearchRules(BestFirst(), WeightedVote())
    found = asyncio.run(run_jobs(jobs, SyntheticPolicy(world), SyntheticScorer(world), rules))
    assert not any(run.result.fallback for run in found)
    right = sum(run.result.answer == world.answer(n) for n, run in enumerate(found))
    assert right >= least * len(found)


@given(
    st.integers(1, 4), st.integers(1, 4), st.integers(1, 12), st.integers(1, 25), st.floats(-9, 9)
)
@settings(max_examples=40, deadline=None)
def test_a_path_always_finishes(
    batch: int, expand: int, expansions: int, depth: int, early: float
) -> None:
    world = SyntheticWorld(WorldSettings(depth=depth, early=early))
    strategy = BestFirst(batch=batch, expand=expand, expansions=expansions)
    job = Job(SearchTree(Problem(world.question(0))))
    rules = SearchRules(strategy, WeightedVote())
    (found,) = asyncio.run(run_jobs([job], SyntheticPolicy(world), SyntheticScorer(world), rules))
    assert not found.result.fallback
    assert found.tree.finished()


@given(worlds)
@settings(max_examples=20)
def test_pruning_compares_siblings(world: World) -> None:
    strategy = BestFirst(
        batch=2, expand=3, expansions=10, max_depth=5, pruning=Pruning(top_k=1), refill=0
    )
    tree = run(world, strategy).tree
    for record in tree:
        own = [c for c in tree.children(record.id) if tree.child_count(c.id)]
        assert len(own) <= 1
