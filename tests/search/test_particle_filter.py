"""Particle filtering: unbiased in a world small enough to enumerate, and exact in its counts."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.search.world import PROBLEM, World, run, worlds
from vprm_search.graph import loop
from vprm_search.graph.loop import Job, score
from vprm_search.graph.parts import SearchRules
from vprm_search.ids import child_id
from vprm_search.search import BestScore, ParticleFilter
from vprm_search.testing import ScriptedScorer, chance
from vprm_search.tree import SearchTree
from vprm_search.types import (
    NodeRecord,
    Proposal,
    ProposeRequest,
    ScoreRequest,
    ScoreResult,
)

CHANCES = {"a": 0.5, "b": 0.3, "c": 0.2}
DEPTH = 3
RUNS = 700


class Dice:
    """Three steps, drawn with known chances; a path ends after three steps, or early with "c"."""

    async def propose(self, requests: Sequence[ProposeRequest]) -> list[list[Proposal]]:
        return [[self._step(r.steps, seed / 2**63) for seed in r.seeds] for r in requests]

    def _step(self, steps: tuple[str, ...], u: float) -> Proposal:
        for word, share in CHANCES.items():
            u -= share
            if u < 0 or word == "c":
                text = f"{len(steps)}{word}"
                ends = len(steps) + 1 == DEPTH or word == "c"
                return Proposal(text, "stop" if ends else "step")
        raise AssertionError

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        return await ScriptedScorer(lambda request: plus(request.steps)).score(requests)


def plus(steps: Sequence[str]) -> float:
    """Return a score that depends on the whole path."""
    # Mild enough that no estimate hangs on one run in a thousand.
    return {"a": 0.65, "b": 0.45, "c": 0.55}[steps[-1][-1]] * (0.9 if "0b" in steps else 1.0)


def paths() -> list[tuple[str, ...]]:
    found = []
    for words in itertools.product("abc", repeat=DEPTH):
        end = next((i for i, w in enumerate(words) if w == "c"), DEPTH - 1)
        found.append(tuple(f"{i}{w}" for i, w in enumerate(words[: end + 1])))
    return sorted(set(found))


def exact(odds: bool) -> dict[tuple[str, ...], float]:
    """Return p(path) * Π g(score) for every path; after its end its last score counts on."""
    masses = {}
    for path in paths():
        mass = math.prod(CHANCES[step[-1]] for step in path)
        for level in range(1, DEPTH + 1):
            s = plus(path[: min(level, len(path))])
            mass *= s / (1 - s) if odds else s
        masses[path] = mass
    return masses


def estimates(strategy: ParticleFilter, runs: int) -> dict[tuple[str, ...], list[float]]:
    """Return Σ count * weight / particles for every path, run by run."""
    rules, dice = SearchRules(strategy, BestScore()), Dice()
    found: dict[tuple[str, ...], list[float]] = defaultdict(lambda: [0.0] * runs)

    async def search(number: int) -> None:
        job = Job(SearchTree(PROBLEM, number))
        while True:
            plan = loop.next_plan(job.tree, rules)
            if plan.finish:
                break
            loop.close_nodes(job.tree, plan)
            await loop.propose([job], [plan], dice, rules)
            await score([job], dice, rules)
        population = strategy.population(job.tree)
        for p in population.particles:
            s = plus(job.tree.steps(p.node))
            later = (s / (1 - s) if strategy.weight == "odds" else s) ** (DEPTH - population.level)
            mass = p.count * math.exp(p.log_weight) * later / strategy.particles
            found[job.tree.steps(p.node)][number] += mass

    async def all_of_them() -> None:
        for number in range(runs):
            await search(number)

    asyncio.run(all_of_them())
    return found


@pytest.mark.parametrize(
    "options",
    [
        {"ess_threshold": 1.0},
        {"ess_threshold": 0.6},
        {"ess_threshold": 0.0, "weight": "probability"},
        {"ess_threshold": 1.0, "dedup": False, "weight": "probability"},
    ],
    ids=str,
)
def test_the_weighted_particles_are_an_unbiased_estimate(options: dict[str, Any]) -> None:
    """Every path's mean over many runs is within 4.5 standard errors of the exact mass."""
    strategy = ParticleFilter(particles=4, refill=0, **options)
    found = estimates(strategy, RUNS)
    masses = exact(strategy.weight == "odds")
    assert set(found) <= set(masses)
    checked = 0
    for path, mass in [*masses.items(), (None, sum(masses.values()))]:
        values = (
            [sum(column) for column in zip(*found.values(), strict=True)]
            if path is None
            else found[path]
        )
        mean = math.fsum(values) / RUNS
        error = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (RUNS - 1) / RUNS)
        if sum(v > 0 for v in values) >= 20:  # else too rare for a normal law
            assert abs(mean - mass) < 4.5 * error, (path, mean, mass, error)
            checked += 1
    assert checked >= 8


def test_a_biased_filter_would_be_found() -> None:
    """The same check fails for weights that were not what the filter used."""
    found = estimates(ParticleFilter(particles=4, refill=0, weight="probability"), RUNS)
    total = [sum(column) for column in zip(*found.values(), strict=True)]
    mean = math.fsum(total) / RUNS
    error = math.sqrt(math.fsum((v - mean) ** 2 for v in total) / (RUNS - 1) / RUNS)
    assert abs(mean - sum(exact(odds=True).values())) > 4.5 * error
    assert abs(mean - sum(exact(odds=False).values())) < 4.5 * error


