"""What a budget lets a search do: no strategy exceeds it, and a path can always be finished."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import example, given, settings
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
from vprm_search.search.stepwise import StepwiseSearch
from vprm_search.testing import chance
from vprm_search.tree import SearchTree
from vprm_search.types import Problem, Proposal, ProposeRequest, ScoreRequest, ScoreResult

STEP = 40
LIMITS = ["candidates", "requests", "rounds", "generated_tokens", "scored_tokens"]

WIDE: dict[str, Callable[[], Strategy]] = {
    "auto": AutoSearch,
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


WIDTHS: dict[str, Callable[[int], Strategy]] = {
    "auto": lambda n: AutoSearch(n=n),
    "best-of-n": lambda n: BestOfN(n),
    "beam": lambda n: BeamSearch(width=-(-n // 4), expand=4),
    "dvts": lambda n: DVTS(subtrees=-(-n // 4)),
    "rebase": lambda n: REBASE(width=n),
    "particles": lambda n: ParticleFilter(particles=n),
    "best-first": lambda n: BestFirst(batch=-(-n // 4)),
    "mcts": lambda n: MCTS(simulations=n),
    "lookahead": lambda n: Lookahead(strategy=BeamSearch(width=-(-n // 4))),
    "cascade": lambda n: Cascade(strategy=BeamSearch(width=-(-n // 4)), threshold=0.3),
}


@dataclass(frozen=True)
class Priced:
    """A policy whose steps cost `low` to `high` tokens, by their text, and the last `end` times it.

    It ends every path at `depth`, with the answer, and cuts a child at the tokens it may have.
    """

    depth: int
    low: int
    high: int
    end: float = 1.0
    words: int = 1000

    @property
    def dearest(self) -> int:
        """What no path costs more than."""
        return self.high * (self.depth - 1) + max(1, int(self.high * self.end))

    async def propose(self, requests: Sequence[ProposeRequest]) -> list[list[Proposal]]:
        """Write a step, or the rest, for each seed."""
        return [[self._written(r, seed) for seed in r.seeds] for r in requests]

    def _written(self, request: ProposeRequest, seed: int) -> Proposal:
        first, cost = len(request.steps) + 1, 0
        until = self.depth if request.until == "end" else first
        texts = []
        for place in range(first, until + 1):
            texts.append(f"Step {place}: {int(chance(0, 'word', seed, place) * self.words)}")
            own = self.low + int(chance(0, "cost", texts[-1]) * (self.high - self.low + 1))
            cost += max(1, int(own * self.end)) if place == self.depth else own
        text, most = "\n\n".join(texts), request.max_tokens
        if most is not None and most < cost:
            return Proposal(text, "length", generated_tokens=most, requests=1)
        if until < self.depth:
            return Proposal(text, "step", generated_tokens=cost, requests=1)
        return Proposal(f"{text}. Answer: 7", "stop", generated_tokens=cost, requests=1)


def finishes(
    name: str, size: int, policy: Priced, limit: int, seed: int, refill: int = 1
) -> SearchTree:
    """Search under a limit on tokens, which must be kept, with a finished path."""
    job = Job(SearchTree(PROBLEM, seed))
    strategy = WIDTHS[name](size)
    if isinstance(strategy, StepwiseSearch):
        strategy = strategy.model_copy(update={"refill": refill})
    rules = SearchRules(strategy, WeightedVote(), Budget(generated_tokens=limit))
    (found,) = asyncio.run(run_jobs([job], policy, World(seed), rules))
    found.tree.check()
    assert found.tree.totals.generated_tokens <= limit
    assert found.tree.finished(), found.result.ended_by
    assert not found.result.fallback
    return found.tree


SIZES = st.sampled_from([1, 2, 4, 8, 16, 40])


@pytest.mark.parametrize("name", WIDTHS)
@given(
    depth=st.integers(1, 12) | st.integers(13, 32),
    low=st.sampled_from([1, 2, 4]) | st.integers(5, 45),
    spread=st.sampled_from([1.0, 1.0, 1.5, 4.0, 10.0]),
    end=st.sampled_from([0.2, 1.0, 1.6, 3.0, 5.0, 12.0, 50.0]),
    words=st.sampled_from([1, 2, 6, 1000]),
    size=SIZES,
    refill=st.sampled_from([0, 1, 3]),
    paths=st.floats(4, 20),
    seed=st.integers(0, 99),
)
@example(
    depth=27, low=1, spread=1.0, end=12.0, words=6, size=16, refill=0, paths=4.0, seed=0
)  # steps of one token
@settings(max_examples=25, deadline=None)
def test_a_limit_that_pays_for_four_of_the_dearest_paths_finishes_one(
    name: str,
    depth: int,
    low: int,
    spread: float,
    end: float,
    words: int,
    size: int,
    refill: int,
    paths: float,
    seed: int,
) -> None:
    """A quarter is kept until a path has finished: as deep and as uneven as paths may be."""
    policy = Priced(depth, low, int(low * spread), end, words)
    finishes(name, size, policy, math.ceil(paths * policy.dearest), seed, refill)


@pytest.mark.parametrize("name", [name for name in WIDTHS if name != "cascade"])  # it redoes steps
@given(
    depth=st.integers(1, 12),
    step=st.sampled_from([1, 2]) | st.integers(3, 45),
    end=st.floats(1, 4),
    words=st.sampled_from([1, 2, 6, 1000]),
    size=SIZES,
    paths=st.floats(1, 6),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_a_limit_that_pays_for_one_path_of_at_most_12_equal_steps_and_a_longer_last_one_finishes_it(
    name: str, depth: int, step: int, end: float, words: int, size: int, paths: float, seed: int
) -> None:
    policy = Priced(depth, step, step, end, words)
    finishes(name, size, policy, math.ceil(paths * policy.dearest), seed)


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
@example(depth=11, words=2, paths=14.0, number=0)  # sixteen rests at once cost too much
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
