"""Best-first search: always the best open path of the whole tree, recomputed by brute force."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.search.world import World, run, worlds
from vprm_search.search import BestFirst, Pruning
from vprm_search.tree import SearchTree


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
        gone = {c.node for c in plan.close}
        queue = [
            (-tree.path_score(r.id, "mean"), r.id)  # type: ignore[operator]
            for r in tree.open_leaves()
            if r.id not in gone and tree.path_score(r.id, "mean") is not None
        ]
        left = 15 - sum(1 for r in tree if r.parent and _grown(tree, r.id))
        assert [e.node for e in plan.expand] == [
            node for _, node in sorted(queue)[: min(batch, left)] if not plan.finish
        ]
        better = [
            score
            for r in tree.finished()
            if (score := tree.path_score(r.id, "mean")) is not None
            and queue
            and score >= -min(queue)[0]
        ]
        if queue and left > 0 and stop is not None:
            assert bool(plan.finish) == (len(better) >= stop)


def _grown(tree: SearchTree, node: str) -> bool:
    return tree.child_count(node) > 0


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
    grown = {r.parent for r in trace.tree if r.parent and r.parent != trace.tree.root_id}
    assert len(grown) == 10
    assert trace.ended_by == "10 expansions made"


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
