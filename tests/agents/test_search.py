"""Searches over trajectories: what runs, what is asked, what comes back, in all sorts of agents."""

from __future__ import annotations

import itertools
import operator
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, AgentState, HumanInTheLoopMiddleware
from langchain.tools import InjectedToolCallId, ToolRuntime
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import Command, interrupt
from pydantic import ValidationError

from tests.graph.fakes import noisy_png
from vprm_search import (
    BeamSearch,
    BestFirst,
    BestOfN,
    Budget,
    ParticleFilter,
    ProcessRewardMiddleware,
    create_agent_search,
    image_message,
    tree_of_state,
)
from vprm_search.errors import ConfigError
from vprm_search.images.store import MemoryImageStore
from vprm_search.search import DVTS, MCTS, REBASE
from vprm_search.testing import ChatCall, ScriptedChatModel, ScriptedScorer, chance
from vprm_search.types import ScoreRequest

THREAD: Any = {"configurable": {"thread_id": "one"}}
ASKED = {"messages": [HumanMessage("Add 1 until you have 3.", id="q")]}
RAN: list[Any] = []


@pytest.fixture(autouse=True)
def _no_tool_ran() -> None:
    RAN.clear()


@tool
def add(left: int, right: int) -> str:
    """Add two numbers."""
    RAN.append((left, right))
    return str(left + right)


def call(left: int, right: int, number: int) -> AIMessage:
    args = {"left": left, "right": right}
    return AIMessage("", tool_calls=[{"name": "add", "args": args, "id": f"call-{number}"}])


NUMBERS = itertools.count()  # a model asked from several threads counts wrongly


def counting(asked: ChatCall) -> AIMessage:
    """Add 1, 2, or 3 to what the last tool said; end at 3 or more."""
    last, number = asked.messages[-1], next(NUMBERS)
    if isinstance(last, ToolMessage) and last.status == "error":
        return AIMessage("Answer: none")
    have = int(str(last.text)) if isinstance(last, ToolMessage) else 0
    if have >= 3:
        return AIMessage(f"Answer: {have}")
    return call(have, 1 + number % 3, number)


def by_ones(request: ScoreRequest) -> float:
    """Adding 1 is right, adding more is the worse the more it is."""
    step = request.steps[-1]
    return {"1": 0.9, "2": 0.5, "3": 0.2}.get(step.rpartition("right = ")[2].rstrip("."), 0.8)


def counted(**options: Any) -> Any:
    return create_agent(ScriptedChatModel(counting), [add], **options)


def searched(agent: Any, **options: Any) -> Any:
    given = {"scorer": ScriptedScorer(by_ones), "image_store": MemoryImageStore(), **options}
    return create_agent_search(agent, **given).compile(checkpointer=InMemorySaver())


async def ask(graph: Any, given: Any, asynchronous: bool) -> dict[str, Any]:
    run = await graph.ainvoke(given, THREAD) if asynchronous else graph.invoke(given, THREAD)
    return dict(run)


both = pytest.mark.parametrize("asynchronous", [False, True])


@both
async def test_the_winner_alone_comes_back_and_losers_never_act(asynchronous: bool) -> None:
    graph = searched(counted(), strategy=BeamSearch(width=1, expand=3))
    state = await ask(graph, ASKED, asynchronous)
    assert RAN == [(0, 1), (1, 1), (2, 1)]
    assert [m.type for m in state["messages"]] == ["human", *["ai", "tool"] * 3, "ai"]
    assert state["messages"][-1].text == "Answer: 3"
    told = state["messages"][-1].response_metadata["vprm"]
    assert told["answer"] == "3"
    # three children of four nodes; two slots of equal answers are asked for once more
    assert told["usage"]["requests"] == 14
    tree = tree_of_state(state)
    steps = [r.text for r in tree.path(state["search_result"]["node"])]
    assert steps[0] == "I call the tool add with left = 0, right = 1."
    assert steps[1].startswith("The tool add returned: 1\nI call the tool add with left = 1, right")
    assert str(tree.digest()) == told["tree"]
    # the branches are gone, and the next question starts anew
    saver = graph.checkpointer
    assert list(saver.storage) == ["one"]
    again = await ask(graph, {"messages": [HumanMessage("And again?")]}, asynchronous)
    assert again["messages"][: len(state["messages"])] == state["messages"]
    assert again["messages"][-1].text == "Answer: 3"


