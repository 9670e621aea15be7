"""The default strategy: what it spends, how it deals, and what takes its place."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.search.world import PROBLEM, World, run, worlds
from vprm_search import ids
from vprm_search.budget import Budget
from vprm_search.compare.worlds import WORLDS, SyntheticProblems, WorldSettings, is_right
from vprm_search.errors import ConfigError
from vprm_search.graph import run_jobs, run_search
from vprm_search.graph.loop import Job
from vprm_search.graph.parts import OWN_VOTE, SearchRules, choose_rules
from vprm_search.search import (
    Advice,
    AutoSearch,
    BeamSearch,
    BestOfN,
    MajorityVote,
    Selector,
    WeightedVote,
    exact_step,
)
from vprm_search.search.auto import _dealt, _worth
from vprm_search.testing import SyntheticPolicy, SyntheticScorer, SyntheticWorld
from vprm_search.tree import SearchTree
from vprm_search.types import NodeRecord, Proposal, ProposeRequest, ScoreRequest, ScoreResult

WIDE = WorldSettings(depth=6, p_step=0.9)


def proposed_by_depth(tree: SearchTree) -> list[int]:
    depths = [tree.depth(record.id) for record in tree if record.parent]
    return [depths.count(depth) for depth in range(1, max(depths) + 1)]


def solve(world: WorldSettings, problem: int = 0, **options: Any) -> SearchTree:
    truth = SyntheticWorld(world)
    given = {"policy": SyntheticPolicy(truth), "scorer": SyntheticScorer(truth), **options}
    return run_search(truth.question(problem), **given).tree


# --- what it spends ------------------------------------------------------------------------------


@given(st.integers(4, 9), st.integers(16, 48), st.integers(0, 99))
@settings(max_examples=25)
def test_a_budget_of_tokens_is_spent_and_not_exceeded(depth: int, size: int, problem: int) -> None:
    limit = size * depth * 40
    world = replace(WIDE, depth=depth)
    tree = solve(world, problem, budget=Budget(generated_tokens=limit))
    assert tree.finished()
    assert limit - 3 * depth * 40 < tree.totals.generated_tokens <= limit


@given(st.integers(0, 99))
@settings(max_examples=10)
def test_the_width_grows_over_the_levels_that_the_budget_pays_for(problem: int) -> None:
    world = replace(WIDE, depth=10)
    tree = solve(world, problem, budget=Budget(generated_tokens=16 * 10 * 40))
    widths = proposed_by_depth(tree)
    assert widths[0] == 10
    assert sum(widths[:5]) < 0.9 * sum(widths[5:])


@pytest.mark.parametrize("depth", [2, 5, 9, 14, 25])
def test_without_a_limit_it_takes_the_steps_of_n_solutions(depth: int) -> None:
    tree = solve(replace(WIDE, depth=depth), strategy=AutoSearch(n=10))
    widths = proposed_by_depth(tree)
    assert sum(widths) == pytest.approx(10 * depth, abs=depth)
    assert widths[0] == 6 or depth < 5  # what a short solution leaves over begins at the root
    assert min(widths) >= 6
    assert len(tree.finished()) >= 6


def test_without_a_limit_a_policy_that_says_nothing_else_is_sampled_whole() -> None:
    tree = solve(replace(WIDE, words=1, depth=8), strategy=AutoSearch(n=16))
    whole = [path for path in tree.finished() if path.role == "completion"]
    assert len(whole) >= 12
    assert len(tree) - 1 <= 16 * 8


def test_under_a_limit_of_rounds_a_level_takes_one() -> None:
    tree = solve(WIDE, budget=Budget(rounds=6))
    assert tree.rounds == 6
    assert tree.finished()


def test_what_a_repeating_policy_leaves_over_buys_whole_solutions() -> None:
    limit = 32 * 6 * 40
    tree = solve(replace(WIDE, words=2), budget=Budget(generated_tokens=limit))
    sampled = [r for r in tree.finished() if r.role == "completion"]
    assert len(sampled) > 4
    assert limit - 2 * 6 * 40 < tree.totals.generated_tokens <= limit
    other = solve(WIDE, budget=Budget(generated_tokens=limit))
    assert len([r for r in other.finished() if r.role == "completion"]) <= 1  # the reserve's
    assert len({r.round for r in other.children(other.root_id) if not r.role}) > 1


@pytest.mark.parametrize("depth", [3, 8])
def test_a_policy_that_says_nothing_else_is_sampled_whole(depth: int) -> None:
    limit = 32 * depth * 40
    tree = solve(replace(WIDE, words=1, depth=depth), budget=Budget(generated_tokens=limit))
    steps = [record for record in tree if record.parent and not record.role]
    assert {tree.depth(step.id) for step in steps} == {1, 2}
    assert len(tree.finished()) > 16
    assert all(path.role == "completion" for path in tree.finished())
    assert not tree.open_leaves()
    assert limit - 2 * depth * 40 < tree.totals.generated_tokens <= limit


def test_whole_solutions_have_room_to_be_long() -> None:
    """Each gets an equal share of the tokens left; one at the mean cost would cut half of them."""
    tree = solve(replace(WIDE, words=1, depth=8), budget=Budget(generated_tokens=5_000))
    assert not [record for record in tree.ended() if record.status == "truncated"]


@given(worlds, st.integers(1, 60))
@settings(max_examples=25)
def test_whatever_the_replies_no_path_has_more_than_six_children(world: World, limit: int) -> None:
    tree = run(world, AutoSearch(n=12, max_depth=6), budget=Budget(candidates=limit)).tree
    for record in tree:
        if record.parent is not None:
            assert sum(not child.role for child in tree.children(record.id)) <= 6


# --- how it deals --------------------------------------------------------------------------------


def grown(tree: SearchTree, parent: str, *scores: float | None) -> list[str]:
    """Put steps with these scores below a node and return their ids."""
    first = tree.child_count(parent)
    records = []
    for index, score in enumerate(scores, first):
        text = f"{parent[:6]} step {index}"
        record = _record(parent, index, text)
        reason = "" if score is not None else "none"
        records.append(replace(record, score=score, score_reason=reason, round=1, seed=1))
    tree.merge(records)
    return [record.id for record in records]


def _record(parent: str, index: int, text: str) -> NodeRecord:
    return NodeRecord(id=ids.child_id(parent, index, text), parent=parent, index=index, text=text)


def test_the_second_look_takes_steps_from_a_path_whose_children_are_bad() -> None:
    tree = SearchTree(PROBLEM)
    one, other = grown(tree, tree.root_id, 0.7, 0.7)
    grown(tree, one, 0.9, 0.95)
    grown(tree, other, 0.1, 0.05)
    dealt = {expand.node: expand.count for expand in _dealt(tree, [one, other], 3, exact_step)}
    assert dealt[one] > dealt.get(other, 0)


def test_a_step_that_is_often_proposed_gets_more_of_the_next_steps() -> None:
    tree = SearchTree(PROBLEM)
    common, rare = grown(tree, tree.root_id, 0.7, 0.7)
    twins = [
        replace(_record(tree.root_id, index, tree[common].text), score=0.7, round=1, seed=1)
        for index in (2, 3, 4)
    ]
    tree.merge(twins)
    dealt = {e.node: e.count for e in _dealt(tree, [common, rare], 5, exact_step)}
    assert dealt == {common: 4, rare: 1}


def test_a_step_without_a_score_counts_as_a_median_one() -> None:
    tree = SearchTree(PROBLEM)
    nodes = grown(tree, tree.root_id, 0.2, 0.6, 0.9, None)
    worth = _worth(tree, nodes, exact_step)
    assert worth[nodes[3]] == pytest.approx(worth[nodes[1]])
    assert worth[nodes[0]] < worth[nodes[3]] < worth[nodes[2]]


@given(st.integers(0, 30), st.sampled_from([-3.0, 2.0, 4.4]))
@settings(max_examples=12)
def test_a_bias_of_the_scorer_changes_nothing(problem: int, level: float) -> None:
    plain, biased = (solve(replace(WIDE, level=by), problem) for by in (0.0, level))
    assert plain.records.keys() == biased.records.keys()


class Outage:
    """A scorer that has no score for the steps of one level."""

    def __init__(self, scorer: SyntheticScorer, level: int) -> None:
        self._scorer, self._level = scorer, level

    async def score(self, requests: Any) -> list[ScoreResult]:
        results = await self._scorer.score(requests)
        return [self._without(*pair) for pair in zip(requests, results, strict=True)]

    def _without(self, request: ScoreRequest, result: ScoreResult) -> ScoreResult:
        failed = len(request.steps) == self._level
        return ScoreResult.failed(len(request.steps), "down") if failed else result


@pytest.mark.parametrize("level", [1, 3, 6])
def test_a_level_without_scores_ends_no_search(level: int) -> None:
    truth = SyntheticWorld(WIDE)
    scorer = Outage(SyntheticScorer(truth), level)
    run = run_search(truth.question(1), policy=SyntheticPolicy(truth), scorer=scorer)
    assert len(run.tree.finished()) > 4


class Down:
    """A policy whose first calls fail."""

    def __init__(self, policy: SyntheticPolicy, calls: int) -> None:
        self._policy, self._left = policy, calls

    async def propose(self, requests: Sequence[ProposeRequest]) -> list[list[Proposal]]:
        replies = await self._policy.propose(requests)
        return [[self._failed() or one for one in reply] for reply in replies]

    def _failed(self) -> Proposal | None:
        self._left -= 1
        return Proposal("", "error", error="connection lost") if self._left >= 0 else None


LIMITS = st.sampled_from([{}, {"generated_tokens": 4000}, {"candidates": 99}, {"requests": 99}])


@given(calls=st.integers(0, 200), n=st.integers(2, 24), limits=LIMITS)
@settings(max_examples=25)
def test_a_policy_of_which_no_first_step_comes_is_asked_for_n_and_no_more(
    calls: int, n: int, limits: dict[str, int]
) -> None:
    truth = SyntheticWorld(WIDE)
    tree = run_search(
        truth.question(1),
        policy=Down(SyntheticPolicy(truth), calls),
        scorer=SyntheticScorer(truth),
        strategy=AutoSearch(n=n),
        budget=Budget(**limits),
    ).tree
    begun = tree.children(tree.root_id)
    assert tree.finished() or (calls >= n and all(child.status == "failed" for child in begun))
    assert len(begun) < 2 * n or not all(child.status == "failed" for child in begun)


# --- what takes its place ------------------------------------------------------------------------


class NoPrefix(SyntheticPolicy):
    """A policy that cannot continue a path."""

    continues = False


@pytest.mark.parametrize(
    ("policy", "scored", "advice", "strategy", "selector"),
    [
        (SyntheticPolicy, True, None, AutoSearch, OWN_VOTE),
        (SyntheticPolicy, True, "search", AutoSearch, OWN_VOTE),
        (SyntheticPolicy, True, "vote", BestOfN, WeightedVote()),
        (SyntheticPolicy, True, "majority", BestOfN, MajorityVote()),
        (SyntheticPolicy, False, None, BestOfN, MajorityVote()),
        (SyntheticPolicy, False, "search", BestOfN, MajorityVote()),
        (NoPrefix, True, None, BestOfN, OWN_VOTE),
        (NoPrefix, True, "search", AutoSearch, OWN_VOTE),
    ],
)
def test_the_rules_follow_policy_scorer_and_advice(
    policy: Any, scored: bool, advice: Advice | None, strategy: type, selector: Selector
) -> None:
    truth = SyntheticWorld(WIDE)
    scorer = SyntheticScorer(truth) if scored else None
    chosen, vote = choose_rules(
        "auto", None, policy=policy(truth), scorer=scorer, budget=None, advice=advice
    )
    assert type(chosen) is strategy
    assert vote == selector
    assert chosen == BestOfN(16) or chosen == AutoSearch()
    mine = choose_rules(
        "auto", MajorityVote(), policy=policy(truth), scorer=scorer, budget=None, advice=advice
    )
    assert mine == (chosen, MajorityVote())


@pytest.mark.parametrize("limit", ["candidates", "requests", "generated_tokens", "scored_tokens"])
def test_samples_are_as_many_as_the_budget_pays_for(limit: str) -> None:
    truth = SyntheticWorld(WIDE)
    budget = Budget(**{limit: 50})
    chosen, _ = choose_rules(
        "auto", None, policy=SyntheticPolicy(truth), scorer=None, budget=budget
    )
    assert chosen == BestOfN(256)


def test_an_advice_is_for_auto_only() -> None:
    with pytest.raises(ConfigError, match="advice 'vote' is for strategy='auto'"):
        solve(WIDE, strategy=BeamSearch(), advice="vote")


def test_the_rules_of_a_search_fit_it_to_their_budget() -> None:
    budget = Budget(generated_tokens=6400)
    assert SearchRules(AutoSearch(), WeightedVote(), budget).strategy == AutoSearch(budget=budget)
    own = AutoSearch(budget=Budget(candidates=9))
    assert SearchRules(own, WeightedVote(), budget).strategy == own


@pytest.mark.slow
def test_it_answers_where_whole_solutions_are_hopeless() -> None:
    """100 hard problems at the price of 16 solutions; seeds of no measurement."""
    world = SyntheticProblems(replace(WORLDS["hard"], seed=77), 100).load(0, 100)
    rights = {}
    for name, strategy in {"auto": AutoSearch(), "samples": BestOfN(16)}.items():
        jobs = [Job(SearchTree(task.problem)) for task in world.tasks]
        rules = SearchRules(strategy, WeightedVote(), Budget(generated_tokens=6400))
        runs = asyncio.run(run_jobs(jobs, world.policy, world.new_scorer(), rules))
        rights[name] = sum(
            is_right(task.answer, run.result.answer)
            for task, run in zip(world.tasks, runs, strict=True)
        )
    assert rights["auto"] >= 88
    assert rights["samples"] <= 45
