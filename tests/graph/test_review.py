"""A person prunes, prefers and edits steps at a pause; the tree records it."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.types import Command
from pydantic import ValidationError
from rich.console import Console

from tests.graph.fakes import HashChatModel, HashScorer, asked
from tests.search.strategies import EVERY
from vprm_search.errors import InputError
from vprm_search.graph import create_search_graph, search_done, tree_of_state
from vprm_search.images.store import MemoryImageStore
from vprm_search.report.html import html_page
from vprm_search.report.view import tree_view, view_of
from vprm_search.search import BeamSearch, BestOfN
from vprm_search.tree import SearchTree
from vprm_search.types import SearchResult

THREAD: Any = {"configurable": {"thread_id": "one"}}
BEAM = BeamSearch(width=3, expand=2, stop=None)


def app(saver: Any = None, **options: Any) -> Any:
    models = {"draft": HashChatModel(spread=6), "strong": HashChatModel(spread=9, max_steps=5)}
    given = {"policy": models, "scorer": HashScorer(), "strategy": BEAM, "review": True, **options}
    graph = create_search_graph(image_store=MemoryImageStore(), **given)
    return graph.compile(checkpointer=saver or InMemorySaver())


def pause_of(state: Any) -> Any:
    (interrupt,) = state["__interrupt__"]
    return interrupt.value


def to_the_end(graph: Any, state: Any, answer: Any = None) -> Any:
    for _ in range(60):
        if "__interrupt__" not in state:
            return state
        state = graph.invoke(Command(resume=answer or True), THREAD)
    raise AssertionError("it pauses for ever")


def test_a_pause_shows_the_paths_best_first_and_an_empty_answer_changes_nothing() -> None:
    graph = app()
    state = graph.invoke(asked(), THREAD)
    pause = pause_of(state)
    tree = tree_of_state(graph.get_state(THREAD).values)
    assert (pause["search"], pause["round"]) == (tree.root_id, 1)
    assert {path["node"] for path in pause["frontier"]} == {r.id for r in tree if r.parent}
    scores = [path["path_score"] for path in pause["frontier"]]
    assert scores == sorted(scores, reverse=True)
    for path in pause["frontier"]:
        assert [s["text"] for s in path["steps"]] == list(tree.steps(path["node"]))
        assert [s["score"] for s in path["steps"]] == list(tree.step_scores(path["node"]))
    assert not search_done(graph.get_state(THREAD))
    told = to_the_end(graph, state)
    alone = app(review=False).invoke(asked(), THREAD)
    assert tree_of_state(told).dumps() == tree_of_state(alone).dumps()


def test_what_is_pruned_or_not_preferred_is_gone_on_with_no_more() -> None:
    graph = app()
    state = graph.invoke(asked(), THREAD)
    first, second, *_ = (path["node"] for path in pause_of(state)["frontier"])
    state = graph.invoke(Command(resume={"prune": [first]}), THREAD)
    assert first not in {path["node"] for path in pause_of(state)["frontier"]}
    tree = tree_of_state(graph.get_state(THREAD).values)
    assert (tree[first].status, tree[first].cause) == ("pruned", "review")
    assert not tree.child_count(first)
    liked = pause_of(state)["frontier"][-1]["node"]
    state = graph.invoke(Command(resume={"prefer": [liked]}), THREAD)
    tree = tree_of_state(graph.get_state(THREAD).values)
    assert {r.parent for r in tree.round_nodes(tree.rounds)} == {liked}
    assert second in tree
    tree = tree_of_state(to_the_end(graph, state))
    assert all(not tree.child_count(r.id) for r in tree if r.cause == "review")
    assert "a person preferred" in next(r.reason for r in tree if "prefer" in r.reason)


@pytest.mark.parametrize("strategy", [BEAM, BestOfN(3)])
async def test_an_edited_step_is_scored_shown_again_and_gone_on_with(strategy: Any) -> None:
    graph = app(strategy=strategy)
    events: list[Any] = []
    state = graph.invoke(asked(), THREAD)
    worst = pause_of(state)["frontier"][-1]
    draft = worst["steps"][0]["node"]
    command = Command(resume={"edit": {draft: "Count them\none by one."}, "prefer": [draft]})
    async for mode, data in graph.astream(command, THREAD, stream_mode=["custom", "values"]):
        events += [data] if mode == "custom" else []
        state = data if mode == "values" else state
    pause = pause_of(state)
    (path,) = pause["frontier"]
    assert [s["text"] for s in path["steps"]] == ["Count them\none by one."]
    assert path["steps"][0]["score"] is not None
    assert path["steps"][0]["policy"] == "person"
    told = next(e for e in events if e["event"] == "reviewed")
    assert {n["node"] for n in told["nodes"] if n["policy"] == "person"} == {path["node"]}
    final = to_the_end(graph, state)
    tree = tree_of_state(final)
    assert (tree[draft].status, tree[draft].cause) == ("pruned", "redone")
    assert tree[path["node"]].seed == 0  # no candidate of the policy
    answer = tree.path(final["search_result"]["node"])
    assert answer[0].id == path["node"]
    assert len(answer) > 1
    shown = Console(record=True, width=200, file=io.StringIO())
    view = view_of(tree, SearchResult.from_json(final["search_result"]))
    shown.print(tree_view(view))
    text = shown.export_text()
    assert "Count them one by one." in text
    assert "by person" in text
    assert "edited by a person" in text
    assert '"policy": "person"' in html_page(view)


def test_a_person_may_write_the_answer() -> None:
    graph = app(strategy=BestOfN(2))
    state = graph.invoke(asked(), THREAD)
    draft = pause_of(state)["frontier"][0]["steps"][-1]["node"]
    state = graph.invoke(Command(resume={"edit": {draft: "Answer: 41"}, "prefer": [draft]}), THREAD)
    state = to_the_end(graph, state)
    assert state["search_result"]["answer"] == "41"


@pytest.mark.parametrize(
    "answer", [{"prune": ["nobody"]}, {"keep": []}, "yes", {"prune": [0], "prefer": [0]}]
)
def test_an_answer_that_cannot_be_is_refused_and_may_be_given_again(answer: Any) -> None:
    graph = app()
    first = pause_of(graph.invoke(asked(), THREAD))["frontier"][0]["node"]
    if isinstance(answer, dict):
        answer = {k: [first if one == 0 else one for one in v] for k, v in answer.items()}
    with pytest.raises(ValidationError):
        graph.invoke(Command(resume=answer), THREAD)
    state = graph.invoke(Command(resume={"prune": [first]}), THREAD)
    assert pause_of(state)["round"] == 2


def test_an_empty_step_is_refused() -> None:
    graph = app()
    first = pause_of(graph.invoke(asked(), THREAD))["frontier"][0]["node"]
    with pytest.raises(InputError, match="empty"):
        graph.invoke(Command(resume={"edit": {first: " \n"}}), THREAD)


def test_a_rule_says_when(tmp_path: Path) -> None:
    """And another process may answer."""
    with SqliteSaver.from_conn_string(str(tmp_path / "state.sqlite")) as saver:
        state = app(saver, review=lambda tree: tree.rounds == 2).invoke(asked(), THREAD)
        assert pause_of(state)["round"] == 2
    first = pause_of(state)["frontier"][0]["node"]
    with SqliteSaver.from_conn_string(str(tmp_path / "state.sqlite")) as saver:
        graph = app(saver, review=lambda tree: tree.rounds == 2)
        state = graph.invoke(Command(resume={"prune": [first]}), THREAD)
        assert search_done(state)
    assert tree_of_state(state)[first].cause == "review"


def choice(pause: Any, chance: random.Random) -> Any:
    """Return what some person answers."""
    nodes = [path["node"] for path in pause["frontier"]]
    steps = [s["node"] for p in pause["frontier"] for s in p["steps"][-1:]]
    kind = chance.choice(["", "", "prune", "prefer", "edit"])
    if kind == "edit":
        text = chance.choice(["Look again.", "Answer: 3", "Step by hand: tile 3 is blue."])
        return {"edit": {chance.choice(steps): text}} if chance.random() < 0.5 else True
    return {kind: chance.sample(nodes, chance.randint(1, len(nodes)))} if kind else True


def reviewed(name: str, seed: int, *, afresh: bool) -> SearchTree:
    saver, chance, pauses = InMemorySaver(), random.Random(seed), 0
    options = {"strategy": EVERY[name](), "run_seed": seed}
    graph = app(saver, **options)
    state = graph.invoke(asked(), THREAD)
    while "__interrupt__" in state:
        pauses += 1
        answer = choice(pause_of(state), chance) if pauses < 12 else True
        assert pauses < 400
        graph = app(saver, **options) if afresh else graph
        state = graph.invoke(Command(resume=answer), THREAD)
    assert search_done(state)
    tree = tree_of_state(state)
    for record in tree:
        if record.cause == "review":
            assert record.status == "pruned"
            later = [c for c in tree.children(record.id) if c.round > record.round]
            assert all(child.cause in ("review", "redone") or child.is_aside for child in later)
    chosen = state["search_result"]["node"]
    assert chosen is None or all(r.cause != "review" for r in tree.path(chosen))
    return tree


QUICK = ("beam", "best-of-n")


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in EVERY]
)
@given(seed=st.integers(0, 10_000))
@example(seed=409)  # a person's step with rollouts below it
@settings(max_examples=3)
def test_every_strategy_bears_a_person_and_a_new_process_goes_on_alike(
    name: str, seed: int
) -> None:
    here = reviewed(name, seed, afresh=False)
    assert reviewed(name, seed, afresh=True).dumps() == here.dumps()
