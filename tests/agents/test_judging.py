"""Evaluators of runs, as LangSmith calls them, and the decision model in LangChain's middleware."""

from __future__ import annotations

import base64
import io
import uuid
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langsmith import Client, schemas
from langsmith.evaluation import evaluate
from PIL import Image

from vprm_search.agents import create_async_vprm_evaluator, create_vprm_evaluator
from vprm_search.errors import ConfigError, InputError, ScorerError
from vprm_search.testing import ScriptedChatModel, ScriptedScorer
from vprm_search.types import ScoreRequest

SOLUTION = "The left bar is 3.\n\nThe right bar is 9.\n\nAnswer: 12"


def picture() -> str:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


def good_unless(word: str, seen: list[ScoreRequest] | None = None) -> ScriptedScorer:
    def rule(request: ScoreRequest) -> float:
        if seen is not None:
            seen.append(request)
        return 0.1 if word in request.steps[-1] else 0.9

    return ScriptedScorer(rule)


BLOCKS = [
    {"type": "image", "base64": picture(), "mime_type": "image/png"},
    {"type": "text", "text": "3 + 4?"},
]
INPUTS: list[Any] = [
    "3 + 4?",
    {"question": "3 + 4?"},
    {"input": "3 + 4?", "images": [picture(), f"data:image/png;base64,{picture()}"]},
    {"messages": [{"role": "user", "content": BLOCKS}]},
    [HumanMessage("3 + 4?")],
    HumanMessage(BLOCKS),
]
OUTPUTS: list[Any] = [
    SOLUTION,
    {"output": SOLUTION},
    {"answer": SOLUTION},
    {"messages": [AIMessage(SOLUTION)]},
    {"messages": [HumanMessage(BLOCKS), AIMessage(SOLUTION)]},
    AIMessage(SOLUTION),
    {"role": "assistant", "content": SOLUTION},
]


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("outputs", OUTPUTS)
def test_a_run_of_any_shape_is_marked_step_by_step(inputs: Any, outputs: Any) -> None:
    seen: list[ScoreRequest] = []
    marks = create_vprm_evaluator(good_unless("9", seen))(inputs=inputs, outputs=outputs)
    assert [mark["key"] for mark in marks] == ["vprm", "vprm_step_1", "vprm_step_2", "vprm_step_3"]
    assert [mark["score"] for mark in marks] == [pytest.approx(1.9 / 3), 0.9, 0.1, 0.9]
    assert marks[0]["metadata"] is not None
    assert marks[0]["metadata"]["outcome"] == "failed"
    assert "Step 2 is the first that looks wrong" in str(marks[0]["comment"])
    assert marks[2]["comment"] == "The right bar is 9."
    assert seen[0].problem.question == "3 + 4?"


def test_pictures_of_the_inputs_are_shown_to_the_scorer() -> None:
    seen: list[ScoreRequest] = []
    judge = create_vprm_evaluator(good_unless("9", seen), steps=False, key="prm")
    (mark,) = judge(inputs=INPUTS[2], outputs=SOLUTION)
    assert mark["key"] == "prm"
    assert len(seen[0].images) == 2


def test_every_turn_of_a_trajectory_is_a_step() -> None:
    call = {"name": "crop", "args": {"x": 1}, "id": "c", "type": "tool_call"}
    said = [
        HumanMessage(BLOCKS),
        AIMessage("I look closer.", tool_calls=[call]),
        ToolMessage("a red bar of 3", tool_call_id="c", name="crop"),
        AIMessage("Answer: 3"),
    ]
    marks = create_vprm_evaluator(good_unless("crop with"))(outputs={"messages": said})
    assert [mark["score"] for mark in marks] == [pytest.approx(0.5), 0.1, 0.9]
    assert "I call the tool crop with x = 1." in str(marks[1]["comment"])


