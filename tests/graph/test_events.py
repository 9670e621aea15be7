"""What a search tells while it runs."""

from __future__ import annotations

import itertools
import json
from typing import Any, TypedDict

import pytest
from langchain_core.messages import AnyMessage
from langgraph.graph import START, StateGraph
from langgraph.stream.transformers import CustomTransformer
from pydantic import TypeAdapter, ValidationError

from tests.graph.fakes import HashChatModel, HashScorer, asked
from tests.search.strategies import EVERY
from vprm_search.graph import arun_search, create_search_graph, tree_of_state
from vprm_search.graph.events import SearchEvent, search_event
from vprm_search.images.store import MemoryImageStore
from vprm_search.search import BeamSearch, Pruning
from vprm_search.testing import ScriptedScorer
from vprm_search.types import ScoreRequest

BEAM = BeamSearch(width=2, expand=3, pruning=Pruning(below=0.3))


def app(**options: Any) -> Any:
    given = {"policy": HashChatModel(), "scorer": HashScorer(), "strategy": BEAM, **options}
    return create_search_graph(image_store=MemoryImageStore(), **given).compile()


async def streamed(asynchronous: bool, **options: Any) -> tuple[list[dict[str, Any]], Any]:
    modes = ["custom", "values"]
    if asynchronous:
        parts = [p async for p in app(**options).astream(asked(), stream_mode=modes)]
    else:
        parts = list(app(**options).stream(asked(), stream_mode=modes))
    events = [data for mode, data in parts if mode == "custom"]
    return events, [data for mode, data in parts if mode == "values"][-1]


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_the_events_tell_the_whole_tree_in_order(asynchronous: bool) -> None:
    events, state = await streamed(asynchronous)
    tree = tree_of_state(state)
    kinds = [event["event"] for event in events]
    rounds = [event for event in events if event["event"] == "round"]
    assert [event["round"] for event in rounds] == list(range(1, tree.rounds + 1))
    assert kinds[0] == "round"
    assert kinds[-2:] == ["finished", "answer"]
    following = {
        "round": {"expanded"},
        "expanded": {"scored"},
        "scored": {"round", "pruned", "finished"},
        "pruned": {"round", "finished"},
        "finished": {"answer"},
    }
    assert all(b in following[a] for a, b in itertools.pairwise(kinds))
    assert {event["search"] for event in events} == {tree.root_id}
    assert json.loads(json.dumps(events, allow_nan=False)) == events


async def test_every_node_is_told_once_with_its_text_score_and_end() -> None:
    events, state = await streamed(
        True, policy=HashChatModel(fail=0.1), scorer=HashScorer(fail=0.1)
    )
    tree = tree_of_state(state)

    def told(kind: str) -> list[dict[str, Any]]:
        return [node for event in events if event["event"] == kind for node in event["nodes"]
                ] if kind != "finished" else []  # fmt: skip

    expanded = {node["node"]: node for node in told("expanded")}
    assert len(told("expanded")) == len(expanded) == len(tree) - 1
    assert all(tree[n].text == node["text"] for n, node in expanded.items())
    assert all(tree[n].parent == node["parent"] for n, node in expanded.items())
    scored = {node["node"]: node for node in told("scored")}
    assert set(scored) == {r.id for r in tree if r.parent and r.status != "failed"}
    assert all(tree[n].score == node["score"] for n, node in scored.items())
    assert all(node["score"] is not None or node["reason"] for node in scored.values())
    pruned = {node["node"]: node["reason"] for node in told("pruned")}
    assert pruned == {r.id: r.reason for r in tree if r.status == "pruned"}
    assert all(pruned.values())
    answer = events[-1]
    assert answer["answer"] == state["search_result"]["answer"]
    assert answer["node"] == state["search_result"]["node"]


async def test_a_search_without_a_graph_tells_the_same_events() -> None:
    heard: list[dict[str, Any]] = []
    await arun_search(
        asked()["messages"][0].content,
        policy=HashChatModel(),
        scorer=HashScorer(),
        strategy=BEAM,
        on_event=heard.append,
    )
    assert heard == (await streamed(True))[0]


def judge(model: HashChatModel) -> ScriptedScorer:
    """Return a reward model that is itself a chat model."""

    async def said(request: ScoreRequest) -> float:
        await model.ainvoke(request.problem.question)
        return 0.5

    return ScriptedScorer(said)


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_no_candidate_leaks_into_the_message_stream(asynchronous: bool) -> None:
    options = {"policy": HashChatModel(), "scorer": judge(HashChatModel())}
    if asynchronous:
        parts = [p async for p in app(**options).astream(asked(), stream_mode="messages")]
    else:
        parts = list(app(**options).stream(asked(), stream_mode="messages"))
    assert [(m.type, meta["langgraph_node"]) for m, meta in parts] == [("ai", "answer")]
    assert "Answer:" in parts[0][0].content


async def test_a_parent_graph_sees_the_events_of_a_search_inside_it() -> None:
    class State(TypedDict):
        messages: list[AnyMessage]

    parent = StateGraph(State)
    parent.add_node("search", app())
    parent.add_edge(START, "search")
    outer = parent.compile()
    heard = [data async for _, data in outer.astream(asked(), stream_mode="custom", subgraphs=True)]
    assert heard == (await streamed(True))[0]


SCHEMA: TypeAdapter[Any] = TypeAdapter(SearchEvent)


@pytest.mark.parametrize("name", ["best-of-n", "beam-pruned", "dvts", "cascade", "mcts"])
async def test_every_event_has_the_documented_shape(name: str) -> None:
    models = {"draft": HashChatModel(fail=0.1), "strong": HashChatModel(spread=9)}
    events, _ = await streamed(
        True, policy=models, scorer=HashScorer(fail=0.1), strategy=EVERY[name](), candidates=True
    )
    for event in events:
        assert SCHEMA.validate_python(event) == event
    shape = SCHEMA.json_schema()
    assert shape["discriminator"]["propertyName"] == "event"
    with pytest.raises(ValidationError, match="more"):
        SCHEMA.validate_python({**events[0], "more": 1})


def inner_and_outer() -> tuple[Any, Any]:
    class State(TypedDict):
        messages: list[AnyMessage]

    parent = StateGraph(State)
    parent.add_node("search", app())
    parent.add_edge(START, "search")
    return app(), parent.compile()


def told(parts: Any) -> list[dict[str, Any]]:
    return [event for part in parts if (event := search_event(part)) is not None]


@pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")
@pytest.mark.parametrize("place", ["alone", "subgraph"])
async def test_one_reader_finds_the_events_in_every_kind_of_stream(place: str) -> None:
    graph = inner_and_outer()[place == "subgraph"]
    below: Any = {} if place == "alone" else {"subgraphs": True}
    events = (await streamed(True))[0]
    assert told(events) == events
    assert told(graph.stream(asked(), stream_mode="custom", **below)) == events
    assert told(graph.stream(asked(), stream_mode=["custom", "updates"], **below)) == events
    modes: Any = ["custom", "values"]
    assert told(graph.stream(asked(), stream_mode=modes, version="v2", **below)) == events
    parts = [p async for p in graph.astream(asked(), stream_mode="custom", version="v2", **below)]
    assert told(parts) == events
    run = graph.stream_events(asked(), version="v3", transformers=[CustomTransformer])
    assert told(run) == events