@pytest.mark.parametrize(
    "strategy",
    [
        BeamSearch(width=2, expand=2),
        BestFirst(expand=3),
        ParticleFilter(particles=4),
        REBASE(width=3),
        DVTS(width=2, expand=2),
        MCTS(expand=2, simulations=6),
    ],
    ids=lambda strategy: type(strategy).__name__,
)
def test_every_stepwise_strategy_finds_a_trajectory(strategy: Any) -> None:
    state = searched(counted(), strategy=strategy).invoke(ASKED, THREAD)
    assert state["messages"][-1].text.startswith("Answer: ")
    assert len(RAN) == len(set(RAN))  # equal calls of several branches ran once


def test_equal_calls_run_once_and_each_branch_has_the_result() -> None:
    def twice(asked: ChatCall) -> AIMessage:
        said = [m for m in asked.messages if isinstance(m, AIMessage)]
        if len(said) == 2:
            return AIMessage(f"Answer: {asked.messages[-1].text}")
        number = next(NUMBERS)
        return call(4, 4, number) if said else call(0, 1 + number, number)

    agent = create_agent(ScriptedChatModel(twice), [add])
    scorer = ScriptedScorer(lambda request: 0.5)
    strategy = BeamSearch(width=2, expand=2, stop=None, refill=0)
    state = searched(agent, scorer=scorer, strategy=strategy).invoke(ASKED, THREAD)
    assert len(RAN) == len(set(RAN)) == 3
    assert (4, 4) in RAN
    assert state["messages"][-1].text == "Answer: 8"
    ends = [r for r in tree_of_state(state) if r.text.endswith("Answer: 8")]
    assert len({r.parent for r in ends}) == 2


@both
async def test_only_safe_tools_run(asynchronous: bool) -> None:
    state = await ask(searched(counted(), tools="safe"), ASKED, asynchronous)
    assert RAN == []
    refused = [m for m in state["messages"] if isinstance(m, ToolMessage)]
    assert all(m.status == "error" and "Not run" in m.text for m in refused)
    RAN.clear()
    state = await ask(searched(counted(), tools="safe", safe_tools=["add"]), ASKED, asynchronous)
    assert len(RAN) >= 3


def refusing(asked: ChatCall) -> AIMessage:
    """Call once, then say what came back."""
    last = asked.messages[-1]
    if isinstance(last, ToolMessage):
        return AIMessage(f"Answer: {last.text}")
    number = next(NUMBERS)
    return call(0, 1 + number % 3, number)


@both
@pytest.mark.parametrize(
    ("answer", "text", "ran"),
    [
        ("run", "Answer: 1", [(0, 1)]),
        ("skip", "Answer: Not run: a person refused it.", []),
        ({"result": "17"}, "Answer: 17", []),
    ],
)
async def test_a_person_is_asked_about_chosen_calls_only(
    asynchronous: bool, answer: Any, text: str, ran: list[Any]
) -> None:
    agent = create_agent(model := ScriptedChatModel(refusing), [add])
    graph = searched(agent, tools="ask", strategy=BeamSearch(width=1, expand=3))
    state = await ask(graph, ASKED, asynchronous)
    (asked,) = state["__interrupt__"]
    assert asked.value["type"] == "tool_call"
    assert asked.value["call"] == {"name": "add", "args": {"left": 0, "right": 1}}
    assert RAN == []
    calls = len(model.calls)
    state = await ask(graph, Command(resume=answer), asynchronous)
    assert "__interrupt__" not in state
    assert state["messages"][-1].text == text
    assert ran == RAN
    assert all("Add 1" in c.text for c in model.calls[:calls])  # none was asked again


@both
async def test_the_agents_own_questions_are_passed_on_for_the_chosen_branch(
    asynchronous: bool,
) -> None:
    person = HumanInTheLoopMiddleware(interrupt_on={"add": True})
    agent = create_agent(ScriptedChatModel(refusing), [add], middleware=[person])
    graph = searched(agent, strategy=BeamSearch(width=1, expand=3))
    state = await ask(graph, ASKED, asynchronous)
    (asked,) = state["__interrupt__"]
    assert asked.value["type"] == "interrupt"
    (action,) = asked.value["value"]["action_requests"]
    assert action["args"] == {"left": 0, "right": 1}
    edited = {"name": "add", "args": {"left": 5, "right": 5}}
    decision = {"decisions": [{"type": "edit", "edited_action": edited}]}
    state = await ask(graph, Command(resume=decision), asynchronous)
    assert RAN == [(5, 5)]
    assert state["messages"][-1].text.endswith("10")


