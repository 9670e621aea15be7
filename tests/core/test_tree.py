"""The search tree: merging is a join, the indices agree with the records, damage is found."""

from __future__ import annotations

import copy
import gc
import json
import sys
import tracemalloc
from collections import Counter
from dataclasses import replace
from random import Random
from types import FrameType
from typing import Any

import networkx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.trees import PROBLEM, ROOT, contents, record_lists, tree_from, versions_of
from vprm_search.aggregate import counted_scores, path_score
from vprm_search.errors import RecordError
from vprm_search.graph.parts import SearchRules
from vprm_search.graph.records import paths_to_score, settle, store_scores, take_replies
from vprm_search.ids import child_id
from vprm_search.search import BeamSearch, BestScore
from vprm_search.search.plan import Expand
from vprm_search.tree import SearchTree, join_records
from vprm_search.types import NODE_FIELDS, NodeRecord, Problem, Proposal, ScoreResult, StepScore

rngs = st.randoms(use_true_random=False)
some = settings(max_examples=40)  # a random tree takes 200 draws
one_node = contents(child_id(ROOT, 0, "a"), ROOT, 0, "a")


def view(tree: SearchTree) -> dict[str, Any]:
    """Return everything a search can ask a tree for."""
    nodes = sorted(tree.records)
    return {
        "json": tree.dumps(),
        "totals": tree.totals,
        "rounds": tree.rounds,
        "open": tree.open_leaves(),
        "ended": tree.ended(),
        "finished": tree.finished(),
        "unscored": tree.unscored(),
        "by_round": [tree.round_nodes(number) for number in range(5)],
        "children": [(tree.children(node), tree.child_count(node)) for node in nodes],
        "paths": [(tree.steps(node), tree.step_scores(node)) for node in nodes],
        "twins": [tree.scored_twin(node) for node in nodes],
    }


# --- merging is a join -------------------------------------------------------------------------


@given(one_node, one_node, one_node)
def test_joining_records_is_idempotent_commutative_and_associative(
    a: NodeRecord, b: NodeRecord, c: NodeRecord
) -> None:
    assert join_records(a, a) == a
    assert join_records(a, b) == join_records(b, a)
    assert join_records(join_records(a, b), c) == join_records(a, join_records(b, c))
    assert join_records(a, join_records(a, b)) == join_records(a, b)


@given(one_node.flatmap(lambda record: st.tuples(st.just(record), versions_of(record))))
def test_an_earlier_version_adds_nothing(pair: tuple[NodeRecord, NodeRecord]) -> None:
    record, earlier = pair
    assert join_records(record, earlier) == record


@given(record_lists, rngs, st.data())
@some
def test_order_duplicates_and_partial_deliveries_do_not_matter(
    records: list[NodeRecord], rng: Random, data: st.DataObject
) -> None:
    expected = view(tree_from(records))
    deliveries = [*records, *(data.draw(versions_of(r)) for r in records), *records[::2]]
    rng.shuffle(deliveries)
    assert view(tree_from(deliveries)) == expected
    piecewise = SearchTree(PROBLEM)
    while deliveries:
        size = rng.randint(1, len(deliveries))
        batch, deliveries = deliveries[:size], deliveries[size:]
        piecewise.merge(batch)
    assert view(piecewise) == expected


@given(record_lists, st.data())
@some
def test_merge_names_exactly_the_changed_nodes(
    records: list[NodeRecord], data: st.DataObject
) -> None:
    tree = SearchTree(PROBLEM)
    assert tree.merge(records) == [record.id for record in records]
    before = dict(tree.records)
    more = [data.draw(contents(r.id, r.parent, r.index, r.text)) for r in records]
    changed = tree.merge(more)
    assert changed == [r.id for r in more if tree.records[r.id] != before[r.id]]
    assert tree.merge(more) == []


# --- the indices against a slow oracle ---------------------------------------------------------


