"""What a conversation holds and a reward model cannot see: every door says so, or refuses it."""

from __future__ import annotations

import base64
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage

from tests.graph.fakes import QUESTION, HashChatModel, HashScorer, noisy_png
from vprm_search.agents import ProcessRewardMiddleware, create_vprm_evaluator
from vprm_search.agents.turns import turn_as_step
from vprm_search.errors import ImageError, InputError, SearchWarning
from vprm_search.graph import create_search_graph, create_verifier_node
from vprm_search.graph.questions import read_asked
from vprm_search.graph.run import run_search
from vprm_search.images import DiskImageStore, MemoryImageStore, image_message
from vprm_search.testing import ScriptedChatModel, ScriptedScorer

PDF = base64.b64encode(b"%PDF-1.4 nothing").decode()
PICTURE: dict[str, Any] = {
    "type": "image", "base64": base64.b64encode(noisy_png(24)).decode(), "mime_type": "image/png",
}  # fmt: skip
PICTURES: list[Any] = [
    {"type": "image", "base64": base64.b64encode(noisy_png(8, seed)).decode()} for seed in range(12)
]
ATTACHMENTS: list[dict[str, Any]] = [
    {"type": "file", "base64": PDF, "mime_type": "application/pdf"},
    {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{PDF}"}},
    {"type": "file", "file_id": "file-1"},
    {"type": "input_file", "file_id": "file-1"},
    {
        "type": "document",
        "source": {"type": "base64", "media_type": "application/pdf", "data": PDF},
    },
    {"type": "media", "mime_type": "application/pdf", "data": PDF},
    {"type": "media", "mime_type": "video/mp4", "data": "AAAA"},
    {"inline_data": {"mime_type": "audio/wav", "data": "AAAA"}},
    {"type": "audio", "base64": "AAAA", "mime_type": "audio/wav"},
    {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    {"type": "video", "base64": "AAAA", "mime_type": "video/mp4"},
    {"type": "video_url", "video_url": {"url": "https://127.0.0.1/v"}},
    {"type": "resource", "resource": {"uri": "file:///a", "blob": "AAAA"}},
    {"type": "hologram", "value": 1},
    {"document": {"format": "pdf", "name": "a", "source": {"bytes": b"%PDF"}}},
]
"""Files, recordings, films and blocks nobody knows, as providers and LangChain write them."""
UNREADABLE: list[dict[str, Any]] = [
    {"type": "image", "url": "https://127.0.0.1/1.png"},
    {"type": "image", "file_id": "file-1"},
    {"type": "image", "base64": "AAAA", "mime_type": "image/png"},
    {"type": "image_url", "image_url": {"url": "data:image/gif;base64,R0lGODlhAQABAAAAACw="}},
    {"type": "image_url"},
]
"""Pictures that nobody reads: addresses, names of files, other formats, broken ones."""
TEXT = {"type": "text", "text": "the page"}
CALL: Any = {"name": "read_page", "args": {}, "id": "1"}
ANSWER = AIMessage("It is 3.\n\nAnswer: 3")
attachments = st.lists(st.sampled_from(ATTACHMENTS), min_size=1, max_size=3)


def talk(blocks: list[dict[str, Any]], *, name: str | None = "read_page") -> list[BaseMessage]:
    """A question, a call of a tool, and what that returned."""
    result = ToolMessage([TEXT, *blocks], tool_call_id="1", name=name)
    return [HumanMessage("What does the page say?"), AIMessage("", tool_calls=[CALL]), result]


def good() -> ScriptedScorer:
    return ScriptedScorer(lambda request: 0.9)


def verdict_on(messages: list[BaseMessage], scorer: ScriptedScorer | None = None) -> Any:
    node = create_verifier_node(scorer or good(), image_store=MemoryImageStore())
    return node.invoke({"messages": messages})["vprm"]


@given(attachments, st.booleans())
def test_a_verdict_names_what_the_tool_s_message_held(
    blocks: list[dict[str, Any]], named: bool
) -> None:
    verdict = verdict_on([*talk(blocks, name="read_page" if named else None), ANSWER])
    assert verdict["outcome"] == "passed"
    whose = " from the tool read_page" if named else " from a tool"
    assert verdict["unseen"]
    assert all(said.endswith(whose) for said in verdict["unseen"])
    assert len(set(verdict["unseen"])) == len(verdict["unseen"]) <= len(blocks)


@given(attachments)
def test_in_a_person_s_message_it_is_refused(blocks: list[dict[str, Any]]) -> None:
    asked = HumanMessage([TEXT, *blocks])
    verdict = verdict_on([asked, ANSWER])
    assert (verdict["outcome"], "block" in verdict["reason"]) == ("unscored", True)
    with pytest.raises(InputError, match="block"):
        run_search([asked], policy=HashChatModel(), scorer=HashScorer())


@pytest.mark.parametrize("block", UNREADABLE, ids=repr)
def test_a_picture_that_nobody_reads_is_named_where_a_tool_or_a_model_gave_it(
    block: dict[str, Any],
) -> None:
    scorer = good()
    assert verdict_on([*talk([block, PICTURE]), ANSWER], scorer)["unseen"] == [
        "a picture from the tool read_page"
    ]
    assert len(scorer.asked[0].images) == 1  # the other one of the tool
    for earlier, whose in ((ToolMessage, "from a tool"), (AIMessage, "in what the model said")):
        extra = {"tool_call_id": "1"} if earlier is ToolMessage else {}
        given = [*talk([])[:2], earlier([TEXT, block], **extra), HumanMessage(QUESTION)]
        with pytest.warns(SearchWarning, match=f"not shown a picture {whose}"):
            run = run_search(given, policy=HashChatModel(), scorer=HashScorer())
        store = MemoryImageStore()
        graph = create_search_graph(
            policy=HashChatModel(), scorer=HashScorer(), image_store=store
        ).compile()
        with pytest.warns(SearchWarning, match=f"not shown a picture {whose}"):
            state = graph.invoke({"messages": given})
        assert state["messages"][2].content == [TEXT, block]
        assert state["search_result"]["answer"] == run.result.answer


@given(
    st.lists(st.sampled_from(UNREADABLE), min_size=1, max_size=3),
    st.integers(0, 12),
    st.sampled_from(["And now?", "And the <image> now?"]),
)
def test_a_picture_that_nobody_reads_hides_none_of_the_others(
    blocks: list[dict[str, Any]], pictures: int, later: str
) -> None:
    first = HumanMessage([*PICTURES[:pictures], TEXT])

    def shown(blocks: list[dict[str, Any]]) -> tuple[str, ...]:
        messages = [first, *talk(blocks)[1:], ANSWER, HumanMessage(later)]
        with warnings.catch_warnings(action="ignore", category=SearchWarning):
            return read_asked(messages)[0].images

    assert shown(blocks) == shown([])
    assert len(shown(blocks)) == pictures


def test_a_tool_s_picture_is_not_left_in_the_state_where_the_store_cannot_take_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("no folder")
    store = DiskImageStore(tmp_path / "file" / "images")
    graph = create_search_graph(policy=HashChatModel(), scorer=HashScorer(), image_store=store)
    asked = [*talk([PICTURE]), HumanMessage(QUESTION)]
    with pytest.raises(ImageError, match="cannot be stored"):
        graph.compile().invoke({"messages": asked})


@pytest.mark.parametrize("block", UNREADABLE, ids=repr)
def test_in_a_question_such_a_picture_is_refused(block: dict[str, Any]) -> None:
    asked = HumanMessage([TEXT, block])
    assert verdict_on([asked, ANSWER])["outcome"] == "unscored"
    for later in ([], [AIMessage("3"), HumanMessage("And now?")]):
        with pytest.raises(ImageError):
            run_search([asked, *later], policy=HashChatModel(), scorer=HashScorer())


def test_a_conversation_of_text_and_pictures_is_seen_whole() -> None:
    scorer = good()
    verdict = verdict_on([*talk([PICTURE]), ANSWER], scorer)
    assert (verdict["unseen"], len(scorer.asked[0].images)) == ([], 1)


def test_pictures_that_nobody_shows_are_named() -> None:
    before: list[BaseMessage] = [SystemMessage([{"type": "text", "text": "Be brief."}, PICTURE])]
    for number in range(9):
        picture = noisy_png(24, seed=number + 1)
        before += [image_message(f"Question {number}?", picture), AIMessage("Answer: 1")]
    scorer = good()
    verdict = verdict_on([*before, HumanMessage("And now?"), ANSWER], scorer)
    assert len(scorer.asked[0].images) == 8
    said = ["a picture in the system prompt", "a picture of an earlier turn"]
    assert verdict["unseen"] == said


@given(attachments)
def test_a_mark_of_an_evaluator_says_it(blocks: list[dict[str, Any]]) -> None:
    for messages in ([*talk(blocks), ANSWER], [*talk(blocks), AIMessage("So 3."), ANSWER]):
        whole = create_vprm_evaluator(good())(outputs={"messages": messages})[0]
        assert "was not shown" in str(whole["comment"])
        assert whole["metadata"]
        assert whole["metadata"]["unseen"]


def test_an_evaluator_of_a_trajectory_shows_what_the_tools_have_shown() -> None:
    scorer = good()
    evaluate = create_vprm_evaluator(scorer)
    messages = [image_message("What is it?", noisy_png(40)), *talk([PICTURE])[1:], ANSWER]
    assert evaluate(outputs={"messages": messages})[0]["comment"] is None
    assert [len(request.images) for request in scorer.asked] == [2]


def test_the_record_of_a_middleware_and_a_turn_say_it() -> None:
    model = ScriptedChatModel(["It is 3. Answer: 3"] * 2)
    middleware = ProcessRewardMiddleware(good(), n=2)
    state = create_agent(model, [], middleware=[middleware]).invoke(
        {"messages": talk([ATTACHMENTS[0]])}
    )
    assert state["vprm_verdicts"][0]["unseen"] == ["a file from the tool read_page"]
    assert "the page (file, not shown)" in turn_as_step([*talk([ATTACHMENTS[0]]), ANSWER])


@pytest.mark.parametrize("block", ATTACHMENTS, ids=repr)
def test_a_search_warns(block: dict[str, Any]) -> None:
    given = [*talk([block]), HumanMessage(QUESTION)]
    with pytest.warns(SearchWarning, match="is not shown a.* from the tool read_page"):
        run_search(given, policy=HashChatModel(), scorer=HashScorer())
    graph = create_search_graph(
        policy=HashChatModel(), scorer=HashScorer(), image_store=MemoryImageStore()
    ).compile()
    with pytest.warns(SearchWarning, match="is not shown a.* from the tool read_page"):
        graph.invoke({"messages": given})


def test_a_search_over_text_and_pictures_does_not() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", SearchWarning)
        run_search(
            [*talk([PICTURE]), HumanMessage(QUESTION)], policy=HashChatModel(), scorer=HashScorer()
        )