@both
async def test_a_tool_may_ask_by_itself(asynchronous: bool) -> None:
    @tool
    def confirm(what: str) -> str:
        """Ask a person."""
        return f"said {interrupt({'sure?': what})}"

    def asking(asked: ChatCall) -> AIMessage:
        last = asked.messages[-1]
        if isinstance(last, ToolMessage):
            return AIMessage(f"Answer: {last.text}")
        number = next(NUMBERS)
        args = {"what": str(number % 2)}
        return AIMessage("", tool_calls=[{"name": "confirm", "args": args, "id": f"{number}"}])

    agent = create_agent(ScriptedChatModel(asking), [confirm])
    scorer = ScriptedScorer(lambda request: 0.9 if 'what = "1"' in request.steps[0] else 0.3)
    graph = searched(agent, scorer=scorer, strategy=BeamSearch(width=1, expand=2))
    state = await ask(graph, ASKED, asynchronous)
    assert state["__interrupt__"][0].value["value"] == {"sure?": "1"}
    state = await ask(graph, Command(resume="yes"), asynchronous)
    assert state["messages"][-1].text == "Answer: said yes"


class Notes(AgentState[Any]):
    """An agent's own channel beside the conversation."""

    notes: Annotated[list[str], operator.add]


@tool
def note(text: str, tool_call_id: Annotated[str, InjectedToolCallId]) -> Command[Any]:
    """Keep a note."""
    RAN.append(text)
    kept = ToolMessage("kept", tool_call_id=tool_call_id)
    return Command(update={"notes": [text], "messages": [kept]})


class Noting(AgentMiddleware[Notes, Any, Any]):
    """Declares the channel."""

    state_schema = Notes


def test_each_branch_has_every_channel_to_itself() -> None:
    asked_again: dict[str, Any] = defaultdict(itertools.count)  # of each branch, whoever is faster

    def noting(asked: ChatCall) -> AIMessage:
        noted = [
            m.tool_calls[0]["args"]["text"] for m in asked.messages if isinstance(m, AIMessage)
        ]
        if len(noted) == 2:
            return AIMessage("Answer: 2")
        text = f"{'ab'[next(asked_again[str(noted)]) % 2]}{len(noted)}"
        call = {"name": "note", "args": {"text": text}, "id": f"n{next(NUMBERS)}"}
        return AIMessage("", tool_calls=[call])

    agent = create_agent(ScriptedChatModel(noting), [note], middleware=[Noting()])
    scorer = ScriptedScorer(lambda r: 0.9 if '"b' in r.steps[-1] else 0.6)
    graph = searched(agent, scorer=scorer, strategy=BeamSearch(width=2, expand=2, stop=None))
    state = graph.invoke({**ASKED, "notes": ["given"]}, THREAD)
    assert state["notes"] == ["given", "b0", "b1"]
    assert len(RAN) > 2


def hand_built() -> Any:
    model = ScriptedChatModel(counting)
    graph = StateGraph(MessagesState)
    graph.add_node("think", lambda state: {"messages": [model.invoke(state["messages"])]})
    graph.add_node("tools", ToolNode([add]))
    graph.add_edge(START, "think")
    graph.add_conditional_edges("think", tools_condition)
    graph.add_edge("tools", "think")
    return graph.compile()


def test_a_graph_of_your_own() -> None:
    with pytest.raises(ConfigError, match="name those that call the model as model_nodes"):
        searched(hand_built())
    with pytest.raises(ConfigError, match="has no node 'thought'"):
        searched(hand_built(), model_nodes=["thought"])
    graph = searched(
        hand_built(), model_nodes=["think"], strategy=BeamSearch(width=1, expand=3), tools="ask"
    )
    state = graph.invoke(ASKED, THREAD)
    while "__interrupt__" in state:
        state = graph.invoke(Command(resume="run"), THREAD)
    assert RAN == [(0, 1), (1, 1), (2, 1)]
    assert state["messages"][-1].text == "Answer: 3"


def test_calls_made_together_are_one_step_and_may_be_refused_one_by_one() -> None:
    def together(asked: ChatCall) -> AIMessage:
        last = asked.messages[-1]
        if isinstance(last, ToolMessage):
            return AIMessage(f"Answer: {[m.text for m in asked.messages if m.type == 'tool']}")
        calls = [call(0, 1, next(NUMBERS)), call(1, 1, next(NUMBERS))]
        return AIMessage("", tool_calls=[c.tool_calls[0] for c in calls])

    graph = searched(create_agent(ScriptedChatModel(together), [add]), tools="ask")
    state = graph.invoke(ASKED, THREAD)
    state = graph.invoke(Command(resume="skip"), THREAD)
    assert state["__interrupt__"][0].value["call"]["args"] == {"left": 1, "right": 1}
    state = graph.invoke(Command(resume="run"), THREAD)
    assert RAN == [(1, 1)]
    assert state["messages"][-1].text == "Answer: ['Not run: a person refused it.', '2']"


