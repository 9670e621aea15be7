"""REBASE: widths by score, and the pruning that shares context."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.search.world import World, run, worlds, worths
from vprm_search.search import REBASE
from vprm_search.search.particle_filter import effective_sample_size
from vprm_search.search.rebase import centred, effective_shares, logit, sigmoid
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
            merged = {c.node for c in plan.close if c.cause == "duplicate"}
            level = [r.id for r in tree.open_leaves() if r.id not in merged]
            scores = worths(tree, level, "last")
            _check_shares(plan, scores, width - len(done), temperature)


def _check_shares(plan, scores, slots, temperature) -> None:  # type: ignore[no-untyped-def]
    shared = {e.node: e.count for e in plan.expand}
    shared |= {c.node: 0 for c in plan.close if c.cause == "no_share"}
    weights = {node: math.exp(scores[node] / temperature) for node in shared}
    total = sum(weights.values())
    for node, count in shared.items():
        assert abs(count - slots * weights[node] / total) < 1


score_lists = st.lists(st.floats(0, 1), min_size=1, max_size=24)


@given(score_lists, st.floats(0, 1))
def test_the_shares_are_worth_so_many_equal_ones(scores: list[float], share: float) -> None:
    values = centred(scores)
    shares = effective_shares(values, share)
    assert math.fsum(shares) == pytest.approx(1)
    order = sorted(range(len(scores)), key=lambda place: scores[place])
    assert [shares[place] for place in order] == sorted(shares)
    apart = [high - low for low, high in pairwise(sorted(values)) if high > low]
    if min(apart, default=0.0) > 0.01 and 0.05 < share < 0.95:
        top = values.count(max(values))  # as good as equal, whatever the temperature
        wanted = 1 + share * (len(scores) - 1)
        assert effective_sample_size(shares) == pytest.approx(max(wanted, top), rel=1e-4)


logits = st.lists(st.integers(-40, 40).map(lambda n: n / 10), min_size=2, max_size=16, unique=True)


@given(logits, st.floats(-6, 6))
def test_a_scorer_that_is_biased_selects_like_one_that_is_not(
    values: list[float], bias: float
) -> None:
    plain, biased = ([sigmoid(v + b) for v in values] for b in (0.0, bias))
    assert centred(plain) == pytest.approx(centred(biased), abs=1e-3)
    assert effective_shares(centred(plain), 0.25) == pytest.approx(
        effective_shares(centred(biased), 0.25), abs=1e-2
    )


def test_scores_close_to_one_are_told_apart() -> None:
    """The floor of the temperature once made a share of 12.5 of the 4.75 asked for."""
    scores = [0.95 + 0.047 * place / 15 for place in range(16)]
    shares = effective_shares(centred(scores), 0.25)
    assert effective_sample_size(shares) == pytest.approx(4.75, rel=1e-6)


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=9))
def test_scores_of_exactly_nothing_and_one_are_held_apart_from_the_ends(
    scores: list[float],
) -> None:
    assert all(math.isfinite(logit(score)) for score in scores)
    assert all(0 <= value <= 1 for value in centred(scores))
    assert all(0 <= share <= 1 for share in effective_shares(centred(scores), 0.25))


def test_it_ends_when_the_width_is_used_up_by_answers() -> None:
    trace = run(World(stop=1.0, words=50), REBASE(width=5))
    assert trace.ended_by == "5 paths finished"
    assert len(trace.tree.finished()) == 5
