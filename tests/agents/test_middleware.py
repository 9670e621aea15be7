"""The middleware in agents of `create_agent`: what is chosen, tried again, asked and recorded."""

from __future__ import annotations

from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import (
    HumanInTheLoopMiddleware,
    ModelFallbackMiddleware,
    ModelRetryMiddleware,
    SummarizationMiddleware,
)
from langchain.agents.structured_output import ToolStrategy
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from pydantic import BaseModel

from tests.graph.fakes import noisy_png
from vprm_search import ProcessRewardMiddleware, image_message
from vprm_search.errors import ConfigError, NoAnswerError
from vprm_search.testing import ScriptedChatModel, ScriptedScorer
from vprm_search.types import ScoreRequest

THREAD: Any = {"configurable": {"thread_id": "one"}}
ASKED = {"messages": [HumanMessage("What is 3 + 4?", id="q")]}


@tool
def add(left: int, right: int) -> str:
    """Add two numbers."""
    RAN.append((left, right))
    return str(left + right)


RAN: list[tuple[int, int]] = []


@pytest.fixture(autouse=True)
def _no_tool_ran() -> None:
    RAN.clear()


def call(left: int, right: int, text: str = "") -> AIMessage:
    args = {"left": left, "right": right}
    return AIMessage(text, tool_calls=[{"name": "add", "args": args, "id": f"{left}-{right}"}])


def by_word(request: ScoreRequest) -> float:
    """The score that a step names itself ("…: 0.7"); a call is right if it adds 3 and 4."""
    step = request.steps[-1]
    if "I call the tool add" in step:
        return 0.9 if "left = 3, right = 4" in step else 0.2
    return float(step.rpartition(" ")[2])


def scorer(**options: Any) -> ScriptedScorer:
    return ScriptedScorer(by_word, **options)


async def ask(agent: Any, given: Any, asynchronous: bool, **options: Any) -> dict[str, Any]:
    if asynchronous:
        return dict(await agent.ainvoke(given, THREAD, **options))
    return dict(agent.invoke(given, THREAD, **options))


both = pytest.mark.parametrize("asynchronous", [False, True])


@both
async def test_the_best_candidate_goes_on_and_only_its_tools_run(asynchronous: bool) -> None:
    said = [call(3, 5), call(3, 4), call(4, 4), "sum 7, 0.5", "sum 8, 0.9", "sum 9, 0.6"]
    model, judge = ScriptedChatModel(said), scorer()
    agent = create_agent(model, [add], middleware=[ProcessRewardMiddleware(judge, n=3)])
    state = await ask(agent, ASKED, asynchronous)
    assert RAN == [(3, 4)]
    assert [m.type for m in state["messages"]] == ["human", "ai", "tool", "ai"]
    assert state["messages"][-1].text == "sum 8, 0.9"
    assert state["messages"][-1].response_metadata["vprm"] == {"outcome": "scored", "score": 0.9}
    first, second = state["vprm_verdicts"]
    assert sorted(first["candidates"]) == [0.2, 0.2, 0.9]
    assert [v["message_id"] for v in (first, second)] == [
        m.id for m in state["messages"] if m.type == "ai"
    ]
    # the second call's candidates are judged as the steps after the first
    assert all(r.steps[0].startswith("I call the tool add") for r in judge.batches[1])
    assert all("The tool add returned: 7" in r.steps[1] for r in judge.batches[1])


@both
async def test_below_the_threshold_the_model_is_told_and_tries_again(asynchronous: bool) -> None:
    model = ScriptedChatModel([call(3, 5), "a guess 0.3", call(3, 4), "sum 7, 0.95"])
    middleware = ProcessRewardMiddleware(scorer(), threshold=0.8)
    state = await ask(create_agent(model, [add], middleware=[middleware]), ASKED, asynchronous)
    assert RAN == [(3, 4)]
    assert [m.type for m in state["messages"]] == ["human", "ai", "tool", "ai"]
    assert [(v["outcome"], v["tries"]) for v in state["vprm_verdicts"]] == [
        ("passed", 3),
        ("passed", 1),
    ]
    shown = model.calls[1].messages  # no call is left without an answer
    assert [m.type for m in shown] == ["human", "ai", "tool", "human"]
    assert isinstance(shown[2], ToolMessage)
    assert (shown[2].tool_call_id, shown[2].status) == ("3-5", "error")
    assert "first that looks wrong" in str(shown[3].text)
    assert model.calls[2].messages[-1].text.count('"a guess 0.3"') == 1


