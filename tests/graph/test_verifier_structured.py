"""The verifier behind `create_agent`: structured output, tools, and messages of every shape."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Annotated, Any, NotRequired

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from tests.graph.test_verifier import ASKED, BAD, GOOD, OLD, THREAD, WordScorer
from vprm_search.graph import VerifierState, create_verifier_node
from vprm_search.images.store import MemoryImageStore
from vprm_search.steps import structured_steps


class Scripted(BaseChatModel):
    """Writes its messages one after the other."""

    script: list[AIMessage]

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **options: Any) -> Runnable[Any, AIMessage]:
        return self.bind(tools=tools, **options)

    def _generate(self, messages: list[BaseMessage], *args: Any, **options: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self.script.pop(0))])


@tool
def look(where: str) -> str:
    """Look at a part of the image."""
    return f"seen {where}"


@tool(return_direct=True)
def hand_over(to: str) -> str:
    """Let somebody else answer."""
    return "Step 1: somebody is right."


class Count(BaseModel):
    """How many."""

    reasoning: str
    answer: int = Field(alias="final_answer")


class CountDict(TypedDict):
    """How many."""

    reasoning: str
    final_answer: int


@dataclasses.dataclass
class CountData:
    """How many."""

    reasoning: str
    final_answer: int


class Other(BaseModel):
    """Something else."""

    excuse: str


class State(VerifierState):
    messages: Annotated[list[AnyMessage], add_messages]


class StateWithResponse(State):
    structured_response: NotRequired[Any]


def call(name: str, number: int = 0, **args: Any) -> dict[str, Any]:
    return {"name": name, "args": args, "id": f"{name}-{number}", "type": "tool_call"}


def said(*calls: dict[str, Any], text: Any = "") -> AIMessage:
    return AIMessage(text, tool_calls=list(calls))


RIGHT = {"reasoning": "It is right.\n\nThis is right, too.", "final_answer": 2}
WRONG = {"reasoning": "It is right.\n\nThis is bad.", "final_answer": 3}
WRONG_STEPS = ("It is right.", "This is bad.", "Final answer: 3")


class Judge(WordScorer):
    """As `WordScorer`, and 2 is right."""

    def _step(self, text: str) -> Any:
        return super()._step("right" if text == "Final answer: 2" else text)


def verified(
    script: list[AIMessage], response_format: Any = None, schema: Any = State, **route: Any
) -> tuple[Any, Judge]:
    """Return an agent in a graph of the user's: agent, verify, then publish what has passed."""
    judge = Judge()
    node = create_verifier_node(judge, image_store=MemoryImageStore())
    agent: Any = create_agent(
        Scripted(script=script), [look, hand_over], response_format=response_format
    )
    graph = StateGraph(schema)
    graph.add_node("agent", agent)
    graph.add_node("verify", node)
    graph.add_node("publish", lambda state: {})
    graph.add_edge(START, "agent")
    graph.add_edge("agent", "verify")
    options: Any = {"max_retries": 0, **route}
    graph.add_conditional_edges("verify", node.route(on_fail="agent", on_pass="publish", **options))
    return graph.compile(checkpointer=InMemorySaver()), judge


async def visited(app: Any, asynchronous: bool, asked: Any = ASKED) -> tuple[list[str], Any]:
    given: Any = {"messages": [asked]}
    if asynchronous:
        steps = [name async for step in app.astream(given, THREAD) for name in step]
        return steps, (await app.aget_state(THREAD)).values["vprm"]
    steps = [name for step in app.stream(given, THREAD) for name in step]
    return steps, app.get_state(THREAD).values["vprm"]


