"""A cascade of policies, and lookahead: what they add to the strategy inside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.search.world import World, exact_score, run, worlds, worths
from vprm_search.budget import Budget
from vprm_search.search import DVTS, MCTS, BeamSearch, BestFirst, Cascade, Lookahead, Strategy
from vprm_search.search.outcome import ends
from vprm_search.tree import SearchTree
from vprm_search.types import Proposal, ProposeRequest


@dataclass(frozen=True)
class TwoPolicies(World):
    """The strong policy is the same world under another seed."""

    async def propose(self, requests: Sequence[ProposeRequest]) -> list[list[Proposal]]:
        found = []
        for request in requests:
            world = replace(self, seed=self.seed + 1) if request.policy == "strong" else self
            found += await World.propose(world, [request])
        return found


two_worlds = worlds.map(
    lambda w: TwoPolicies(**{name: getattr(w, name) for name in World.__dataclass_fields__})
)
insides = st.sampled_from(
    [
        BeamSearch(width=2, expand=2, max_depth=5),
        DVTS(subtrees=2, expand=2, max_depth=5),
        BestFirst(batch=2, expand=2, expansions=6, max_depth=5),
        MCTS(simulations=4, batch=2, expand=2, root_expand=3, max_depth=5),
    ]
)


@given(two_worlds, insides, st.sampled_from([0.3, 0.7, 1.0]))
@settings(max_examples=50)
def test_exactly_the_weak_drafts_are_redone_once_and_by_the_strong_policy(
    world: TwoPolicies, inside: BeamSearch, threshold: float
) -> None:
    tree = run(world, Cascade(strategy=inside, threshold=threshold)).tree
    for record in tree:
        if record.parent is None:
            continue
        assert record.policy == ("strong" if record.role == "redo" else "draft")
        weak = bool(record.text) and record.score is not None and record.score < threshold
        redone = record.cause == "redone"
        if record.policy == "strong" or record.role == "completion":
            assert not redone
        elif record.status != "failed":
            assert redone == weak
        if redone:
            assert record.reason == f"redone by strong: {record.score:.4f} < {threshold:.4f}"
            assert not tree.child_count(record.id)
    for record in tree:
        below = tree.children(record.id)
        redone_below = sum(c.cause == "redone" for c in below)
        assert sum(c.role == "redo" for c in below) == redone_below


@given(two_worlds, insides, st.integers(1, 25))
@settings(max_examples=50)
def test_a_budget_puts_no_draft_aside_that_it_keeps_from_being_redone(
    world: TwoPolicies, inside: BeamSearch, candidates: int
) -> None:
    cascade = Cascade(strategy=inside, threshold=0.7)
    tree = run(world, cascade, budget=Budget(candidates=candidates)).tree
    for record in tree:
        below = tree.children(record.id)
        assert sum(c.role == "redo" for c in below) == sum(c.cause == "redone" for c in below)


@given(two_worlds, insides)
@settings(max_examples=25)
def test_with_threshold_zero_it_is_the_strategy_inside(
    world: TwoPolicies, inside: BeamSearch
) -> None:
    alone = run(world, inside).tree
    cascade = run(world, Cascade(strategy=inside, threshold=0.0)).tree
    assert [replace(r, policy="") for r in sorted(cascade, key=_id)] == sorted(alone, key=_id)


def _id(record: object) -> str:
    return record.id  # type: ignore[attr-defined, no-any-return]


def test_a_draft_whose_replacement_was_cut_by_the_budget_is_not_put_aside() -> None:
    for seed in range(20):
        trace = run(TwoPolicies(seed=seed), Cascade(threshold=1.0), budget=Budget(rounds=1))
        assert not any(r.cause == "redone" for r in trace.tree)
        assert ends(trace.tree)[0].fate in ("cut", "finished", "truncated")


def test_one_name_for_both_policies_is_refused() -> None:
    with pytest.raises(ValidationError, match="name two policies"):
        Cascade(draft="a", strong="a")


# --- lookahead -----------------------------------------------------------------------------------


@given(worlds, insides, st.integers(1, 3), st.integers(1, 2))
@settings(max_examples=50)
def test_rollouts_are_as_long_as_asked_and_below_candidates_only(
    world: World, inside: BeamSearch, steps: int, rollouts: int
) -> None:
    tree = run(world, Lookahead(strategy=inside, steps=steps, rollouts=rollouts)).tree
    for record in tree:
        below = tree.children(record.id)
        looks = [c for c in below if c.role == "lookahead"]
        if record.role == "lookahead":
            assert looks == below  # no candidate grows out of a rollout
            assert len(looks) <= 1
            assert record.status != "open" or record.reason or looks
        else:
            assert len(looks) <= rollouts
    longest = 0
    for record in tree:
        path = [r for r in tree.path(record.id) if r.role == "lookahead"]
        longest = max(longest, len(path))
    assert longest <= steps


@given(worlds, st.sampled_from(["mean", "last"]), st.integers(1, 2))
@settings(max_examples=40)
def test_steps_are_ranked_by_where_they_lead(world: World, aggregate: str, rollouts: int) -> None:
    inside = BeamSearch(
        width=2, expand=2, max_depth=4, refill=0, stop=None, aggregate=aggregate, dedup=False
    )
    trace = run(world, Lookahead(strategy=inside, rollouts=rollouts))
    for plan, text in zip(trace.plans[1:], trace.before[1:], strict=True):
        tree = SearchTree.loads(text)
        if plan.finish or any(e.role for e in plan.expand):
            continue
        level = {leaf.id: leaf for leaf in tree.open_leaves()}
        values = worths(tree, level, aggregate)
        for leaf in level.values():
            scores = [
                exact_score(tree, c.id, aggregate)
                for c in tree.children(leaf.id)
                if c.status != "failed"
            ]
            known = [s for s in scores if s is not None]
            if known:
                values[leaf.id] = math.fsum(known) / len(known)
        values |= dict.fromkeys(
            (node for node, leaf in level.items() if leaf.score is None),
            median([v for n, v in values.items() if level[n].score is not None] or [0.5]),
        )
        values = {node: value for node, value in values.items() if tree.depth(node) < 4}
        kept = {e.node for e in plan.expand}
        assert len(kept) == min(2, len(values))
        assert kept <= set(values)
        dropped = [v for node, v in values.items() if node not in kept]
        assert not dropped or min(values[node] for node in kept) >= max(dropped)


def test_lookahead_sees_a_trap_that_the_steps_own_score_hides() -> None:
    """The step that scores best leads nowhere; only a look at what follows tells."""

    class Trap(World):
        def _step(self, steps: tuple[str, ...], seed: int) -> Proposal:
            if not steps:
                return Proposal("trap" if seed % 2 else "path", "step")
            return Proposal("Answer: 1", "stop") if len(steps) > 1 else Proposal("on", "step")

        def _score(self, steps):  # type: ignore[no-untyped-def]
            own = {"trap": 0.9, "path": 0.8}.get(steps[-1])
            after = 0.1 if "trap" in steps else 0.95
            return type(super()._score(steps))(own if own is not None else after)

    inside = BeamSearch(width=1, expand=8, aggregate="last", max_depth=4)

    def first(strategy: Strategy) -> str:
        tree = run(Trap(), strategy).tree
        second = (r for r in tree if tree.depth(r.id) == 2 and not r.role)
        (text,) = {tree.steps(r.id)[0] for r in second}
        return text

    assert first(inside) == "trap"
    assert first(Lookahead(strategy=inside)) == "path"


def test_a_rollout_that_finishes_is_an_answer_and_one_that_does_not_is_none() -> None:
    finished = 0
    for seed in range(10):
        tree = run(
            World(seed=seed, stop=0.3), Lookahead(strategy=BeamSearch(width=2, expand=2), steps=2)
        ).tree
        looked = [r for r in tree if r.role == "lookahead"]
        finished += sum(r in tree.finished() for r in looked)
        assert {r.status for r in looked} <= {"open", "pruned", "finished", "truncated", "failed"}
        assert not any(r in tree.open_leaves() for r in looked)
    assert finished > 5