@pytest.mark.parametrize(("keep", "text"), [("best", "b 0.6"), ("last", "c 0.4")])
def test_when_the_tries_are_spent_the_state_says_failed(keep: Any, text: str) -> None:
    model = ScriptedChatModel(["a 0.3", "b 0.6", "c 0.4", "d 0.9"])
    middleware = ProcessRewardMiddleware(scorer(), threshold=0.8, max_tries=3, on_exhausted=keep)
    state = create_agent(model, [], middleware=[middleware]).invoke(ASKED)
    assert state["messages"][-1].text == text
    (verdict,) = state["vprm_verdicts"]
    assert (verdict["outcome"], verdict["tries"]) == ("failed", 3)
    assert verdict["candidates"] == [0.3, 0.6, 0.4]
    assert state["messages"][-1].response_metadata["vprm"]["outcome"] == "failed"


@both
async def test_raise_keeps_the_answer_and_asks_no_model_again(asynchronous: bool) -> None:
    model = ScriptedChatModel(["a 0.3", "b 0.6"])
    middleware = ProcessRewardMiddleware(scorer(), threshold=0.8, max_tries=2, on_exhausted="raise")
    agent = create_agent(model, [], middleware=[middleware], checkpointer=InMemorySaver())
    for given in (ASKED, None):
        with pytest.raises(NoAnswerError, match="after 2 tries no message passed"):
            await ask(agent, given, asynchronous)
    assert len(model.calls) == 2
    kept = agent.get_state(THREAD).values
    assert kept["messages"][-1].text == "b 0.6"
    assert kept["vprm_verdicts"][0]["outcome"] == "failed"


@both
@pytest.mark.parametrize(
    ("answers", "text", "asked"),
    [
        (["accept"], "b 0.6", 2),
        ([{"answer": "seven"}], "seven", 2),
        (["what?", "accept"], "b 0.6", 2),
        (["retry"], "c 0.9", 3),
    ],
)
async def test_a_person_decides(
    asynchronous: bool, answers: list[Any], text: str, asked: int
) -> None:
    model = ScriptedChatModel(["a 0.3", "b 0.6", "c 0.9"])
    middleware = ProcessRewardMiddleware(
        scorer(), threshold=0.8, max_tries=2, on_exhausted="interrupt"
    )
    agent = create_agent(model, [], middleware=[middleware], checkpointer=InMemorySaver())
    state = await ask(agent, ASKED, asynchronous)
    assert state["__interrupt__"][0].value["verdict"]["outcome"] == "failed"
    for answer in answers:
        state = await ask(agent, Command(resume=answer), asynchronous)
    assert "__interrupt__" not in state
    assert [m.text for m in state["messages"]] == ["What is 3 + 4?", text]
    assert len(model.calls) == asked
    assert state["vprm_verdicts"][1]["answered"] == answers[-1]
    assert state["vprm_verdicts"][1]["outcome"] == "failed"


@both
@pytest.mark.parametrize("error", [None, RuntimeError("CUDA is out of memory")])
async def test_a_failed_scorer_costs_no_model_call(asynchronous: bool, error: Any) -> None:
    model, judge = ScriptedChatModel(["a 0.3", "b 0.6", "c 0.4"]), scorer(rounds={1: error})
    middleware = ProcessRewardMiddleware(judge, n=3, threshold=0.8)
    agent = create_agent(model, [], middleware=[middleware], checkpointer=InMemorySaver())
    state = await ask(agent, ASKED, asynchronous)
    assert len(model.calls) == 3
    (verdict,) = state["vprm_verdicts"]
    assert verdict["outcome"] == "unscored"
    assert verdict["reason"]
    assert state["messages"][-1].response_metadata["vprm"]["outcome"] == "unscored"


class Sum(BaseModel):
    value: int
    said: str


def output(value: Any, said: str) -> AIMessage:
    args = {"value": value, "said": said}
    return AIMessage("", tool_calls=[{"name": "Sum", "args": args, "id": f"{value}"}])


def by_value(request: ScoreRequest) -> float:
    return {"8": 0.9, "7": 0.5, '"x"': 0.95}[request.steps[-1].partition("value = ")[2].rstrip(".")]


