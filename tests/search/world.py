"""A simulated world: a policy and a scorer decided by hashes, and the loop that drives a search.

The policy and the scorer implement the real seams, and the loop is the one the graph runs, so what
is tested here is the strategies together with the phases that carry out their plans.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from statistics import median

from hypothesis import strategies as st

from vprm_search.budget import Budget
from vprm_search.graph import loop
from vprm_search.graph.loop import Job, score
from vprm_search.graph.parts import SearchRules
from vprm_search.search import BestScore, Plan, Selector, Strategy
from vprm_search.testing import chance
from vprm_search.tree import SearchTree
from vprm_search.types import (
    Finish,
    Problem,
    Proposal,
    ProposeRequest,
    ScoreRequest,
    ScoreResult,
    StepScore,
)

PROBLEM = Problem("How many tiles?")


@dataclass(frozen=True)
class World:
    """Chances, each in [0, 1], of what a proposal or a score may be.

    `words` is the number of different next steps: few words make many duplicates. Scores are
    multiples of 1/16, so that ties are frequent and sums exact.
    """

    seed: int = 0
    stop: float = 0.2
    bare_stop: float = 0.0
    length: float = 0.0
    error: float = 0.0
    unscored: float = 0.0
    words: int = 5

    async def propose(self, requests: Sequence[ProposeRequest]) -> list[list[Proposal]]:
        """Answer as the `Policy` protocol asks."""
        return [
            [self._solution(r, seed) if r.until == "end" else self._step(r.steps, seed)
             for seed in r.seeds]
            for r in requests
        ]  # fmt: skip

    def _step(self, steps: tuple[str, ...], seed: int) -> Proposal:
        kind = chance(self.seed, "kind", steps, seed)
        if kind < self.error:
            return Proposal("", "error", requests=1, error="connection lost")
        word = int(chance(self.seed, "word", steps, seed) * self.words)
        text = f"{len(steps)}: word {word}"
        finish: Finish = "step"
        if chance(self.seed, "bare", steps, seed) < self.bare_stop:
            return Proposal("", "stop", generated_tokens=1, requests=1)
        if chance(self.seed, "stop", steps, seed) < self.stop:
            finish, text = "stop", f"{text}\nAnswer: {word % 3}"
        elif chance(self.seed, "length", steps, seed) < self.length:
            finish = "length"
        return Proposal(text, finish, generated_tokens=len(text), requests=1)

    def _solution(self, request: ProposeRequest, seed: int) -> Proposal:
        texts = [*request.steps]
        while True:
            last = self._step(tuple(texts), seed)
            texts.append(last.text)
            if last.finish == "error":
                return last
            if last.finish != "step" or len(texts) >= 12:
                text = "\n\n".join(texts[len(request.steps) :])
                finish = "length" if last.finish == "step" else last.finish
                return Proposal(text, finish, generated_tokens=len(text), requests=1)

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Answer as the `StepScorer` protocol asks."""
        return [
            ScoreResult(
                tuple(self._score(r.steps[: i + 1]) for i in range(len(r.steps))),
                prefix_tokens=100,
                step_tokens=tuple(len(step) + 1 for step in r.steps),
            )
            for r in requests
        ]

    def _score(self, steps: tuple[str, ...]) -> StepScore:
        if chance(self.seed, "unscored", steps) < self.unscored:
            return StepScore(None, "nan_logits")
        return StepScore(int(chance(self.seed, "score", steps) * 17) / 16)


chances = st.sampled_from([0.0, 0.1, 0.5])
worlds = st.builds(
    World,
    seed=st.integers(0, 10**6),
    stop=st.sampled_from([0.0, 0.2, 0.6]),
    bare_stop=chances,
    length=chances,
    error=st.sampled_from([0.0, 0.2, 0.6, 1.0]),
    unscored=chances,
    words=st.sampled_from([1, 3, 50]),
)


def exact_score(tree: SearchTree, node: str, name: str) -> float | None:
    """Return the path score from the step scores alone, in exact arithmetic.

    Unscored steps above `node` count as the median of the others; None if it has no score itself.
    """
    values = tree.step_scores(node)
    if not values or values[-1] is None:
        return None
    known = [Fraction(value) for value in values if value is not None]
    exact = [median(known) if value is None else Fraction(value) for value in values]
    return float({"mean": sum(exact) / len(exact), "min": min(exact), "last": exact[-1]}[name])


def worths(tree: SearchTree, nodes: Iterable[str], name: str) -> dict[str, float]:
    """Return what paths that are compared are worth: one without a score as much as the middle."""
    scores = {node: exact_score(tree, node, name) for node in nodes}
    known = [score for score in scores.values() if score is not None]
    middle = median(known) if known else 0.5
    return {node: middle if score is None else score for node, score in scores.items()}


@dataclass
class Trace:
    """A search that was run: the tree, and before each plan a copy of it as JSON text."""

    tree: SearchTree
    plans: list[Plan] = field(default_factory=list)
    before: list[str] = field(default_factory=list)

    @property
    def ended_by(self) -> str:
        """Why the search ended."""
        return self.plans[-1].finish


def _as_the_strategy_said(plan: Plan, said: Plan) -> Plan:
    """Return the plan without the reasons that the end of the search gives to open paths."""
    return replace(plan, close=tuple(close for close in plan.close if close in said.close))


def run(
    world: World,
    strategy: Strategy,
    *,
    selector: Selector | None = None,
    budget: Budget | None = None,
) -> Trace:
    """Run a whole search in memory, as the graph does."""
    rules = SearchRules(strategy, selector or BestScore(), budget or Budget())
    trace = Trace(SearchTree(PROBLEM))
    job = Job(trace.tree)

    async def rounds() -> None:
        for _ in range(500):
            trace.before.append(trace.tree.dumps())
            was_cut = bool(trace.plans and trace.plans[-1].cut)
            plan = loop.next_plan(trace.tree, rules, was_cut=was_cut)
            trace.plans.append(_as_the_strategy_said(plan, strategy.plan(trace.tree)))
            loop.close_nodes(trace.tree, plan)
            if plan.finish:
                return
            (new,) = await loop.propose([job], [plan], world, rules)
            assert new, "a round without a new node"
            await score([job], world, rules)
        raise AssertionError("the search does not end")

    asyncio.run(rounds())
    trace.tree.check()
    return trace
