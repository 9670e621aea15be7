"""What the tree holds of a whole solution is what the reference scores for that reply, once."""

from __future__ import annotations

import math
from itertools import repeat
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage

from tests.graph.fakes import HashScorer
from vprm_search.graph import create_verifier_node, run_search
from vprm_search.images import MemoryImageStore
from vprm_search.search import BeamSearch, BestOfN, BestScore
from vprm_search.testing import ScriptedChatModel, ScriptedPolicy
from vprm_search.tree import SearchTree
from vprm_search.types import Proposal

paragraphs = st.sampled_from(["", " ", "\n", "a", " b ", "c\n", "\td", "Answer: 4", "e\n \nf"])
replies = st.one_of(
    st.lists(paragraphs, max_size=30).map("\n\n".join),
    st.text("ab \n\t点", max_size=60),
)


def reference_steps(response: str, max_steps: int = 12) -> list[str]:
    """The published rule, written down anew: cut at blank lines, join groups of equal size."""
    parts = response.split("\n\n")
    size = math.ceil(len(parts) / max_steps)
    return ["\n\n".join(parts[i : i + size]) for i in range(0, len(parts), size)]


def steps_of(scorer: HashScorer) -> list[tuple[str, ...]]:
    """Return the paths that were asked for."""
    return [request.steps for request in scorer.asked]


def answering(reply: str) -> ScriptedChatModel:
    ended = {"finish_reason": "stop"}
    return ScriptedChatModel(repeat(AIMessage(reply, response_metadata=ended)))


@given(replies.filter(str.strip))
@settings(max_examples=60, deadline=None)
def test_a_candidate_is_the_reply_to_the_letter(reply: str) -> None:
    scorer = HashScorer()
    rules: Any = {"strategy": BestOfN(1), "selector": BestScore(aggregate="mean")}
    run = run_search("How many?", policy=answering(reply), scorer=scorer, **rules)
    steps = tuple(reference_steps(reply))
    assert steps_of(scorer) == [steps]
    (leaf,) = run.tree.finished()
    assert run.tree.steps(leaf.id) == steps
    assert run.tree.depth(leaf.id) == len(steps)
    assert None not in run.tree.step_scores(leaf.id)
    assert run.result.text == reply
    read = SearchTree.loads(run.tree.dumps())
    assert read.dumps() == run.tree.dumps()
    assert read.steps(leaf.id) == steps


@given(replies.filter(str.strip))
@settings(max_examples=30, deadline=None)
def test_the_verifier_scores_a_message_to_the_letter(reply: str) -> None:
    scorer = HashScorer()
    node = create_verifier_node(scorer, image_store=MemoryImageStore())
    update = node.invoke({"messages": [HumanMessage("How many?"), AIMessage(reply, id="x")]})
    assert steps_of(scorer) == [tuple(reference_steps(reply))]
    assert [step["text"] for step in update["vprm"]["steps"]] == reference_steps(reply)


@pytest.mark.parametrize("reply", ["", " \n\n ", "\n\n\n\n"])
def test_a_reply_of_white_space_is_no_candidate(reply: str) -> None:
    run = run_search("How many?", policy=fixed(reply), scorer=HashScorer(), strategy=BestOfN(1))
    assert [r.status for r in run.tree if r.parent is not None] == ["failed"]


def fixed(text: str) -> ScriptedPolicy:
    """Return a policy whose every reply is the same whole solution."""
    return ScriptedPolicy(repeat(Proposal(text, "stop")))


def test_a_proposed_step_is_cleaned_of_white_space_and_scored_as_it_stands() -> None:
    scorer = HashScorer()
    run = run_search(
        "How many?", policy=fixed(" \n one step \n"), scorer=scorer, strategy=BeamSearch()
    )
    assert steps_of(scorer) == [("one step",)]
    assert {r.text for r in run.tree if r.parent is not None and r.text} == {"one step"}


def test_equal_blank_steps_are_told_from_end_markers() -> None:
    """An end marker has its parent's score and is no step; a blank step has its own."""
    scorer = HashScorer()
    run = run_search("Q", policy=fixed("one\n\n"), scorer=scorer, strategy=BestOfN(2))
    assert steps_of(scorer) == [("one", "")]
    for leaf in run.tree.finished():
        assert leaf.is_step
        assert leaf.blank
        assert leaf.score != run.tree[leaf.parent or ""].score
