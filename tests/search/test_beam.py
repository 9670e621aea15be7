"""Beam search in a simulated world, against rules recomputed from the records."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.search.world import PROBLEM, World, exact_score, run, worlds, worths
from vprm_search.budget import Budget
from vprm_search.ids import child_id
from vprm_search.search import DVTS, MCTS, BeamSearch, Plan, Pruning, Strategy
from vprm_search.tree import SearchTree
from vprm_search.types import NodeRecord, NodeStatus

sixteenths = st.none() | st.integers(0, 16).map(lambda n: n / 16)
beams = st.builds(
    BeamSearch,
    width=st.integers(1, 4),
    expand=st.integers(1, 4),
    max_depth=st.integers(1, 6),
    pruning=st.builds(
        Pruning, below=sixteenths, margin=sixteenths, keep_at_least=st.integers(0, 3)
    ),
    aggregate=st.sampled_from(["mean", "min", "last"]),
    dedup=st.booleans(),
    refill=st.integers(0, 2),
    stop=st.sampled_from([None, 1, 2, "width"]),
)
searches = settings(max_examples=50)


def is_refill(plan: Plan, tree: SearchTree) -> bool:
    """Return whether a plan asks again for slots of the last round."""
    return any(tree.child_count(expand.node) > 0 for expand in plan.expand)


@given(worlds, beams)
@searches
@example(World(error=1.0), BeamSearch())
@example(World(words=1, stop=0.0), BeamSearch(max_depth=4))
def test_every_plan_follows_the_rules(world: World, beam: BeamSearch) -> None:
    trace = run(world, beam)
    for plan, text in zip(trace.plans, trace.before, strict=True):
        tree = SearchTree.loads(text)
        for expand in plan.expand:
            assert tree[expand.node].status == "open"
            assert expand.until == "step"
            assert expand.first_index == tree.child_count(expand.node)
            assert expand.count >= 1
        if tree.rounds == 0:
            assert [e.count for e in plan.expand] == [beam.width * beam.expand]
        elif plan.expand and not is_refill(plan, tree):
            _check_selection(tree, plan, beam)
        asked = sum(expand.count for expand in plan.expand)
        assert asked <= beam.width * beam.expand


def _check_selection(tree: SearchTree, plan: Plan, beam: BeamSearch) -> None:
    """Recompute from the records which leaves stay in the beam, and why the others do not."""
    reasons = {close.node: close.reason for close in plan.close}
    scored: list[tuple[float, str]] = []
    leaves = [leaf.id for leaf in tree.open_leaves()]
    level = [n for n in leaves if not reasons.get(n, "").startswith("duplicate of")]
    for node, score in worths(tree, level, beam.aggregate).items():
        if tree.depth(node) == beam.max_depth:
            assert reasons[node] == f"max_depth {beam.max_depth} reached"
        else:
            scored.append((-score, node))
    scored.sort()
    keep = []
    rules = beam.pruning
    for rank, (negative, node) in enumerate(scored):
        low = rules.below is not None and -negative < rules.below
        best = -scored[0][0]
        far = rules.margin is not None and -negative < best - rules.margin
        safe = rank < rules.keep_at_least or tree[node].score is None
        if rank < beam.width and (safe or not (low or far)):
            keep.append(node)
            assert node not in reasons
        elif rank >= beam.width:
            assert reasons[node].startswith("outranked")
        else:
            assert reasons[node].startswith("prune_below" if low else "prune_margin")
    assert [expand.node for expand in plan.expand] == keep
    assert all(expand.count == beam.expand for expand in plan.expand)


@given(worlds, beams)
@searches
def test_no_candidate_is_lost(world: World, beam: BeamSearch) -> None:
    trace = run(world, beam)
    tree = trace.tree
    expanded = {expand.node for plan in trace.plans for expand in plan.expand}
    for record in tree:
        if record.status in ("pruned", "failed"):
            assert record.reason
        if record.status != "open":
            assert record.id not in expanded
        elif record.parent is not None and record.id not in expanded:
            assert "beat every open one" in trace.ended_by
        if record.status == "finished":
            assert record in tree.finished()
    asked = sum(expand.count for plan in trace.plans for expand in plan.expand)
    assert tree.totals.candidates == asked == len(tree) - 1


@given(worlds, beams)
@searches
def test_depth_is_bounded_exactly(world: World, beam: BeamSearch) -> None:
    tree = run(world, beam).tree
    for record in tree:
        assert tree.depth(record.id) <= beam.max_depth
        if record.cause == "max_depth":
            assert record.status == "truncated"
            assert tree.depth(record.id) == beam.max_depth


@given(st.integers(0, 100), st.integers(1, 7))
@settings(max_examples=20)
def test_a_policy_that_never_stops_is_cut_at_max_depth(seed: int, depth: int) -> None:
    trace = run(World(seed=seed, stop=0.0), BeamSearch(width=2, expand=2, max_depth=depth))
    assert trace.ended_by == "no open path is left"
    assert max(trace.tree.depth(record.id) for record in trace.tree) == depth
    assert trace.tree.ended()
    assert not trace.tree.finished()


@given(worlds, beams)
@searches
def test_duplicates_are_merged_and_their_slots_refilled_a_bounded_number_of_times(
    world: World, beam: BeamSearch
) -> None:
    trace = run(world, beam)
    tree = trace.tree
    for record in tree:
        children = tree.children(record.id)
        rounds = {child.round for child in children}
        assert len(rounds) <= 1 + beam.refill
        alive = [child for child in children if child.status != "failed"]
        merged = [child for child in alive if child.cause == "duplicate"]
        target = beam.width * beam.expand if record.parent is None else beam.expand
        if not beam.dedup:
            assert not merged
            assert len(alive) <= target
            continue
        distinct = {child.text for child in alive}
        assert len(distinct) <= target
        assert len(alive) - len(merged) == len(distinct)
        for child in merged:
            twin = tree[child.merged_into or ""]
            assert (twin.text, twin.parent) == (child.text, child.parent)
            assert child.status == "pruned"
        if children and len(rounds) < 1 + beam.refill:
            assert len(distinct) == target  # no slot stayed empty while it could be refilled


def test_slots_of_duplicates_are_really_refilled() -> None:
    """With three words and twelve slots the refill finds words that the first call missed."""
    gained = 0
    for seed in range(20):
        world = World(seed=seed, words=16, stop=0.0)
        few = run(world, BeamSearch(width=4, expand=3, refill=0, max_depth=1)).tree
        more = run(world, BeamSearch(width=4, expand=3, refill=2, max_depth=1)).tree
        texts = [{r.text for r in tree if r.status == "truncated"} for tree in (few, more)]
        assert texts[0] <= texts[1]
        gained += len(texts[1]) - len(texts[0])
    assert gained > 20


@pytest.mark.parametrize(
    "strategy",
    [
        BeamSearch(width=3, expand=3, refill_temperature_scale=1.5, max_depth=4),
        DVTS(subtrees=3, refill_temperature_scale=1.5, max_depth=4),
        MCTS(simulations=6, batch=2, refill_temperature_scale=1.5, max_depth=4),
    ],
    ids=lambda strategy: type(strategy).__name__,
)
def test_slots_are_asked_for_again_at_a_higher_temperature(strategy: Strategy) -> None:
    again = 0
    for seed in range(5):
        trace = run(World(seed=seed, words=2, stop=0.1), strategy)
        for plan, text in zip(trace.plans, trace.before, strict=True):
            tree = SearchTree.loads(text)
            for expand in plan.expand:
                refills = tree.child_count(expand.node) > 0
                assert expand.temperature_scale == (1.5 if refills else 1.0)
                again += refills
    assert again > 5


@pytest.mark.parametrize(
    ("statuses", "kept"),
    [
        (("open", "finished"), "finished"),
        (("truncated", "finished"), "finished"),
        (("truncated", "open"), "open"),
        (("truncated", "open", "finished"), "finished"),
    ],
)
def test_a_finished_twin_is_kept_before_an_open_one_before_a_cut_one(
    statuses: tuple[NodeStatus, ...], kept: NodeStatus
) -> None:
    tree = SearchTree(PROBLEM)
    for index, status in enumerate(statuses):
        node = child_id(tree.root_id, index, "same")
        tree.merge([NodeRecord(node, tree.root_id, index, "same", status, score=0.5, round=1)])
    plan = BeamSearch(width=1, expand=len(statuses), refill=0, stop=None).plan(tree)
    closed = {c.node for c in plan.close if c.cause == "duplicate"}
    assert [r.status for r in tree.children(tree.root_id) if r.id not in closed] == [kept]


@given(worlds, beams, st.randoms(use_true_random=False))
@searches
def test_a_plan_is_a_function_of_the_tree_alone(
    world: World, beam: BeamSearch, rng: Random
) -> None:
    trace = run(world, beam)
    for plan, text in zip(trace.plans, trace.before, strict=True):
        tree = SearchTree.loads(text)
        assert beam.plan(tree) == plan
        records = [*tree]
        rng.shuffle(records)
        other = SearchTree(tree.problem, tree.run_seed)
        other.merge([*records, *records[::3]])
        assert beam.plan(other) == beam.plan(tree)
        assert tree.dumps() == text  # planning changes nothing


@given(worlds, beams)
@settings(max_examples=30)
def test_the_same_search_twice_is_byte_identical(world: World, beam: BeamSearch) -> None:
    assert run(world, beam).tree.dumps() == run(world, beam).tree.dumps()


@given(worlds, beams)
@searches
def test_early_stop_means_enough_finished_paths_beat_every_open_one(
    world: World, beam: BeamSearch
) -> None:
    trace = run(world, beam)
    needed = beam.width if beam.stop == "width" else beam.stop
    for plan, text in zip(trace.plans, trace.before, strict=True):
        tree = SearchTree.loads(text)
        closed = {close.node for close in plan.close}
        merged = {close.node for close in plan.close if close.cause == "duplicate"}
        level = [r.id for r in tree.open_leaves() if r.id not in merged]
        scores = worths(tree, level, beam.aggregate)
        left = [(-score, node) for node, score in scores.items() if node not in closed]
        finished = [r.id for r in tree.finished() if r.id not in closed]
        values = [exact_score(tree, node, beam.aggregate) for node in finished]
        if not left or tree.rounds == 0 or is_refill(plan, tree):
            continue
        best, leaf = min(left)
        blind = tree[leaf].score is None
        better = sum(blind if value is None else value >= -best for value in values)
        stops = needed is not None and better >= needed
        assert ("beat every open one" in plan.finish) == stops
        if stops:
            assert plan.finish.startswith(f"{better} finished")


@pytest.mark.parametrize("refill", [0, 1, 3])
def test_when_all_children_fail_the_search_ends(refill: int) -> None:
    trace = run(World(error=1.0), BeamSearch(width=2, expand=2, refill=refill))
    assert trace.ended_by == "no open path is left"
    assert len(trace.tree) - 1 == 4 * (1 + refill)
    assert {r.reason for r in trace.tree if r.parent} == {"connection lost"}


@given(worlds, beams, st.integers(1, 30))
@searches
def test_a_budget_of_candidates_is_exact(world: World, beam: BeamSearch, limit: int) -> None:
    bare = beam.model_copy(update={"refill": 0})  # a limited search may do without refills
    free, least = run(world, beam), run(world, bare)
    capped = run(world, beam, budget=Budget(candidates=limit))
    spent = capped.tree.totals.candidates
    assert spent <= limit
    assert spent >= min(limit, free.tree.totals.candidates, least.tree.totals.candidates)
    if spent < limit:
        assert not capped.ended_by.startswith("budget")
    elif capped.ended_by.startswith("budget"):
        # also when the cut round left the strategy without an open path
        assert capped.ended_by == f"budget: candidates {limit} of {limit}"


@given(worlds, beams, st.integers(1, 5))
@searches
def test_a_budget_of_rounds_ends_the_search_with_its_name(
    world: World, beam: BeamSearch, limit: int
) -> None:
    bare = beam.model_copy(update={"refill": 0})  # a limited search may do without refills
    least = min(run(world, beam).tree.rounds, run(world, bare).tree.rounds)
    capped = run(world, beam, budget=Budget(rounds=limit))
    assert min(limit, least) <= capped.tree.rounds <= limit
    if least > limit:
        assert capped.ended_by == f"budget: rounds {limit} of {limit}"


WRONG = [{"width": 0}, {"expand": 0}, {"max_depth": 0}, {"pruning": {"below": 1.5}}, {"stop": "x"}]
WRONG += [{"pruning": {"margin": -0.1}}, {"pruning": {"keep_at_least": -1}}]
WRONG += [{"refill": -1}, {"stop": 0}]
WRONG += [{"aggregate": "median"}, {"depth": 3}]


@pytest.mark.parametrize("wrong", WRONG)
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        BeamSearch(**wrong)  # type: ignore[arg-type]


def test_the_aggregations_read_are_named() -> None:
    assert BeamSearch(aggregate="last").aggregates == ("last",)
