"""Steps without a score: kept, asked for once more, and treated alike."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.search.strategies import EVERY
from tests.search.world import PROBLEM, World, run
from vprm_search.budget import usage_of
from vprm_search.graph import loop
from vprm_search.graph.loop import Job, score
from vprm_search.graph.parts import SearchRules
from vprm_search.search import BestScore, Pruning, WeightedVote, conclude
from vprm_search.search.plan import needs_scores
from vprm_search.search.stepwise import known_score, level_scores
from vprm_search.tree import SearchTree
from vprm_search.types import NodeRecord, ScoreRequest, ScoreResult, StepScore

SCORED = [name for name, make in EVERY.items() if needs_scores(make())]
every = pytest.mark.parametrize("name", SCORED)


@dataclass(frozen=True)
class Outages(World):
    """A world whose scorer has no score in some of its calls, and none at some depths."""

    down: frozenset[int] = frozenset()
    refused: frozenset[int] = frozenset()
    calls: list[int] = field(default_factory=list, compare=False)

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        self.calls.append(len(requests))
        if len(self.calls) in self.down:
            return [ScoreResult.failed(len(r.steps), "server down") for r in requests]
        return [
            replace(
                result,
                scores=tuple(
                    StepScore(None, "too_long") if place in self.refused else one
                    for place, one in enumerate(result.scores, 1)
                ),
            )
            for result in await super().score(requests)
        ]


def world(**options: Any) -> Outages:
    return Outages(stop=0.3, words=50, **options)


def gone_on(tree: SearchTree) -> list[NodeRecord]:
    """Return the steps below which there are others, and the paths that ended a round ago."""
    ended = [r for r in tree.finished() if r.round < tree.rounds]
    return ended + [r for r in tree if r.is_step and tree.child_count(r.id)]


@every
@given(seed=st.integers(0, 10**6), call=st.integers(1, 4))
@example(seed=19546, call=1)  # two equal solutions, both without a score at first
@settings(max_examples=6)
def test_a_call_without_scores_ends_no_search_and_is_made_up_for(
    name: str, seed: int, call: int
) -> None:
    tree = run(world(seed=seed, down=frozenset({call})), EVERY[name]()).tree
    result = conclude(tree, WeightedVote(), usage=usage_of(tree), ended_by="")
    assert result.answer is not None
    assert not result.fallback
    assert not [r for r in tree if r.cause == "unscored"]
    for record in gone_on(tree):
        later = [r for r in tree.children(record.id) if r.is_step and r.round > record.round]
        if later or record.status == "finished":
            assert record.score is not None


@every
@given(seed=st.integers(0, 10**6), refused=st.sets(st.integers(1, 5), min_size=1))
@settings(max_examples=6)
def test_steps_that_never_get_a_score_end_no_search(
    name: str, seed: int, refused: set[int]
) -> None:
    tree = run(world(seed=seed, refused=frozenset(refused)), EVERY[name]()).tree
    assert tree.finished()
    result = conclude(tree, BestScore(), usage=usage_of(tree), ended_by="")
    assert result.answer is not None
    assert not result.fallback


@every
def test_a_scorer_that_is_down_throughout_costs_no_more_than_one_that_is_blind(name: str) -> None:
    seeds = range(12)
    down = [run(world(seed=s, down=frozenset(range(1, 999))), EVERY[name]()).tree for s in seeds]
    blind = [run(Blind(seed=s, stop=0.3, words=50), EVERY[name]()).tree for s in seeds]
    spent = [sum(tree.totals.candidates for tree in trees) for trees in (down, blind)]
    assert spent[0] <= 1.5 * spent[1]
    assert all(tree.finished() for tree in down)


class Blind(World):
    """A world whose scorer says ½ of everything."""

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        return [ScoreResult(tuple(StepScore(0.5) for _ in r.steps)) for r in requests]


@every
@given(seed=st.integers(0, 10**6), down=st.sets(st.integers(1, 8)), unscored=st.booleans())
@example(seed=1, down={6}, unscored=False)  # a rollout that was scored late
@settings(max_examples=6)
def test_a_search_resumed_after_an_outage_grows_the_same_tree(
    name: str, seed: int, down: set[int], unscored: bool
) -> None:
    def outages() -> Outages:
        return world(seed=seed, down=frozenset(down), unscored=0.2 * unscored)

    live, again = run(outages(), EVERY[name]()).tree, resumed(outages(), name)
    assert again.dumps() == live.dumps()


def resumed(world: Outages, name: str) -> SearchTree:
    """Run a search of which nothing lives between its phases but JSON."""
    job, was_cut = Job(SearchTree(PROBLEM)), False

    async def rounds() -> None:
        nonlocal was_cut
        while True:
            rules = SearchRules(EVERY[name](), BestScore())
            job.tree = SearchTree.loads(job.tree.dumps())
            plan = loop.next_plan(job.tree, rules, was_cut=was_cut)
            loop.close_nodes(job.tree, plan)
            if plan.finish:
                return
            await loop.propose([job], [plan], world, rules)
            job.tree = SearchTree.loads(job.tree.dumps())
            before = SearchTree.loads(job.tree.dumps())
            (told,) = await score([job], world, rules)
            before.merge(told)  # what a checkpoint gets is all that changed
            assert before.dumps() == job.tree.dumps()

    asyncio.run(rounds())
    return job.tree


scores = st.lists(st.none() | st.integers(0, 16).map(lambda n: n / 16), min_size=1, max_size=9)


@given(scores)
def test_a_step_without_a_score_counts_as_a_median_one(values: list[float | None]) -> None:
    steps = [NodeRecord(str(i), "root", i, score=value) for i, value in enumerate(values)]
    found = list(level_scores(steps, lambda step: step.score).values())
    known = [value for value in values if value is not None]
    for value, worth in zip(values, found, strict=True):
        assert worth == (value if value is not None else median(known) if known else 0.5)


@given(scores, st.sampled_from(["mean", "min", "last", "geometric_mean"]))
def test_a_step_above_without_a_score_counts_as_the_rest_of_its_path(
    values: list[float | None], aggregate: str
) -> None:
    from vprm_search.ids import child_id

    tree = SearchTree(PROBLEM)
    parent = tree.root_id
    for value in values:
        node = child_id(parent, 0, f"step {tree.depth(parent)}")
        tree.merge([NodeRecord(node, parent, 0, f"step {tree.depth(parent)}", score=value)])
        parent = node
    worth, known = known_score(tree, parent, aggregate), [v for v in values if v is not None]
    if values[-1] is None:
        assert worth is None
    else:
        assert worth is not None
        assert min(known) - 1e-9 <= worth <= max(known) + 1e-9
        if len(known) == len(values):
            assert worth == tree.path_score(parent, aggregate)


@given(scores, st.floats(0, 1), st.floats(0, 1))
def test_no_threshold_takes_a_path_without_a_score(
    values: list[float | None], below: float, margin: float
) -> None:
    steps = [
        NodeRecord(str(i), "root", i, score=v, score_reason="down" if v is None else "")
        for i, v in enumerate(values)
    ]
    worth = level_scores(steps, lambda step: step.score)
    ranked = sorted(((worth[s.id], s) for s in steps), key=lambda pair: (-pair[0], pair[1].id))
    _, close = Pruning(below=below, margin=margin, keep_at_least=0).apply(ranked)
    assert {c.node for c in close}.isdisjoint(s.id for s in steps if s.score is None)
