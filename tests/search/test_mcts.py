"""MCTS: against a search with statistics of its own, and against DeepMind mctx's recorded trees."""

from __future__ import annotations

import importlib.metadata
import json
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.search.world import World, run
from vprm_search.search import MCTS, Pruning
from vprm_search.search.mcts import (
    Arm,
    QTransform,
    Stats,
    as_is,
    back_up,
    by_min_max,
    by_parent_and_siblings,
    puct_scores,
)
from vprm_search.tree import SearchTree


@dataclass
class Node:
    """A node of a textbook search over a tree that is known in full."""

    id: str
    own: float
    finished: bool
    total: float = 0.0
    visits: int = 0
    children: list[Node] = field(default_factory=list)
    used_up: bool = False


def textbook(tree: SearchTree, mcts: MCTS, sizes: dict[str, int]) -> dict[str, tuple[int, float]]:
    """Run the walks one after another; `sizes` notes the order in which nodes are expanded."""

    def grow(node: Node) -> None:
        sizes[node.id] = len(sizes)
        for child in tree.children(node.id):
            duplicate = child.cause == "duplicate"
            score = tree.path_score(child.id, "mean")
            if child.status in ("failed", "truncated") or duplicate or score is None:
                continue
            node.children.append(Node(child.id, score, child.status == "finished"))
        node.children.sort(key=lambda c: (-c.own, c.id))

    root = Node(tree.root_id, 0.0, False)
    seen = {root.id: root}
    for _ in range(mcts.simulations):
        if root.used_up:
            break
        walk = [root]
        while not walk[-1].finished:
            node = walk[-1]
            fresh = node.id not in sizes
            if fresh:
                grow(node)
            if not node.children or (fresh and not mcts.to_end and node is not root):
                break
            live = [c for c in node.children if not c.used_up]
            count = node.visits + 1  # the walk itself
            weight = math.sqrt(count) * (
                mcts.c_init + math.log((count + mcts.c_base + 1) / mcts.c_base)
            )
            walk.append(
                max(
                    live,
                    key=lambda c: (
                        (c.total / c.visits if c.visits else c.own)
                        + weight / len(live) / (1 + c.visits)
                    ),
                )
            )
            seen[walk[-1].id] = walk[-1]
        end = walk[-1]
        end.used_up = end.finished or not end.children
        value = end.own if end.finished or end.children else 0.0
        for node in reversed(walk):
            node.visits += 1
            node.total += value
            if node.children and all(c.used_up for c in node.children):
                node.used_up = True
    return {node.id: (node.visits, node.total / node.visits) for node in seen.values()}


@given(
    st.integers(0, 500),
    st.sampled_from([0.0, 0.3]),
    st.sampled_from([3, 50]),
    st.booleans(),
    st.sampled_from([0.0, 1.25, 4.0]),
)
@settings(max_examples=60)
def test_walks_one_at_a_time_are_the_textbook_search(
    seed: int, error: float, words: int, to_end: bool, c_init: float
) -> None:
    world = World(seed=seed, error=error, words=words, stop=0.25)
    mcts = MCTS(
        simulations=12,
        batch=1,
        expand=3,
        root_expand=4,
        refill=0,
        to_end=to_end,
        c_init=c_init,
        max_depth=40,
    )
    trace = run(world, mcts)
    sizes: dict[str, int] = {}
    expected = textbook(trace.tree, mcts, sizes)
    stats = mcts.visits(SearchTree.loads(trace.tree.dumps()))
    visited = {node: (s.visits, s.value) for node, s in stats.items() if s.visits}
    assert {node: visits for node, (visits, _) in visited.items()} == {
        node: visits for node, (visits, _) in expected.items()
    }
    for node, (_, value) in visited.items():
        assert value == pytest.approx(expected[node][1], abs=1e-9)
    order = [e.node for plan in trace.plans for e in plan.expand]
    assert order == sorted(sizes, key=lambda node: sizes[node])[: len(order)]


@given(st.integers(0, 200), st.integers(1, 6), st.booleans())
@settings(max_examples=30)
def test_visits_add_up_and_no_walk_is_left_pending(seed: int, batch: int, to_end: bool) -> None:
    world = World(seed=seed, stop=0.3, words=9)
    mcts = MCTS(simulations=10, batch=batch, expand=2, root_expand=4, to_end=to_end, max_depth=8)
    trace = run(world, mcts)
    tree = trace.tree
    stats = mcts.visits(tree)
    assert stats[tree.root_id].visits <= 10
    if trace.ended_by == "10 simulations made":
        assert stats[tree.root_id].visits == 10
    for node, known in stats.items():
        assert known.pending == 0
        below = [stats[c.id].visits for c in tree.children(node) if c.id in stats]
        if to_end and node == tree.root_id:
            assert sum(below) == known.visits
        assert sum(below) <= known.visits
        assert 0.0 <= known.value <= 1.0


