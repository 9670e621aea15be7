"""Merging siblings by a key, and annealing the beam."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.search.world import PROBLEM, World, run, worlds
from vprm_search.ids import child_id
from vprm_search.search import BeamSearch, exact_step, loose_step
from vprm_search.search.stepwise import distinct
from vprm_search.tree import SearchTree
from vprm_search.types import NodeRecord


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("So, x = 3.", "so x=3", True),
        ("The **sum** is 12!", "the sum is 12", True),
        ("`x` is \\(3\\)", "x is 3", True),
        ("x = 3", "x = -3", False),
        ("x = 3", "x = 4", False),
        ("a + b", "a - b", False),
        ("2 < 3", "2 > 3", False),
        ("１２ tiles", "12 tiles", True),
        ("答案是三。", "答案是四。", False),
    ],
)
def test_the_loose_key_keeps_what_changes_the_meaning(one: str, other: str, same: bool) -> None:
    assert (loose_step(one) == loose_step(other)) is same


@given(st.text(max_size=20))
def test_the_loose_key_is_coarser_than_the_text_and_never_empty(text: str) -> None:
    assert loose_step(text) or not text
    assert exact_step(text) == text


def tree_of(*texts: str) -> SearchTree:
    tree = SearchTree(PROBLEM)
    for index, text in enumerate(texts):
        node = child_id(tree.root_id, index, text)
        tree.merge([NodeRecord(node, tree.root_id, index, text, score=0.5, round=1)])
    return tree


def test_near_duplicates_are_merged_by_the_key_and_say_with_whom() -> None:
    tree = tree_of("x = 3", "X = 3.", "x = 3", "y = 3")
    beam = BeamSearch(width=2, expand=2, refill=0, same_step=loose_step, stop=None)
    closed = {c.node: c.reason for c in beam.plan(tree).close}
    assert {c.merged_into for c in beam.plan(tree).close} == {tree.children(tree.root_id)[0].id}
    first, near, twin, _ = tree.children(tree.root_id)
    assert closed[near.id] == f"near-duplicate of {first.id}"
    assert closed[twin.id] == f"duplicate of {first.id}"
    assert len(closed) == 2
    exact = beam.model_copy(update={"same_step": exact_step})
    assert twin.id in {c.node for c in exact.plan(tree).close}
    assert near.id not in {c.node for c in exact.plan(tree).close if c.cause == "duplicate"}


def test_slots_of_near_duplicates_are_asked_for_again() -> None:
    plan = BeamSearch(width=2, expand=2, same_step=loose_step).plan(
        tree_of("x = 3", "X = 3.", "x = 3", "y = 3")
    )
    assert [(e.count, e.first_index) for e in plan.expand] == [(2, 4)]


@given(worlds)
@settings(max_examples=25)
def test_who_stands_for_whom_does_not_change_when_the_duplicates_are_closed(world: World) -> None:
    trace = run(world, BeamSearch(width=3, expand=3, max_depth=4))
    end = trace.tree
    for text in trace.before[1:]:
        tree = SearchTree.loads(text)
        parents = {r.parent for r in tree.round_nodes(tree.rounds) if r.parent}
        for parent in parents:
            if len({c.round for c in end.children(parent)}) > 1:
                continue  # refilled later
            now = [(c.id, n) for c, n in distinct(tree, parent, exact_step)]
            later = [(c.id, n) for c, n in distinct(end, parent, exact_step)]
            assert now == later
    for record in end:
        twin = record.merged_into
        if twin is not None:
            assert end[twin].text == record.text


@given(worlds, st.integers(1, 6), st.integers(0, 3), st.integers(1, 3))
@settings(max_examples=40)
def test_an_annealed_beam_narrows_by_its_schedule(
    world: World, width: int, anneal: int, least: int
) -> None:
    beam = BeamSearch(width=width, expand=3, anneal=anneal, min_width=least, max_depth=6, stop=None)
    trace = run(world, beam)
    for plan, text in zip(trace.plans, trace.before, strict=True):
        tree = SearchTree.loads(text)
        fresh = [e for e in plan.expand if not tree.child_count(e.node)]
        if tree.rounds and fresh:
            depth = tree.depth(fresh[0].node)
            assert len(fresh) <= max(min(least, width), width - anneal * (depth - 1))


@given(worlds)
@settings(max_examples=15)
def test_without_annealing_nothing_changes(world: World) -> None:
    plain = BeamSearch(width=3, expand=2, max_depth=5)
    other = BeamSearch(width=3, expand=2, max_depth=5, anneal=0, min_width=2)
    assert run(world, plain).tree.dumps() == run(world, other).tree.dumps()
