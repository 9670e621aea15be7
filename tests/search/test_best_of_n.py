"""Best-of-N in a simulated world, and plans as values."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.search.world import World, run, worlds
from vprm_search.budget import Budget
from vprm_search.search import BestOfN, Expand, Plan, Strategy
from vprm_search.tree import SearchTree

expansions = st.lists(
    st.builds(
        Expand, node=st.text("ab", max_size=2), count=st.integers(1, 5), first_index=st.just(2)
    ),
    max_size=5,
).map(tuple)


@given(worlds, st.integers(1, 9))
@settings(max_examples=60)
def test_n_whole_solutions_in_one_round(world: World, n: int) -> None:
    trace = run(world, BestOfN(n))
    tree = trace.tree
    assert trace.ended_by == f"{n} solutions sampled"
    assert tree.rounds == 1
    assert tree.child_count(tree.root_id) == tree.totals.candidates == n
    for first in tree.children(tree.root_id):
        chain = [first]
        while children := tree.children(chain[-1].id):
            assert len(children) == 1  # a solution is a chain
            chain += children
        assert [r.status for r in chain[:-1]] == ["open"] * (len(chain) - 1)
        assert chain[-1].status in ("finished", "truncated", "failed")
        assert [r.seed != 0 for r in chain] == [True] + [False] * (len(chain) - 1)
        if chain[-1].status == "finished" and not world.unscored:
            assert None not in tree.step_scores(chain[-1].id)


@given(worlds, st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=40)
def test_more_samples_begin_with_the_same_samples(world: World, a: int, b: int) -> None:
    few, many = (run(world, BestOfN(n)).tree for n in sorted((a, b)))
    assert set(few.records) <= set(many.records)


@given(worlds, st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=40)
def test_a_plan_asks_only_for_what_is_missing(world: World, n: int, limit: int) -> None:
    """Cut by a budget, then resumed without it: the same tree as in one go."""
    capped = run(world, BestOfN(n), budget=Budget(candidates=limit))
    assert capped.tree.totals.candidates == min(n, limit)
    resumed = SearchTree.loads(capped.tree.dumps())
    plan = BestOfN(n).plan(resumed)
    if limit < n:
        assert capped.ended_by == f"budget: candidates {limit} of {limit}"
        assert plan.expand == (Expand(resumed.root_id, n - limit, limit, "end"),)
    else:
        assert plan.finish


def test_equal_samples_stay_separate_votes() -> None:
    tree = run(World(words=1, stop=1.0), BestOfN(5)).tree
    assert len(tree.finished()) == 5
    assert len({record.text for record in tree.finished()}) == 1


@pytest.mark.parametrize("n", [0, -1, 257])
def test_n_is_bounded(n: int) -> None:
    with pytest.raises(ValidationError):
        BestOfN(n)


def test_best_of_n_is_a_strategy_that_reads_no_score() -> None:
    assert isinstance(BestOfN(), Strategy)
    assert BestOfN().aggregates == ()
    assert BestOfN().n == 8


@given(expansions, st.integers(0, 20))
def test_a_plan_is_cut_from_its_end(expand: tuple[Expand, ...], limit: int) -> None:
    def slots(plan: Plan) -> list[tuple[str, int]]:
        return [(e.node, e.first_index + i) for e in plan.expand for i in range(e.count)]

    plan = Plan(expand=expand)
    cut = plan.limited_to(limit)
    assert slots(cut) == slots(plan)[:limit]
    assert all(e.count > 0 for e in cut.expand)
