"""Tool calls as sentences, and which of them are the same."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage

from vprm_search.chat.tool_calls import calls_key, render_tool_calls, same_calls
from vprm_search.steps import normalise_text, split_solution

# Few of each, so that equal ones are drawn, and those that are easily taken for one another.
_NAMES = st.sampled_from(["crop", "a b", "x", "x = 1, y", "", "né", "with"])
_VALUES = st.recursive(
    st.sampled_from(
        [None, True, False, 0, 1, 3, 3.0, 0.5, "", "3", "true", 'a", y = "b', "α\n\nβ", "x" * 500]
    ),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("xy"), inner, max_size=2)
    ),
    max_leaves=3,
)
_CALLS = st.lists(st.tuples(_NAMES, st.dictionaries(_NAMES, _VALUES, max_size=2)), max_size=2)


def message(calls: list[tuple[str, dict[str, Any]]], text: str = "") -> AIMessage:
    made = [
        {"name": name, "args": args, "id": f"{place}-{random.random()}", "type": "tool_call"}
        for place, (name, args) in enumerate(calls)
    ]
    return AIMessage(text, tool_calls=made)


def oracle(value: Any) -> Any:
    """Return what compares as a JSON value does: Python takes True for 1."""
    if isinstance(value, dict):
        return frozenset((name, oracle(item)) for name, item in value.items())
    if isinstance(value, list):
        return tuple(map(oracle, value))
    return (isinstance(value, bool), value)


@given(_CALLS, _CALLS)
def test_messages_have_the_same_sentences_exactly_if_they_make_the_same_calls(
    a: list[tuple[str, dict[str, Any]]], b: list[tuple[str, dict[str, Any]]]
) -> None:
    first, second = message(a, "One."), message(b)
    expected = Counter((n, oracle(v)) for n, v in a) == Counter((n, oracle(v)) for n, v in b)
    assert (calls_key(first) == calls_key(second)) == expected
    assert (render_tool_calls(first) == render_tool_calls(second)) == expected
    assert same_calls(first, second) == (expected and bool(a))


@given(_CALLS, st.randoms(use_true_random=False))
def test_neither_order_nor_ids_count(
    calls: list[tuple[str, dict[str, Any]]], chance: random.Random
) -> None:
    turned = [(name, dict(chance.sample(list(v.items()), len(v)))) for name, v in calls]
    chance.shuffle(turned)
    assert calls_key(message(calls)) == calls_key(message(turned))
    assert render_tool_calls(message(calls)) == render_tool_calls(message(turned))


@given(_CALLS)
def test_the_calls_of_a_message_are_one_step_of_one_line_each(
    calls: list[tuple[str, dict[str, Any]]],
) -> None:
    said = render_tool_calls(message(calls))
    assert len(said.splitlines()) == len(calls)
    assert normalise_text(said) == said
    if calls:
        assert split_solution(f"First, look.\n\n{said}") == ["First, look.", said]


def test_what_the_sentences_say() -> None:
    crop = ("crop", {"y": 8, "x": 4.0, "picture": "a.png", "scale": 1.5, "tags": ["a", None]})
    said = render_tool_calls(message([crop, ("now", {})]))
    assert said == (
        'I call the tool crop with picture = "a.png", scale = 1.5, tags = ["a", null], x = 4, '
        "y = 8.\nI call the tool now without arguments."
    )
    assert render_tool_calls(AIMessage("4")) == calls_key(AIMessage("4")) == ""


def test_a_long_value_is_shown_by_its_beginning() -> None:
    one = message([("write", {"text": "a" * 5000 + "b"})])
    other = message([("write", {"text": "a" * 5000 + "c"})])
    assert len(render_tool_calls(one)) < 450
    assert "5003 characters" in render_tool_calls(one)
    assert render_tool_calls(one) != render_tool_calls(other)
    assert not same_calls(one, other)


@pytest.mark.parametrize("written", ['{"x": ', "", None])
def test_arguments_that_no_client_could_read_are_shown_as_written(written: str | None) -> None:
    call = {"name": "crop", "args": written, "id": "1", "error": "no JSON"}
    broken = AIMessage("", invalid_tool_calls=[{**call, "type": "invalid_tool_call"}])
    said = render_tool_calls(broken)
    assert said == f"I call the tool crop with what is no JSON: {json.dumps(written or '')}."
    assert same_calls(broken, broken)
    assert not same_calls(broken, message([("crop", {})]))