def test_what_fails_costs_a_branch_and_not_the_search() -> None:
    @tool
    def risky(way: int) -> str:
        """Fail, one way."""
        if way == 1:
            raise RuntimeError("out of order")
        return "fine"

    def trying(asked: ChatCall) -> AIMessage | Exception:
        last = asked.messages[-1]
        if isinstance(last, ToolMessage):
            return AIMessage(f"Answer: {last.text}")
        number = next(NUMBERS)
        if number % 3 == 2:
            return ConnectionError("no model")
        args = {"way": number % 3}
        return AIMessage("", tool_calls=[{"name": "risky", "args": args, "id": f"{number}"}])

    agent = create_agent(ScriptedChatModel(trying), [risky])
    scorer = ScriptedScorer(lambda r: 0.9 if "way = 1" in r.steps[0] else 0.5)
    strategy = BeamSearch(width=2, expand=3, refill=0, stop=None)
    state = searched(agent, scorer=scorer, strategy=strategy).invoke(ASKED, THREAD)
    assert state["messages"][-1].text == "Answer: fine"
    tree = tree_of_state(state)
    failed = [r.reason for r in tree if r.status == "failed"]
    assert any("no model" in reason for reason in failed)
    assert any("out of order" in reason for reason in failed)


@both
@pytest.mark.parametrize(
    "block",
    [
        {"type": "image", "url": "https://pictures.example/1.png"},
        {"type": "image", "base64": "AAAA", "mime_type": "image/png"},
        {"type": "image_url", "image_url": {"url": "data:image/gif;base64,R0lGODlhAQABAAAAACw="}},
    ],
)
async def test_a_picture_of_a_tool_that_cannot_be_kept_costs_nothing(
    block: dict[str, Any], asynchronous: bool
) -> None:
    @tool
    def show(left: int, right: int) -> list[Any]:
        """Show something."""
        RAN.append((left, right))
        return [block]

    def showing(asked: ChatCall) -> AIMessage:
        said = refusing(asked)
        return said.model_copy(
            update={"tool_calls": [{**one, "name": "show"} for one in said.tool_calls]}
        )

    graph = searched(
        create_agent(ScriptedChatModel(showing), [show]),
        scorer=ScriptedScorer(lambda request: 0.5),
    )
    state = await ask(graph, ASKED, asynchronous)
    assert [m.type for m in state["messages"]] == ["human", "ai", "tool", "ai"]
    assert state["messages"][2].content == [block]
    assert state["search_result"]["score"] == 0.5


@both
async def test_a_tool_that_answers_the_user_itself_ends_its_path(asynchronous: bool) -> None:
    @tool(return_direct=True)
    def look_up(left: int, right: int) -> str:
        """Answer by itself."""
        RAN.append((left, right))
        return f"Answer: {left + right}"

    def looking(asked: ChatCall) -> AIMessage:
        number = next(NUMBERS)
        said = call(0, 1 + number % 3, number)
        return said.model_copy(update={"tool_calls": [{**said.tool_calls[0], "name": "look_up"}]})

    agent = create_agent(ScriptedChatModel(looking), [look_up])
    graph = searched(agent, strategy=BeamSearch(width=1, expand=3))
    state = await ask(graph, ASKED, asynchronous)
    assert [m.type for m in state["messages"]] == ["human", "ai", "tool"]
    assert state["messages"][-1].text == "Answer: 1"
    assert state["search_result"]["answer"] == "1"
    assert not state["search_result"]["fallback"]
    assert state["messages"][1].response_metadata["vprm"]["answer"] == "1"
    assert RAN == [(0, 1)]


