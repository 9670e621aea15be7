"""The terminal report: complete, and nothing in it can steer a terminal."""

from __future__ import annotations

import io
import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from tests.report.payloads import PAYLOADS
from tests.report.searches import child, ended, small_search, written_by
from vprm_search.report.view import (
    answer_line,
    printable,
    shortened,
    step_table,
    tree_view,
    view_of,
)
from vprm_search.steps import normalise_text
from vprm_search.tree import SearchTree
from vprm_search.types import Problem, StepScore

ALLOWED_FORMAT = {"\u200c", "\u200d"}


def rendered(*items: RenderableType, width: int = 200) -> str:
    """Return what a terminal without colours gets."""
    out = io.StringIO()
    console = Console(file=out, width=width, color_system=None, highlight=False)
    for item in items:
        console.print(item)
    return out.getvalue()


def check_harmless(text: str) -> None:
    bad = [
        c
        for c in text
        if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs") and c not in ALLOWED_FORMAT
    ]
    assert not bad


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_payload_is_shown_without_control_characters_and_without_markup(payload: str) -> None:
    tree, result = written_by([payload])
    view = view_of(tree, result, title=payload, expected=payload)
    shown = rendered(tree_view(view), answer_line(view))
    check_harmless(shown)
    assert shortened(payload, 50).removesuffix("…") in shown


@given(st.lists(st.text(max_size=60), min_size=1, max_size=10))
def test_any_text_is_harmless(texts: list[str]) -> None:
    tree, result = written_by([normalise_text(text) for text in texts])
    view = view_of(tree, result, expected=texts[0])
    check_harmless(rendered(tree_view(view), answer_line(view)))
    scores = [StepScore(None, text) for text in texts]
    check_harmless(rendered(step_table(texts, scores)))


@given(st.text())
def test_printable_text_stays_and_cleaning_twice_changes_nothing(text: str) -> None:
    once = printable(text)
    assert printable(once) == once
    check_harmless(once)
    assert "\n" not in once
    letters = "".join(c for c in text if unicodedata.category(c)[0] in "LNP")
    assert "".join(c for c in once if unicodedata.category(c)[0] in "LNP") == letters


@given(st.text(), st.integers(1, 50))
def test_shortened_text_fits(text: str, limit: int) -> None:
    assert len(shortened(text, limit)) <= limit


def test_the_tree_shows_scores_copies_reasons_and_the_answer() -> None:
    tree, result = small_search()
    view = view_of(tree, result, expected="5")
    shown = rendered(tree_view(view), answer_line(view))
    assert "0.95 · red = 2. ×2" in shown
    assert '0.04 ✂ red = 7.  pruned: after "red = 2."' in shown
    assert "0.90 ● 2 + 3 = 5. Answer: ‹5›" in shown
    assert "← answer" in shown
    assert "failed: timed out" in shown
    assert "Answer: 5 (right)" in shown


@given(st.text(max_size=200), st.sampled_from(["5", "12 cm", "7" * 60]), st.integers(20, 120),
       st.sampled_from(["finished", "truncated"]))  # fmt: skip
def test_the_place_of_the_answer_is_marked_however_long_the_step(
    text: str, answer: str, width: int, status: str
) -> None:
    tree = SearchTree(Problem("How many?"))
    said = normalise_text(f"{text}\nAnswer: {answer}")
    step = child(tree, tree.root_id, 0, said, status=status, score=0.5, answer=answer)
    tree.merge([step])
    shown = rendered(tree_view(view_of(tree, ended(tree)), width=width), width=500)
    check_harmless(shown)
    assert f"‹{shortened(answer, width)}›" in shown
    assert ("[unfinished]" in shown) == (status == "truncated")
    assert max(map(len, shown.splitlines())) < 2 * width + 100


def test_a_wrong_answer_is_called_wrong() -> None:
    tree, result = small_search()
    assert "(wrong, it is 6)" in rendered(answer_line(view_of(tree, result, expected="6")))


def test_the_step_table_says_why_a_step_has_no_score() -> None:
    shown = rendered(step_table(["a", "b"], [StepScore(0.25), StepScore(None, "too_long: 9")]))
    assert "0.25" in shown
    assert "no score: too_long: 9" in shown


def test_equal_failures_are_one_line_with_their_number() -> None:
    tree, result = written_by(["a step"])
    view = view_of(tree, result)
    (node, *_) = view.nodes
    reasons = [f"HTTP 401: bad key, request req_{number:08}ab" for number in range(32)]
    reasons += ["the model wrote nothing new"]
    failed = [
        replace(node, id=f"f{i}", parent=None, text="", status="failed", reason=reason, copies=1)
        for i, reason in enumerate(reasons)
    ]
    shown = rendered(tree_view(replace(view, nodes=(*view.nodes, *failed))))
    assert shown.count("bad key") == 1
    assert "×32" in shown
    assert shown.count("wrote nothing new") == 1
    assert "a step" in shown
