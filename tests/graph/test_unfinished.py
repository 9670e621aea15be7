"""An answer read from an unfinished path is marked at every door at which it is shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage
from PIL import ImageDraw

from tests.cli.conftest import Asked, Run, asked, run
from tests.graph.fakes import QUESTION, HashScorer
from tests.graph.fakes import asked as conversation
from tests.report.test_terminal import rendered
from vprm_search.budget import Budget
from vprm_search.cli.demo import Solved, tallies
from vprm_search.evaluate.search_records import chosen
from vprm_search.evaluate.search_report import cost_table
from vprm_search.graph import create_search_graph, create_verifier_node, run_search
from vprm_search.graph.run import SearchRun
from vprm_search.images.store import MemoryImageStore
from vprm_search.report.html import page_data
from vprm_search.report.picture import png_picture
from vprm_search.report.view import answer_line, shortened, tree_view, view_of
from vprm_search.search import BeamSearch, BestOfN, Strategy
from vprm_search.tiny.world import generate
from vprm_search.types import Proposal, ProposeRequest, SearchResult, shown_answer

__all__ = ["asked", "run"]  # fixtures

MARKED = "[unfinished] 42"
IN_WORDS = "no path finished"


class Cut:
    """A policy whose every reply the token limit cuts, behind what looks like an answer."""

    async def propose(self, requests: Sequence[ProposeRequest]) -> list[list[Proposal]]:
        """Answer every seed."""
        cut = Proposal("Answer: 42", "length", generated_tokens=5)
        return [[cut for _ in request.seeds] for request in requests]


class Endless(Cut):
    """A policy that never comes to an end, so that paths are open when a limit ends the search."""

    async def propose(self, requests: Sequence[ProposeRequest]) -> list[list[Proposal]]:
        """Answer every seed."""
        return [[Proposal(f"on {s % 97}", "step") for s in r.seeds] for r in requests]


def searched(policy: Cut | None = None, strategy: Strategy | None = None) -> SearchRun:
    with pytest.warns(match=IN_WORDS):
        return run_search(
            QUESTION,
            policy=policy or Cut(),
            scorer=HashScorer(),
            strategy=strategy or BeamSearch(width=2, expand=2),
            budget=Budget(rounds=3),
        )


def test_the_result_says_it() -> None:
    for strategy in (BeamSearch(width=2, expand=2), BestOfN(3)):
        found = searched(strategy=strategy)
        assert (found.result.answer, found.result.said) == ("42", MARKED)
        assert [candidate.said for candidate in found.result.candidates] == [MARKED]
        assert (
            str(found)
            == str(found.result)
            == f"Answer: 42\n\n[Unfinished: {found.result.warning}.]"
        )
        assert IN_WORDS in json.dumps(found.result.to_json())


def test_graph_message_metadata_and_events_say_it() -> None:
    graph = create_search_graph(
        policy=Cut(), scorer=HashScorer(), strategy=BestOfN(2), image_store=MemoryImageStore()
    ).compile()
    with pytest.warns(match=IN_WORDS):
        chunks = list(graph.stream(conversation(), stream_mode=["custom", "values"]))
    told = [chunk for mode, chunk in chunks if mode == "custom"]
    state = chunks[-1][1]
    message = state["messages"][-1]
    assert message.content == str(SearchResult.from_json(state["search_result"]))
    assert "[Unfinished: no path finished" in message.content
    assert IN_WORDS in message.response_metadata["vprm"]["warning"]
    (event,) = (event for event in told if event["event"] == "answer")
    assert event["answer"] == "42"
    assert IN_WORDS in event["warning"]
    node = create_verifier_node(HashScorer(), threshold=0.0)
    verdict = node.invoke({"messages": state["messages"]})["vprm"]
    assert verdict["outcome"] == "unscored"
    assert IN_WORDS in json.dumps(verdict)
    passed = node.invoke({"messages": [*conversation()["messages"], AIMessage("Answer: 42")]})
    assert passed["vprm"]["outcome"] == "passed"


@pytest.mark.parametrize("policy", [Cut(), Endless()])
def test_terminal_page_and_picture_say_it(policy: Cut, monkeypatch: pytest.MonkeyPatch) -> None:
    found = searched(policy)
    marked = found.result.said
    assert marked.startswith("[unfinished] ")
    view = view_of(found.tree, found.result, expected="42")
    assert f"Answer: {marked}" in rendered(answer_line(view))
    assert "← [unfinished] answer" in rendered(tree_view(view))
    page = page_data(view)
    assert page["said"] == marked
    assert [row["said"] for row in page["candidates"]] == [marked]
    assert [node["said"] for node in page["nodes"] if node["said"]] == ["[unfinished] answer"]
    drawn: list[str] = []
    write = ImageDraw.ImageDraw.text

    def noted(self: ImageDraw.ImageDraw, place: Any, text: Any, *args: Any, **more: Any) -> None:
        drawn.append(str(text))
        write(self, place, text, *args, **more)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", noted)
    png_picture(view)
    assert any(text.startswith(f"Answer: {marked}"[:24]) for text in drawn)
    assert any(text.startswith("[unfinished] answer") for text in drawn)


def test_solve_says_it(run: Run, asked: Asked) -> None:
    cut = ("--strategy", "beam", "--width", "1", "--expand", "2", "--max-depth", "1")
    ran = run("solve", *asked.arguments, *cut)
    assert "Answer: [unfinished] " in ran.out
    assert IN_WORDS in ran.err
    ran = run("solve", *asked.arguments, *cut, "--json")
    assert IN_WORDS in json.loads(ran.out)["result"]["warning"]


def test_it_counts_as_no_answer_in_demo_and_comparison() -> None:
    found = searched()
    solved = Solved(
        replace(
            generate("tiles", "test", 21),
            values=(42,),
            operands=("red",),
            names=("red",),
            operators=(),
        ),
        (),
        found,
        found,
    )
    assert not solved.search_right
    assert all(sum(tally.right) == 0 for tally in tallies([solved]).values())
    assert not chosen(found.tree, "weighted-vote:mean", "42").right


def test_a_comparison_says_how_often_no_path_finished() -> None:
    names = ("generated_tokens", "budget", "cut", "scored_tokens", "computed_tokens", "rounds")
    row: dict[str, Any] = dict.fromkeys(names, 1.0)
    row |= {"name": "beam", "size": 4, "headline": True, "failed": 0.0, "seconds": 0.0}
    with_all, without = (
        cost_table({"rows": [{**row, "finished": 3.0, "unfinished": share}]})
        for share in (0.0, 0.125)
    )
    assert "| 3.0 |" in with_all
    assert "| 3.0 (none in 12.5 %) |" in without


@given(st.text(), st.integers(14, 60))
def test_no_shortening_cuts_the_mark_off(answer: str, limit: int) -> None:
    assert shown_answer(answer, unfinished=False) == answer
    assert shortened(shown_answer(answer, unfinished=True), limit).startswith("[unfinished]")
