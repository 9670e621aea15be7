"""What the page on LangChain and LangGraph shows is run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from langgraph.graph import START, MessagesState, StateGraph

from tests.graph.fakes import HashChatModel, HashScorer
from vprm_search.errors import SearchWarning
from vprm_search.graph import create_search_graph, tree_of_state
from vprm_search.graph.questions import question_in_context

PAGE = (Path(__file__).parents[2] / "docs" / "langgraph.md").read_text(encoding="utf-8")
QUESTION = "What is 6 x 7?"


def with_a_search() -> Any:
    graph = StateGraph(MessagesState)
    search = create_search_graph(policy=HashChatModel(), scorer=HashScorer())
    graph.add_node("search", search.compile())
    graph.add_edge(START, "search")
    return graph.compile()


def test_the_code_of_the_page_runs_and_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VPRM_SEARCH_CACHE", str(tmp_path))
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    given: dict[str, Any] = {
        "model": HashChatModel(),
        "prm": HashScorer(),
        "question": {"messages": [("human", QUESTION)]},
        "parent": with_a_search(),
    }
    with pytest.warns(SearchWarning, match="rounds 2 of 2"):
        exec(compile("\n".join(blocks), "docs/langgraph.md", "exec"), given)
    assert len(given["part"]) == 2  # its place and the event
    assert given["last"].type == "ai"
    assert len(given["both"]) == 2
    cut, state = given["cut"], given["state"]
    assert {r.id for r in tree_of_state(cut)} < {r.id for r in tree_of_state(state)}
    assert "2 of 2" not in state["search_result"]["ended_by"]


def test_the_shown_question_is_the_one_that_is_made() -> None:
    from langchain_core.messages import AIMessage, HumanMessage

    messages = [
        HumanMessage("How many red tiles are there?"),
        AIMessage("Step 1: I count.\n\nAnswer: 3"),
        HumanMessage("And how many are blue?"),
    ]
    assert f"```text\n{question_in_context(messages)}\n```" in PAGE
