"""REBASE: widths by score, and the pruning that shares context."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.search.world import World, run, worlds
from vprm_search.search import REBASE
from vprm_search.search.particle_filter import effective_sample_size
from vprm_search.search.rebase import softmax, tempered
from vprm_search.tree import SearchTree


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
    shared |= {c.node: 0 for c in plan.close if c.cause == "no_share"}
    weights = {node: math.exp(scores[node] / temperature) for node in shared}
    total = sum(weights.values())
    for node, count in shared.items():
        assert abs(count - slots * weights[node] / total) < 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=24), st.floats(0, 1))
def test_the_temperature_makes_the_shares_worth_so_many_equal_ones(
    scores: list[float], share: float
) -> None:
    wanted = 1 + share * (len(scores) - 1)
    temperature = tempered(scores, wanted)
    size = effective_sample_size(softmax(scores, temperature))
    if temperature == 0.05:
        assert size >= wanted  # no lower temperature: what is so close is not told apart
    elif temperature == 20.0:
        assert size <= wanted
    else:
        assert size == pytest.approx(wanted, rel=1e-6)


@given(st.lists(st.integers(0, 40), min_size=2, max_size=16, unique=True), st.floats(0.5, 2.0))
def test_shares_do_not_depend_on_the_scale_of_the_scores(scores: list[int], scale: float) -> None:
    near, far = [s / 100 for s in scores], [0.05 + scale * s / 100 for s in scores]
    wanted = 1 + 0.25 * (len(scores) - 1)
    one, other = tempered(near, wanted), tempered(far, wanted)
    if min(one, other) > 0.05:
        assert softmax(near, one) == pytest.approx(softmax(far, other), abs=1e-6)


@pytest.mark.parametrize("levels", [3, 5])
@pytest.mark.parametrize("deeper", [0, 2])
def test_a_growing_width_costs_as_much_as_an_even_one(levels: int, deeper: int) -> None:
    depth = levels + deeper
    world = World(words=10**6, stop=0.0)
    strategy = REBASE(width=20, start=0.5, levels=levels, refill=0, max_depth=depth)
    tree = run(world, strategy).tree
    proposed = [
        sum(1 for record in tree.round_nodes(level) if record.seed) for level in range(1, depth + 1)
    ]
    assert proposed[0] == 10
    assert proposed[levels - 1] == 30
    assert proposed[levels:] == [20] * deeper
    assert proposed[:levels] == sorted(proposed[:levels])
    assert sum(proposed) == 20 * depth


def test_a_growing_width_needs_the_number_of_levels() -> None:
    with pytest.raises(ValidationError, match=r"start=0\.6 needs levels="):
        REBASE(start=0.6)


def test_it_ends_when_the_width_is_used_up_by_answers() -> None:
    trace = run(World(stop=1.0, words=50), REBASE(width=5))
    assert trace.ended_by == "5 paths finished"
    assert len(trace.tree.finished()) == 5
