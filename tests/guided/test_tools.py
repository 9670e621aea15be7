"""Candidates that call tools, or fill in a form: how they are compared, scored and given back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field, ValidationError

from tests.guided.parts import by_words, calling, guided, in_turn
from tests.guided.tool_server import serving
from vprm_search import BeamSearch, BestOfN, BestScore, GuidedChatModel, MajorityVote
from vprm_search.answers import answer_classes
from vprm_search.chat.tool_calls import render_tool_calls, same_calls
from vprm_search.errors import SearchWarning
from vprm_search.guided.turns import Turn
from vprm_search.search import ParticleFilter, Strategy
from vprm_search.testing import ScriptedChatModel, ScriptedScorer


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class Solved(BaseModel):
    """A solution."""

    reasoning: str
    answer: int = Field(ge=0)


# --- calls ---


def test_a_call_is_scored_as_its_sentence_and_given_back_as_a_call() -> None:
    model = guided(calling(a=3, b=4), calling(a=3, b=5), scorer=by_words(**{"b = 4": 0.9}))
    message = model.bind_tools([add]).invoke("What is 3 + 4?")
    (call,) = message.tool_calls
    assert (call["name"], call["args"], call["id"]) == ("add", {"a": 3, "b": 4}, "1")
    assert message.response_metadata["vprm"]["answer"] == render_tool_calls(message)
    assert {request.steps for request in model.scorer.asked} == {
        ("I call the tool add with a = 3, b = 4.",),
        ("I call the tool add with a = 3, b = 5.",),
    }
    assert all(call.options["tools"] == [add] for call in model.policy.calls)


def test_what_a_model_says_before_a_call_is_scored_before_it() -> None:
    model = guided(calling(text="I need the sum.\n\nSo I add.", a=3, b=4))
    message = model.bind_tools([add]).invoke("What is 3 + 4?")
    assert message.content == "I need the sum.\n\nSo I add."
    (request,) = model.scorer.asked
    said = "I call the tool add with a = 3, b = 4."
    assert request.steps == ("I need the sum.", "So I add.", said)


def test_equal_calls_vote_together_whatever_their_ids_and_words() -> None:
    replies = [
        calling(known="x", text="Sum.", a=1, b=2),
        calling("mul", known="y", a=1, b=2),
        AIMessage(
            "",
            tool_calls=[{"name": "add", "args": {"b": 2.0, "a": 1}, "id": "z"}],
            response_metadata={"finish_reason": "tool_calls"},
        ),
        "It is 3.\n\nAnswer: 3",
    ]
    model = guided(*replies, selector=MajorityVote())
    (found,) = (
        model.bind_tools([add]).bound.generate([[HumanMessage("?")]], tools=[add]).generations
    )
    votes = [g.message.response_metadata["vprm"]["votes"] for g in found]
    assert votes == [2, 2, 1, 1]
    assert same_calls(found[0].message, found[1].message)


_ARGS = st.dictionaries(
    st.sampled_from(["a", "b", "name"]),
    st.sampled_from([1, 1.0, 2, 12.5, "1", "A", "a", "12 cm", "120 mm", "x = 1", "", None, True]),
    max_size=2,
)
_MADE = st.lists(st.tuples(st.sampled_from(["add", "mul"]), _ARGS), min_size=1, max_size=5)


@given(_MADE)
def test_votes_take_calls_for_one_answer_exactly_if_they_are_the_same(
    made: list[tuple[str, dict[str, Any]]],
) -> None:
    turn = Turn({"tools": [add]}, lambda text: text)
    messages = [calling(name, **args) for name, args in made]
    answers = [turn.answer_of(str(turn.speak(message))) for message in messages]
    classes = answer_classes(answers)
    for one, first in enumerate(messages):
        for other, second in enumerate(messages):
            assert (classes[one] == classes[other]) == same_calls(first, second)


@pytest.mark.parametrize("way", ["ainvoke", "stream", "astream"])
async def test_calls_come_whole_by_every_way(way: str) -> None:
    model = guided(calling(text="Now.", a=3, b=4), "bad").bind_tools([add])
    pieces: list[Any] = []
    if way == "ainvoke":
        pieces = [await model.ainvoke("?")]
    elif way == "stream":
        pieces = list(model.stream("?"))
    else:
        pieces = [piece async for piece in model.astream("?")]
    message = sum(pieces[1:], pieces[0])
    assert message.content == "Now."
    assert [call["args"] for call in message.tool_calls] == [{"a": 3, "b": 4}]
    if isinstance(message, AIMessageChunk):
        assert message.chunk_position == "last"


@pytest.mark.parametrize(
    ("strategy", "count"),
    [
        (BestOfN(3), 3),
        (BeamSearch(width=2, expand=3), 6),
        (ParticleFilter(particles=4), 4),
        ("auto", 16),
    ],
)
def test_candidates_are_whole_replies_as_many_as_the_strategy_begins_with(
    strategy: Strategy, count: int
) -> None:
    policy = ScriptedChatModel(in_turn([calling(a=1, b=2), "Say good.\n\nAnswer: 3"]))
    model = guided("unused", policy=policy, strategy=strategy).bind_tools([add])
    message = model.invoke("?")
    assert len(policy.calls) == count
    assert all(call.messages[-1].content == "?" for call in policy.calls)
    assert message.response_metadata["vprm"]["usage"]["candidates"] == count


def test_calls_nobody_can_read_are_no_candidates_but_the_last_resort() -> None:
    broken = AIMessage(
        "",
        invalid_tool_calls=[
            {"name": "add", "args": "{", "id": "1", "error": "?", "type": "invalid_tool_call"}
        ],
        response_metadata={"finish_reason": "tool_calls"},
    )
    assert guided(broken, calling(a=1, b=2)).bind_tools([add]).invoke("?").tool_calls
    with pytest.warns(SearchWarning, match="no path finished"):
        message = guided(broken, broken).bind_tools([add]).invoke("?")
    assert message.invalid_tool_calls[0]["name"] == "add"


def test_tools_bound_to_the_policy_before_are_taken_too() -> None:
    policy = ScriptedChatModel([calling(a=3, b=4)]).bind_tools([add])
    model = guided("unused", policy=policy)
    assert model.invoke("?").tool_calls


# --- forms ---


def form(reasoning: str, answer: Any) -> AIMessage:
    return calling("Solved", reasoning=reasoning, answer=answer)


def test_a_form_is_scored_by_what_its_fields_say_and_compared_by_its_answer() -> None:
    replies = [
        form("It is a guess.", 4),
        form("Count them.\n\nThree.", 3),
        form("Three of them.", 3),
    ]
    model = guided(*replies, selector=MajorityVote())
    solved = model.with_structured_output(Solved).invoke("How many?")
    assert solved.answer == 3
    assert ("Count them.", "Three.", "Answer: 3") in {r.steps for r in model.scorer.asked}


@pytest.mark.parametrize("include_raw", [False, True])
@pytest.mark.parametrize("wrong", [-1, "many", None])
def test_a_reply_that_does_not_fit_the_form_is_no_candidate(
    wrong: Any, *, include_raw: bool
) -> None:
    model = guided(form("It is good.", wrong), form("It is bad.", 3))
    made = model.with_structured_output(Solved, include_raw=include_raw).invoke("How many?")
    solved = made["parsed"] if include_raw else made
    assert solved == Solved(reasoning="It is bad.", answer=3)


def test_where_none_fits_the_parser_says_what_it_always_says() -> None:
    model = guided(form("It is good.", -1), form("It is bad.", -2))
    with pytest.warns(SearchWarning), pytest.raises(ValidationError):
        model.with_structured_output(Solved).invoke("How many?")
    with pytest.warns(SearchWarning):
        made = model.with_structured_output(Solved, include_raw=True).invoke("How many?")
    assert made["parsed"] is None
    assert isinstance(made["parsing_error"], ValidationError)


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
@pytest.mark.parametrize("include_raw", [False, True])
def test_every_method_of_a_client_chooses_among_its_candidates(
    method: str, *, include_raw: bool
) -> None:
    """The server's later children answer one too high, which this scorer prefers."""

    def score(request: Any) -> float:
        return 0.9 if "4" in request.steps[-1] else 0.2

    asked = "Give 'reasoning' and 'answer#' of 3 as JSON."
    with serving(lambda body, child: "Never mind.") as server:
        policy = ChatOpenAI(model="m", base_url=server.url, api_key="none", max_retries=0)
        model = GuidedChatModel(
            policy=policy, scorer=ScriptedScorer(score), strategy=BestOfN(3), selector=BestScore()
        )
        chain = model.with_structured_output(Solved, method=method, include_raw=include_raw)
        made = chain.invoke(asked)
    (body,) = server.bodies
    assert body["n"] == 3
    solved = made["parsed"] if include_raw else made
    assert solved.answer == 4
    if include_raw:
        assert made["parsing_error"] is None
        assert made["raw"].response_metadata["vprm"]["score"] == pytest.approx(0.55)


