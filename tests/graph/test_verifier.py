"""The verifier node in agents of every shape."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Annotated, Any, NotRequired, TypedDict

import pytest
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.message import add_messages

from tests.graph.fakes import noisy_png
from vprm_search.errors import ConfigError, InputError, ScorerError
from vprm_search.graph import VerifierNode, VerifierState, create_verifier_node
from vprm_search.images import normalise_image
from vprm_search.images.store import MemoryImageStore
from vprm_search.types import ScoreRequest, ScoreResult, StepScore

PNG = noisy_png(40)
DIGEST = normalise_image(PNG).digest
THREAD: Any = {"configurable": {"thread_id": "one"}}
PICTURE = {"type": "image", "base64": base64.b64encode(PNG).decode(), "mime_type": "image/png"}
ASKED = HumanMessage([PICTURE, {"type": "text", "text": "How many tiles?"}], id="q")
GOOD = "Step 1: it is right.\n\nAnswer: 2, right."
BAD = "Step 1: it is right.\n\nStep 2: it is wrong.\n\nAnswer: 3, wrong."


class WordScorer:
    """A step is right if it says so."""

    def __init__(self) -> None:
        self.requests: list[ScoreRequest] = []

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        self.requests += requests
        return [ScoreResult(tuple(map(self._step, request.steps))) for request in requests]

    def _step(self, text: str) -> StepScore:
        if "unreadable" in text:
            return StepScore(None, "cannot be read")
        return StepScore(0.95 if "right" in text else 0.1)


class State(VerifierState):
    messages: Annotated[list[AnyMessage], add_messages]


class Author:
    """A user's agent: gives its answers one after the other, told what was wrong before."""

    def __init__(self, node: VerifierNode, *answers: str) -> None:
        self.node, self.answers, self.told = node, list(answers), list[str]()

    def __call__(self, state: dict[str, Any]) -> dict[str, Any]:
        answer = AIMessage(self.answers.pop(0))
        verdict = state.get("vprm")
        if not verdict or verdict["outcome"] == "passed":
            return {"messages": [answer]}
        feedback = self.node.feedback_message(verdict)
        self.told.append(str(feedback.content))
        return {"messages": [feedback, answer]}


def agent(*answers: str, schema: type[Any] = State, **route: Any) -> tuple[Any, Author, WordScorer]:
    scorer = WordScorer()
    node = create_verifier_node(scorer, threshold=0.8, image_store=MemoryImageStore())
    author = Author(node, *answers)
    graph = StateGraph(schema)
    graph.add_node("agent", author)
    graph.add_node("verify", node)
    graph.add_node("review", lambda state: {})
    graph.add_edge(START, "agent")
    graph.add_edge("agent", "verify")
    graph.add_edge("review", END)
    options = {"on_fail": "agent", "on_exhausted": "review", **route}
    graph.add_conditional_edges("verify", node.route(**options), ["agent", "review", END])
    return graph.compile(checkpointer=InMemorySaver()), author, scorer


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_a_good_answer_passes_and_the_messages_stay(asynchronous: bool) -> None:
    app, author, scorer = agent(GOOD)
    given = {"messages": [ASKED]}
    state = await app.ainvoke(given, THREAD) if asynchronous else app.invoke(given, THREAD)
    verdict = state["vprm"]
    assert verdict["outcome"] == "passed"
    assert verdict["score"] == pytest.approx(0.95)
    assert [step["score"] for step in verdict["steps"]] == [0.95, 0.95]
    assert [step["text"] for step in verdict["steps"]] == GOOD.split("\n\n")
    assert verdict["weak_step"] is None
    assert verdict["failures"] == 0
    assert verdict["message_id"] == state["messages"][-1].id
    assert json.loads(json.dumps(verdict)) == verdict
    assert state["messages"][0] == ASKED
    assert state["messages"][1].content == GOOD
    assert [message.response_metadata for message in state["messages"]] == [{}, {}]
    (request,) = scorer.requests
    assert request.problem.question == "How many tiles?"
    assert [image.digest for image in request.images] == [DIGEST]
    assert author.told == []


