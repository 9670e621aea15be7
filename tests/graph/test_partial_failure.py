"""Any single request may go wrong in any way: the search goes on, every candidate has an end."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langgraph.checkpoint.memory import InMemorySaver

from tests.graph.fakes import asked
from tests.graph.flaky import (
    Fault,
    FlakyPolicy,
    FlakyScorer,
    ScoreFault,
    flaky_chat_model,
    score_scripts,
    scripts,
)
from tests.search.strategies import EVERY
from vprm_search.budget import Budget
from vprm_search.chat.calls import RetryRules
from vprm_search.graph import create_search_graph, tree_of_state
from vprm_search.images.store import MemoryImageStore
from vprm_search.policy.chat_model_policy import ChatModelPolicy
from vprm_search.search import BeamSearch, BestOfN, HybridVote, Knockout, WeightedVote
from vprm_search.search.outcome import CUT_BY_BUDGET, ends, ends_line
from vprm_search.steps import REFERENCE_MAX_STEPS
from vprm_search.tree import SearchTree
from vprm_search.types import NodeRecord

THREAD: Any = {"configurable": {"thread_id": "one"}}
budgets = st.sampled_from(
    [None, Budget(candidates=5), Budget(rounds=2), Budget(requests=7), Budget(generated_tokens=60)]
)


def compiled(policy: Any, scorer: Any = None, saver: Any = None, **options: Any) -> Any:
    graph = create_search_graph(
        policy=policy,
        scorer=scorer or FlakyScorer(),
        image_store=MemoryImageStore(),
        **options,
    )
    return graph.compile(checkpointer=saver) if saver else graph.compile()


def searched(policy: Any, scorer: Any = None, **options: Any) -> tuple[SearchTree, dict[str, Any]]:
    state = compiled(policy, scorer, **options).invoke(asked(), {"recursion_limit": 400})
    tree = tree_of_state(state)
    tree.check()
    return tree, state["search_result"]


def last_of(tree: SearchTree, record: NodeRecord) -> NodeRecord:
    """Return where the proposal that begins at `record` ends: a whole solution is a chain."""
    below = [child for child in tree.children(record.id) if not child.seed]
    return record if not below else last_of(tree, below[0])


def check_every_candidate_ends(tree: SearchTree, policy: FlakyPolicy) -> None:
    """Every child the policy was asked for is one candidate, and every path has one end."""
    candidates = {record.seed: record for record in tree if record.seed and record.parent}
    assert sorted(r.seed for r in tree if r.seed and r.parent) == sorted(candidates)
    assert set(candidates) <= set(policy.seen)
    found = {end.node: end for end in ends(tree)}
    assert len(found) == len(ends(tree))
    for record in tree:
        below = [child for child in tree.children(record.id) if child.status != "failed"]
        is_path = record.parent is not None and record.role != "lookahead"
        if is_path and not [child for child in below if child.role != "lookahead"]:
            assert record.id in found
    for end in found.values():
        assert end.reason or end.fate in ("finished", "truncated")
        record = tree[end.node]
        told = record.cause in ("budget", "not_needed")
        assert (end.fate == "cut") == (told and record.status != "pruned")


def check_faults(tree: SearchTree, policy: FlakyPolicy) -> None:
    """What went wrong stands on the candidate it happened to, and on no other."""
    for record in tree:
        if not record.seed or record.parent is None:
            continue
        fault, end = policy.seen[record.seed], last_of(tree, record)
        whole = end.id != record.id
        if fault in ("error", "timeout", "empty", "blank", "long"):
            assert record.status == "failed"
            assert record.reason
            assert not record.text
        elif fault == "cut":
            assert end.status in ("truncated", "pruned")
        else:
            assert record.status != "failed"
            if fault == "deep" and whole:  # merged, as the reference does
                assert tree.depth(end.id) - tree.depth(record.id) < REFERENCE_MAX_STEPS


@pytest.mark.parametrize("name", EVERY)
@given(scripts, score_scripts, budgets)
@settings(max_examples=6)
def test_a_search_goes_on_whatever_fails(
    name: str, script: list[Fault], score_script: list[ScoreFault], budget: Budget | None
) -> None:
    policy = FlakyPolicy(script)
    options: dict[str, Any] = {"strategy": EVERY[name](), "budget": budget}
    given_policy: Any = {"draft": policy, "strong": policy} if "cascade" in name else policy
    tree, result = searched(given_policy, FlakyScorer(score_script), **options)
    check_every_candidate_ends(tree, policy)
    check_faults(tree, policy)
    usage = result["usage"]
    assert usage["candidates"] == sum(1 for r in tree if r.seed and r.parent)
    if budget is None:  # what was still under way at a limit is answered to nobody
        assert {name: usage[name] for name in policy.spent} == policy.spent
        assert usage["candidates"] == len(policy.seen)
    assert all(usage[name] <= spent for name, spent in policy.spent.items())
    finished = [r for r in tree.finished() if r.score is not None]
    if any(tree.path_score(r.id, "mean") is not None for r in finished):
        assert result["text"]
        assert not result["fallback"]
    if result["ended_by"].startswith("budget"):
        cut = [end for end in ends(tree) if end.fate == "cut"]
        assert all(end.reason.startswith(CUT_BY_BUDGET) for end in cut)
        assert ("cut by budget" in ends_line(tree)) == bool(cut)


@pytest.mark.parametrize("strategy", [BeamSearch(width=2, expand=3), BestOfN(6)])
@given(script=scripts, score_script=score_scripts, budget=budgets)
@settings(max_examples=8)
def test_a_search_stopped_after_every_node_ends_with_the_same_tree(
    strategy: Any, script: list[Fault], score_script: list[ScoreFault], budget: Budget | None
) -> None:
    options = {"strategy": strategy, "budget": budget, "selector": Knockout()}
    whole, result = searched(FlakyPolicy(script), FlakyScorer(score_script), **options)
    saver = InMemorySaver()
    stops = ["ingest", "plan", "propose", "score"]
    given_input: Any = asked()
    for _ in range(200):
        # a new graph each time, as in a new process: nothing lives but the checkpoints
        app = compiled(FlakyPolicy(script), FlakyScorer(score_script), saver, **options)
        app.invoke(given_input, THREAD, interrupt_after=stops)
        given_input = None
        state = app.get_state(THREAD)
        if not state.next:
            break
    assert tree_of_state(state.values).dumps() == whole.dumps()
    resumed = state.values["search_result"]
    assert {**resumed["usage"], "seconds": 0} == {**result["usage"], "seconds": 0}
    assert resumed["ended_by"] == result["ended_by"]


@pytest.mark.parametrize("nth", range(0, 48, 5))
def test_one_failed_request_of_48_survives(nth: int) -> None:
    """4 x 4 steps in three levels: one of the 48 calls fails, wherever it stands."""
    beam = BeamSearch(width=4, expand=4, refill=0, dedup=False, stop=None, max_depth=3)
    policy = FlakyPolicy(nth=nth, steps=3)
    tree, result = searched(policy, strategy=beam)
    assert len(policy.seen) == 48
    failed = [r for r in tree if r.status == "failed"]
    assert [r.reason for r in failed] == ["the server said 500"]
    assert result["answer"] is not None
    assert result["usage"]["candidates"] == 48
    assert result["usage"]["requests"] == 49  # the failed call was tried twice


def test_when_everything_fails_the_result_says_so() -> None:
    tree, result = searched(FlakyPolicy(["timeout"]), strategy=BeamSearch(width=2, expand=2))
    assert (result["answer"], result["node"], result["fallback"]) == (None, None, True)
    assert Counter(end.fate for end in ends(tree)) == {"failed": len(tree) - 1}


# --- limits ------------------------------------------------------------------------------------


def test_open_paths_are_cut_by_the_budget_and_say_by_which() -> None:
    beam = BeamSearch(width=3, expand=2, stop=None)
    tree, result = searched(FlakyPolicy(), strategy=beam, budget=Budget(rounds=2))
    assert result["ended_by"] == "budget: rounds 2 of 2"
    cut = [end for end in ends(tree) if end.fate == "cut"]
    assert {end.reason for end in cut} == {"cut by budget: rounds 2 of 2"}
    assert {end.node for end in cut} == {r.id for r in tree.open_leaves()}
    assert len(cut) >= 3
    assert tree[result["node"]].role == "completion"  # the last round asked for whole rests
    assert not result["fallback"]


@given(st.integers(1, 30), st.sampled_from([BeamSearch(width=2, expand=3), BestOfN(9)]))
@settings(max_examples=15)
def test_requests_are_a_hard_limit_where_calls_do_not_fail(limit: int, strategy: Any) -> None:
    policy = FlakyPolicy()
    free, _ = searched(FlakyPolicy(), strategy=strategy)
    tree, result = searched(policy, strategy=strategy, budget=Budget(requests=limit))
    assert result["usage"]["requests"] <= limit
    if free.totals.requests > limit:  # or it ended without the refills that it could not pay for
        full = f"budget: requests {limit} of {limit}"
        assert result["ended_by"] == full or tree.totals.candidates < free.totals.candidates
    else:
        assert tree.dumps() == free.dumps() or limit < 2 * free.totals.requests
    assert result["text"]


async def test_a_call_that_never_answers_is_given_up_with_the_seconds() -> None:
    """Without a hard stop this test would never end."""
    model = flaky_chat_model(["ok", "hang", "ok"])
    app = compiled(
        ChatModelPolicy(model), strategy=BestOfN(3), budget=Budget(seconds=0.3), selector=None
    )
    state = await app.ainvoke(asked())
    tree, result = tree_of_state(state), state["search_result"]
    assert result["ended_by"].startswith("budget: seconds ")
    assert result["answer"] is not None
    assert Counter(end.fate for end in ends(tree)) == {"finished": 2, "cut": 1}
    (given_up,) = [r for r in tree if r.status == "failed"]
    assert given_up.reason.startswith(CUT_BY_BUDGET)
    assert given_up.cause == "budget"


# --- through a chat model ----------------------------------------------------------------------

CALLS = ["ok", "error", "timeout", "cut", "empty", "long", "nothing"]


@given(st.lists(st.sampled_from(CALLS), min_size=6, max_size=6))
@settings(max_examples=25)
def test_each_call_of_a_chat_model_ends_as_it_should(script: list[str]) -> None:
    model = flaky_chat_model(script)
    policy = ChatModelPolicy(
        model, retry=RetryRules(max_attempts=1), max_concurrency=1, n_per_call=1
    )
    tree, result = searched(policy, strategy=BestOfN(6), selector=HybridVote())
    assert len(model.calls) == 6
    by_seed = sorted(tree.children(tree.root_id), key=lambda record: record.index)
    wanted = {"ok": "finished", "cut": "truncated"}
    assert [r.status for r in by_seed] == [wanted.get(fault, "failed") for fault in script]
    assert all(r.reason for r in by_seed if r.status == "failed")
    answered = sum(fault in ("ok", "cut", "empty", "long") for fault in script)
    assert result["usage"]["requests"] == 6
    assert result["usage"]["prompt_tokens"] == 5 * answered  # the server's own counts
    assert result["usage"]["generated_tokens"] == 7 * answered
    assert bool(result["answer"]) == any(fault in ("ok", "cut") for fault in script)


@pytest.mark.parametrize("selector", [WeightedVote(weigh="max"), HybridVote(), Knockout()])
def test_the_selectors_choose_in_the_real_graph(selector: Any) -> None:
    tree, result = searched(FlakyPolicy(), strategy=BestOfN(8), selector=selector)
    assert result["node"] == selector.select(tree, tree.finished()).node
    assert tree[result["node"]].status == "finished"