@both
@pytest.mark.parametrize("handled", [True, False])
async def test_valid_structured_output_comes_first(asynchronous: bool, handled: bool) -> None:
    model = ScriptedChatModel([output(7, "seven"), output("x", "x"), output(8, "eight")])
    agent = create_agent(
        model,
        [],
        response_format=ToolStrategy(Sum, handle_errors=handled),
        middleware=[ProcessRewardMiddleware(ScriptedScorer(by_value), n=3)],
    )
    state = await ask(agent, ASKED, asynchronous)
    assert state["structured_response"] == Sum(value=8, said="eight")
    assert len(model.calls) == 3
    assert [m.type for m in state["messages"]] == ["human", "ai", "tool"]


@both
@pytest.mark.parametrize("threshold", [None, 0.8])
async def test_a_call_that_cannot_be_read_comes_last_and_never_passes(
    asynchronous: bool, threshold: float | None
) -> None:
    unread = {"name": "add", "args": '{"left": 1,', "id": "i", "error": "not JSON"}
    bad = AIMessage("", invalid_tool_calls=[unread])
    model = ScriptedChatModel([bad, call(3, 4, "hardly"), bad, "Answer: 7", "Answer: 7"])

    def sure(request: ScoreRequest) -> float:
        return 0.7 if "hardly" in request.steps[-1] else 0.9

    chooser = ProcessRewardMiddleware(
        ScriptedScorer(sure), n=1 if threshold else 2, threshold=threshold, max_tries=1
    )
    state = await ask(create_agent(model, [add], middleware=[chooser]), ASKED, asynchronous)
    outcome = state["vprm_verdicts"][0]
    if threshold is None:
        assert state["messages"][1].tool_calls
        assert state["messages"][-1].text == "Answer: 7"
    else:  # there was no other
        assert (outcome["outcome"], outcome["reason"]) == ("failed", "a tool call cannot be read")


def test_each_call_of_a_rejected_message_is_answered_read_or_not() -> None:
    unread = {"name": "add", "args": '{"left": 1,', "id": "i", "error": "not JSON"}
    bad = call(3, 4, "").model_copy(update={"invalid_tool_calls": [unread]})
    model = ScriptedChatModel([bad, "Answer: 7"])
    chooser = ProcessRewardMiddleware(ScriptedScorer(lambda request: 0.9), threshold=0.8)
    create_agent(model, [add], middleware=[chooser]).invoke(ASKED)
    told = [m.tool_call_id for m in model.calls[1].messages if isinstance(m, ToolMessage)]
    assert told == [bad.tool_calls[0]["id"], "i"]


def test_an_invalid_structured_output_never_passes() -> None:
    model = ScriptedChatModel([output("x", "x"), output(8, "eight")])
    agent = create_agent(
        model,
        [],
        response_format=ToolStrategy(Sum),
        middleware=[ProcessRewardMiddleware(ScriptedScorer(by_value), threshold=0.8)],
    )
    state = agent.invoke(ASKED)
    assert state["structured_response"].value == 8
    assert [v["outcome"] for v in state["vprm_verdicts"]] == ["passed"]
    assert [m.type for m in model.calls[1].messages] == ["human", "ai", "tool", "human"]


@both
async def test_a_person_approves_the_chosen_call_alone_and_nothing_is_sampled_again(
    asynchronous: bool,
) -> None:
    said = [call(3, 5), call(3, 4), call(4, 4), *["sum 7, 0.9"] * 3]
    model = ScriptedChatModel(said)
    agent = create_agent(
        model,
        [add],
        middleware=[
            HumanInTheLoopMiddleware(interrupt_on={"add": True}),
            ProcessRewardMiddleware(scorer(), n=3),
        ],
        checkpointer=InMemorySaver(),
    )
    state = await ask(agent, ASKED, asynchronous)
    (asked,) = state["__interrupt__"]
    assert [a["args"] for a in asked.value["action_requests"]] == [{"left": 3, "right": 4}]
    assert len(model.calls) == 3
    await ask(agent, Command(resume={"decisions": [{"type": "approve"}]}), asynchronous)
    assert RAN == [(3, 4)]
    assert len(model.calls) == 6


