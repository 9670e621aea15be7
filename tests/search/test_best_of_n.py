"""Best-of-N in a simulated world, and plans as values."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.search.world import World, run, worlds
from vprm_search.budget import Budget
from vprm_search.search import BestOfN, BestScore, Expand, Plan, Strategy
from vprm_search.search.best_of_n import agreement
from vprm_search.tree import SearchTree
from vprm_search.types import StepScore

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


# --- adaptive stop -----------------------------------------------------------------------------


@given(st.lists(st.sampled_from(["3", "4", "5", None]), max_size=20))
def test_agreement_is_the_posterior_of_two_answers(answers: list[str | None]) -> None:
    """Against the integral of the Beta density over (½, 1), by Simpson's rule."""
    counts = sorted((answers.count(a) for a in ("3", "4", "5")), reverse=True)
    a, b = counts[0] + 1, counts[1] + 1
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    steps = 2000
    total = 0.0
    for k in range(steps + 1):
        x = 0.5 + k / (2 * steps)
        inside = (a - 1) * math.log(x) + (b - 1) * math.log1p(-x) if x < 1 else -math.inf
        density = math.exp(inside - log_beta) if x < 1 else float(b == 1) / math.exp(log_beta)
        total += density * (1 if k in (0, steps) else 4 if k % 2 else 2)
    assert agreement(answers) == pytest.approx(total / (6 * steps), abs=1e-6)


@given(worlds, st.integers(1, 20), st.integers(1, 6), st.integers(1, 5))
@settings(max_examples=50)
def test_it_stops_at_the_first_wave_that_is_sure(
    world: World, n: int, first: int, wave: int
) -> None:
    strategy = BestOfN(n, confidence=0.9, min_n=first, wave=wave)
    trace = run(world, strategy)
    for plan, text in zip(trace.plans, trace.before, strict=True):
        tree = SearchTree.loads(text)
        have = tree.child_count(tree.root_id)
        sure = agreement([r.answer for r in tree.finished()]) > 0.9
        if plan.finish:
            assert have == n or (sure and plan.finish.startswith("confidence"))
        else:
            assert not (sure and have >= first)
            (expand,) = plan.expand
            assert have + expand.count == min(n, first if have == 0 else have + wave)
    full = run(world, BestOfN(n)).tree
    assert set(trace.tree.records) <= set(full.records)  # the same samples, fewer of them


def test_unanimous_samples_stop_early_and_split_ones_do_not() -> None:
    same = run(World(words=1, stop=1.0), BestOfN(32, confidence=0.95))
    assert same.tree.child_count(same.tree.root_id) == 4
    assert same.ended_by == "confidence: 0.9688 > 0.95 after 4 solutions"
    assert agreement(["1", "2"] * 8) == 0.5


def test_a_good_enough_path_stops_the_sampling() -> None:
    strategy = BestOfN(24, good_enough=0.75, min_n=2, wave=1, aggregate="min")
    assert strategy.aggregates == ("min",)
    stopped = 0
    for seed in range(20):
        trace = run(World(seed=seed, words=9, stop=0.6), strategy)
        tree = trace.tree
        best = max((tree.path_score(r.id, "min") or 0.0 for r in tree.finished()), default=0.0)
        assert trace.ended_by.startswith("good_enough") == (best >= 0.75 and len(trace.plans) > 1)
        stopped += tree.child_count(tree.root_id) < 24
    assert stopped > 5


@pytest.mark.parametrize("wrong", [{"wave": 2}, {"min_n": 2}, {"confidence": 0.4}, {"waves": 1}])
def test_options_that_would_do_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        BestOfN(8, **wrong)


class Perfect(World):
    """Knows which final answers are right."""

    def _score(self, steps: tuple[str, ...]) -> StepScore:
        return StepScore(float("Answer: 1" in steps[-1]))


@given(st.integers(0, 300), st.integers(1, 12), st.integers(1, 12))
@settings(max_examples=60)
def test_with_a_perfect_scorer_more_samples_never_lose_an_answer(seed: int, a: int, b: int) -> None:
    world = Perfect(seed=seed, stop=0.4, words=7)
    right = []
    for n in sorted((a, b)):
        tree = run(world, BestOfN(n)).tree
        chosen = BestScore(aggregate="last").select(tree, tree.finished()).node
        right.append(chosen is not None and tree[chosen].answer == "1")
    assert right[0] <= right[1]