@given(worlds, st.integers(1, 9), st.sampled_from([0.0, 0.5, 1.0]))
@settings(max_examples=40)
def test_the_number_of_particles_never_grows(
    world: World, particles: int, threshold: float
) -> None:
    strategy = ParticleFilter(particles=particles, ess_threshold=threshold, max_depth=6)
    trace = run(world, strategy)
    for plan, text in zip(trace.plans, trace.before, strict=True):
        tree = SearchTree.loads(text)
        population = strategy.population(tree)
        assert sum(p.count for p in population.particles) <= particles
        assert all(p.count > 0 for p in population.particles)
        assert sum(e.count for e in plan.expand) <= particles
        assert {e.node for e in plan.expand} <= {p.node for p in population.particles}
        resampled = any(c.cause == "no_share" for c in plan.close)
        if resampled:
            assert sum(p.count for p in population.particles) == particles
            assert threshold > 0
        for close in plan.close:
            if close.cause == "no_share":
                size = float(close.reason.rsplit("ESS ", 1)[1])
                assert size <= threshold * particles + 0.005


def test_equal_particles_are_one_node_with_their_number() -> None:
    """Four children, three of them alike: two nodes go on, with three and one children."""
    tree = SearchTree(PROBLEM)
    for index, text in enumerate(["x", "x", "y", "x"]):
        node = child_id(tree.root_id, index, text)
        record = NodeRecord(node, tree.root_id, index, text, score=0.5, round=1)
        tree.merge([record])
    plan = ParticleFilter(particles=4).plan(tree)
    by_text = {tree[e.node].text: e.count for e in plan.expand}
    assert by_text == {"x": 3, "y": 1}
    assert len(plan.close) == 2


def test_a_lost_particle_loses_its_weight_and_resampling_brings_the_number_back() -> None:
    tree = SearchTree(PROBLEM)
    for index, status in enumerate(["open", "failed", "failed", "failed"]):
        node = child_id(tree.root_id, index, str(index))
        tree.merge([NodeRecord(node, tree.root_id, index, str(index), status, score=0.5, round=1)])  # type: ignore[arg-type]
    (one,) = ParticleFilter(particles=4, refill=0).plan(tree).expand
    assert one.count == 4
    (one,) = ParticleFilter(particles=4, refill=0, ess_threshold=0).plan(tree).expand
    assert one.count == 1
    (again,) = ParticleFilter(particles=4, refill_temperature_scale=1.5).plan(tree).expand
    assert (again.node, again.count, again.temperature_scale) == (tree.root_id, 3, 1.5)


class Lengths:
    """Half of the solutions end at the first step, half at the sixth; every step scores alike."""

    def __init__(self, score: float, fail: float = 0.0) -> None:
        self._score, self._fail = score, fail

    async def propose(self, requests: Sequence[ProposeRequest]) -> list[list[Proposal]]:
        return [[self._step(r.steps, seed) for seed in r.seeds] for r in requests]

    def _step(self, steps: tuple[str, ...], seed: int) -> Proposal:
        if chance("fail", seed) < self._fail:
            return Proposal("", "error", error="connection lost")
        ends = len(steps) == 5 or (not steps and chance("ends", seed) < 0.5)
        return Proposal(f"{len(steps)} of {seed}", "stop" if ends else "step")

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        return await ScriptedScorer(lambda _: self._score).score(requests)


def searched(world: Any, strategy: ParticleFilter, run_seed: int) -> SearchTree:
    rules, job = SearchRules(strategy, BestScore()), Job(SearchTree(PROBLEM, run_seed))

    async def rounds() -> None:
        while True:
            plan = loop.next_plan(job.tree, rules)
            loop.close_nodes(job.tree, plan)
            if plan.finish:
                return
            await loop.propose([job], [plan], world, rules)
            await score([job], world, rules)

    asyncio.run(rounds())
    return job.tree


@pytest.mark.parametrize("weight", ["odds", "probability"])
@pytest.mark.parametrize("level", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("threshold", [0.5, 1.0])
def test_short_and_long_paths_of_equal_scores_share_the_particles(
    weight: Any, level: float, threshold: float
) -> None:
    strategy = ParticleFilter(particles=16, weight=weight, ess_threshold=threshold)
    short = 0
    for seed in range(60):
        tree = searched(Lengths(level), strategy, seed)
        particles = strategy.population(tree).particles
        weights = [p.count * math.exp(p.log_weight) for p in particles]
        short += (
            16
            * sum(w for p, w in zip(particles, weights, strict=True) if tree.depth(p.node) == 1)
            / sum(weights)
        )
        assert sum(p.count for p in particles) == 16
    assert abs(short - 480) < 4 * math.sqrt(960) / 2


@given(st.integers(0, 10**6), st.integers(0, 3))
@settings(max_examples=25)
def test_failed_steps_are_asked_for_again_as_often_as_the_refill_says(
    seed: int, refill: int
) -> None:
    strategy = ParticleFilter(particles=6, refill=refill, refill_temperature_scale=2)
    tree = searched(Lengths(0.5, fail=0.4), strategy, seed)
    tries = [len({c.round for c in tree.children(r.id)}) for r in tree]
    assert max(tries) <= 1 + refill
    for record in tree:
        below = tree.children(record.id)
        failed = [c for c in below if c.status == "failed"]
        rounds = sorted({c.round for c in below})
        if 0 < len(rounds) <= refill:
            assert not [c for c in failed if c.round == rounds[-1]]


@given(st.integers(0, 100))
@settings(max_examples=20)
def test_another_run_seed_resamples_otherwise_and_the_same_one_alike(seed: int) -> None:
    world = World(seed=seed, words=50, stop=0.05)
    strategy = ParticleFilter(particles=8, ess_threshold=1.0, max_depth=5)
    assert run(world, strategy).tree.dumps() == run(world, strategy).tree.dumps()