def test_a_failed_answer_is_tried_again_with_the_verdict_as_feedback() -> None:
    app, author, scorer = agent(BAD, GOOD)
    state = app.invoke({"messages": [ASKED]}, THREAD)
    assert state["vprm"]["outcome"] == "passed"
    assert [message.type for message in state["messages"]] == ["human", "ai", "human", "ai"]
    assert len(author.told) == 1
    assert "Step 2 is the first that looks wrong" in author.told[0]
    assert "it is wrong" in author.told[0]
    assert [r.problem.question for r in scorer.requests] == ["How many tiles?"] * 2
    assert [len(r.images) for r in scorer.requests] == [1, 1]


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_at_the_ceiling_the_verdict_still_says_failed(retries: int) -> None:
    app, author, _ = agent(*[BAD] * 9, max_retries=retries)
    visited = [name for step in app.stream({"messages": [ASKED]}, THREAD) for name in step]
    assert visited == ["agent", "verify"] * (retries + 1) + ["review"]
    verdict = app.get_state(THREAD).values["vprm"]
    assert verdict["outcome"] == "failed"
    assert verdict["failures"] == retries + 1
    assert verdict["weak_step"] == 1
    assert len(author.answers) == 9 - retries - 1


def test_the_next_question_has_all_its_retries() -> None:
    app, _, _ = agent(BAD, BAD, BAD, BAD, GOOD, max_retries=1)
    first = app.invoke({"messages": [ASKED]}, THREAD)
    assert first["vprm"]["failures"] == 2
    second = app.invoke({"messages": [HumanMessage("And now?")]}, THREAD)
    assert second["vprm"]["failures"] == 2
    assert second["vprm"]["question_id"] != first["vprm"]["question_id"]


def test_what_cannot_be_scored_is_not_passed_and_not_tried_again() -> None:
    app, author, _ = agent("Step 1: right.\n\nAnswer: unreadable", GOOD)
    visited = [name for step in app.stream({"messages": [ASKED]}, THREAD) for name in step]
    verdict = app.get_state(THREAD).values["vprm"]
    assert visited == ["agent", "verify", "review"]
    assert verdict["outcome"] == "unscored"
    assert verdict["score"] is None
    assert verdict["reason"] == "cannot be read"
    assert [step["score"] for step in verdict["steps"]] == [0.95, None]
    assert author.answers == [GOOD]
    app, _, _ = agent("unreadable", GOOD, on_unscored="agent")
    assert app.invoke({"messages": [ASKED]}, THREAD)["vprm"]["outcome"] == "passed"


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([ASKED, AIMessage("", id="a")], "no text"),
        ([AIMessage(GOOD, id="a")], "human message"),
        ([HumanMessage([{"type": "image", "url": "https://x.test/i.png"},
                        {"type": "text", "text": "?"}], id="q"), AIMessage(GOOD, id="a")],
         "never fetched"),
        ([HumanMessage([{"type": "image", "url": f"vprm-image://{DIGEST}"},
                        {"type": "text", "text": "?"}], id="q"), AIMessage(GOOD, id="a")],
         "is not in this in-memory store"),
        ([ASKED, AIMessage("x" * 300_000, id="a")], "limit"),
    ],
    ids=["empty", "no question", "address", "unknown reference", "too long"],
)  # fmt: skip
def test_a_message_that_cannot_be_judged_says_why(messages: list[BaseMessage], why: str) -> None:
    node = create_verifier_node(WordScorer(), image_store=MemoryImageStore())
    verdict = node.invoke({"messages": messages})["vprm"]
    assert verdict["outcome"] == "unscored"
    assert why in verdict["reason"]
    assert verdict["reason"] in node.feedback(verdict)
    for end in ("accept", END):
        route = node.route(on_fail="agent", on_pass=end)
        assert route({"messages": messages, "vprm": verdict}) == "agent"
        route = node.route(on_fail="agent", on_pass=end, on_unscored="review")
        assert route({"messages": messages, "vprm": verdict}) == "review"


CALL = {"name": "look", "args": {}, "id": "c", "type": "tool_call"}
OLD = {"outcome": "passed", "message_id": "old", "question_id": "old", "failures": 0}


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [ASKED],
        [ASKED, AIMessage("", tool_calls=[CALL])],
        [ASKED, AIMessage("", tool_calls=[CALL]), ToolMessage("seen", tool_call_id="c")],
        [ASKED, AIMessage(GOOD), HumanMessage("And now?")],
        [object()],
    ],
    ids=["nothing", "question", "call", "call answered", "next question", "no message"],
)
async def test_where_nothing_is_judged_nothing_passes(messages: list[Any]) -> None:
    """The verdict of the last turn is gone, and the new one says why it is none."""
    scorer = WordScorer()
    node = create_verifier_node(scorer, image_store=MemoryImageStore())
    for old in ({}, {"vprm": OLD}):
        state = {"messages": messages, **old}
        update = node.invoke(state)
        assert await node.ainvoke(state) == update
        verdict = update["vprm"]
        assert (verdict["outcome"], verdict["score"]) == ("unscored", None)
        assert verdict["reason"]
        assert node.verdict({"messages": messages, **update}) == verdict
        assert node.route(on_fail="agent", on_pass="next")({"messages": messages, **update}) == (
            "agent"
        )
    assert scorer.requests == []