@both
async def test_a_call_that_fails_costs_one_candidate_and_all_failing_reach_the_retry(
    asynchronous: bool,
) -> None:
    down = ConnectionError("down")
    model = ScriptedChatModel([down, "a 0.3", "b 0.6"])
    agent = create_agent(model, [], middleware=[ProcessRewardMiddleware(scorer(), n=3)])
    state = await ask(agent, ASKED, asynchronous)
    assert state["messages"][-1].text == "b 0.6"
    retry = ModelRetryMiddleware(max_retries=1, initial_delay=0.0, jitter=False)
    model = ScriptedChatModel([down, down, "a 0.3", "b 0.6"])
    agent = create_agent(model, [], middleware=[retry, ProcessRewardMiddleware(scorer(), n=2)])
    state = await ask(agent, ASKED, asynchronous)
    assert state["messages"][-1].text == "b 0.6"
    spare = ScriptedChatModel(["c 0.7", "d 0.8"])
    model = ScriptedChatModel([down, down])
    fall = ModelFallbackMiddleware(spare)
    agent = create_agent(model, [], middleware=[fall, ProcessRewardMiddleware(scorer(), n=2)])
    state = await ask(agent, ASKED, asynchronous)
    assert state["messages"][-1].text == "d 0.8"


def test_a_failure_in_words_is_never_an_answer() -> None:
    retry = ModelRetryMiddleware(max_retries=0)
    model = ScriptedChatModel([ConnectionError("scored 1.0"), "b 0.1"])
    middleware = [ProcessRewardMiddleware(judge := scorer(), n=2), retry]
    state = create_agent(model, [], middleware=middleware).invoke(ASKED)
    assert state["messages"][-1].text == "b 0.1"
    assert [r.steps for r in judge.asked] == [("b 0.1",)]
    model = ScriptedChatModel([ConnectionError("scored 1.0")] * 2)
    state = create_agent(model, [], middleware=middleware).invoke(ASKED)
    assert state["vprm_verdicts"][0]["outcome"] == "unscored"


def test_a_summarised_conversation_is_judged_as_it_is() -> None:
    model = ScriptedChatModel(lambda call: "b 0.6")
    short = ScriptedChatModel(lambda call: "a summary")
    summary = SummarizationMiddleware(short, trigger=("messages", 4), keep=("messages", 1))
    middleware = [summary, ProcessRewardMiddleware(judge := scorer(), n=2)]
    agent = create_agent(model, [], middleware=middleware, checkpointer=InMemorySaver())
    for number in range(4):
        state = agent.invoke({"messages": [HumanMessage(f"question {number}")]}, THREAD)
    assert {v["outcome"] for v in state["vprm_verdicts"]} == {"scored"}
    assert judge.asked[-1].problem.question.endswith("question 3")


@pytest.mark.parametrize("how", ["messages", "values"])
def test_candidates_are_not_streamed(how: Any) -> None:
    model = ScriptedChatModel(["a 0.3", "b 0.6"])
    agent = create_agent(model, [], middleware=[ProcessRewardMiddleware(scorer(), n=2)])
    told = [str(part) for part in agent.stream(ASKED, stream_mode=how)]
    assert not any("a 0.3" in part for part in told)
    assert sum("b 0.6" in part for part in told) == 1


def test_when_says_at_which_calls() -> None:
    def after_a_tool(request: Any) -> bool:
        return isinstance(request.messages[-1], ToolMessage)

    model = ScriptedChatModel([call(3, 5), "a 0.3", "b 0.6"])
    middleware = ProcessRewardMiddleware(scorer(), n=2, when=after_a_tool)
    state = create_agent(model, [add], middleware=[middleware]).invoke(ASKED)
    assert len(model.calls) == 3
    assert len(state["vprm_verdicts"]) == 1


def test_pictures_of_the_question_and_of_tools_are_seen() -> None:
    @tool
    def crop(width: int) -> list[Any]:
        """Return a part of the picture."""
        return image_message("cut", noisy_png(32, seed=width)).content

    looks = AIMessage("", tool_calls=[{"name": "crop", "args": {"width": 9}, "id": "c"}])
    model = ScriptedChatModel([looks, looks.model_copy(), "a 0.3", "b 0.6"])
    judge = ScriptedScorer(lambda request: 0.5)
    agent = create_agent(model, [crop], middleware=[ProcessRewardMiddleware(judge, n=2)])
    agent.invoke({"messages": [image_message("What is it?", noisy_png(40))]})
    assert [len(r.images) for r in judge.asked] == [1, 2, 2]
    assert "(picture)" in judge.asked[1].steps[-1]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n": 0},
        {"threshold": 1.5},
        {"n": 2, "max_tries": 0},
        {"n": 2, "on_exhausted": "shrug"},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ProcessRewardMiddleware(scorer(), **options)