def test_virtual_loss_spreads_a_batch() -> None:
    """Without it all walks of a batch would go for the same step."""
    spread = alone = 0
    for seed in range(12):
        world = World(seed=seed, stop=0.0, words=90)
        plans = run(world, MCTS(simulations=8, batch=4, c_init=1.0, max_depth=4)).plans
        spread += len({e.node for e in plans[1].expand})
        single = run(world, MCTS(simulations=8, batch=1, c_init=1.0, max_depth=4)).plans
        alone += len({e.node for e in single[1].expand})
    assert alone == 12
    assert spread >= 36


def test_pruned_siblings_are_not_walked() -> None:
    world = World(seed=2, words=90, stop=0.1)
    mcts = MCTS(simulations=8, batch=2, expand=3, max_depth=5, pruning=Pruning(top_k=2))
    tree = run(world, mcts).tree
    for record in tree:
        assert sum(tree.child_count(c.id) > 0 for c in tree.children(record.id)) <= 2


# --- the parts of the formula --------------------------------------------------------------------


def test_an_unvisited_arm_counts_as_the_transform_says() -> None:
    values, visits = [0.5, -0.25, 0.0], [2, 1, 0]
    assert as_is(0.1, values, visits) == values
    assert list(by_min_max(-1.0, 1.0)(0.1, values, visits)) == [0.75, 0.375, 0.0]
    assert list(by_parent_and_siblings(0.1, values, visits)) == pytest.approx([1.0, 0.0, 0.0])


def test_a_node_is_worth_the_mean_of_what_was_backed_up_through_it() -> None:
    path = [Stats(3, 0.5), Stats(1, 0.2), Stats()]
    back_up(path, 1.0)
    assert [p.visits for p in path] == [4, 2, 1]
    assert [p.value for p in path] == pytest.approx([(3 * 0.5 + 1.0) / 4, 0.6, 1.0])


# --- DeepMind mctx's recorded searches -----------------------------------------------------------


def golden(name: str) -> dict[str, Any]:
    """Read a recorded search out of the installed wheel; nothing of it is imported."""
    try:
        files = importlib.metadata.files("mctx") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("mctx is not installed (pip install --no-deps mctx==0.0.71)")
    (path,) = [f for f in files if f.name == name]
    return json.loads(path.read_text())


@dataclass
class Replayed:
    """A node of the replayed search; `recorded` is where the environment's numbers are from."""

    recorded: dict[str, Any]
    stats: Stats
    children: dict[int, Replayed] = field(default_factory=dict)


def value_of_edge(child: Replayed, discount: float) -> float:
    return float(child.recorded.get("reward", 0.0)) + discount * child.stats.value


def replay(record: dict[str, Any]) -> list[Replayed]:
    """Run PUCT in the recorded environment; return the nodes in the order of their expansion."""
    config = record["algorithm_config"]
    discount = record["env_config"]["discount"]
    kwargs = config["qtransform_kwargs"]
    qtransform: QTransform = (
        by_min_max(kwargs["min_value"], kwargs["max_value"])
        if config["qtransform"] == "qtransform_by_min_max"
        else by_parent_and_siblings
    )
    root = Replayed(record["tree"], Stats(1, record["tree"]["raw_value_view"]))
    nodes = [root]
    for _ in range(record["tree"]["visit"] - 1):
        walk, actions = [root], list[int]()
        while True:
            node = walk[-1]
            arms = []
            for action, child in enumerate(node.recorded["child_stats"]):
                known = node.children.get(action)
                q = value_of_edge(known, discount) if known else 0.0
                arms.append(Arm(child["prior"], known.stats.visits if known else 0, q))
            scores = puct_scores(
                node.stats,
                arms,
                c_init=config["pb_c_init"],
                c_base=config["pb_c_base"],
                qtransform=qtransform,
            )
            actions.append(scores.index(max(scores)))
            if actions[-1] not in node.children:
                break
            walk.append(node.children[actions[-1]])
        recorded = walk[-1].recorded["child_stats"][actions[-1]]
        assert "raw_value_view" in recorded, "a node was expanded that the recorded search did not"
        leaf = Replayed(recorded, Stats())
        walk[-1].children[actions[-1]] = leaf
        nodes.append(leaf)
        walk.append(leaf)
        value = recorded["raw_value_view"]
        for node in reversed(walk):  # the recorded environment has rewards on its edges
            back_up([node.stats], value)
            value = node.recorded.get("reward", 0.0) + discount * value
    return nodes


@pytest.mark.parametrize(
    ("name", "count"), [("muzero_tree.json", 201), ("muzero_qtransform_tree.json", 51)]
)
def test_mctx_expands_the_same_nodes_in_the_same_order(name: str, count: int) -> None:
    nodes = replay(golden(name))
    assert len(nodes) == count
    for order, node in enumerate(nodes):
        assert node.recorded["evaluation_index"] == order
        assert node.recorded["visit"] == node.stats.visits
        assert node.recorded["value_view"] == pytest.approx(node.stats.value, abs=2e-5)