def test_a_call_that_cannot_be_read_costs_its_branch() -> None:
    unread = {"name": "add", "args": '{"left": 1,', "id": "i", "error": "not JSON"}

    def often(asked: ChatCall) -> AIMessage:
        said = refusing(asked)
        bad = said.tool_calls and int(str(said.tool_calls[0]["id"]).rpartition("-")[2]) % 2
        return AIMessage("", invalid_tool_calls=[unread]) if bad else said

    graph = searched(create_agent(ScriptedChatModel(often), [add]))
    state = graph.invoke(ASKED, THREAD)
    assert state["messages"][-1].text.startswith("Answer: ")
    reasons = {r.reason for r in tree_of_state(state) if r.status == "failed"}
    assert reasons == {"a tool call cannot be read"}


@both
@pytest.mark.parametrize("wrong", ["yes", {"result": "17", "more": 1}, {}, 3])
async def test_another_answer_about_a_call_is_refused_and_may_be_given_again(
    asynchronous: bool, wrong: Any
) -> None:
    agent = create_agent(ScriptedChatModel(refusing), [add])
    graph = searched(agent, tools="ask", strategy=BeamSearch(width=1, expand=3))
    await ask(graph, ASKED, asynchronous)
    with pytest.raises(ValidationError, match="CallAnswer"):
        await ask(graph, Command(resume={(await asked_in(graph)): wrong}), asynchronous)
    assert RAN == []
    state = await ask(graph, Command(resume="run"), asynchronous)
    assert RAN == [(0, 1)]
    assert state["messages"][-1].text == "Answer: 1"


async def asked_in(graph: Any) -> str:
    (question,) = (await graph.aget_state(THREAD)).interrupts
    return str(question.id)


def test_pictures_that_a_tool_has_shown_are_seen_and_none_stays_in_the_state() -> None:
    @tool
    def crop(width: int) -> list[Any]:
        """Return a part of the picture."""
        return image_message("cut", noisy_png(32, seed=width)).content

    def looking(asked: ChatCall) -> AIMessage:
        if any(isinstance(m, ToolMessage) for m in asked.messages):
            return AIMessage(f"Answer: {len(asked.images)}")
        args = {"width": 9}
        return AIMessage("", tool_calls=[{"name": "crop", "args": args, "id": f"{next(NUMBERS)}"}])

    scorer = ScriptedScorer(lambda request: 0.5)
    graph = searched(create_agent(ScriptedChatModel(looking), [crop]), scorer=scorer)
    state = graph.invoke({"messages": [image_message("What is it?", noisy_png(40))]}, THREAD)
    assert state["messages"][-1].text == "Answer: 2"  # the model saw both
    assert {len(r.images) for r in scorer.batches[0]} == {1}
    assert {len(r.images) for r in scorer.batches[-1]} == {2}
    assert "base64" not in str(state)


def test_without_a_checkpointer_and_with_a_budget() -> None:
    graph = create_agent_search(
        counted(),
        scorer=ScriptedScorer(by_ones),
        strategy=BeamSearch(width=1, expand=3, refill=0),
        budget=Budget(candidates=4),
        image_store=MemoryImageStore(),
    ).compile()
    with pytest.warns(match="limit"):
        state = graph.invoke(ASKED)
    assert state["search_result"]["ended_by"].startswith("budget: candidates")
    assert state["search_result"]["fallback"]
    assert "[Unfinished" in state["messages"][-1].text
    assert not any(isinstance(m, AIMessage) and m.tool_calls for m in state["messages"][-2:])


def test_candidates_are_not_streamed_and_the_search_tells_of_itself() -> None:
    graph = searched(counted(), strategy=BeamSearch(width=1, expand=3))
    told = list(graph.stream(ASKED, THREAD, stream_mode=["messages", "custom"]))
    kinds = [event["event"] for mode, event in told if mode == "custom"]
    assert kinds.count("scored") == kinds.count("expanded") >= 4
    assert kinds[-1] == "answer"
    streamed = [m for mode, (m, _) in (t for t in told if t[0] == "messages")]
    assert sum(m.text == "Answer: 3" for m in streamed) == 1