FORMATS: dict[str, Callable[[dict[str, Any]], tuple[Any, AIMessage]]] = {
    "tool": lambda args: (ToolStrategy(Count), said(call("Count", **args))),
    "tool of a TypedDict": lambda args: (
        ToolStrategy(CountDict),
        said(call("CountDict", **args)),
    ),
    "tool of a dataclass": lambda args: (
        ToolStrategy(CountData),
        said(call("CountData", **args)),
    ),
    "tool of two": lambda args: (ToolStrategy(Count | Other), said(call("Count", **args))),
    "tool beside a tool": lambda args: (
        ToolStrategy(Count),
        said(call("look", where="left"), call("Count", **args)),
    ),
    "provider": lambda args: (ProviderStrategy(Count), AIMessage(json.dumps(args))),
    "provider in blocks": lambda args: (
        ProviderStrategy(Count),
        AIMessage(
            [
                {"type": "reasoning", "reasoning": "This is bad."},
                {"type": "text", "text": json.dumps(args, indent=1)},
            ]
        ),
    ),
    "fenced": lambda args: (None, AIMessage(f"```json\n{json.dumps(args)}\n```")),
}


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("kind", list(FORMATS))
async def test_structured_output_is_judged_by_what_it_says(kind: str, asynchronous: bool) -> None:
    looks = [said(call("look", where="left"), call("look", 1, where="right"), text="I look.")]
    response_format, answer = FORMATS[kind](RIGHT)
    app, judge = verified([*looks, answer], response_format)
    steps, verdict = await visited(app, asynchronous)
    assert steps == ["agent", "verify", "publish"]
    assert verdict["outcome"] == "passed"
    assert [step["text"] for step in verdict["steps"]] == [
        "It is right.",
        "This is right, too.",
        "Final answer: 2",
    ]
    response_format, answer = FORMATS[kind](WRONG)
    app, judge = verified([*looks, answer], response_format)
    steps, verdict = await visited(app, asynchronous)
    assert steps == ["agent", "verify"]
    assert verdict["outcome"] == "failed"
    assert verdict["weak_step"] == 1
    assert judge.requests[0].steps == WRONG_STEPS
    assert json.loads(json.dumps(verdict)) == verdict


async def test_a_tool_message_of_ones_own_needs_the_response_in_the_state() -> None:
    strategy = ToolStrategy(Count, tool_message_content="Noted.")
    app, _ = verified([said(call("Count", **RIGHT))], strategy, StateWithResponse)
    steps, verdict = await visited(app, False)
    assert (steps[-1], verdict["outcome"]) == ("publish", "passed")
    app, judge = verified([said(call("Count", **RIGHT))], strategy)
    steps, verdict = await visited(app, False)
    assert (steps[-1], verdict["outcome"]) == ("verify", "unscored")
    assert "structured_response" in verdict["reason"]
    assert judge.requests == []


@pytest.mark.parametrize("schema", [State, StateWithResponse])
async def test_a_refused_structured_answer_is_followed_by_the_one_that_counts(schema: Any) -> None:
    script = [said(call("Count", reasoning="No number, right.")), said(call("Count", 1, **WRONG))]
    app, judge = verified(script, ToolStrategy(Count), schema)
    steps, verdict = await visited(app, False)
    assert (steps[-1], verdict["outcome"]) == ("verify", "failed")
    assert [request.steps for request in judge.requests] == [WRONG_STEPS]


async def test_text_before_the_structured_answer_is_part_of_it() -> None:
    answer = said(call("Count", **RIGHT), text="This is bad.")
    app, judge = verified([answer], ToolStrategy(Count))
    _, verdict = await visited(app, True)
    assert (verdict["outcome"], verdict["weak_step"]) == ("failed", 0)
    assert judge.requests[0].steps[0] == "This is bad."


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (said(call("hand_over", to="you")), "hand_over"),
        (AIMessage(""), "no text"),
        (AIMessage([]), "no text"),
        (AIMessage(" \n\n "), "no text"),
        (AIMessage([{"type": "reasoning", "reasoning": "It is right."}]), "no text"),
        (AIMessage("{}"), "no text"),
        (AIMessage("Unreadable, unreadable unreadable."), "cannot be read"),
    ],
    ids=["direct", "empty", "no blocks", "blank", "thoughts only", "no fields", "unscored step"],
)
async def test_an_answer_without_a_score_is_not_published(
    answer: AIMessage, why: str, asynchronous: bool
) -> None:
    """Nor does the last question's verdict pass for one."""
    app, _ = verified([AIMessage(GOOD), answer.model_copy(deep=True)])
    steps, verdict = await visited(app, asynchronous)
    assert (steps[-1], verdict["outcome"]) == ("publish", "passed")
    steps, verdict = await visited(app, asynchronous, HumanMessage("And now?"))
    assert steps == ["agent", "verify"]
    assert verdict["outcome"] == "unscored"
    assert why in verdict["reason"]


