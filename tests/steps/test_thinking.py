"""Thinking is put aside before a reply is read or split."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vprm_search.steps.thinking import put_thinking_aside, thinking_spans

MARKS = [
    ("<think>", "</think>"),
    ("<Thinking>", "</Thinking>"),
    ("<thought>", "</thought>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    (
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
    ("<|channel>thought\n", "<channel|>"),
]
words = st.text("ab <>/\n.", max_size=12)
pieces = st.lists(
    st.sampled_from([mark for pair in MARKS for mark in pair] + ["Red is 3.", "\n\n", "`", "<th"]),
    max_size=12,
).map("".join)


@pytest.mark.parametrize(("opening", "closing"), MARKS)
def test_every_kind_of_thinking_is_put_aside(opening: str, closing: str) -> None:
    text = f"{opening}Four?\n\nOr five?{closing}\n\nThere are four."
    assert put_thinking_aside(text) == "There are four."
    assert put_thinking_aside(f"{opening}Four?\n\nOr") == ""
    assert put_thinking_aside(f"Four?{closing}There are four.") == "There are four."


@pytest.mark.parametrize(
    ("text", "visible"),
    [
        ("<think>a</think>Red is 3.<think>b</think>Blue is 4.", "Red is 3.\n\nBlue is 4."),
        ("Red is 3.\n\n<think>is it", "Red is 3."),
        ("<think><think>a</think>b</think>Four.", "Four."),
        ("<think>\n<think>\na</think>Four.", "Four."),
        ("<think></think>\n\nFour.", "Four."),
        ("<think>a</think>Answer: 4</think>", "Answer: 4"),
        ("a</think>", ""),
        ("Write `<think>` before it.", "Write `<think>` before it."),
        ("I think so: 3 < 4.", "I think so: 3 < 4."),
        ("\n\n four \n", "\n\n four \n"),
        ("", ""),
    ],
)
def test_what_is_left_to_read(text: str, visible: str) -> None:
    assert put_thinking_aside(text) == visible


@given(pieces | words)
def test_nothing_is_left_to_put_aside(text: str) -> None:
    visible = put_thinking_aside(text)
    assert put_thinking_aside(visible) == visible


@given(words, words)
def test_what_is_said_does_not_depend_on_what_was_thought(thought: str, said: str) -> None:
    assert put_thinking_aside(f"<think>{thought}</think>{said}") == said.strip()


@pytest.mark.parametrize("piece", ["<think>", "</think>", "<think></think>", "<|channel|>analysis"])
def test_spans_are_in_order(piece: str) -> None:
    text = piece * (200_000 // len(piece))
    ends = [0, *(place for span in thinking_spans(text) for place in span), len(text)]
    assert ends == sorted(ends)
    put_thinking_aside(text)