def test_what_it_does_not_take_is_refused() -> None:
    with pytest.raises(ConfigError, match="agent is ScriptedChatModel; give a compiled graph"):
        searched(ScriptedChatModel(refusing))
    with pytest.raises(ConfigError, match="safe_tools is the text"):
        searched(counted(), safe_tools="add")
    with pytest.raises(ConfigError, match="tools is 'never'"):
        searched(counted(), tools="never")
    with pytest.raises(ConfigError, match="asks for whole solutions"):
        searched(counted(), strategy=BestOfN(2)).invoke(ASKED, THREAD)


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**32), width=st.integers(1, 3), particles=st.booleans())
def test_exactly_the_calls_of_paths_that_went_on_are_run(
    seed: int, width: int, particles: bool
) -> None:
    RAN.clear()
    scorer = ScriptedScorer(lambda request: chance(seed, *request.steps))
    strategy = (
        ParticleFilter(particles=width + 1) if particles else BeamSearch(width=width, expand=2)
    )
    state = searched(counted(), scorer=scorer, strategy=strategy).invoke(ASKED, THREAD)
    tree = tree_of_state(state)
    went_on = {tree.steps(r.id) for r in tree if r.parent and tree.child_count(r.id)}
    called = {steps[-1].rpartition("left = ")[2] for steps in went_on}
    assert {f"{left}, right = {right}." for left, right in RAN} == called
    assert len(RAN) == len(went_on) or len(RAN) == len(set(RAN))
    winner = [m for m in state["messages"] if isinstance(m, AIMessage)]
    assert len(winner) == len(tree.path(state["search_result"]["node"]))


@both
async def test_the_middleware_works_inside_a_searched_agent(asynchronous: bool) -> None:
    scorer = ScriptedScorer(by_ones)
    agent = counted(middleware=[ProcessRewardMiddleware(scorer, n=2)])
    graph = searched(agent, scorer=scorer, strategy=BeamSearch(width=1, expand=2))
    state = await ask(graph, ASKED, asynchronous)
    assert state["messages"][-1].text.startswith("Answer: ")
    assert len(state["vprm_verdicts"]) == len(RAN) + 1


@both
async def test_a_search_is_a_node_of_a_larger_graph(asynchronous: bool) -> None:
    inner = create_agent_search(
        create_agent(ScriptedChatModel(refusing), [add]),
        scorer=ScriptedScorer(by_ones),
        tools="ask",
        image_store=MemoryImageStore(),
    ).compile()
    graph = StateGraph(MessagesState)
    graph.add_node("solve", inner)
    graph.add_edge(START, "solve")
    app = graph.compile(checkpointer=InMemorySaver())
    state = await ask(app, ASKED, asynchronous)
    while "__interrupt__" in state:
        state = await ask(app, Command(resume="run"), asynchronous)
    assert len(RAN) == len(set(RAN)) >= 1
    assert state["messages"][-1].text.startswith("Answer: ")


@dataclass
class Who:
    name: str


@tool
def greet(runtime: ToolRuntime[Who]) -> str:
    """Greet the user."""
    return f"hello {runtime.context.name}"


async def test_on_an_asynchronous_saver_with_a_context(tmp_path: Path) -> None:
    def greeting(asked: ChatCall) -> AIMessage:
        last = asked.messages[-1]
        if isinstance(last, ToolMessage):
            return AIMessage(f"Answer: {last.text}")
        return AIMessage("", tool_calls=[{"name": "greet", "args": {}, "id": "g"}])

    agent = create_agent(ScriptedChatModel(greeting), [greet], context_schema=Who)
    async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "state.sqlite")) as saver:
        graph = create_agent_search(
            agent, scorer=ScriptedScorer(lambda r: 0.5), image_store=MemoryImageStore()
        ).compile(checkpointer=saver)
        state = await graph.ainvoke(ASKED, THREAD, context=Who("Ada"))
        threads = {t.config["configurable"]["thread_id"] async for t in saver.alist(None)}
    assert state["messages"][-1].text == "Answer: hello Ada"
    assert threads == {"one"}


@both
async def test_a_deep_agent_keeps_its_files_in_each_branch(asynchronous: bool) -> None:
    deepagents = pytest.importorskip("deepagents")

    def writing(asked: ChatCall) -> AIMessage:
        said = sum(isinstance(m, AIMessage) for m in asked.messages)
        if said == 1:
            return AIMessage("Answer: done")
        number = next(NUMBERS)
        args = {"file_path": "/a.txt", "content": f"{number % 2 == 0}{number}"}
        made = {"name": "write_file", "args": args, "id": f"w{number}"}
        return AIMessage("", tool_calls=[made])

    agent = deepagents.create_deep_agent(ScriptedChatModel(writing), [add])
    scorer = ScriptedScorer(lambda r: 0.9 if "True" in r.steps[0] else 0.3)
    graph = searched(agent, scorer=scorer, strategy=BeamSearch(width=2, expand=4, stop=None))
    state = await ask(graph, ASKED, asynchronous)
    assert state["messages"][-1].text == "Answer: done"
    assert list(state["files"]) == ["/a.txt"]
    assert "True" in str(state["files"]["/a.txt"]["content"])