@pytest.mark.parametrize(
    ("inputs", "outputs", "said"),
    [
        (None, SOLUTION, "the inputs are no text and no messages (NoneType)"),
        ({"other": 1}, SOLUTION, "the inputs hold neither messages nor one of: question"),
        ("3 + 4?", {"other": 1}, "the outputs hold neither messages nor one of: solution"),
        ("3 + 4?", "", "the message has no text"),
        ("3 + 4?", 7, "the outputs are no text and no messages (int)"),
        ({"question": "x", "images": ["/etc/passwd"]}, SOLUTION, "base64"),
    ],
)
def test_a_run_that_cannot_be_judged_says_why(inputs: Any, outputs: Any, said: str) -> None:
    marks = create_vprm_evaluator(good_unless("9"))(inputs=inputs, outputs=outputs)
    assert marks[0]["score"] is None
    assert said in str(marks[0]["comment"])


async def test_the_asynchronous_twin_and_bad_options() -> None:
    judge = create_async_vprm_evaluator(good_unless("9"))
    marks = await judge(inputs="3 + 4?", outputs=SOLUTION)
    assert marks == create_vprm_evaluator(good_unless("9"))(inputs="3 + 4?", outputs=SOLUTION)
    with pytest.raises(ConfigError, match="threshold"):
        create_vprm_evaluator(good_unless("9"), threshold=2)


def test_langsmith_takes_it_as_an_evaluator() -> None:
    now = "2026-01-01T00:00:00Z"
    example = schemas.Example(
        id=uuid.uuid4(), inputs={"question": "3 + 4?"}, outputs={}, created_at=now,  # type: ignore[arg-type]
        dataset_id=uuid.uuid4(),
    )  # fmt: skip
    results = evaluate(
        lambda inputs: {"output": SOLUTION},
        data=[example],
        evaluators=[create_vprm_evaluator(good_unless("9"))],  # type: ignore[list-item]
        upload_results=False,
        client=Client(api_url="http://127.0.0.1:1", api_key="none", auto_batch_tracing=False),
    )
    (row,) = list(results)
    marks = {mark.key: mark.score for mark in row["evaluation_results"]["results"]}
    assert marks == {
        "vprm": pytest.approx(1.9 / 3), "vprm_step_1": 0.9, "vprm_step_2": 0.1, "vprm_step_3": 0.9
    }  # fmt: skip


# --- the decision model --------------------------------------------------------------------------


def decision_model(scorer: ScriptedScorer) -> Any:
    pytest.importorskip("langchain_core.decisions", reason="core 1.8 and newer")
    from vprm_search.agents import VPRMDecisionModel

    return VPRMDecisionModel(scorer=scorer)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_auto_mode_blocks_what_is_probably_wrong(asynchronous: bool) -> None:
    ran: list[int] = []

    def add(a: int, b: int) -> int:
        """Add."""
        ran.append(a)
        return a + b

    calls = [
        {"name": "add", "args": {"a": a, "b": 4}, "id": f"c{a}", "type": "tool_call"}
        for a in (3, 9)
    ]
    model = decision_model(good_unless("a = 9"))
    from langchain.agents.middleware import AutoModeMiddleware

    agent: Any = create_agent(
        ScriptedChatModel([AIMessage("", tool_calls=calls), "Answer: 7"]),
        tools=[add],
        middleware=[AutoModeMiddleware(tools=["add"], classifier=model)],
    )
    asked: Any = {"messages": [HumanMessage("3 + 4?")]}
    state = await agent.ainvoke(asked) if asynchronous else agent.invoke(asked)
    assert ran == [3]
    results = [m for m in state["messages"] if isinstance(m, ToolMessage)]
    assert [m.status for m in results] == ["success", "error"]


def test_what_a_decision_model_cannot_answer_is_an_error() -> None:
    model = decision_model(ScriptedScorer(lambda request: None))
    from langchain_core.decisions import Choice, Noul

    asked = {"wrong": Noul(instructions="Is it wrong?")}
    said = [HumanMessage("3 + 4?"), AIMessage("7")]
    with pytest.raises(ScorerError, match="the action has no score"):
        model.invoke({"state": said, "questions": asked})
    choice = Choice(instructions="Which?", criteria={"a": None})
    with pytest.raises(InputError, match="only yes or no"):
        model.invoke({"state": said, "questions": {"which": choice}})
    with pytest.raises(InputError, match="ends with no action"):
        model.invoke({"state": said[:1], "questions": asked})
