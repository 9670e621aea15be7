"""REBASE: widths by score, and the pruning that shares context."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.search.world import PROBLEM, World, run, worlds
from vprm_search.ids import child_id
from vprm_search.search import REBASE
from vprm_search.search.shared_context import worth_keeping
from vprm_search.tree import SearchTree
from vprm_search.types import NodeRecord


@given(worlds, st.integers(1, 9), st.sampled_from([0.05, 0.2, 5.0]))
@settings(max_examples=50)
def test_the_widths_of_a_level_sum_to_what_is_left_of_the_budget(
    world: World, width: int, temperature: float
) -> None:
    strategy = REBASE(width=width, temperature=temperature, max_depth=6)
    trace = run(world, strategy)
    for plan, text in zip(trace.plans, trace.before, strict=True):
        tree = SearchTree.loads(text)
        gone = {c.node for c in plan.close}
        done = [r for r in tree.finished() if r.id not in gone]
        refill = any(tree.child_count(e.node) for e in plan.expand)
        if plan.finish or refill:
            continue
        assert sum(e.count for e in plan.expand) == width - len(done)
        if tree.rounds:
            scores = {r.id: tree.path_score(r.id, "last") for r in tree.open_leaves()}
            _check_shares(plan, scores, width - len(done), temperature)


def _check_shares(plan, scores, slots, temperature) -> None:  # type: ignore[no-untyped-def]
    shared = {e.node: e.count for e in plan.expand}
    shared |= {c.node: 0 for c in plan.close if c.reason.startswith("rebase")}
    weights = {node: math.exp(scores[node] / temperature) for node in shared}
    total = sum(weights.values())
    for node, count in shared.items():
        assert abs(count - slots * weights[node] / total) < 1


def test_it_ends_when_the_width_is_used_up_by_answers() -> None:
    trace = run(World(stop=1.0, words=50), REBASE(width=5))
    assert trace.ended_by == "5 paths finished"
    assert len(trace.tree.finished()) == 5


def _tree(data: st.DataObject) -> tuple[SearchTree, dict[str, float]]:
    tree = SearchTree(PROBLEM)
    nodes = [tree.root_id]
    for number in range(data.draw(st.integers(1, 9))):
        parent = data.draw(st.sampled_from(nodes))
        index = tree.child_count(parent)
        node = child_id(parent, index, str(number))
        tree.merge([NodeRecord(node, parent, index, str(number), score=0.5, round=1)])
        nodes.append(node)
    leaves = [leaf.id for leaf in tree.open_leaves()]
    raw = [data.draw(st.integers(1, 64)) for _ in leaves]
    return tree, {leaf: r / sum(raw) for leaf, r in zip(leaves, raw, strict=True)}


@given(st.data(), st.sampled_from([0.3, 1.0, 1.7]))
def test_what_is_kept_is_the_best_of_all_subsets(data: st.DataObject, cost: float) -> None:
    tree, worth = _tree(data)
    every = {r.id for leaf in worth for r in tree.path(leaf)}

    def gain(leaves: tuple[str, ...]) -> float:
        nodes = {r.id for leaf in leaves for r in tree.path(leaf)}
        return math.fsum(worth[leaf] for leaf in leaves) - cost * len(nodes) / len(every)

    subsets = [c for n in range(len(worth) + 1) for c in itertools.combinations(worth, n)]
    best = max(map(gain, subsets))
    assert gain(tuple(worth_keeping(tree, worth, cost))) == pytest.approx(best, abs=1e-9)


@given(worlds)
@settings(max_examples=25)
def test_sharing_context_keeps_the_best_path_and_the_whole_width(world: World) -> None:
    trace = run(world, REBASE(width=6, context_cost=1.5, max_depth=5))
    for plan, text in zip(trace.plans, trace.before, strict=True):
        tree = SearchTree.loads(text)
        costly = [c for c in plan.close if c.reason.startswith("context_cost")]
        for close in costly:
            best = close.reason.split("; ")[1].removesuffix(" is best")
            assert best in {e.node for e in plan.expand}
            assert tree.path_score(best, "last") >= tree.path_score(close.node, "last")  # type: ignore[operator]
