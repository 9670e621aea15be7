"""What a budget lets a search do: no strategy exceeds it, and a path can always be finished."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.search.world import PROBLEM, World
from vprm_search.budget import Budget
from vprm_search.compare.worlds import (
    SyntheticPolicy,
    SyntheticScorer,
    SyntheticWorld,
    WorldSettings,
)
from vprm_search.graph.loop import Job
from vprm_search.graph.parts import SearchRules
from vprm_search.graph.run import SearchRun, run_jobs
from vprm_search.search import (
    DVTS,
    MCTS,
    REBASE,
    AutoSearch,
    BeamSearch,
    BestFirst,
    BestOfN,
    BestScore,
    Cascade,
    HybridVote,
    Knockout,
    Lookahead,
    ParticleFilter,
    Selector,
    Strategy,
    WeightedVote,
)
from vprm_search.testing import chance
from vprm_search.tree import SearchTree
from vprm_search.types import Problem, Proposal, ProposeRequest, ScoreRequest, ScoreResult

STEP = 40
LIMITS = ["candidates", "requests", "rounds", "generated_tokens", "scored_tokens"]

WIDE: dict[str, Callable[[], Strategy]] = {
    "best-of-n": lambda: BestOfN(64),
    "beam": lambda: BeamSearch(width=16, expand=4),
    "beam-default": BeamSearch,
    "dvts": lambda: DVTS(subtrees=8),
    "rebase": lambda: REBASE(width=64),
    "particles": lambda: ParticleFilter(particles=64),
    "best-first": lambda: BestFirst(batch=16),
    "mcts": lambda: MCTS(simulations=64),
    "lookahead": lambda: Lookahead(strategy=BeamSearch()),
    "cascade": lambda: Cascade(strategy=BeamSearch()),
    "cascade-lookahead": lambda: Cascade(strategy=Lookahead(strategy=REBASE())),
}


@dataclass
class Forgetful:
    """A policy that keeps to no `max_tokens`, as one that does not know it."""

    inner: SyntheticPolicy

    async def propose(self, requests: Sequence[ProposeRequest]) -> list[list[Proposal]]:
        """Answer as the policy inside does, without the limit."""
        return await self.inner.propose([replace(r, max_tokens=None) for r in requests])


def searched(
    strategy: Strategy, made: WorldSettings, limits: dict[str, Any], number: int = 0
) -> SearchRun:
    """Search for one problem of a world under a budget, with a policy that minds no limit."""
    world = SyntheticWorld(made)
    job = Job(SearchTree(Problem(world.question(number))))
    rules = SearchRules(strategy, WeightedVote(), Budget(**limits))
    policy = Forgetful(SyntheticPolicy(world))
    (found,) = asyncio.run(run_jobs([job], policy, SyntheticScorer(world), rules))
    found.tree.check()
    return found


@dataclass
class LongEnd:
    """Paths whose steps cost 4 to 9 tokens, and the last, which holds the answer, 13."""

    depth: int

    async def propose(self, requests: Sequence[ProposeRequest]) -> list[list[Proposal]]:
        """Write a step or the rest for each seed, cut at the tokens that it may have."""
        return [[self._written(r) for _ in r.seeds] for r in requests]

    def _written(self, request: ProposeRequest) -> Proposal:
        first = len(request.steps) + 1
        until = self.depth if request.until == "end" else first
        text = "\n\n".join(f"Step {place}" for place in range(first, until + 1))
        cost = sum(map(self.cost, range(first, until + 1)))
        if request.max_tokens is not None and request.max_tokens < cost:
            return Proposal(text, "length", generated_tokens=request.max_tokens)
        if until < self.depth:
            return Proposal(text, "step", generated_tokens=cost)
        return Proposal(f"{text}. Answer: 7", "stop", generated_tokens=cost)

    def cost(self, place: int) -> int:
        """Return what a step costs."""
        return 13 if place == self.depth else 4 + 5 * (place % 2)


@pytest.mark.parametrize("name", ["particles", "rebase", "beam", "dvts", "auto"])
@given(depth=st.integers(3, 12), paths=st.integers(8, 64))
@settings(max_examples=12, deadline=None)
def test_a_last_step_that_is_longer_than_those_before_is_not_cut_in_all_paths(
    name: str, depth: int, paths: int
) -> None:
    policy = LongEnd(depth)
    cost = sum(map(policy.cost, range(1, depth + 1)))
    strategy = AutoSearch(n=paths) if name == "auto" else WIDE[name]()
    if name == "particles":
        strategy = ParticleFilter(particles=paths)
    job = Job(SearchTree(PROBLEM))
    rules = SearchRules(strategy, WeightedVote(), Budget(generated_tokens=paths * cost - 1))
    (found,) = asyncio.run(run_jobs([job], policy, World(), rules))
    assert found.tree.finished()
    assert found.tree.totals.generated_tokens < paths * cost


@pytest.mark.parametrize("name", WIDE)
@given(
    depth=st.integers(1, 12),
    words=st.sampled_from([1, 2, 6, 1000]),
    paths=st.floats(1, 20),
    number=st.integers(0, 9),
)
@settings(max_examples=12, deadline=None)
def test_a_budget_of_tokens_is_kept_and_finishes_a_path(
    name: str, depth: int, words: int, paths: float, number: int
) -> None:
    """Whatever the width, and however often the policy repeats itself: 12 steps are foreseen."""
    limit = int(paths * depth * STEP)
    made = WorldSettings(depth=depth, words=words)
    found = searched(WIDE[name](), made, {"generated_tokens": limit}, number)
    assert found.tree.totals.generated_tokens <= limit
    assert found.tree.finished()
    assert not found.result.fallback


@pytest.mark.parametrize("limit", ["candidates", "requests", "rounds", "scored_tokens"])
@pytest.mark.parametrize("name", WIDE)
@given(
    depth=st.integers(1, 12),
    words=st.sampled_from([1, 2, 6, 1000]),
    paths=st.floats(1, 20),
    number=st.integers(0, 9),
)
@settings(max_examples=6, deadline=None)
def test_every_other_limit_is_kept_and_finishes_a_path(
    name: str, limit: str, depth: int, words: int, paths: float, number: int
) -> None:
    most = int(paths * depth * (STEP if limit == "scored_tokens" else 1))
    made = WorldSettings(depth=depth, words=words, prefix_tokens=0)
    found = searched(WIDE[name](), made, {limit: most}, number)
    assert getattr(found.tree.totals, limit) <= most
    assert found.tree.finished()
    assert not found.result.fallback


@dataclass
class Sleepy:
    """A scorer that has no score for anything in some of its rounds."""

    inner: World
    asleep: float
    rounds: int = 0

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Answer as the scorer inside does, or not at all."""
        self.rounds += 1
        if chance(self.inner.seed, "asleep", self.rounds) < self.asleep:
            return [ScoreResult.failed(len(r.steps), "asleep") for r in requests]
        return await self.inner.score(requests)


