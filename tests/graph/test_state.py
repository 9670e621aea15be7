"""The state's reducer is a join, and the memory of live trees never decides anything."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.graph.fakes import QUESTION, HashChatModel, HashScorer
from vprm_search import ids
from vprm_search.errors import RecordError
from vprm_search.graph import run_search
from vprm_search.graph.session import LiveTrees
from vprm_search.graph.state import (
    merge_all,
    merge_records,
    plan_from_json,
    plan_to_json,
    record_table,
    tree_of_state,
)
from vprm_search.search import BeamSearch, Plan
from vprm_search.search.plan import Expand
from vprm_search.tree import SearchTree, join_records
from vprm_search.types import NODE_STATUSES, NodeRecord, Problem

PROBLEM = Problem(QUESTION)
ROOT = ids.root_id(PROBLEM, 0)
units = st.floats(0, 1, allow_nan=False)


@st.composite
def records(draw: st.DrawFn) -> NodeRecord:
    """Draw one of few nodes with any content that may change."""
    index = draw(st.integers(0, 3))
    return NodeRecord(
        id=ids.child_id(ROOT, index, "step"),
        parent=ROOT,
        index=index,
        text="step",
        status=draw(st.sampled_from(NODE_STATUSES)),
        reason=draw(st.sampled_from(["", "a", "b"])),
        cause=draw(st.sampled_from(["", "review", "outranked"])),
        merged_into=draw(st.none() | st.just(ids.child_id(ROOT, 4, "step"))),
        score=draw(st.none() | units),
        score_reason=draw(st.sampled_from(["", "x", "y"])),
        path_scores=draw(st.dictionaries(st.sampled_from(["mean", "last"]), units)),
        answer=draw(st.none() | st.sampled_from(["1", "2"])),
        round=draw(st.integers(0, 2)),
        generated_tokens=draw(st.integers(0, 9)),
    )


tables = st.lists(records(), max_size=6).map(lambda drawn: {r.id: r.to_json() for r in drawn})


@given(tables, tables, tables)
def test_merging_is_a_join(a: Any, b: Any, c: Any) -> None:
    ab = merge_records(a, b)
    assert ab == merge_records(b, a)
    assert merge_records(ab, c) == merge_records(a, merge_records(b, c))
    assert merge_records(ab, a) == merge_records(ab, b) == merge_records(ab, ab) == ab
    assert set(ab) == set(a) | set(b)
    assert merge_records(a, {}) == merge_records({}, a) == a
    assert json.loads(json.dumps(ab)) == ab


@given(records(), records())
def test_tables_are_joined_as_records_are(old: NodeRecord, new: NodeRecord) -> None:
    new = replace(new, id=old.id, index=old.index)
    later = join_records(old, new)
    for known, news in ((old, new), (old, later), (later, old), (later, later)):
        merged = merge_records({old.id: known.to_json()}, {old.id: news.to_json()})
        assert merged == {old.id: join_records(known, news).to_json()}


@pytest.mark.parametrize(
    "change",
    [{"text": "other"}, {"index": 3}, {"score": "high"}, {"status": "done", "seed": -1}],
    ids=str,
)
def test_a_table_that_contradicts_another_is_refused(change: dict[str, Any]) -> None:
    known = NodeRecord(id=ids.child_id(ROOT, 0, "step"), parent=ROOT, index=0, text="step")
    tables = [{known.id: known.to_json()}, {known.id: {**known.to_json(), **change}}]

    def read() -> None:
        nodes = merge_records(*tables)
        tree_of_state({"search_problem": PROBLEM.to_json(), "search_nodes": nodes})

    with pytest.raises(RecordError):
        read()


@pytest.mark.parametrize("write", [{"score": 0.5}, {"status": "pruned"}, {}, None, "x"], ids=str)
def test_a_write_of_no_node_of_the_search_is_refused(write: Any) -> None:
    state = searched()

    def read(nodes: Any) -> None:
        tree_of_state({**state, "search_nodes": nodes})

    read(merge_records(state["search_nodes"], {}))
    with pytest.raises(RecordError, match=r"no node of its search|not a record of node"):
        read(merge_records(state["search_nodes"], {"mistyped": write}))
    with pytest.raises(RecordError):
        read({**state["search_nodes"], "mistyped": write})


@given(st.lists(tables, max_size=5), st.randoms())
def test_writes_in_any_order_and_twice_give_one_table(writes: list[Any], chance: Any) -> None:
    def merged(order: list[Any]) -> Any:
        table: Any = {}
        for write in order:
            table = merge_records(table, write)
        return table

    shuffled = writes + writes[::2]
    chance.shuffle(shuffled)
    assert merged(shuffled) == merged(writes)


@st.composite
def writes(draw: st.DrawFn) -> dict[str, Any]:
    """Draw what is written of one node: all of its record, or only what became known of it."""
    record = draw(records())
    whole = {name: value for name, value in record.to_json().items() if name != "id"}
    known = draw(st.booleans())
    names = {"parent", "index", "text"} if known else set()
    ends = {"status", "reason", "cause", "merged_into"}
    apart = {n for n in whole.keys() - {"parent", "index", "text"} - ends if draw(st.booleans())}
    said = names | apart | (ends if draw(st.booleans()) else set())
    part = {name: value for name, value in whole.items() if name in said}
    return {record.id: part} if part else {}


@given(st.lists(writes(), max_size=8), st.randoms(), st.integers(0, 8))
def test_parts_of_records_in_any_order_and_grouping_give_one_table(
    parts: list[Any], chance: Any, cut: int
) -> None:
    table = merge_all({}, parts)
    shuffled = parts + parts[::2]
    chance.shuffle(shuffled)
    assert merge_all({}, shuffled) == table
    assert merge_records(merge_all({}, parts[cut:]), merge_all({}, parts[:cut])) == table
    for node, record in table.items():
        known = any("parent" in part.get(node, {}) for part in parts)
        assert record.get("id") == (node if known else None)
        if known:
            assert NodeRecord.from_json(record).to_json() == record


@given(records(), records())
def test_what_is_written_of_a_record_joins_to_all_of_it(old: NodeRecord, new: NodeRecord) -> None:
    later = join_records(old, replace(new, id=old.id, index=old.index))
    table = {old.id: old.to_json()}
    state = {"search_problem": PROBLEM.to_json(), "search_run_seed": 0, "search_nodes": table}
    for known, record in ((table, later), ({}, old), (table, old)):
        given = {**state, "search_nodes": known}
        trees = LiveTrees(tree_of_state)
        update = trees.give(given, "t", record_table([record]), SearchTree(PROBLEM))
        del trees  # and the live tree with it, so that the reducer joins
        whole = {record.id: record.to_json()}
        assert merge_records(known, update) == whole
        assert merge_records(merge_records(known, update), update) == whole
        assert (update == {}) == (whole == known)
        assert known == {} or "text" not in update.get(old.id, {})


@given(tables)
def test_merging_leaves_its_arguments_alone_and_keeps_what_did_not_change(table: Any) -> None:
    before = json.dumps(table)
    merged = merge_records(table, json.loads(before))
    assert json.dumps(table) == before
    assert all(merged[node] is table[node] for node in table)


@given(
    st.lists(
        st.builds(
            Expand,
            st.text("0123456789abcdef", min_size=1),
            st.integers(1, 99),
            st.integers(0, 99),
            st.sampled_from(["step", "end"]),
            temperature_scale=st.sampled_from([1.0, 1.5]),
        )
    ),
    st.text(),
)
def test_a_plan_survives_the_state(expand: list[Expand], finish: str) -> None:
    plan = Plan(expand=tuple(expand), finish=finish)
    assert plan_from_json(json.loads(json.dumps(plan_to_json(plan)))) == plan


# --- live trees --------------------------------------------------------------------------------


def searched(question: str = QUESTION) -> dict[str, Any]:
    tree = run_search(
        question,
        policy=HashChatModel(),
        scorer=HashScorer(),
        strategy=BeamSearch(width=2, expand=2),
    ).tree
    return {
        "search_problem": tree.problem.to_json(),
        "search_run_seed": 0,
        "search_nodes": record_table(list(tree)),
    }


def test_a_kept_tree_is_given_out_once() -> None:
    trees, state = LiveTrees(tree_of_state), searched()
    tree = trees.take(state, "t")
    trees.give(state, "t", {}, tree)
    assert trees.take(state, "t") is tree
    assert trees.take(state, "t") is not tree


def test_a_kept_tree_is_used_only_for_the_state_it_belongs_to() -> None:
    trees, state = LiveTrees(tree_of_state), searched()
    nodes = state["search_nodes"]
    some = next(n for n, r in nodes.items() if r["parent"])
    edited = {**state, "search_nodes": {**nodes, some: {**nodes[some], "score": 0.123}}}
    fewer = {**state, "search_nodes": {n: r for n, r in nodes.items() if not r["parent"]}}
    other = searched("Another question")
    for changed in (edited, fewer, other, {**state, "search_run_seed": 0}):
        trees.give(state, "t", {}, tree_of_state(state))
        assert trees.take(changed, "t").dumps() == tree_of_state(changed).dumps()


def test_a_kept_tree_follows_what_the_reducer_makes_and_nothing_else() -> None:
    trees, state = LiveTrees(tree_of_state), searched()
    first = next(n for n, r in state["search_nodes"].items() if r["parent"])
    for _ in range(3):
        tree = trees.take(state, "t")
        tree.merge([replace(tree[first], tokens_sent=tree[first].tokens_sent + 1)])
        update = trees.give(state, "t", record_table([tree[first]]), tree)
        state = {**state, "search_nodes": merge_records(state["search_nodes"], update)}
        assert trees.take(state, "t") is tree
        trees.give(state, "t", {}, tree)
    other = next(n for n in state["search_nodes"] if n != first)
    tree = trees.take(state, "t")
    tree.merge([replace(tree[first], tokens_sent=tree[first].tokens_sent + 1)])
    update = trees.give(state, "t", record_table([tree[first]]), tree)
    merged = merge_records(state["search_nodes"], update)
    veto = {other: {**merged[other], "images_encoded": 99}}  # by another node, just afterwards
    edited = {**state, "search_nodes": merge_records(merged, veto)}
    assert trees.take(edited, "t")[other].images_encoded == 99


def test_equal_values_from_a_checkpoint_find_the_kept_tree() -> None:
    trees, state = LiveTrees(tree_of_state), searched()
    tree = tree_of_state(state)
    trees.give(state, "t", {}, tree)
    assert trees.take(json.loads(json.dumps(state)), "t") is tree


def test_the_memory_is_bounded(monkeypatch: Any) -> None:
    monkeypatch.setattr("vprm_search.graph.session._KEPT_NODES", 60)
    trees = LiveTrees(tree_of_state)
    states = [searched(f"Question {number}") for number in range(12)]
    kept = []
    for state in states:
        kept.append(tree_of_state(state))
        trees.give(state, "t", {}, kept[-1])
    found = [trees.take(s, "t") is tree for s, tree in zip(states, kept, strict=True)]
    assert found[-1] is True
    assert sum(len(t) for t, there in zip(kept, found, strict=True) if there) <= 60 + len(kept[-1])
    assert not found[0]


def test_threads_may_share_the_memory() -> None:
    trees, states = (
        LiveTrees(tree_of_state),
        [searched(f"Question {number}") for number in range(3)],
    )
    expected = [tree_of_state(state).dumps() for state in states]
    wrong: list[int] = []

    def work(offset: int) -> None:
        for turn in range(30):
            number = (turn + offset) % 3
            tree = trees.take(states[number], "t")
            if tree.dumps() != expected[number]:
                wrong.append(number)
            trees.give(states[number], "t", {}, tree)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []
