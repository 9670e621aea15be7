"""The search graph: one search gives one tree, whatever runs it."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages

from tests.benchmarks.framework import sqlite_bytes
from tests.graph.fakes import QUESTION, HashChatModel, HashScorer, asked, noisy_png
from vprm_search.budget import Budget
from vprm_search.errors import ConfigError, InputError, NoAnswerError, RecordError, SearchError
from vprm_search.graph import (
    SearchGraph,
    SearchState,
    create_search_graph,
    run_search,
    tree_of_state,
)
from vprm_search.images.store import MemoryImageStore
from vprm_search.search import BeamSearch, BestOfN, BestScore, MajorityVote, Plan, Pruning, Strategy
from vprm_search.search.plan import Expand
from vprm_search.testing import ChatCall
from vprm_search.tree import SearchTree
from vprm_search.types import Proposal, ProposeRequest, ScoreRequest, ScoreResult, SearchResult

PNG = noisy_png(64)
BEAM = BeamSearch(width=3, expand=3)
STRATEGIES = [
    BestOfN(6),
    BEAM,
    BeamSearch(width=2, expand=4, pruning=Pruning(below=0.4), stop=None),
]
THREAD: Any = {"configurable": {"thread_id": "one"}}
THREAD_ROOT: Any = {"configurable": {"thread_id": "one", "checkpoint_ns": ""}}


def graph(**options: Any) -> SearchGraph:
    given = {
        "policy": HashChatModel(),
        "scorer": HashScorer(),
        "strategy": BEAM,
        "image_store": MemoryImageStore(),
    }
    return create_search_graph(**{**given, **options})


def timeless(state: dict[str, Any]) -> dict[str, Any]:
    """Return the result without its only figure that differs between two equal searches."""
    result = json.loads(json.dumps(state["search_result"]))
    del result["usage"]["seconds"]
    return result


# --- one search, one tree --------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: f"{type(s).__name__}")
async def test_every_way_to_run_a_search_grows_the_same_tree(
    strategy: Strategy, tmp_path: Path
) -> None:
    states = [await graph(strategy=strategy).compile().ainvoke(asked(png=PNG))]
    states.append(
        await asyncio.to_thread(graph(strategy=strategy).compile().invoke, asked(png=PNG))
    )
    states.append(graph(strategy=strategy).compile().invoke(asked(png=PNG)))  # inside a loop
    memory = graph(strategy=strategy).compile(checkpointer=InMemorySaver())
    states.append(await memory.ainvoke(asked(png=PNG), THREAD))
    with SqliteSaver.from_conn_string(str(tmp_path / "sync.sqlite")) as saver:
        app = graph(strategy=strategy).compile(checkpointer=saver)
        states.append(app.invoke(asked(png=PNG), THREAD, durability="sync"))
        states.append(app.get_state(THREAD).values)
    async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "async.sqlite")) as saver:
        delta = graph(strategy=strategy, delta_checkpoints=True).compile(checkpointer=saver)
        states.append(await delta.ainvoke(asked(png=PNG), THREAD))
        states.append((await delta.aget_state(THREAD)).values)
    trees = {tree_of_state(state).dumps() for state in states}
    assert len(trees) == 1
    assert all(timeless(state) == timeless(states[0]) for state in states)
    assert len(tree_of_state(states[0])) > 6


def test_the_graph_grows_the_tree_of_a_search_without_a_graph() -> None:
    state = graph().compile().invoke(asked(png=PNG))
    alone = run_search(
        QUESTION, images=[PNG], policy=HashChatModel(), scorer=HashScorer(), strategy=BEAM
    )
    assert alone.tree.dumps() == tree_of_state(state).dumps()
    assert alone.result.answer == state["search_result"]["answer"]


def test_the_run_seed_makes_other_draws_and_the_same_seed_the_same() -> None:
    first, again, other = (
        tree_of_state(graph(run_seed=seed).compile().invoke(asked())) for seed in (1, 1, 2)
    )
    assert first.dumps() == again.dumps()
    assert {r.text for r in first} != {r.text for r in other}


async def test_sixteen_searches_at_once_are_the_sixteen_alone() -> None:
    app = graph(policy=HashChatModel(delay_s=0.001)).compile(checkpointer=InMemorySaver())
    questions = [f"{QUESTION} Board {number // 2}." for number in range(16)]

    async def search(number: int, question: str) -> str:
        config = {"configurable": {"thread_id": str(number)}}
        return tree_of_state(await app.ainvoke(asked(question), config)).dumps()

    together = await asyncio.gather(*(search(n, q) for n, q in enumerate(questions)))
    alone = [tree_of_state(graph().compile().invoke(asked(q))).dumps() for q in questions]
    assert together == alone
    assert len(set(alone)) == 8


def test_the_message_channel_may_have_another_name_and_schema() -> None:
    class Mine(TypedDict):
        chat: Annotated[list[AnyMessage], add_messages]
        note: str

    app = graph(messages_key="chat", state_schema=Mine).compile(checkpointer=InMemorySaver())
    out = app.invoke({"chat": asked()["messages"], "note": "kept"}, THREAD)
    assert set(out) == {"chat", "note"}
    assert out["note"] == "kept"
    saved = app.get_state(THREAD).values
    assert out["chat"][-1].content == saved["search_result"]["text"]
    named = graph(messages_key="chat").compile().invoke({"chat": asked()["messages"]})
    assert tree_of_state(named).dumps() == tree_of_state(saved).dumps()


def test_a_schema_that_does_not_fit_is_refused() -> None:
    class Mine(TypedDict):
        chat: Annotated[list[AnyMessage], add_messages]

    with pytest.raises(ConfigError, match="no key 'messages'"):
        graph(state_schema=Mine)
    with pytest.raises(ConfigError, match="search_nodes"):
        graph(state_schema=SearchState, delta_checkpoints=False)
    with pytest.raises(ConfigError, match="not str"):
        graph(policy="gpt")


def test_the_graph_is_drawn_as_designed() -> None:
    drawn = graph().compile().get_graph()
    edges = {(edge.source, edge.target) for edge in drawn.edges}
    assert edges == {
        ("__start__", "ingest"),
        ("ingest", "plan"),
        ("plan", "propose"),
        ("propose", "score"),
        ("score", "plan"),
        ("plan", "answer"),
        ("answer", "__end__"),
    }


# --- conversations -----------------------------------------------------------------------------


def test_the_answer_is_a_small_message_with_scores_usage_and_the_trees_digest() -> None:
    state = graph(strategy=BestOfN(64)).compile().invoke(asked(png=PNG))
    answer = state["messages"][-1]
    result, tree = state["search_result"], tree_of_state(state)
    assert isinstance(answer, AIMessage)
    assert answer.content == result["text"]
    said = answer.response_metadata["vprm"]
    told = {key: value for key, value in result.items() if key != "text"}
    assert said == {**told, "tree": tree.digest()}
    assert json.loads(json.dumps(result)) == result
    assert len(json.dumps(answer.response_metadata)) < 1000
    assert "candidates" not in result
    assert 0 <= said["score"] <= 1
    assert answer.usage_metadata == {
        "input_tokens": sum(r.prompt_tokens for r in tree),
        "output_tokens": sum(r.generated_tokens for r in tree),
        "total_tokens": sum(r.prompt_tokens + r.generated_tokens for r in tree),
    }
    assert result["usage"]["candidates"] == 64


def test_candidates_come_on_request() -> None:
    small = graph(strategy=BestOfN(8)).compile()
    app = graph(strategy=BestOfN(8), candidates=True).compile()
    state = app.invoke(asked(png=PNG))
    listed = state["search_result"]["candidates"]
    assert SearchResult.from_json(state["search_result"]).to_json() == state["search_result"]
    assert state["messages"][-1].response_metadata["vprm"]["candidates"] == listed
    tree = tree_of_state(small.invoke(asked(png=PNG)))
    assert {c["node"] for c in listed} == {record.id for record in tree.finished()}
    for candidate in listed:
        assert tuple(candidate["step_scores"]) == tree.step_scores(candidate["node"])
    told = [e for e in small.stream(asked(png=PNG), stream_mode="custom") if e["event"] == "answer"]
    assert told[0]["candidates"] == listed


def test_the_problem_is_read_from_the_whole_conversation() -> None:
    store = MemoryImageStore()
    app = graph(image_store=store).compile(checkpointer=InMemorySaver())
    system = SystemMessage("Answer briefly.", id="system")
    first = app.invoke({"messages": [system, *asked(png=PNG)["messages"]]}, THREAD)
    digest = first["search_problem"]["images"][0]
    assert store.get(digest).digest == digest
    assert first["search_problem"]["system"] == "Answer briefly."
    follow_up = {"messages": [HumanMessage("And how many are blue?")]}
    second = app.invoke(follow_up, THREAD)
    problem = second["search_problem"]
    assert problem["question"].endswith("And how many are blue?")
    assert (problem["images"], problem["system"]) == ([digest], "Answer briefly.")
    assert problem["context"] != first["search_problem"].get("context", "")
    kinds = [message.type for message in second["messages"]]
    assert kinds == ["system", "human", "ai", "human", "ai"]
    assert second["messages"][2] == first["messages"][2]
    assert tree_of_state(second).root_id != tree_of_state(first).root_id
    assert all(r.round <= second["search_result"]["usage"]["rounds"] for r in tree_of_state(second))


def test_the_same_question_again_is_searched_anew_and_answered_again() -> None:
    model = HashChatModel()
    app = graph(policy=model).compile(checkpointer=InMemorySaver())
    first = app.invoke({"messages": [HumanMessage(QUESTION)]}, THREAD)
    calls = len(model.calls)
    second = app.invoke({"messages": [HumanMessage(QUESTION)]}, THREAD)
    assert len(model.calls) > calls
    assert tree_of_state(first).root_id != tree_of_state(second).root_id  # it knows its answer now
    assert [message.type for message in second["messages"]] == ["human", "ai", "human", "ai"]


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([AIMessage("hello")], "human message"),
        ([HumanMessage("  ")], "no text"),
        (
            [
                HumanMessage(
                    [{"type": "image", "url": "http://x.test/a.png"}, {"type": "text", "text": "?"}]
                )
            ],
            "never fetched",
        ),
    ],
)
def test_a_conversation_without_a_question_is_refused(
    messages: list[AnyMessage], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        graph().compile().invoke({"messages": messages})


def test_a_search_is_a_node_of_a_larger_graph() -> None:
    class Parent(TypedDict):
        messages: Annotated[list[AnyMessage], add_messages]

    parent = StateGraph(Parent)
    parent.add_node("search", graph().compile())
    parent.add_node("thank", lambda state: {"messages": [AIMessage("done")]})
    parent.add_edge(START, "search")
    parent.add_edge("search", "thank")
    parent.add_edge("thank", END)
    app = parent.compile(checkpointer=InMemorySaver())
    out = app.invoke(asked(), THREAD)
    expected = graph().compile().invoke(asked())
    said = expected["messages"][-1].response_metadata["vprm"]
    assert timeless({"search_result": out["messages"][-2].response_metadata["vprm"]}) == timeless(
        {"search_result": said}
    )
    assert out["messages"][-1].content == "done"


# --- how a search ends -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["candidates", "rounds", "generated_tokens", "scored_tokens"])
def test_a_budget_ends_the_search_and_says_which(name: str) -> None:
    whole = BeamSearch(width=3, expand=3, stop=None)
    free = graph(strategy=whole).compile().invoke(asked())["search_result"]["usage"]
    limit = free[name] // 2
    short = graph(strategy=whole, budget=Budget(**{name: limit})).compile()
    result = short.invoke(asked())["search_result"]
    spent = result["usage"][name]
    assert result["ended_by"].startswith(f"budget: {name} {spent} of {limit}")
    assert limit // 2 < spent < free[name]
    assert spent == limit or name not in ("candidates", "rounds")
    assert result["text"]


def test_a_time_limit_ends_the_search_after_the_round_under_way() -> None:
    result = graph(budget=Budget(seconds=1e-9)).compile().invoke(asked())["search_result"]
    assert result["ended_by"].startswith("budget: seconds ")
    assert result["usage"]["rounds"] == 1


def test_no_finished_path_is_a_flag_or_an_error() -> None:
    short = {"strategy": BeamSearch(max_depth=1), "policy": HashChatModel(max_steps=9)}
    result = graph(**short).compile().invoke(asked())["search_result"]
    assert result["fallback"] is True
    assert result["text"].startswith("Step 1")
    with pytest.raises(NoAnswerError, match="on_no_answer"):
        graph(**short, on_no_answer="error").compile().invoke(asked())


class Idle:
    """A strategy that breaks its contract: it neither expands nor ends, or repeats itself."""

    aggregates = ()

    def __init__(self, *, repeats: bool) -> None:
        self.repeats = repeats

    def plan(self, tree: SearchTree) -> Plan:
        return Plan(expand=(Expand(tree.root_id, 2),) if self.repeats or not tree.rounds else ())


@pytest.mark.parametrize("repeats", [True, False])
def test_a_strategy_that_goes_nowhere_is_an_error(repeats: bool) -> None:
    with pytest.raises(SearchError, match="Idle"):
        graph(strategy=Idle(repeats=repeats)).compile().invoke(asked())


# --- what goes wrong ---------------------------------------------------------------------------


def test_failed_calls_and_unscored_steps_cost_their_own_candidates_only() -> None:
    state = (
        graph(
            policy=HashChatModel(fail=0.2),
            scorer=HashScorer(fail=0.1),
            strategy=BeamSearch(stop=None),
        )
        .compile()
        .invoke(asked())
    )
    tree = tree_of_state(state)
    failed = [r for r in tree if r.status == "failed"]
    unscored = [r for r in tree if r.score_reason]
    assert failed
    assert unscored
    assert all("made to fail" in r.reason for r in failed)
    assert state["search_result"]["score"] is not None
    assert tree[state["search_result"]["node"]].status == "finished"
    assert all(r.score is None for r in unscored)
    assert state["search_result"]["node"] not in {r.id for r in unscored}


def test_when_every_call_fails_there_is_still_a_result() -> None:
    state = graph(policy=HashChatModel(fail=1.0)).compile().invoke(asked())
    assert state["search_result"]["answer"] is None
    assert state["search_result"]["fallback"] is True
    assert "No answer was found" in state["messages"][-1].content
    assert all("made to fail" in r.reason for r in tree_of_state(state) if r.parent)


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_a_passing_trouble_is_tried_again_and_changes_nothing(asynchronous: bool) -> None:
    scorer = HashScorer(rounds={2: TimeoutError("slow")})
    app = graph(scorer=scorer).compile()
    state = await app.ainvoke(asked()) if asynchronous else app.invoke(asked())
    assert len(scorer.batches) > 2
    assert tree_of_state(state).dumps() == tree_of_state(graph().compile().invoke(asked())).dumps()


def test_a_broken_scorer_loses_nothing_that_was_found() -> None:
    scorer = HashScorer(rounds={2: ValueError("no model")})
    model = HashChatModel()
    app = graph(scorer=scorer, policy=model).compile(checkpointer=InMemorySaver())
    with pytest.raises(ValueError, match="no model"):
        app.invoke(asked(), THREAD)
    before = len(model.calls)
    state = app.invoke(None, THREAD)
    whole = HashChatModel()
    expected = graph(policy=whole).compile().invoke(asked())
    assert tree_of_state(state).dumps() == tree_of_state(expected).dumps()
    assert before > 0
    assert len(model.calls) == len(whole.calls)


class Miscounting:
    """A policy or scorer that returns one reply too few."""

    async def propose(self, requests: list[ProposeRequest]) -> list[list[Proposal]]:
        return [[Proposal("Step", "step")] for _ in requests]

    async def score(self, requests: list[ScoreRequest]) -> list[ScoreResult]:
        return []


def test_a_policy_or_scorer_that_miscounts_is_named() -> None:
    with pytest.raises(Exception, match="the policy was asked for"):
        graph(policy=Miscounting()).compile().invoke(asked())
    with pytest.raises(Exception, match="the scorer got"):
        graph(scorer=Miscounting()).compile().invoke(asked())


def test_a_search_inside_a_larger_graph_goes_on_where_it_was() -> None:
    class Parent(TypedDict):
        messages: Annotated[list[AnyMessage], add_messages]

    scorer = HashScorer(rounds={2: ValueError("no model")})
    model = HashChatModel()
    parent = StateGraph(Parent)
    parent.add_node("search", graph(policy=model, scorer=scorer).compile())
    parent.add_edge(START, "search")
    app = parent.compile(checkpointer=InMemorySaver())
    with pytest.raises(ValueError, match="no model"):
        app.invoke(asked(), THREAD)
    out = app.invoke(None, THREAD)
    whole = HashChatModel()
    expected = graph(policy=whole).compile().invoke(asked())
    assert out["messages"][-1].content == expected["messages"][-1].content
    assert len(model.calls) == len(whole.calls)


async def test_a_cancelled_search_leaves_no_task_and_goes_on_later() -> None:
    model = HashChatModel(delay_s=0.02)
    app = graph(policy=model).compile(checkpointer=InMemorySaver())
    before = asyncio.all_tasks()
    for _ in range(4):
        begun = len(model.calls)
        given = None if begun else asked()
        running = asyncio.create_task(app.ainvoke(given, THREAD))
        while len(model.calls) == begun and not running.done():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert asyncio.all_tasks() == before
    state = await app.ainvoke(None, THREAD)
    assert tree_of_state(state).dumps() == tree_of_state(graph().compile().invoke(asked())).dumps()


def test_copies_of_the_compiled_graph_are_as_careful_with_pictures() -> None:
    saver = InMemorySaver()
    app = graph().compile(checkpointer=saver)
    assert app.name == "vprm-search"
    for other in (app.with_config(tags=["x"]), app.copy({"name": "mine"})):
        assert type(other) is type(app)
        other.invoke(asked(png=PNG), THREAD)
    held = repr([checkpoint.checkpoint for checkpoint in saver.list(THREAD)])
    assert "vprm-image://" in held
    assert "base64" not in held


# --- checkpoints -------------------------------------------------------------------------------


@pytest.mark.parametrize("delta", [False, True])
def test_every_checkpoint_is_a_place_to_go_on_from(delta: bool) -> None:
    app = graph(delta_checkpoints=delta).compile(checkpointer=InMemorySaver())
    expected = tree_of_state(app.invoke(asked(), THREAD)).dumps()
    history = [s for s in app.get_state_history(THREAD) if s.next and s.next != ("__start__",)]
    assert len(history) > 6
    for snapshot in history:
        forked = app.invoke(None, snapshot.config)
        assert tree_of_state(forked).dumps() == expected


@pytest.mark.parametrize("delta", [False, True])
def test_a_paused_search_may_be_edited(delta: bool) -> None:
    app = graph(delta_checkpoints=delta).compile(
        checkpointer=InMemorySaver(), interrupt_before=["plan"]
    )
    app.invoke(asked(), THREAD)
    app.invoke(None, THREAD)
    values = app.get_state(THREAD).values
    best = max((r for r in tree_of_state(values) if r.score), key=lambda r: r.score or 0)
    veto = {**values["search_nodes"][best.id], "status": "pruned", "reason": "vetoed by hand"}
    app.update_state(THREAD, {"search_nodes": {best.id: veto}}, as_node="score")
    while app.get_state(THREAD).next:
        app.invoke(None, THREAD)
    tree = tree_of_state(app.get_state(THREAD).values)
    assert tree[best.id].reason == "vetoed by hand"
    assert not tree.children(best.id)


def test_the_file_of_a_search_grows_with_its_nodes_and_not_with_their_square() -> None:
    sizes = [sqlite_bytes(nodes) for nodes in (640, 1280, 2560)]
    assert sizes[2] - sizes[1] < 2.4 * (sizes[1] - sizes[0])
    assert sizes[2] < 2000 * 2560


def test_missing_checkpoints_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    with SqliteSaver.from_conn_string(str(path)) as saver:
        app = graph().compile(checkpointer=saver, interrupt_before=["answer"])
        app.invoke(asked(), THREAD)
        whole = len(tree_of_state(app.get_state(THREAD).values))
        newest = app.get_state(THREAD).config["configurable"]["checkpoint_id"]
        for table in ("checkpoints", "writes"):  # what a job that keeps the newest one does
            saver.conn.execute(f"delete from {table} where checkpoint_id != ?", (newest,))
        with pytest.raises(RecordError, match=rf"\d of the {whole} nodes.*delta_checkpoints=False"):
            app.invoke(None, THREAD)


def test_a_saver_may_keep_the_last_checkpoint_alone() -> None:
    saver = InMemorySaver()
    app = graph(delta_checkpoints=False).compile(checkpointer=saver, interrupt_before=["answer"])
    app.invoke(asked(), THREAD)
    last = saver.get_tuple(THREAD)
    assert last is not None
    other = InMemorySaver()
    other.put(THREAD_ROOT, last.checkpoint, last.metadata, last.checkpoint["channel_versions"])
    again = graph(delta_checkpoints=False).compile(checkpointer=other)
    expected = tree_of_state(graph().compile().invoke(asked()))
    assert tree_of_state(again.invoke(None, THREAD)).dumps() == expected.dumps()


class Garbling(HashChatModel):
    """Writes text that no database keeps as it is: NUL, and half of a surrogate pair."""

    def written(self, call: ChatCall) -> AIMessage:
        message = super().written(call)
        return message.model_copy(update={"content": f"\x00{message.content}\ud83d"})


def test_text_that_a_checkpoint_would_change_is_changed_before(tmp_path: Path) -> None:
    question = f"\ud83d\x00 {QUESTION}"
    trees = []
    for pause in ([], ["plan", "propose", "score", "answer"]):
        with SqliteSaver.from_conn_string(str(tmp_path / f"{len(pause)}.sqlite")) as saver:
            waiting = True
            while waiting:
                app = graph(policy=Garbling()).compile(checkpointer=saver, interrupt_before=pause)
                app.invoke(None if saver.get_tuple(THREAD) else asked(question), THREAD)
                waiting = bool(app.get_state(THREAD).next)
                values = app.get_state(THREAD).values
            trees.append(tree_of_state(values))
    assert trees[0].dumps() == trees[1].dumps()
    assert trees[0].problem.question == f"\ufffd\ufffd {QUESTION}"
    assert sum("\ufffd" in record.text for record in trees[0]) > 6


def test_a_server_can_show_the_schemas_of_the_graph() -> None:
    app = graph().compile()
    for schema in (app.get_input_jsonschema(), app.get_output_jsonschema()):
        assert {"messages", "search_problem", "search_result"} <= set(schema["properties"])
    assert app.get_context_jsonschema() is None


def test_a_damaged_state_is_refused() -> None:
    state = graph().compile().invoke(asked())
    node = next(iter(state["search_nodes"]))
    for damage in (
        {node: {**state["search_nodes"][node], "surprise": 1}},
        {"other": {"id": "other", "parent": node, "index": 0}},
    ):
        with pytest.raises(RecordError):
            tree_of_state({**state, "search_nodes": {**state["search_nodes"], **damage}})
    with pytest.raises(RecordError, match="no search"):
        tree_of_state({"messages": []})


@pytest.mark.parametrize("selector", [BestScore(), MajorityVote()])
def test_nothing_but_plain_json_is_written(
    selector: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with SqliteSaver.from_conn_string(str(tmp_path / "s.sqlite")) as saver:
        app = graph(selector=selector).compile(checkpointer=saver)
        app.invoke(asked(png=PNG), THREAD)
        for snapshot in app.get_state_history(THREAD):
            searched = {k: v for k, v in snapshot.values.items() if k.startswith("search_")}
            assert json.loads(json.dumps(searched, allow_nan=False)) == searched
    said = " ".join(record.getMessage().lower() for record in caplog.records)
    assert "unregistered" not in said
    assert "blocked" not in said
