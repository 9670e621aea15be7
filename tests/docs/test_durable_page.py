"""What the page on durable searches shows is run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langgraph.checkpoint.memory import InMemorySaver
from langsmith.run_helpers import tracing_context

from tests.graph.fakes import HashChatModel, HashScorer
from vprm_search.graph import search_done, tree_of_state

PAGE = (Path(__file__).parents[2] / "docs" / "durable.md").read_text(encoding="utf-8")


class Named(HashScorer):
    identity = "made up"


def test_the_code_of_the_page_runs_and_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VPRM_SEARCH_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    given: dict[str, Any] = {
        "agent": create_agent(HashChatModel(), []),
        "tools": [],
        "model": HashChatModel(),
        "prm": Named(),
        "saver": InMemorySaver(),
        "config": {"configurable": {"thread_id": "first"}},
        "question": {"messages": [("human", "What is 6 x 7?")]},
    }
    with tracing_context(enabled=False):  # nobody listens
        exec(compile("\n".join(blocks), "docs/durable.md", "exec"), given)
    assert (tmp_path / "scores.sqlite").exists()
    state = given["state"]
    assert search_done(state)
    assert tree_of_state(state)[given["worst"]].cause == "review"
    assert given["part"][0] == "values"
    assert given["seen"]["vprm_verdicts"][0]["outcome"] == "scored"


def test_the_page_names_every_kind_of_event() -> None:
    from vprm_search.graph.events import SearchEvent

    kinds = [kind.__annotations__["event"] for kind in SearchEvent.__args__[0].__args__]
    named = re.findall(r"Literal\['(\w+)'\]", str(kinds))
    assert len(named) == 7
    for kind in named:
        assert f"| `{kind}` |" in PAGE
