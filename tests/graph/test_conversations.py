"""Who is shown what of a conversation: the policy all of it, the reward model a question."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.messages import (
    AIMessage,
    AnyMessage,
    BaseMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
    trim_messages,
)
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableWithMessageHistory
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver

from tests.graph.fakes import HashChatModel, HashScorer, noisy_png
from vprm_search.errors import InputError, SearchError
from vprm_search.graph import create_search_graph, run_search, tree_of_state
from vprm_search.graph.questions import (
    FEEDBACK_NAME,
    conversation,
    question_in_context,
    read_asked,
)
from vprm_search.images import normalise_image
from vprm_search.images.messages import image_block
from vprm_search.images.store import MemoryImageStore
from vprm_search.policy.prompts import PromptStyle, build_messages
from vprm_search.scoring.score_cache import CachedScorer
from vprm_search.search import BeamSearch
from vprm_search.types import Problem, ProposeRequest

PICTURES = [normalise_image(noisy_png(32, seed)) for seed in (1, 2)]
THREAD: Any = {"configurable": {"thread_id": "one"}}
SYSTEM = SystemMessage("Answer briefly.")
BEAM = BeamSearch(width=2, expand=2)


def shows(text: str, *pictures: Any) -> HumanMessage:
    return HumanMessage([*map(image_block, pictures), {"type": "text", "text": text}])


def problems_of(scorer: HashScorer) -> list[Problem]:
    """Return the problems of which steps were scored, in order."""
    return [request.problem for request in scorer.asked]


def graph(**options: Any) -> Any:
    given: dict[str, Any] = {
        "policy": HashChatModel(),
        "scorer": HashScorer(),
        "strategy": BEAM,
        "image_store": MemoryImageStore(),
    }
    return create_search_graph(**{**given, **options})


def told(messages: Sequence[BaseMessage]) -> list[tuple[str, str, int]]:
    """Return who says what, and how many pictures (as pixels) are shown with it."""
    return [
        (
            m.type,
            str(m.text),
            sum("base64" in b for b in m.content if isinstance(b, dict)),
        )
        for m in messages
    ]


def test_three_turns_with_a_system_prompt_and_pictures_in_the_first() -> None:
    model, scorer = HashChatModel(), HashScorer()
    saver = InMemorySaver()
    app = graph(policy=model, scorer=scorer).compile(checkpointer=saver)
    questions = ["How many red tiles are there?", "And how many are blue?", "What is their sum?"]
    first = shows(questions[0], *PICTURES)
    state: dict[str, Any] = {}
    for number, question in enumerate(questions):
        begun = len(model.calls), len(problems_of(scorer))
        new = [SYSTEM, first] if number == 0 else [HumanMessage(question)]
        state = app.invoke({"messages": new}, THREAD)
        answers = [m.text for m in state["messages"] if m.type == "ai"][:-1]
        expected = [("system", "Answer briefly.", 0), ("human", questions[0], 2)]
        for answer, asked in zip(answers, questions[1:], strict=False):
            expected += [("ai", answer, 0), ("human", asked, 0)]
        for call in model.calls[begun[0] :]:
            assert told(call.messages)[: len(expected)] == expected
            assert all(
                kind == "ai" for kind, *_ in told(call.messages)[len(expected) :]
            )  # the prefix
        (problem,) = set(problems_of(scorer)[begun[1] :])
        assert problem.images == tuple(picture.digest for picture in PICTURES)
        assert problem.system == "Answer briefly."
        assert problem.question.endswith(question)
        lines = problem.question.splitlines()
        assert sum(line.startswith("User: ") for line in lines) == number
        assert sum(line.startswith("Assistant: ") for line in lines) == number
    assert [m.type for m in state["messages"]] == ["system", *["human", "ai"] * 3]
    stored = repr([c.checkpoint for c in saver.list(THREAD)]) + repr(saver.blobs)
    assert base64.b64encode(PICTURES[0].png).decode()[:200] not in stored
    assert json.loads(json.dumps(state["search_problem"])) == state["search_problem"]


def test_a_first_question_is_asked_as_it_ever_was() -> None:
    model = HashChatModel()
    state = graph(policy=model).compile().invoke({"messages": [SYSTEM, shows("Red?", PICTURES[0])]})
    assert "context" not in state["search_problem"]
    alone = tree_of_state(state).problem
    assert alone == Problem("Red?", (PICTURES[0].digest,), "Answer briefly.")
    assert told(model.calls[0].messages) == [("system", "Answer briefly.", 0), ("human", "Red?", 1)]


def test_two_histories_are_two_problems_for_trees_seeds_and_caches() -> None:
    def after(answer: str) -> list[Any]:
        return [HumanMessage("Red?"), AIMessage(answer), HumanMessage("And blue?")]

    trees, calls = [], []
    inner = HashScorer()
    scorer = CachedScorer(inner, identity="asked")
    for history in (after("Answer: 3"), after("Answer: 4"), after("Answer: 3")):
        run = run_search(history, policy=HashChatModel(), scorer=scorer, strategy=BEAM)
        trees.append(run.tree)
        calls.append(len(problems_of(inner)))
        same = graph().compile().invoke({"messages": history})
        assert tree_of_state(same).dumps() == run.tree.dumps()
    assert trees[0].dumps() == trees[2].dumps()
    assert not {r.seed for r in trees[0] if r.seed} & {r.seed for r in trees[1] if r.seed}
    assert calls[1] > calls[0]
    assert calls[2] == calls[1]  # all of the first again, from the cache


def test_the_reward_models_question_is_made_by_a_hook() -> None:
    seen: list[list[BaseMessage]] = []

    def last_words(messages: Sequence[BaseMessage]) -> str:
        seen.append(list(messages))
        return f"Only this: {messages[-1].text}"

    history = [shows("Red?", PICTURES[0]), AIMessage("Answer: 3"), HumanMessage("And blue?")]
    scorer = HashScorer()
    options: dict[str, Any] = {"scorer": scorer, "question_of": last_words}
    state = graph(**options).compile().invoke({"messages": history})
    run = run_search(history, policy=HashChatModel(), strategy=BEAM, **options)
    assert {p.question for p in problems_of(scorer)} == {"Only this: And blue?"}
    assert tree_of_state(state).dumps() == run.tree.dumps()
    assert len(seen) == 2
    for messages in seen:
        assert "base64" not in repr(messages)
        assert [m.type for m in messages] == ["human", "ai", "human"]
    with pytest.raises(InputError, match="question_of made an empty question"):
        run_search(history, policy=HashChatModel(), scorer=scorer, question_of=lambda messages: " ")


def test_a_question_that_places_its_pictures_has_its_own_only() -> None:
    history = [
        shows("Red?", PICTURES[0]),
        AIMessage("Answer: 3"),
        shows("In <image>, how many are blue?", PICTURES[1]),
    ]
    problem, images, messages = read_asked(history)
    assert problem.images == (PICTURES[1].digest,)
    assert images == (PICTURES[1],)
    assert [count for *_, count in told(messages)] == [1, 0, 1]
    both, *_ = read_asked([*history[:2], shows("And blue?", PICTURES[1])])
    assert both.images == (PICTURES[0].digest, PICTURES[1].digest)
    again, *_ = read_asked([*history[:2], shows("And blue?", PICTURES[0])])
    assert again.images == (PICTURES[0].digest,)


def test_of_many_pictures_the_reward_model_is_shown_the_last_and_the_policy_all() -> None:
    many = [normalise_image(noisy_png(28, seed)) for seed in range(20)]
    history: list[Any] = []
    for number, picture in enumerate(many):
        history += [shows(f"Question {number}?", picture), AIMessage(f"Answer: {number}")]
    problem, images, messages = read_asked([*history, HumanMessage("Which was largest?")])
    assert problem.images == tuple(picture.digest for picture in many[12:])
    assert [image.digest for image in images] == list(problem.images)
    assert sum(count for *_, count in told(messages)) == 20
    assert len(problem.question) < 1_500
    assert problem.question.endswith("Which was largest?")
    assert "Question 19?" in problem.question


# --- tools, feedback, trimming, notations --------------------------------------------------------

CALL = {"name": "count", "args": {"colour": "red"}, "id": "call-1"}


def test_tool_results_reach_the_policy_and_the_steps_follow_them() -> None:
    model = HashChatModel()
    chart = [image_block(PICTURES[1]), {"type": "text", "text": "3 red tiles"}]
    history = [
        shows("How many are red?", PICTURES[0]),
        AIMessage("", tool_calls=[CALL]),
        ToolMessage(chart, tool_call_id="call-1"),
    ]
    state = graph(policy=model).compile().invoke({"messages": history})
    for call in model.calls:
        assert told(call.messages)[:3] == [
            ("human", "How many are red?", 1),
            ("ai", "", 0),
            ("tool", "3 red tiles", 1),
        ]
        assert call.messages[1].tool_calls[0]["args"] == {"colour": "red"}  # type: ignore[attr-defined]
    assert state["search_problem"]["question"] == "How many are red?"
    assert state["search_problem"]["images"] == [PICTURES[0].digest, PICTURES[1].digest]


def test_a_verifiers_feedback_makes_another_search_of_the_same_question() -> None:
    model, scorer = HashChatModel(), HashScorer()
    rejected = [HumanMessage("Red?"), AIMessage("Answer: 3")]
    retry = [*rejected, HumanMessage("Step 1 looks wrong.", name=FEEDBACK_NAME)]
    trees = [
        tree_of_state(graph(policy=model, scorer=scorer).compile().invoke({"messages": messages}))
        for messages in (rejected[:1], retry)
    ]
    assert trees[0].root_id != trees[1].root_id
    assert {p.question for p in problems_of(scorer)} == {"Red?"}
    assert told(model.calls[-1].messages)[:3] == told(retry)


def test_history_classes_trimming_and_removal_decide_what_is_shown() -> None:
    model = HashChatModel()
    app = graph(policy=model).compile()
    history = InMemoryChatMessageHistory()
    chat = RunnableWithMessageHistory(
        app | (lambda state: state["messages"][-1]), lambda session: history
    )
    config: Any = {"configurable": {"session_id": "s"}}
    for question in ("Red?", "And blue?"):
        chat.invoke([HumanMessage(question)], config)
    assert [m.type for m in history.messages] == ["human", "ai", "human", "ai"]
    assert told(model.calls[-1].messages)[:3] == told(history.messages[:3])

    few_shot = ChatPromptTemplate.from_messages(
        [("system", "Be exact."), ("human", "1 + 1?"), ("ai", "Answer: 2"), ("human", "{asked}")]
    )
    (few_shot | app).invoke({"asked": "2 + 2?"})
    assert [text for _, text, _ in told(model.calls[-1].messages)[:4]] == [
        "Be exact.", "1 + 1?", "Answer: 2", "2 + 2?",
    ]  # fmt: skip

    trimmed = trim_messages(
        [SYSTEM, *history.messages, HumanMessage("Sum?")],
        max_tokens=4, token_counter=len, strategy="last", include_system=True, start_on="human",
    )  # fmt: skip
    app.invoke({"messages": trimmed})
    assert told(model.calls[-1].messages)[: len(trimmed)] == told(trimmed)

    kept = graph(policy=model).compile(checkpointer=InMemorySaver())
    state = kept.invoke({"messages": [HumanMessage("Red?")]}, THREAD)
    gone = [RemoveMessage(m.id) for m in state["messages"]]
    alone = kept.invoke({"messages": [*gone, HumanMessage("Blue?")]}, THREAD)
    assert alone["search_problem"] == Problem("Blue?").to_json()


def test_a_conversation_changed_in_mid_search_is_refused_and_one_that_grew_is_not() -> None:
    app = graph().compile(checkpointer=InMemorySaver(), interrupt_before=["propose"])
    first = [HumanMessage("Red?", id="a"), AIMessage("Answer: 3", id="b")]
    whole = tree_of_state(
        graph().compile().invoke({"messages": [*first, HumanMessage("Blue?", id="c")]})
    )
    app.invoke({"messages": [*first, HumanMessage("Blue?", id="c")]}, THREAD)
    app.update_state(THREAD, {"messages": [AIMessage("a note")]}, as_node="plan")
    while app.get_state(THREAD).next:
        app.invoke(None, THREAD)
    assert tree_of_state(app.get_state(THREAD).values).dumps() == whole.dumps()
    other: Any = {"configurable": {"thread_id": "two"}}
    app.invoke({"messages": [*first, HumanMessage("Blue?", id="c")]}, other)
    app.update_state(other, {"messages": [RemoveMessage("a")]}, as_node="plan")
    with pytest.raises(SearchError, match="was changed while it was under way"):
        app.invoke(None, other)


def test_a_search_that_an_earlier_version_left_goes_on_as_it_began() -> None:
    model = HashChatModel()
    app = graph(policy=model).compile(checkpointer=InMemorySaver(), interrupt_before=["plan"])
    app.invoke({"messages": [HumanMessage("Red?"), AIMessage("3"), HumanMessage("Blue?")]}, THREAD)
    old = {"question": "Blue?", "images": [], "system": ""}  # it knew of no conversation
    app.update_state(THREAD, {"search_problem": old}, as_node="ingest")
    while app.get_state(THREAD).next:
        app.invoke(None, THREAD)
    tree = tree_of_state(app.get_state(THREAD).values)
    alone = run_search("Blue?", policy=HashChatModel(), scorer=HashScorer(), strategy=BEAM)
    assert tree.dumps() == alone.tree.dumps()


def test_a_follow_up_search_goes_on_in_another_process(tmp_path: Path) -> None:
    history: list[AnyMessage] = [
        SYSTEM,
        shows("Red \ud83d?", PICTURES[0]),
        AIMessage("Answer:\x00 3"),
        HumanMessage("And blue?"),
    ]
    whole = tree_of_state(graph().compile().invoke({"messages": history}))
    given: Any = {"messages": history}
    store = MemoryImageStore()
    for _ in range(60):
        with SqliteSaver.from_conn_string(str(tmp_path / "s.sqlite")) as saver:
            app = graph(image_store=store).compile(
                checkpointer=saver, interrupt_after=["ingest", "plan", "score"]
            )
            state, given = app.invoke(given, THREAD), None
            if state.get("search_result"):
                break
    assert tree_of_state(state).dumps() == whole.dumps()


turns = st.lists(
    st.sampled_from(
        [
            HumanMessage("Red?"),
            HumanMessage([{"type": "text", "text": "Red?"}]),
            shows("Blue?", PICTURES[0]),
            AIMessage("Answer: 3"),
            AIMessage([{"type": "text", "text": "Step 1: x"}, "\n\nAnswer: 4"]),
            AIMessage("", tool_calls=[CALL]),
            ToolMessage("3", tool_call_id="call-1"),
            HumanMessage("No.", name=FEEDBACK_NAME),
            SYSTEM,
        ]
    ),
    max_size=7,
)


@given(turns)
def test_any_conversation_that_ends_with_a_question_is_read(before: list[BaseMessage]) -> None:
    messages = [*before, HumanMessage("And now?")]
    problem, images, shown = read_asked(messages)
    assert question_in_context(messages).endswith("And now?")
    assert problem.question.endswith("And now?")
    assert [i.digest for i in images] == list(problem.images)
    assert bool(problem.context) == bool(shown)
    assert told(shown) == (told(messages) if shown else [])
    alone = all(isinstance(m, SystemMessage) for m in before)
    assert bool(shown) != alone
    as_blocks = [
        m.model_copy(update={"content": [{"type": "text", "text": m.content}]})
        if isinstance(m.content, str) and m.content
        else m
        for m in messages
    ]
    assert read_asked(as_blocks)[0] == problem
    assert conversation([*messages, AIMessage("an old answer")]) == conversation(messages)


# --- how a conversation is put to a chat model ---------------------------------------------------


@pytest.mark.parametrize("prefill", ["none", "message"])
@pytest.mark.parametrize("ends", ["text", "blocks", "tool"])
def test_what_is_asked_for_comes_last(prefill: Any, ends: str) -> None:
    before = [SYSTEM, HumanMessage("Red?"), AIMessage("3")]
    last: list[BaseMessage] = {
        "text": [HumanMessage("Blue?")],
        "blocks": [shows("Blue?", PICTURES[0])],
        "tool": [
            HumanMessage("Blue?"),
            AIMessage("", tool_calls=[CALL]),
            ToolMessage("4", tool_call_id="call-1"),
        ],
    }[ends]
    style = PromptStyle("\n\n", prefill, True, "style's own", "Think.")
    request = ProposeRequest(Problem("?"), ("Step 1.",), (1,), "end", messages=(*before, *last))
    built = build_messages(request, style)
    assert told(built[:3]) == told(before)
    assert sum(m.type == "system" for m in built) == 1
    asking = built[-1] if prefill == "none" else built[-2]
    assert asking.type == "human"
    assert "Think." in asking.text
    assert ("Step 1." in asking.text) == (prefill == "none")
    if prefill == "message":
        assert built[-1].text == "Step 1.\n\n"
    assert (asking.text.startswith("Blue?")) == (ends != "tool")
    own = build_messages(
        ProposeRequest(
            Problem("?"), (), (1,), "end", messages=(HumanMessage("a"), *before[2:], *last)
        ),
        style,
    )
    assert own[0].text == "style's own"
