"""Reading answers out of solutions, and what a reading stood on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.answers.solutions import ENGLISH, MENTIONS, OTHER_LANGUAGES
from vprm_search.answers import (
    AnswerFormat,
    answer_in_steps,
    extract_answer,
    has_final_answer,
    read_answer,
)

OUR_CASES = json.loads((Path(__file__).parent / "extraction.json").read_text(encoding="utf-8"))
SOLUTIONS = [*ENGLISH, *OTHER_LANGUAGES]

any_text = st.text(alphabet=st.characters(exclude_categories=[]), max_size=80)
pieces = st.lists(
    st.sampled_from(
        [r"\boxed{", "{", "}", r"\{", "\\", "Answer:", "answer is", "**", "\n", "5", "B", "(", "$",
         "\u7b54\u6848", "#### ", "<answer>", "Question:", "</think>", "x = ", ". ", ", ", "is "]
    ),
    max_size=30,
).map("".join)  # fmt: skip
words = st.text("abc ", min_size=1, max_size=12).map(str.strip).filter(bool)
values = st.one_of(
    st.integers(-(10**6), 10**6).map(str),
    st.fractions(max_denominator=99).map(str),
    st.decimals(0, 999, places=2).map(str),
    st.sampled_from([r"\frac{1}{2}", "x = 5", "12 cm", "(B) 12 cm", "[0, 5)", "3, 5, 7", "$26"]),
    st.sampled_from(["blue circle", "B", "5%", "13:18", r"\{1, 2\}", "45\u00b0", "12\u5398\u7c73"]),
)
sentences = st.lists(
    st.sampled_from(
        ["The red bar is 3.", "Add \\boxed{2}.", "Answer: 9", "The answer is 8.", "#### 7", "\n\n",
         "Option C is wrong.", "I will check whether the answer is plausible.", "### Step 2", "$x$",
         "<answer>6</answer>", "**Answer**\n\n4",
         "\u7b54\u6848\u662f 3", "\u5de6\u8fb9\u662f 3\u3002", "(B)"]
    ),
    max_size=8,
).map("\n".join)  # fmt: skip
statements = st.sampled_from(
    ["Answer: {}", "**Answer:** {}", "The final answer is {}", "\\boxed{{{}}}",
     "<answer>{}</answer>", "### Final Answer\n\n{}", "Answer:\n\\[\n{}\n\\]",
     "\u7b54\u6848\uff1a{}", "Respuesta: {}", "Antwort: {}"]
)  # fmt: skip


@pytest.mark.parametrize("case", OUR_CASES, ids=lambda case: case["id"])
def test_our_reduced_cases(case: dict[str, str]) -> None:
    assert extract_answer(case["text"]) == case["expected"]


@pytest.mark.parametrize(("text", "answer"), SOLUTIONS)
def test_what_models_write(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize("text", MENTIONS)
def test_a_mention_is_no_answer_and_ends_no_path(text: str) -> None:
    assert extract_answer(text) is None
    assert not has_final_answer(text)
    assert extract_answer(f"Answer: 17\n\n{text}") == "17"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{a_{1_{2}}} }", "a_{1_{2}}"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\boxed{3} and \boxed{4", "3"),
        (r"{ \boxed{3}", "3"),
        (r"\boxed {5}", "5"),
        (r"so $\boxed 5$.", "5"),
        (r"so $\boxed 2/3$.", "2/3"),
        (r"\boxed{3} or \boxed 4.", "3, 4"),
        (r"\boxed{\boxed 7}", "7"),
        (r"\[\boxed\frac{1}{2}\]", r"\frac{1}{2}"),
        (r"\boxed A", "A"),
        (r"put it in a \boxed command", None),
        ("We need to find the answer: first add.", None),
        ("Answer: first", "first"),
        (r"\boxed{} Answer: 6", "6"),
        ("\\boxed{a\n b}", "a b"),
        (r"Answer: 1 \boxed{2} Answer: 3", "3"),
        ("Final  answer : 38", "38"),
        ("__Answer:__ 38.", "38"),
        ("Answer:\n\n  38\nwhich is right", "38"),
        ("Answer: 1\nAnswer:", "1"),
        ("Answer: $5 and $6", "$5 and $6"),
        ("Answer: 1, 2, ...", "1, 2, ..."),
        ("the correct choice is **b**. no: choice (a)", "A"),
        ("reason\nE", "E"),
        ("the option is a circle", None),
        ("my canswer: 5", None),
        ("no conclusion here", None),
        ("", None),
        ("Answer:", None),
        ("Answer:\nAnswer:", None),
        ("Final answer: **\n\nAnswer:", None),
        (r"\boxed{", None),
        (r"\boxed{}", None),
        ("I am", None),
    ],
)
def test_edges(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


# --- properties


@given(any_text | pieces)
def test_any_text_gives_one_line_or_none(text: str) -> None:
    reading = read_answer(text)
    if reading is not None:
        assert reading.text.strip()
        assert "\n" not in reading.text
        assert 0 <= reading.span[0] < reading.span[1] <= len(text)


@given(values, statements)
def test_every_kind_of_statement_is_read(value: str, statement: str) -> None:
    reading = read_answer(f"Two bars.\n\n{statement.format(value)}")
    assert reading is not None
    assert reading.text == value
    assert has_final_answer(statement.format(value))


@given(sentences, values, statements)
def test_text_before_the_final_statement_changes_nothing(
    before: str, value: str, statement: str
) -> None:
    assert extract_answer(f"{before}\n\n{statement.format(value)}") == value


@given(sentences, values, statements, st.sampled_from(["", " ", "\n\n", "  \r\n", "\n---\n"]))
def test_white_space_changes_nothing(before: str, value: str, statement: str, space: str) -> None:
    text = f"{before}\n\n{statement.format(value)}"
    assert extract_answer(f"{space}{text}{space}") == value


@given(
    values,
    st.sampled_from(["**{}**", "`{}`", "__{}__", "**{}.**", "\u2705 {}", "{} \U0001f389", "*{}*"]),
)
def test_markup_changes_nothing(value: str, markup: str) -> None:
    for text in ("Answer: {}", "Final answer: {}\n", "The answer is {}", "<answer>{}</answer>"):
        assert extract_answer(text.format(markup.format(value))) == value
    assert extract_answer(markup.format(f"Answer: {value}")) == value


@given(st.sampled_from([text for text, _ in SOLUTIONS]) | pieces | any_text)
@example('<ANSWER>ANSWER"IS')
@example("<answer>The answer is</answer>")
@example(r"\boxed{0. 0}")
@example(r"\boxed{3!}")
def test_an_answer_reads_itself_as_itself(text: str) -> None:
    reading = read_answer(text)
    assume(reading is not None)
    assert reading is not None
    # a box is all answer ("0. 0", "3!"); behind any other mark sentences are cut
    again = r"\boxed{%s}" if reading.source == "boxed" else "Answer: %s"
    assert extract_answer(again.replace("%s", reading.text)) == reading.text


@given(
    st.lists(st.integers(-99, 99).map(str), min_size=2, max_size=4, unique=True),
    st.sampled_from(
        ["Answer:\n", "**Final answers:**\n\n", "### Answer\n\n", "\u7b54\u6848\uff1a\n"]
    ),
    st.sampled_from(["{}. ", "{}) ", "({}) ", "**{}.** ", "- ", "* ", "\u2022 ", ""]),
    st.sampled_from(["{}", "**{}**", "${}$", "{} cm", "x = {}."]),
    st.sampled_from(["\n", "\n\n", "  \r\n"]),
    st.sampled_from(["", "\n\nI hope it helps.", "\nThe first one is larger."]),
)
def test_a_list_of_values_is_read_whole(
    values: list[str], mark: str, bullet: str, form: str, between: str, behind: str
) -> None:
    names = "pqrs"
    items = [bullet.format(number) + form.format(value).replace("x", names[number - 1])
             for number, value in enumerate(values, start=1)]  # fmt: skip
    assume(bullet or form.startswith("x"))  # else it is a line and others
    said = [form.strip("*$.").format(value).replace("x", names[number - 1])
            for number, value in enumerate(values, start=1)]  # fmt: skip
    if "{" in bullet:
        said = [f"({number}) {value}" for number, value in enumerate(said, start=1)]
    assert extract_answer(mark + between.join(items) + behind) == ", ".join(said)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Answer:\n\n1. Add 2 and 3.\n2. Get 5.", None),  # a plan
        ("Answer: 7\n\nAnswer:\n1. Count the bars.\n2. Add them.", "7"),
        ("Answer: 1. The bar is red.", "1"),
        ("Answer:\nx = 5\ny = 7", "x = 5, y = 7"),
        ("Answer: x = 2 + 3\nx = 5", "x = 2 + 3"),
        ("Answer:\n(a) 5 cm\n(b) 7 cm", "(a) 5 cm, (b) 7 cm"),
        ("Answer:\n- Red: 5\n- Blue: 7", "Red: 5, Blue: 7"),
        ("Answer:\n- 5\n- because 2 and 3 are 5", "5"),
    ],
)
def test_what_is_a_list_and_what_is_none(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


@given(st.sampled_from([text for text, _ in SOLUTIONS]))
def test_a_reading_says_where_it_stood(text: str) -> None:
    reading = read_answer(text)
    if reading is not None:
        start, end = reading.span
        stood = text[start:end]
        assert stood == reading.text or len(stood) >= len(reading.text.replace(", ", ""))


@pytest.mark.parametrize(
    ("text", "source"),
    [
        (r"\boxed{5}", "boxed"),
        ("<answer>5</answer>", "tag"),
        ("The answer is 5", "marker"),
        ("### Answer\n\n5", "heading"),
        ("#### 5", "hashes"),
        ("so I choose option B", "choice"),
    ],
)
def test_a_reading_says_what_it_stood_on(text: str, source: str) -> None:
    reading = read_answer(text)
    assert reading is not None
    assert reading.source == source
    assert text[slice(*reading.span)] == reading.text
    assert has_final_answer(text) == (source != "choice")


# --- the format


def test_the_sources_are_a_choice() -> None:
    text = "\\boxed{1}\nAnswer: 2\n(C)"
    assert extract_answer(text, AnswerFormat(sources=frozenset({"boxed"}))) == "1"
    assert extract_answer(text, AnswerFormat(sources=frozenset({"choice"}))) == "C"
    assert extract_answer(text, AnswerFormat(sources=frozenset())) is None


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
    assert extract_answer(r"Answer: 1 \boxed{123456}", fmt) == "1"


paths = st.lists(pieces | sentences | st.sampled_from([text for text, _ in SOLUTIONS]), max_size=5)


@given(paths)
@example(["B", "<think>\\boxed{5}", "Answer: 5"])
@example(["B", "Step 2", "  "])
@example(["Is it {5", "or \\boxed{6}} then"])
@example(["so the better option", "(B) is red"])
def test_the_answer_in_steps_is_that_of_the_whole_text(steps: list[str]) -> None:
    whole = read_answer("\n\n".join(steps), AnswerFormat())  # an equal format takes no short cut
    assert answer_in_steps(steps) == (whole.text if whole else None)
    assert answer_in_steps([*steps, "Step 9"]) == extract_answer("\n\n".join([*steps, "Step 9"]))


@pytest.mark.parametrize(
    "text",
    [
        "B\\Question:\\boxed{\n#\n\nB\\\\boxed{3}}the answer}",  # grows when it is read again
        "</think>\\boxed{** choice\n\n$x = \\boxed{3}$ or $x = \\boxed{-3}$\n\nhow> }#### 7",
    ],
)
def test_statements_within_statements_come_to_an_end(text: str) -> None:
    assert extract_answer(text) is not None


HOSTILE = [
    "\\boxed{", "\\boxed{}", "\\boxed{5}, ", "{", "}", "\\", "\\(", "Answer:", "Answer: (", "**",
    " ",
    "answer is ", "\n", "the answer is not ", "option is (", "A", "$", "$5. I ", "final ",
    "final answer" + " " * 50, "<answer>", "<think>a</think>", "#### 5\n", "Question:\n", "\u7b54",
    "\u7b54\u6848\u662f", "**Answer**\n", " is the answer", "let me ", "Answer:\n\n", "5 5 5, ",
]  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE)
def test_hostile_lengths_finish(piece: str) -> None:
    """200 kB of the worst repetition: a quadratic rule would not come back within the hour."""
    text = piece * (200_000 // len(piece.encode()))
    read_answer(text)