@given(record_lists)
@some
def test_every_index_agrees_with_a_scan_of_the_records(records: list[NodeRecord]) -> None:
    tree = tree_from(records)
    assert [tree.arrived_since(n) for n in (0, 1, len(tree))] == [[*tree], [*tree][1:], []]
    table = {record.id: record for record in [tree[ROOT], *records]}
    parents = {record.parent for record in records}
    by_id = [table[node] for node in sorted(table)]
    assert len(tree) == len(table)
    assert {record.id for record in tree} == set(table)
    assert tree.open_leaves() == [r for r in by_id if r.status == "open" and r.id not in parents]
    assert tree.ended() == [r for r in by_id if r.status in ("finished", "truncated")]
    assert tree.finished() == [r for r in by_id if r.status == "finished"]
    assert tree.finished_depths() == Counter(tree.depth(r.id) for r in tree.finished())
    waiting = {r.id for r in records if r.score is None and not r.score_reason}
    waiting -= {r.id for r in records if r.status == "failed"}
    assert {r.id for r in tree.unscored()} == waiting
    order = [record.id for record in tree.unscored()]
    for record in tree.unscored():
        if record.parent in waiting and table[record.parent].round <= record.round:
            assert order.index(record.parent) < order.index(record.id)
    for number in range(4):
        assert tree.round_nodes(number) == [r for r in by_id if r.round == number]
    assert tree.rounds == max(r.round for r in by_id)
    for node in table:
        _check_node(tree, table, node)


def _check_node(tree: SearchTree, table: dict[str, NodeRecord], node: str) -> None:
    expected = sorted((r for r in table.values() if r.parent == node), key=lambda r: r.index)
    assert node in tree
    assert tree.children(node) == expected
    assert tree.child_count(node) == len(expected)
    path = [table[node]]
    while (parent := path[0].parent) is not None:
        path.insert(0, table[parent])
    steps = [record for record in path[1:] if record.text]
    assert tree.path(node) == path[1:]
    assert tree.depth(node) == len(path) - 1
    assert tree.steps(node) == tuple(record.text for record in steps)
    assert tree.step_scores(node) == tuple(record.score for record in steps)
    stored = table[node].path_scores.get("min")
    computed = path_score("min", [record.score for record in steps])
    assert tree.path_score(node, "min") == (computed if stored is None else stored)
    _check_path_scores(tree, node)
    twins = [r.id for r in table.values() if r.text and r.score is not None]
    twins = [twin for twin in twins if _texts(table, twin) == _texts(table, node)]
    found = tree.scored_twin(node)
    assert (found.id if found else None) == min(twins, default=None)


def _check_path_scores(tree: SearchTree, node: str) -> None:
    record = tree[node]
    if record.score is not None or not record.text:
        scores = counted_scores(tree.steps(node), tree.step_scores(node))
        whole = {name: path_score(name, scores) for name in ("mean", "last", "product")}
        expected = {name: value for name, value in whole.items() if value is not None}
        assert tree.path_scores(node, record.score or 0.0, whole) == expected


@given(record_lists, st.data())
@some
def test_what_becomes_known_of_a_node_reaches_every_index(
    records: list[NodeRecord], data: st.DataObject
) -> None:
    tree = tree_from(records)
    for record in data.draw(st.permutations(records)):
        for node in tree.records:
            tree.path_scores(node, 0.5, ["mean"])  # remembered paths must not become stale
        tree.finished_depths()  # nor what was counted
        news = data.draw(contents(record.id, record.parent, record.index, record.text))
        joined = join_records(tree[record.id], replace(news, round=tree[record.id].round))
        known = {n: getattr(joined, n) for n in NODE_FIELDS if n not in ("text", "round")}
        if joined.score == tree[record.id].score or tree[record.id].score is None:
            tree.amend(record.id, **known)
        else:  # another score than the one that was known: a delivery, not news
            tree.merge([joined])
        _check_path_scores(tree, record.id)
    assert view(tree) == view(tree_from(tree))
    assert tree.totals == tree_from(tree).totals
    assert tree.finished_depths() == Counter(tree.depth(r.id) for r in tree.finished())
    table = dict(tree.records)
    for node in table:
        _check_node(tree, table, node)


def _texts(table: dict[str, NodeRecord], node: str) -> list[str]:
    """Return the texts root -> node, end markers included: a twin has the very same ones."""
    record = table[node]
    return [] if record.parent is None else [*_texts(table, record.parent), record.text]


# --- JSON --------------------------------------------------------------------------------------


@given(record_lists, rngs)
@some
def test_the_json_text_is_canonical_and_comes_back_byte_for_byte(
    records: list[NodeRecord], rng: Random
) -> None:
    tree = tree_from(records)
    text = tree.dumps()
    shuffled = list(records)
    rng.shuffle(shuffled)
    assert tree_from(shuffled).dumps() == text
    assert SearchTree.loads(text).dumps() == text
    assert view(SearchTree.loads(text)) == view(tree)
    other = SearchTree(PROBLEM)
    other.merge(records)
    assert other.dumps() == text
    pretty = json.dumps(json.loads(text), indent=3)  # another writer, the same tree
    assert SearchTree.loads(pretty).dumps() == text