def test_a_verdict_is_of_this_message_only() -> None:
    node = create_verifier_node(WordScorer(), image_store=MemoryImageStore())
    messages: list[AnyMessage] = [ASKED, AIMessage(GOOD, id="a")]
    state: dict[str, Any] = {"messages": messages}
    state |= node.invoke(state)
    route = node.route(on_fail="agent", on_pass="next")
    assert route(state) == "next"
    edited = {**state, "messages": [ASKED, AIMessage(BAD, id="a")]}
    later = {**state, "messages": [*messages, HumanMessage("And now?"), AIMessage(GOOD, id="b")]}
    for other in (edited, later, {"messages": messages}):
        assert node.verdict(other) is None
        with pytest.raises(ConfigError, match="no verdict on its last message"):
            route(other)


def test_a_verdict_written_before_there_were_digests_is_read() -> None:
    node = create_verifier_node(WordScorer(), image_store=MemoryImageStore())
    state: dict[str, Any] = {"messages": [ASKED, AIMessage(BAD, id="a")]}
    state |= node.invoke(state)
    del state["vprm"]["digest"]
    assert node.route(on_fail="agent")(state) == "agent"
    assert node.invoke(state)["vprm"]["failures"] == 1


async def as_asynchronous(items: Iterable[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("outcome", ["failed", "unscored"])
async def test_on_pass_is_for_what_passed(outcome: str, asynchronous: bool) -> None:
    """Also when all is tried: a message that never passed is not accepted."""
    answer = BAD if outcome == "failed" else ""
    node = create_verifier_node(WordScorer(), image_store=MemoryImageStore())
    graph = StateGraph(State)
    graph.add_node("agent", Author(node, *[answer] * 9))
    graph.add_node("verify", node)
    graph.add_node("publish", lambda state: {})
    graph.add_edge(START, "agent")
    graph.add_edge("agent", "verify")
    graph.add_conditional_edges("verify", node.route(on_fail="agent", on_pass="publish"))
    app = graph.compile()
    given: Any = {"messages": [ASKED]}
    stream = app.astream(given) if asynchronous else as_asynchronous(app.stream(given))
    steps = [step async for step in stream]
    visited = [name for step in steps for name in step]
    assert visited == ["agent", "verify"] * 3
    assert steps[-1]["verify"]["vprm"]["outcome"] == outcome
    assert steps[-1]["verify"]["vprm"]["failures"] == 3


def test_an_agent_that_adds_nothing_does_not_come_back_for_ever() -> None:
    node = create_verifier_node(WordScorer(), image_store=MemoryImageStore())
    graph = StateGraph(State)
    graph.add_node("agent", lambda state: {})
    graph.add_node("verify", node)
    graph.add_edge(START, "agent")
    graph.add_edge("agent", "verify")
    graph.add_conditional_edges("verify", node.route(on_fail="agent", max_retries=3))
    given: Any = {"messages": [ASKED]}
    assert graph.compile().invoke(given)["vprm"]["failures"] == 4


def test_references_are_looked_up_in_the_store() -> None:
    store, scorer = MemoryImageStore(), WordScorer()
    store.put(normalise_image(PNG))
    node = create_verifier_node(scorer, image_store=store)
    reference = {"type": "image", "url": f"vprm-image://{DIGEST}"}
    asked = HumanMessage([reference, {"type": "text", "text": "How many?"}])
    node.invoke({"messages": [asked, AIMessage(GOOD)]})
    assert scorer.requests[0].images == (normalise_image(PNG),)


def test_judging_the_same_message_twice_counts_once() -> None:
    node = create_verifier_node(WordScorer(), image_store=MemoryImageStore())
    state: dict[str, Any] = {"messages": [ASKED, AIMessage(BAD, id="a")]}
    first = node.invoke(state)
    assert node.invoke({**state, **first}) == first
    state["messages"] += [AIMessage(BAD, id="b")]
    assert node.invoke({**state, **first})["vprm"]["failures"] == 2


def test_many_steps_are_merged_and_the_threshold_is_inclusive() -> None:
    scorer = WordScorer()
    node = create_verifier_node(
        scorer, threshold=0.95, max_steps=12, aggregate="min", image_store=MemoryImageStore()
    )
    text = "\n\n".join(f"Line {number} is right." for number in range(13))
    verdict = node.invoke({"messages": [ASKED, AIMessage(text)]})["vprm"]
    assert len(scorer.requests[0].steps) == 7
    assert verdict["outcome"] == "passed"
    assert verdict["aggregate"] == "min"


def test_a_state_without_the_key_is_an_error_and_not_a_pass() -> None:
    class Forgotten(TypedDict):
        messages: Annotated[list[AnyMessage], add_messages]

    for answer in (GOOD, BAD):
        for schema in (Forgotten, MessagesState):
            app, _, scorer = agent(*[answer] * 9, schema=schema)
            with pytest.raises(ConfigError, match="declare the key"):
                app.invoke({"messages": [ASKED]}, THREAD)
            assert scorer.requests == []


def test_a_verdict_may_be_kept_by_hand() -> None:
    """A node of yours may call the verifier and write what it likes."""
    node = create_verifier_node(WordScorer(), image_store=MemoryImageStore())

    class Own(TypedDict):
        messages: Annotated[list[AnyMessage], add_messages]
        fine: NotRequired[bool]

    def judge(state: Any) -> dict[str, Any]:
        return {"fine": node.invoke(state)["vprm"]["outcome"] == "passed"}

    graph = StateGraph(Own)
    graph.add_node("judge", judge)
    graph.add_edge(START, "judge")
    given: Any = {"messages": [ASKED, AIMessage(GOOD)]}
    assert graph.compile().invoke(given)["fine"]


def test_the_keys_may_have_other_names() -> None:
    class Other(TypedDict):
        chat: Annotated[list[AnyMessage], add_messages]
        judged: NotRequired[dict[str, Any]]

    node = create_verifier_node(
        WordScorer(), messages_key="chat", output_key="judged", image_store=MemoryImageStore()
    )
    graph = StateGraph(Other)
    graph.add_node("verify", node)
    graph.add_edge(START, "verify")
    graph.add_conditional_edges(
        "verify", node.route(on_fail="verify", max_retries=0), [END, "verify"]
    )
    out = graph.compile().invoke({"chat": [ASKED, AIMessage(BAD)]})
    assert out["judged"]["outcome"] == "failed"


@pytest.mark.parametrize(
    "options", [{"threshold": 1.5}, {"threshold": -0.1}, {"max_steps": 0}, {"aggregate": "median"}]
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        create_verifier_node(WordScorer(), **options)


def test_a_negative_number_of_retries_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_retries"):
        create_verifier_node(WordScorer()).route(on_fail="agent", max_retries=-1)


def test_a_scorer_that_miscounts_is_named() -> None:
    class Short(WordScorer):
        async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
            return [ScoreResult((StepScore(0.9),))]

    node = create_verifier_node(Short(), image_store=MemoryImageStore())
    with pytest.raises(ScorerError, match="2 steps"):
        node.invoke({"messages": [ASKED, AIMessage(GOOD)]})


def test_the_picture_a_tool_has_shown_is_judged_by() -> None:
    chart = ToolMessage([{"type": "text", "text": "chart"}, PICTURE], tool_call_id="1")
    call: Any = {"name": "plot", "args": {}, "id": "1"}
    asked = [HumanMessage("What does the chart show?"), AIMessage("", tool_calls=[call]), chart]
    scorer = WordScorer()
    node = create_verifier_node(scorer, image_store=MemoryImageStore())
    verdict = node.invoke({"messages": [*asked, AIMessage(GOOD)]})["vprm"]
    assert verdict["outcome"] == "passed"
    assert [image.digest for image in scorer.requests[0].images] == [DIGEST]


INPUT_TEXT = {"type": "input_text", "text": "How many?"}


def test_blocks_of_the_responses_api_are_read() -> None:
    data = f"data:image/png;base64,{PICTURE['base64']}"
    asked = HumanMessage([INPUT_TEXT, {"type": "input_image", "image_url": data}])
    scorer = WordScorer()
    create_verifier_node(scorer).invoke({"messages": [asked, AIMessage(GOOD)]})
    (seen,) = scorer.requests
    assert (seen.problem.question, len(seen.images)) == ("How many?", 1)


@pytest.mark.parametrize(
    "block",
    [
        {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
        {"type": "input_file", "file_id": "f"},
        {"type": "video_url", "video_url": {"url": "https://127.0.0.1/v"}},
        {"type": "input_image", "file_id": "f"},
        {"type": "hologram"},
    ],
)
def test_what_the_scorer_cannot_see_leaves_the_message_unscored(block: dict[str, Any]) -> None:
    asked = HumanMessage([INPUT_TEXT, block])
    state = {"messages": [asked, AIMessage(GOOD)]}
    verdict = create_verifier_node(WordScorer()).invoke(state)["vprm"]
    assert verdict["outcome"] == "unscored"
