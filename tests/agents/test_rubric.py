"""deepagents' `RubricMiddleware`: what docs/agents.md says of it, and both in one agent."""

from __future__ import annotations

from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage

from tests.graph.fakes import noisy_png
from vprm_search import ProcessRewardMiddleware
from vprm_search.images import image_message
from vprm_search.testing import ChatCall, ScriptedChatModel, ScriptedScorer

deepagents = pytest.importorskip("deepagents", reason="make test-clients installs it")

WRONG = [{"name": "right", "passed": False, "gap": "it is not"}]


def reject(call: ChatCall) -> AIMessage:
    verdict = {"result": "needs_revision", "explanation": "no", "criteria": WRONG}
    called = {"name": "GraderResponse", "args": verdict, "id": f"verdict-{call.number}"}
    return AIMessage("", tool_calls=[called])


def test_a_rubric_sees_no_picture_and_leaves_what_it_rejected_unmarked() -> None:
    grader = ScriptedChatModel(reject)
    model = ScriptedChatModel(lambda call: f"Answer: {call.number}")
    judged = ScriptedScorer(lambda request: 0.9 if len(request.images) == 1 else 0.0)
    agent = create_agent(
        model,
        [],
        middleware=[
            deepagents.RubricMiddleware(model=grader, max_iterations=2),
            ProcessRewardMiddleware(judged, n=3),
        ],
    )
    asked: Any = {
        "messages": [image_message("3 + 4?", noisy_png(20))],
        "rubric": "- the answer is right",
    }
    state: Any = agent.invoke(asked)
    told = [repr(call.messages) for call in grader.calls]
    assert len(told) == 2
    assert all("(image)" in text and "base64" not in text for text in told)
    kinds = [message.type for message in state["messages"]]
    assert kinds == ["human", "ai", "human", "ai"]  # the rejected try stays, with its feedback
    assert "needs_revision" not in repr(state["messages"][-1])
    assert len(model.calls) == 2 * 3
    assert [verdict["score"] for verdict in state["vprm_verdicts"]] == [
        0.9,
        0.9,
    ]  # with the picture