def test_another_run_seed_is_another_tree() -> None:
    tree = SearchTree(PROBLEM, 1)
    assert SearchTree.loads(tree.dumps()).run_seed == 1
    with pytest.raises(RecordError, match="root of another search"):
        tree.merge(SearchTree(PROBLEM, 2))


def test_a_score_of_one_has_one_spelling() -> None:
    record = NodeRecord(child_id(ROOT, 0, "a"), ROOT, 0, "a", score=1.0, path_scores={"mean": 0.0})
    data = json.loads(tree_from([record]).dumps().replace("1.0", "1").replace("0.0", "0"))
    assert SearchTree.from_json(data).dumps() == tree_from([record]).dumps()


FIELDS = ["id", "parent", "index", "text", "status", "score", "path_scores", "seed", "answer"]
junk: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.integers(), max_size=1),
    st.dictionaries(st.text(max_size=2), st.floats()),
)


@given(record_lists, st.data())
@some
def test_damage_is_a_typed_error_or_harmless(
    records: list[NodeRecord], data: st.DataObject
) -> None:
    """Any value anywhere: either `RecordError`, or a tree that can be written and read again."""
    damaged = tree_from(records).to_json()
    node = data.draw(st.sampled_from(damaged["nodes"]))
    target = data.draw(st.sampled_from([damaged, damaged["problem"], node]))
    key = data.draw(st.sampled_from([*target, *FIELDS, "more"]))
    if data.draw(st.booleans()):
        target[key] = data.draw(junk)
    else:
        target.pop(key, None)
    try:
        tree = SearchTree.from_json(damaged)
    except RecordError:
        return
    assert SearchTree.loads(tree.dumps()).dumps() == tree.dumps()


