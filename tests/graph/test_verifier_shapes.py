"""The verifier where graphs have shapes: many messages, `Send`, subgraphs, people, a supervisor."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Command, Send, interrupt

from vprm_search.graph import VerdictsState, VerifierState, create_verifier_node
from vprm_search.graph.verdict import merge_verdicts
from vprm_search.images.store import MemoryImageStore
from vprm_search.testing import ScriptedScorer
from vprm_search.types import ScoreRequest

THREAD: Any = {"configurable": {"thread_id": "one"}}
ASKED = {"messages": [HumanMessage("How many tiles?", id="q")]}


def by_word(request: ScoreRequest) -> float:
    return 0.95 if "right" in request.steps[-1] else 0.1


def verifier(**options: Any) -> Any:
    scorer = ScriptedScorer(by_word)
    return create_verifier_node(scorer, image_store=MemoryImageStore(), **options), scorer


class Each(VerdictsState):
    messages: Annotated[list[AnyMessage], add_messages]


class Last(VerifierState):
    messages: Annotated[list[AnyMessage], add_messages]


def said(*answers: str) -> Any:
    """A node that gives its answers one after the other."""
    left = iter(answers)
    return lambda state: {"messages": [AIMessage(next(left))]}


def loop(schema: type[Any], *answers: str, **route: Any) -> Any:
    node, _ = verifier()
    graph = StateGraph(schema)
    graph.add_node("agent", said(*answers))
    graph.add_node("verify", node)
    graph.add_edge(START, "agent")
    graph.add_edge("agent", "verify")
    graph.add_conditional_edges("verify", node.route(on_fail="agent", **route), ["agent", END])
    return graph


def test_every_message_keeps_its_verdict() -> None:
    app = loop(Each, "2, right", "3", "2, right").compile(checkpointer=InMemorySaver())
    app.invoke(ASKED, THREAD)
    state = app.invoke({"messages": [HumanMessage("And now?")]}, THREAD)
    answers = [m.id for m in state["messages"] if isinstance(m, AIMessage)]
    assert list(state["vprm"]) == answers
    found = [(v["outcome"], v["failures"]) for v in state["vprm"].values()]
    assert found == [("passed", 0), ("failed", 1), ("passed", 0)]
    assert len({v["question_id"] for v in state["vprm"].values()}) == 2


def test_the_tries_of_a_question_are_counted_over_its_messages() -> None:
    app = loop(Each, *["3"] * 9, max_retries=2).compile()
    state = app.invoke(ASKED)
    assert [v["failures"] for v in state["vprm"].values()] == [1, 2, 3]


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_drafts_are_judged_side_by_side_by_send(asynchronous: bool) -> None:
    node, scorer = verifier()

    class State(Each):
        drafts: list[str]

    def fan(state: dict[str, Any]) -> list[Send]:
        return [
            Send("verify", {"messages": [*state["messages"], AIMessage(text, id=f"draft-{i}")]})
            for i, text in enumerate(state["drafts"])
        ]

    def choose(state: dict[str, Any]) -> dict[str, Any]:
        best = max(state["vprm"].values(), key=lambda verdict: verdict["score"])
        return {"messages": [AIMessage(best["steps"][0]["text"])]}

    graph = StateGraph(State)
    graph.add_node("verify", node)
    graph.add_node("choose", choose)
    graph.add_conditional_edges(START, fan, ["verify"])
    graph.add_edge("verify", "choose")
    app = graph.compile()
    given = {**ASKED, "drafts": ["3", "2, right", "4"]}
    state = await app.ainvoke(given) if asynchronous else app.invoke(given)
    assert list(state["vprm"]) == ["draft-0", "draft-1", "draft-2"]
    assert [v["outcome"] for v in state["vprm"].values()] == ["failed", "passed", "failed"]
    assert state["messages"][-1].text == "2, right"
    assert len(scorer.asked) == 3


@pytest.mark.parametrize("schema", [Each, Last])
def test_a_verdict_of_a_subgraph_reaches_its_parent(schema: type[Any]) -> None:
    inner = loop(schema, "3", "2, right").compile()
    graph = StateGraph(schema)
    graph.add_node("solve", inner)
    graph.add_edge(START, "solve")
    state = graph.compile().invoke(ASKED)
    verdicts = list(state["vprm"].values()) if schema is Each else [state["vprm"]]
    assert verdicts[-1]["outcome"] == "passed"
    assert verdicts[-1]["message_id"] == state["messages"][-1].id


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_person_reviews_in_a_node_of_its_own_and_nothing_is_scored_again(
    asynchronous: bool,
) -> None:
    node, scorer = verifier()

    def review(state: Last) -> Command[Any]:
        answer = interrupt({"verdict": state["vprm"], "message": state["messages"][-1].text})
        return Command(goto=END if answer == "accept" else "agent")

    graph = StateGraph(Last)
    graph.add_node("agent", said("3", "2, right"))
    graph.add_node("verify", node)
    graph.add_node("review", review, destinations=("agent", END))
    graph.add_edge(START, "agent")
    graph.add_edge("agent", "verify")
    graph.add_conditional_edges(
        "verify", node.route(on_fail="review", on_exhausted="review"), ["review", END]
    )
    app = graph.compile(checkpointer=InMemorySaver())
    state = await app.ainvoke(ASKED, THREAD) if asynchronous else app.invoke(ASKED, THREAD)
    (asked,) = state["__interrupt__"]
    assert asked.value["verdict"]["outcome"] == "failed"
    assert len(scorer.asked) == 1
    again: Any = Command(resume="again")
    state = await app.ainvoke(again, THREAD) if asynchronous else app.invoke(again, THREAD)
    assert state["messages"][-1].text == "2, right"
    assert len(scorer.asked) == 2


def test_a_supervisor_hands_a_doubted_answer_to_another_worker() -> None:
    node, _ = verifier()

    def worker(*answers: str) -> Any:
        graph = StateGraph(MessagesState)
        graph.add_node("agent", said(*answers))
        graph.add_edge(START, "agent")
        return graph.compile()

    def supervise(state: Each) -> Command[Any]:
        tried = sum(isinstance(m, AIMessage) for m in state["messages"])
        return Command(goto=["quick", "careful", END][tried])

    graph = StateGraph(Each)
    graph.add_node("supervisor", supervise, destinations=("quick", "careful", END))
    graph.add_node("quick", worker("3"))
    graph.add_node("careful", worker("2, right"))
    graph.add_node("verify", node)
    graph.add_edge(START, "supervisor")
    graph.add_edge("quick", "verify")
    graph.add_edge("careful", "verify")
    graph.add_conditional_edges("verify", node.route(on_fail="supervisor"), ["supervisor", END])
    app = graph.compile()
    visited = [name for step in app.stream(ASKED) for name in step]
    assert visited == ["supervisor", "quick", "verify", "supervisor", "careful", "verify"]


verdicts = st.builds(
    lambda name, outcome: {"message_id": name, "outcome": outcome},
    st.sampled_from("abc"),
    st.sampled_from(["passed", "failed"]),
)


@given(st.lists(verdicts, max_size=6))
def test_the_latest_verdict_on_a_message_stands_last(written: list[dict[str, Any]]) -> None:
    table: dict[str, Any] = {}
    for one in written:
        table = merge_verdicts(table, one)
        assert list(table.values())[-1] == one
    assert table == {one["message_id"]: one for one in written}
    assert merge_verdicts({}, table) == table
