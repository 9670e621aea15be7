"""Reading answers out of solutions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from vprm_search.answers import AnswerFormat, extract_answer

any_text = st.text(alphabet=st.characters(exclude_categories=[]), max_size=80)
pieces = st.lists(
    st.sampled_from(
        [
            r"\boxed{",
            "{",
            "}",
            r"\{",
            r"\}",
            "\\",
            "Answer:",
            "answer is",
            "**",
            "\n",
            "5",
            "B",
            "(",
        ]
    ),
    max_size=30,
).map("".join)
words = st.text("abc ", min_size=1, max_size=12).map(str.strip).filter(bool)

CASES = [
    (r"so \boxed{42}.", "42"),
    (r"\boxed{1} then \boxed{2}", "2"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    (r"\boxed{a_{1_{2}}} }", "a_{1_{2}}"),
    (r"\boxed{\boxed{7}}", "7"),
    (r"\boxed{3} and \boxed{4", "3"),
    (r"{ \boxed{3}", "3"),
    (r"\boxed {5}", "5"),
    (r"\boxed{} Answer: 6", "6"),
    ("\\boxed{a\n b}", "a b"),
    (r"Answer: 1 \boxed{2} Answer: 3", "2"),
    ("Answer: 38", "38"),
    ("answer:38", "38"),
    ("Final answer: 38", "38"),
    ("FINAL ANSWER: blue circle", "blue circle"),
    ("Final  answer : 38", "38"),
    ("**Answer:** 38", "38"),
    ("**Answer**: 38", "38"),
    ("**Final answer: 38**", "38"),
    ("### Answer: `38`", "38"),
    ("__Answer:__ 38.", "38"),
    ("Answer:\n38", "38"),
    ("Answer:\n\n  38\nwhich is right", "38"),
    ("Answer: 1\nAnswer: 2", "2"),
    ("Answer: 1\nAnswer:", "1"),
    ("Answer: 1\nFinal answer: 2", "2"),
    ("Answer: $38$", "38"),
    ("Answer: $5 and $6", "$5 and $6"),
    ("Answer: 3 x 4 = 12.", "3 x 4 = 12"),
    ("Answer: 1, 2, ...", "1, 2, ..."),
    ("Answer：38", "38"),
    ("答案: 38", "38"),
    ("The answer is 38.", "38"),
    ("So the answer is: 38", "38"),
    ("the answer is (B)", "(B)"),
    ("Answer: (C)", "(C)"),
    ("Answer: B. 12 cm", "B. 12 cm"),
    ("the correct option is (C).", "C"),
    ("so I choose Option D", "D"),
    ("the correct choice is **b**. no: choice (a)", "A"),
    ("it follows\n(B)", "B"),
    ("it follows\n**B.**\n", "B"),
    ("reason\nE", "E"),
    ("the option is a circle", None),
    ("my canswer: 5", None),
    ("no conclusion here", None),
    ("", None),
    ("Answer:", None),
    ("Answer:\nAnswer:", None),
    ("Final answer: **\n\nAnswer:", None),
    ("Answer: **", None),
    (r"\boxed{", None),
    (r"\boxed{}", None),
    ("I am", None),
]


@pytest.mark.parametrize(("text", "answer"), CASES)
def test_extraction(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


@given(any_text | pieces)
def test_any_text_gives_one_line_or_none(text: str) -> None:
    answer = extract_answer(text)
    assert answer is None or (answer.strip() and "\n" not in answer)


@given(pieces, words)
def test_a_box_at_the_end_wins_over_everything_before(before: str, answer: str) -> None:
    # a backslash right before would escape the box's own backslash
    assert extract_answer(f"{before} \\boxed{{{answer}}}") == " ".join(answer.split())


@given(any_text.filter(lambda t: "boxed" not in t), words)
def test_a_marked_last_line_wins_where_nothing_is_boxed(before: str, answer: str) -> None:
    assert extract_answer(f"{before}\nAnswer: {answer}") == answer


def test_the_order_of_the_sources_is_a_choice() -> None:
    text = "\\boxed{1}\nAnswer: 2\n(C)"
    assert extract_answer(text, AnswerFormat(order=("marker", "boxed"))) == "2"
    assert extract_answer(text, AnswerFormat(order=("choice",))) == "C"
    assert extract_answer(text, AnswerFormat(order=())) is None


def test_markers_are_a_choice() -> None:
    fmt = AnswerFormat(markers=("Result =>",))
    assert extract_answer("result  => 7\nAnswer: 8", fmt) == "7"


@pytest.mark.parametrize("marker", ["", " : ", "**"])
def test_an_empty_marker_is_refused(marker: str) -> None:
    with pytest.raises(ValidationError, match="a marker must contain a word"):
        AnswerFormat(markers=(marker,))


def test_an_essay_on_one_line_is_not_an_answer() -> None:
    fmt = AnswerFormat(max_chars=5)
    assert extract_answer("Answer: 123456", fmt) is None
    assert extract_answer("Answer: 12345", fmt) == "12345"
    assert extract_answer(r"\boxed{123456} Answer: 1", fmt) == "1"


HOSTILE = [
    "\\boxed{",
    "\\boxed{}",
    "{",
    "}",
    "\\",
    "Answer:",
    "Answer: ",
    "answer is ",
    "**",
    "* ",
    " ",
    "\n",
    "the answer is",
    "option is (",
    "A",
    "$",
    "final ",
    "final answer" + " " * 50,
]


@pytest.mark.parametrize("piece", HOSTILE)
def test_hostile_lengths_finish(piece: str) -> None:
    """200 kB of the worst repetition: a quadratic rule would not come back within the hour."""
    text = piece * (200_000 // len(piece))
    for fmt in (AnswerFormat(), AnswerFormat(order=("choice", "marker", "boxed"))):
        extract_answer(text, fmt)
        extract_answer(text + " Answer: 5", fmt)