NODE = {"id": child_id(ROOT, 0, "a"), "parent": ROOT, "index": 0, "text": "a"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": "b"}, "its id does not match"),
        ({"index": 1}, "its id does not match"),
        ({"status": "done"}, "status is 'done': input should be 'open'"),
        ({"score": "0.5"}, "score is '0.5': input should be a valid number"),
        ({"score": 1.5}, "score is 1.5: input should be less than or equal to 1"),
        ({"score": float("nan")}, "score is nan: input should be"),
        (
            {"path_scores": {"mean": None}},
            "path_scores.mean is None: input should be a valid number",
        ),
        ({"index": True}, "index is True: input should be a valid integer"),
        ({"seed": -1}, "seed is -1: input should be greater than or equal to 0"),
        ({"colour": 1}, "colour is 1: unexpected"),
        ({"id": 5}, "not a node record"),
        ({"forward_passes": float("inf")}, "forward_passes is inf: input should be a finite"),
        ({"cause": "bored"}, "cause is 'bored': input should be"),
        ({"seed": 1.0}, "seed is 1.0: input should be a valid integer"),
    ],
)
def test_a_damaged_record_is_refused_with_its_id(change: dict[str, Any], message: str) -> None:
    data = {**SearchTree(PROBLEM).to_json(), "nodes": [{**NODE, **change}]}
    with pytest.raises(RecordError, match=message):
        SearchTree.from_json(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a tree"),
        ("[]", "expected a JSON object, got list"),
        ("{}", "tree format None is not known"),
        ('{"version":1}', "expected 'problem', 'run_seed'"),
        ('{"version":1,"run_seed":0,"nodes":[]}', "not a problem record"),
        ('{"version":1,"problem":7,"run_seed":0,"nodes":[]}', "not a problem record"),
        ('{"version":1,"problem":{"question":"q"},"run_seed":0,"nodes":[3]}', "not a node record"),
        (
            '{"version":1,"problem":{"question":"q"},"run_seed":0,"nodes":[{"id":"x"}]}',
            "node x: parent: field required",
        ),
    ],
)
def test_what_is_not_a_tree_is_refused(text: str, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        SearchTree.loads(text)


def test_broken_invariants_are_found() -> None:
    a = NodeRecord(child_id(ROOT, 0, "a"), ROOT, 0, "a")
    below = NodeRecord(child_id(a.id, 0, "b"), a.id, 0, "b")
    with pytest.raises(RecordError, match=f"its parent {a.id} is missing"):
        tree_from([below]).check()
    for status in ("finished", "truncated", "failed"):
        with pytest.raises(RecordError, match=f"its parent is {status}"):
            tree_from([replace(a, status=status), below]).check()
    other = NodeRecord(child_id(ROOT, 0, "x"), ROOT, 0, "x")
    for pair in ([a, other], [other, a]):
        with pytest.raises(RecordError, match="two different children at index 0"):
            tree_from(pair).check()
    tree_from([a, below]).check()


def test_an_edited_copy_of_a_known_node_is_refused() -> None:
    a = NodeRecord(child_id(ROOT, 0, "a"), ROOT, 0, "a")
    tree = tree_from([a])
    with pytest.raises(RecordError, match="two different nodes share the id"):
        tree.merge([replace(a, text="b")])
    with pytest.raises(RecordError, match="no node 'nowhere'"):
        tree["nowhere"]


# --- networkx ----------------------------------------------------------------------------------


@given(record_lists)
@some
def test_the_networkx_view_is_the_same_tree(records: list[NodeRecord]) -> None:
    tree = tree_from(records)
    graph = tree.to_networkx()
    assert networkx.is_arborescence(graph)
    assert set(graph.nodes) == set(tree.records)
    for record in tree:
        assert list(graph.predecessors(record.id)) == ([record.parent] if record.parent else [])
        assert graph.nodes[record.id]["text"] == record.text
        assert graph.nodes[record.id]["status"] == record.status


# --- records of version 0.1 --------------------------------------------------------------------

OLD_REASONS = [
    ("pruned", "duplicate of 5c0e", "duplicate"),
    ("pruned", "near-duplicate of 5c0e", "duplicate"),
    ("pruned", "redone by strong: 0.3000 < 0.7000", "redone"),
    ("pruned", "no score: nan_logits", "unscored"),
    ("truncated", "max_depth 6 reached", "max_depth"),
    ("pruned", "prune_margin: 0.3100 < 0.8700 of 5c0e - 0.5", "pruned"),
    ("pruned", "outranked: 0.1000 is rank 3 of 4, after 5c0e", "outranked"),
    ("pruned", "rebase: a share of 0.0100 of 6 steps is none; 5c0e leads", "no_share"),
    ("pruned", "resampled: 0.1 of 6 particles drew none; 5c0e leads; ESS 2.00", "no_share"),
    ("pruned", "lookahead of 5c0e is over", "rollout"),
    ("pruned", "subtree 1: no open path is left", "not_needed"),
    ("pruned", "width 6 used up", "not_needed"),
    ("open", "not needed: 2 finished paths beat every open one", "not_needed"),
    ("open", "cut by budget: candidates 9 of 9", "budget"),
    ("failed", "cut by budget: the search's seconds were over", "budget"),
    ("failed", "duplicate of everything, said the server", "failed"),
    ("pruned", "vetoed by hand", ""),
]


@pytest.mark.parametrize(("status", "reason", "cause"), OLD_REASONS)
def test_the_cause_of_an_old_record_is_read_from_its_words(
    status: str, reason: str, cause: str
) -> None:
    old = {"id": "a", "parent": "p", "index": 0, "status": status, "reason": reason}
    record = NodeRecord.from_json(old)
    assert record.cause == cause
    assert record.merged_into == ("5c0e" if cause == "duplicate" else None)
    assert NodeRecord.from_json(record.to_json()) == record


@given(one_node)
def test_a_record_that_keeps_only_its_own_values_is_the_same_record(record: NodeRecord) -> None:
    small = NodeRecord.from_json(record.to_json())
    assert small == record
    assert small.to_json() == record.to_json()
    assert repr(small) == repr(record)
    for copied in (replace(small), copy.copy(small), copy.deepcopy(small)):
        assert copied == record


def test_the_words_of_a_reason_mean_nothing_in_a_new_record() -> None:
    record = NodeRecord("a", "p", 0, status="pruned", reason="duplicate of nothing")
    again = NodeRecord.from_json(record.to_json())
    assert again == record
    assert (again.cause, again.merged_into) == ("", None)


# --- size --------------------------------------------------------------------------------------


def _step(parent: str, index: int, text: str, **more: Any) -> NodeRecord:
    return NodeRecord(child_id(parent, index, text), parent, index, text, **more)


def test_twenty_thousand_nodes_stay_below_150_megabytes() -> None:
    tracemalloc.start()
    try:
        tree = SearchTree(Problem("q"))
        parent = tree.root_id
        for number in range(20_000):
            text = f"Step {number}: " + "so the two tiles together show the number we need " * 3
            record = _step(
                parent, number % 16, text, score=number / 20_000, round=number // 16 + 1,
                path_scores={"mean": number / 40_000}, seed=number + 1, generated_tokens=40,
            )  # fmt: skip
            tree.merge([record])
            if number % 16 == 15:
                parent = record.id if (number // 16) % 100 else tree.root_id
                parent = parent if tree.child_count(parent) == 0 else record.id
        assert len(tree) == 20_001
        assert tree.scored_twin(parent) is not None  # its index is filled on the first use
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 150e6


def _level(extra: int) -> SearchTree:
    """Return two levels of a beam search, with `extra` dead nodes beside the first level."""
    tree = SearchTree(PROBLEM)
    first = [_step(ROOT, i, f"s{i}", score=0.5, round=1, seed=1) for i in range(4)]
    dead = [
        _step(ROOT, 4 + i, f"dead {i}", score=0.1, round=1, seed=1, status="pruned")
        for i in range(extra)
    ]
    second = [
        _step(parent.id, i, f"t{i}", score=i / 8, round=2, seed=1)
        for parent in first
        for i in range(4)
    ]
    tree.merge([*first, *dead, *second])
    return tree


def _bytecodes(function: Any) -> int:
    """Return how many bytecodes of Python `function()` runs, loops and comprehensions included."""
    count = 0

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    gc.disable()  # hypothesis' own callback of the collector would be counted
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
        gc.enable()
    return count


def _round(tree: SearchTree) -> None:
    """Do what a search does with a tree in one round."""
    plan = BeamSearch(width=4, expand=4).plan(tree)
    assert len(plan.expand) == 4
    tree.merge(replace(tree[close.node], status="pruned", reason="x") for close in plan.close)
    new = [_step(e.node, i, f"u{i}", round=3, seed=1) for e in plan.expand for i in range(e.count)]
    tree.merge(new)
    waiting = tree.unscored()
    assert len(waiting) == 16
    for record in waiting:
        tree.scored_twin(record.id)
    tree.merge(replace(record, score=0.5, path_scores={"mean": 0.5}) for record in waiting)
    BeamSearch(width=4, expand=4).plan(tree)


def _deep(depth: int) -> tuple[SearchTree, list[str]]:
    """Return a path of so many scored steps, and four scored leaves below it."""
    tree, parent = SearchTree(PROBLEM), ROOT
    for number in range(depth):
        step = _step(parent, 0, f"s{number}", score=0.5, round=number + 1, seed=1)
        tree.merge([step])
        parent = step.id
    leaves = [_step(parent, i, f"l{i}", score=0.5, round=depth + 1, seed=1) for i in range(4)]
    tree.merge(leaves)
    return tree, [leaf.id for leaf in leaves]


def _grow(tree: SearchTree, leaves: list[str]) -> list[str]:
    """Propose below every leaf, score all, and return the new leaves."""
    rules = SearchRules(BeamSearch(), BestScore())
    replies = {
        Expand(leaf, 4): [Proposal(text=f"u{i}", finish="step") for i in range(4)]
        for leaf in leaves
    }
    new = take_replies(tree, replies, rules)
    for node in paths_to_score(tree, tree.unscored()):
        steps = len(tree.steps(node))
        tokens = (StepScore(0.5),) * steps
        store_scores(tree, node, len(tokens), ScoreResult(tokens), rules.aggregates)
    settle(tree, rules.aggregates)
    BeamSearch(width=4, expand=4, max_depth=256).plan(tree)
    return [record.id for record in new if record.index == 0]


def test_a_round_costs_the_same_in_a_flat_and_in_a_deep_tree() -> None:
    costs = []
    for depth in (5, 50, 200):
        tree, leaves = _deep(depth)
        leaves = _grow(tree, leaves)  # from here on, what is above is remembered
        costs.append(_bytecodes(lambda tree=tree, leaves=leaves: _grow(tree, leaves)))
    assert costs[0] > 1_000
    assert costs == [costs[0]] * 3


def test_a_round_costs_the_same_in_a_small_and_in_a_large_tree() -> None:
    _round(_level(0))  # fills the caches of ids
    costs = []
    for extra in (0, 100, 10_000):
        tree = _level(extra)
        tree.scored_twin(ROOT)  # index what was scored in earlier rounds
        costs.append(_bytecodes(lambda tree=tree: _round(tree)))
    assert costs[0] > 1_000
    assert costs == [costs[0]] * 3