async def test_a_picture_by_address_is_neither_fetched_nor_taken_for_judged() -> None:
    picture = {"type": "image", "url": "https://x.test/i.png"}
    asked = HumanMessage([picture, {"type": "text", "text": "How many?"}])
    for route in ({}, {"on_unscored": END}, {"max_retries": 1}):
        app, judge = verified([AIMessage(GOOD), AIMessage(GOOD)], **route)
        steps, verdict = await visited(app, False, asked)
        assert steps in (["agent", "verify"], ["agent", "verify"] * 2)
        assert "never fetched" in verdict["reason"]
        assert judge.requests == []


async def test_text_blocks_are_the_answer_and_thoughts_are_not() -> None:
    blocks: list[Any] = [{"type": "reasoning", "reasoning": BAD}, {"type": "text", "text": GOOD}]
    app, judge = verified([said(call("look", where="left")), AIMessage(blocks)])
    steps, verdict = await visited(app, True)
    assert (steps[-1], verdict["outcome"]) == ("publish", "passed")
    assert judge.requests[0].steps == tuple(GOOD.split("\n\n"))


def test_a_stale_response_does_not_make_an_answer_of_a_tool_call() -> None:
    node = create_verifier_node(WordScorer(), image_store=MemoryImageStore())
    app, _ = verified([said(call("hand_over", to="you"))])
    messages = app.invoke({"messages": [ASKED]}, THREAD)["messages"]
    stale = {"messages": messages, "structured_response": Count(**RIGHT), "vprm": OLD}
    assert node.invoke(stale)["vprm"]["outcome"] == "unscored"


# --- what a structured answer says ----------------------------------------------------------------

SENTENCES = st.from_regex(r"[A-Z][a-z]{1,8} [a-z]{1,8} [a-z]{1,8}\.", fullmatch=True)


@given(st.lists(SENTENCES, min_size=1), st.integers(), st.text("abc", min_size=1))
def test_prose_is_cut_and_values_are_named(steps: list[str], number: int, word: str) -> None:
    prose = {"thought": "\n\n".join(steps), "finalAnswer": number, "unit_name": word}
    values = [f"Final answer: {number}", f"Unit name: {word}"]
    assert structured_steps(prose) == [*steps, *values]
    listed = {"steps": steps, "finalAnswer": number, "unit_name": word}
    assert structured_steps(listed) == [*steps, *values]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(min_size=1), JSON, max_size=5))
def test_every_number_and_text_of_an_answer_is_said(fields: dict[str, Any]) -> None:
    text = "\n\n".join(structured_steps(fields))
    assert all(step for step in structured_steps(fields))
    waiting: list[Any] = [fields]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict | list):
            waiting += value.values() if isinstance(value, dict) else value
        elif isinstance(value, str):
            assert all(line.strip() in text for line in value.split("\n\n"))
        elif value is not None:
            assert json.dumps(value) in text


def test_an_object_in_a_list_is_one_step() -> None:
    """The worked steps of the usual example of structured reasoning."""
    fields = {
        "steps": [
            {"explanation": "Subtract 7 from both sides.", "output": "8x = -30"},
            {"explanation": "Divide both sides by 8.", "output": "x = -3.75"},
        ],
        "final_answer": "x = -3.75",
    }
    assert structured_steps(fields) == [
        "Subtract 7 from both sides.\nOutput: 8x = -30",
        "Divide both sides by 8.\nOutput: x = -3.75",
        "Final answer: x = -3.75",
    ]


def test_a_deep_answer_is_judged_or_refused_with_a_reason() -> None:
    node = create_verifier_node(Judge(), image_store=MemoryImageStore())
    deep: Any = "right"
    for _ in range(200):
        deep = {"in": deep}
    verdict = node.invoke({"messages": [ASKED, AIMessage(json.dumps(deep))]})["vprm"]
    assert verdict["outcome"] == "passed"
    long = AIMessage(json.dumps({"reasoning": "Right it is. " * 40_000}))
    verdict = node.invoke({"messages": [ASKED, long]})["vprm"]
    assert "limit" in verdict["reason"]
