"""Choices given with a question, or standing in it, count in every vote, by every door."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.memory import InMemorySaver

from vprm_search import ids, image_message
from vprm_search.errors import InputError
from vprm_search.graph import create_search_graph, run_search
from vprm_search.graph.questions import read_asked
from vprm_search.images.messages import read_message
from vprm_search.search import BestOfN, MajorityVote
from vprm_search.testing import ScriptedPolicy
from vprm_search.types import Problem

CHOICES = ["10 cm", "12 cm"]
SAID = ["Answer: B", "Answer: 12 cm", "So:\n\n(B) 12 cm", "Answer: 0.12 m", *3 * ["Answer: 9 cm"]]
ASKED: list[Any] = [
    Problem("How long?", choices=tuple(CHOICES)),
    "How long?\n(A) 10 cm\n(B) 12 cm",
    image_message("How long?", choices=CHOICES),
    {"role": "user", "content": "How long?", "choices": CHOICES},
    [HumanMessage("Hello"), HumanMessage("How long? (A) 10 cm (B) 12 cm")],
    [HumanMessage("Which? (A) 1 (B) 2"), HumanMessage("How long?\nA. 10 cm\nB. 12 cm")],
]


@pytest.mark.parametrize("asked", ASKED, ids=range(len(ASKED)))
def test_letter_text_and_both_vote_together_by_every_door(asked: Any) -> None:
    rules: dict[str, Any] = {"strategy": BestOfN(len(SAID)), "selector": MajorityVote()}
    run = run_search(asked, policy=ScriptedPolicy(SAID), scorer=None, **rules)
    assert max(c.votes for c in run.result.candidates) == 4
    assert run.result.answer in ("B", "12 cm", "(B) 12 cm", "0.12 m")
    if isinstance(asked, Problem):
        return
    graph = create_search_graph(policy=ScriptedPolicy(SAID), scorer=None, **rules)
    compiled = graph.compile(checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "1"}}
    messages = asked if isinstance(asked, list) else [asked]
    told = compiled.invoke({"messages": messages}, thread)["messages"][-1].response_metadata["vprm"]
    assert told["answer"] == run.result.answer


def test_without_choices_they_are_strangers() -> None:
    rules: dict[str, Any] = {"strategy": BestOfN(len(SAID)), "selector": MajorityVote()}
    run = run_search("How long?", policy=ScriptedPolicy(SAID), scorer=None, **rules)
    assert run.result.answer == "9 cm"


def test_a_message_shows_its_choices_once_and_keeps_them() -> None:
    text, _ = read_message(image_message("How long?", choices=CHOICES))
    assert text == "How long?\n(A) 10 cm\n(B) 12 cm"
    assert read_message(image_message(text, choices=CHOICES))[0] == text
    problem, _, _ = read_asked(image_message("How long?", choices=CHOICES))
    assert problem.choices == tuple(CHOICES)
    assert Problem.from_json(problem.to_json()) == problem


def test_other_choices_are_another_problem() -> None:
    roots = {ids.root_id(Problem("q", choices=c), 0) for c in ((), ("1", "2"), ("2", "1"))}
    assert len(roots) == 3
    assert "choices" not in Problem("q").to_json()  # what was stored before stays what it was


@pytest.mark.parametrize("choices", ["AB", [1, 2], ["", "x"], {"A": "x"}])
def test_choices_that_are_no_texts_are_refused(choices: Any) -> None:
    with pytest.raises(InputError, match="choices of a question"):
        read_asked({"role": "user", "content": "How long?", "choices": choices})