def test_json_in_words_is_scored_by_its_fields() -> None:
    text = json.dumps({"reasoning": "Count them.", "answer": 3})
    model = guided(text, "bad")
    message = model.invoke("How many?", response_format={"type": "json_object"})
    assert message.content == text
    assert ("Reasoning: Count them.", "Answer: 3") in {r.steps for r in model.scorer.asked}


# --- an agent ---


@pytest.mark.parametrize("sync", [True, False])
async def test_an_agent_calls_the_best_call_and_answers(*, sync: bool) -> None:
    agents = pytest.importorskip("langchain.agents")

    def script(call: Any) -> Any:
        if isinstance(call.messages[-1], ToolMessage):
            return f"The sum is {call.messages[-1].text}.\n\nAnswer: {call.messages[-1].text}"
        return calling(known=f"c{call.number}", a=3, b=4 + call.number % 3)

    model = guided("unused", policy=ScriptedChatModel(script), strategy=BestOfN(3))
    model = model.model_copy(update={"scorer": by_words(**{"b = 5": 0.9, "8": 0.9})})
    agent = agents.create_agent(model, [add])
    given = {"messages": [HumanMessage("What is 3 + 5?")]}
    parts: list[Any] = []
    if sync:
        for mode, part in agent.stream(given, stream_mode=["messages", "values"]):
            parts.append((mode, part))
    else:
        async for mode, part in agent.astream(given, stream_mode=["messages", "values"]):
            parts.append((mode, part))
    messages = next(part for mode, part in reversed(parts) if mode == "values")["messages"]
    kinds = [message.type for message in messages]
    assert kinds == ["human", "ai", "tool", "ai"]
    assert messages[2].text == "8"
    assert messages[-1].text.endswith("Answer: 8")
    shown = {part[0].id for mode, part in parts if mode == "messages"}
    assert shown == {message.id for message in messages[1:]}


def test_an_agent_takes_structured_output_from_it() -> None:
    agents = pytest.importorskip("langchain.agents")
    model = guided(form("It is bad.", 4), form("It is good.", 3))
    agent = agents.create_agent(
        model, [], response_format=agents.structured_output.ToolStrategy(Solved)
    )
    state = agent.invoke({"messages": [HumanMessage("How many?")]})
    assert state["structured_response"] == Solved(reasoning="It is good.", answer=3)