def troubled(world: World, strategy: Strategy, asleep: float, limits: dict[str, int]) -> SearchRun:
    """Search in a world of failing calls, missing scores and paths without an end."""
    job = Job(SearchTree(PROBLEM, world.seed))
    rules = SearchRules(strategy, WeightedVote(), Budget(**limits))
    (found,) = asyncio.run(run_jobs([job], world, Sleepy(world, asleep), rules))
    found.tree.check()
    return found


CHANCES = st.sampled_from([0.0, 0.0, 0.2, 0.6, 1.0])


@pytest.mark.parametrize("name", WIDE)
@given(
    seed=st.integers(0, 99),
    stop=CHANCES,
    length=CHANCES,
    error=CHANCES,
    unscored=CHANCES,
    asleep=CHANCES,
    limits=st.dictionaries(st.sampled_from(LIMITS), st.integers(1, 150), min_size=1, max_size=2),
)
@settings(max_examples=25, deadline=None)
def test_whatever_fails_a_limited_search_ends_within_its_limits_and_always_alike(
    name: str,
    seed: int,
    stop: float,
    length: float,
    error: float,
    unscored: float,
    asleep: float,
    limits: dict[str, int],
) -> None:
    world = World(seed, stop=stop, length=length, error=error, unscored=unscored)
    limits |= {"candidates": limits.get("candidates", 300)}
    found = troubled(world, WIDE[name](), asleep, limits)
    again = troubled(world, WIDE[name](), asleep, limits)
    assert found.tree.dumps() == again.tree.dumps()
    assert replace(found.result, usage=again.result.usage) == again.result
    totals = found.tree.totals
    for limit in limits.keys() & {"candidates", "requests", "rounds"}:
        assert getattr(totals, limit) <= limits[limit]
    assert found.result.fallback == (not found.tree.finished())


class Silent:
    """A scorer that gives no score."""

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Answer as a scorer does that is down."""
        return [ScoreResult.failed(len(r.steps), "down") for r in requests]


@pytest.mark.parametrize("selector", [BestScore(), WeightedVote(), HybridVote(), Knockout()])
def test_without_any_score_the_most_frequent_answer_is_taken_and_said(selector: Selector) -> None:
    world = SyntheticWorld(WorldSettings(depth=2))
    job = Job(SearchTree(Problem(world.question(0))))
    rules = SearchRules(BestOfN(16), selector)
    (found,) = asyncio.run(run_jobs([job], SyntheticPolicy(world), Silent(), rules))
    answers = [record.answer for record in found.tree.finished()]
    assert found.result.answer in answers
    assert answers.count(found.result.answer) == max(map(answers.count, answers))
    assert not found.result.fallback
    assert "most frequent answer" in found.result.warning
