"""DynaMath's and LogicVista's rules against those of VLMEvalKit, written down anew.

Where the two differ is listed, one by one, with what is right; anywhere else they agree.
"""

from __future__ import annotations

import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.evaluate.matching_rules import dynamath_right, logicvista_right
from vprm_search.datasets import known
from vprm_search.datasets.graders import GRADERS, answer_said
from vprm_search.datasets.known import AnswerType
from vprm_search.datasets.problem_set import Item

KINDS: dict[str, AnswerType] = {"float": "float", "text": "text", "multiple choice": "choice"}
CHOICES = ("Yes", "No", "larger than", "7")


def by_ours(said: str, answer: str, kind: str) -> bool:
    letters, choices = (answer, CHOICES) if kind == "multiple choice" else ("", ())
    item = Item(1, "1", "?", answer, letters=letters, choices=choices, answer_type=KINDS[kind])
    return GRADERS["dynamath"].grade(item, said).right is True


def in_json(said: str) -> str:
    """As the set asks for answers."""
    told = {"solution": "Look: 1, 2.", "short answer": said}
    return f"Here it is.\n{json.dumps(told, indent=4, ensure_ascii=False)}"


@st.composite
def numbers(draw: st.DrawFn) -> tuple[str, str]:
    """A published number, and what was said: close to it or not, in one of the plain forms."""
    gold = draw(st.integers(-(10**7), 10**7))
    off = draw(st.one_of(st.integers(-25, 25), st.integers(-(10**6), 10**6)))
    assume(abs(off) != 10)  # .001 exactly: below
    form = draw(
        st.sampled_from(["{:.4f}", "{:.4f} cm", "{:.5f}", "{:.4f}\u03c0", "{:.4f} (about)"])
    )
    return f"{gold / 10**4}", form.format((gold + off) / 10**4)


@given(numbers(), st.booleans())
def test_numbers_within_a_thousandth(case: tuple[str, str], wrapped: bool) -> None:
    answer, said = case
    ours = by_ours(in_json(said) if wrapped else said, answer, "float")
    assert ours == dynamath_right(in_json(said) if wrapped else said, answer, "float")


@given(st.sampled_from("ABCD"), st.sampled_from("ABCDE"), st.booleans(),
       st.sampled_from(["{}", "({})", "{}.", "**{}**", "{})", "({}) "]))  # fmt: skip
def test_letters(answer: str, letter: str, wrapped: bool, form: str) -> None:
    said = form.format(letter)
    told = in_json(said) if wrapped else said
    assert by_ours(told, answer, "multiple choice") == (letter == answer)
    assert dynamath_right(told, answer, "multiple choice") == (letter == answer)


RIGHT, WRONG = ("May", "13:18", "x = 0", "(4, 3)", "DE"), ("June", "13:17", "y = 0", "(3, 4)", "ED")


@given(st.sampled_from(RIGHT), st.sampled_from(WRONG), st.booleans())
def test_words(answer: str, other: str, wrapped: bool) -> None:
    for said, right in ((answer, True), (answer.lower(), True), (other, False)):
        told = in_json(said) if wrapped else said
        assert by_ours(told, answer, "text") == dynamath_right(told, answer, "text") == right


@pytest.mark.parametrize(
    ("kind", "answer", "said", "ours"),
    [
        # right, and called wrong for its form
        ("float", "4.75", "$4.750$", True),
        ("float", "4.75", r"\boxed{4.75}", True),
        ("float", "4.75", "x = 4.75", True),
        ("float", "2.0944", r"\frac{2\pi}{3}", True),
        ("float", "3.1416", "\u03c0", True),
        ("float", "4.75", "4.751", True),  # floating point makes more than .001 of it
        ("text", "x = 0", "x=0", True),
        ("text", "5:0", "05:00", True),
        ("text", "(3.000, 1.000)", "(3, 1)", True),
        ("text", "May", "The answer is May", True),
        ("multiple choice", "B", "Answer: B", True),
        ("multiple choice", "B", "no", True),
        # wrong, and called right
        ("float", "6.2832", "2\u03c0/3", False),  # what stands behind pi is not read
        ("text", "May", "M", False),
        ("text", "13:18", "3:18", False),
        ("text", "DE", "E", False),
        ("text", "May", "", False),  # nothing is a part of everything
        ("multiple choice", "A", "Answer: B", False),  # begins with A
        ("multiple choice", "A", "larger than", False),  # so many As and Es
        ("multiple choice", "B", "AB", False),
    ],
)
def test_where_ours_differs(kind: str, answer: str, said: str, ours: bool) -> None:
    assert by_ours(said, answer, kind) is ours
    assert dynamath_right(said, answer, kind) is not ours
    if said:
        assert by_ours(in_json(said), answer, kind) is ours


PLAIN = st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="\\")
"""Without what may be a command of LaTeX as well: a tab before "an" is written as one."""


@given(st.text(st.one_of(PLAIN, st.just("\n")), max_size=60), st.booleans())
def test_the_short_answer_of_a_reply_in_json_is_what_its_author_wrote(
    text: str, ascii_only: bool
) -> None:
    field = json.dumps(text, ensure_ascii=ascii_only)
    assert answer_said(f'{{"short answer": {field}, "solution": "First, 3."}}') == answer_said(text)


@pytest.mark.parametrize(
    "said", [r"\frac{1}{2}", r"\theta", r"\text{May}", r"\beta \rho", r"\sin x"]
)
def test_latex_in_json_is_read_with_and_without_the_backslashes_that_json_wants(said: str) -> None:
    careless = f'{{"solution": "so", "short answer": "{said}"}}'
    assert answer_said(in_json(said)) == answer_said(careless) == answer_said(said)


# --- LogicVista ----------------------------------------------------------------------------------

LETTERS = st.lists(st.sampled_from("ABCDEFGHIJ"), min_size=1, max_size=4, unique=True)
FORMS = (", ", " and ", "", "/", "; ", ") (", " & ")


@given(LETTERS, LETTERS, st.sampled_from(FORMS), st.booleans(), st.booleans())
def test_letters_as_sets(
    gold: list[str], named: list[str], form: str, small: bool, offered: bool
) -> None:
    answer, said = ", ".join(gold), form.join(named)
    choices = tuple(str(n) for n in range(10)) if offered else ()
    row = {"imagename": "x", "question": "?", "skill": "['inductive']", "answer": answer}
    letters = known.letters_of(row, "logicvista", answer.lower() if small else answer, choices)
    item = Item(1, "1", "?", answer, letters=letters, choices=choices, answer_type="choices")
    for told in (said, said.lower()) if form else (said,):
        ours = GRADERS["logicvista"].grade(item, f"Look.\n\nAnswer: {told}").right
        assert ours == logicvista_right("".join(named), answer), told


@pytest.mark.parametrize(
    ("said", "letters"),
    [
        ("The picture marked \u201cD,\u201d is the one", "D"),
        ("They stand in the order A, B, C, D", "ABCD"),
        ("I think it is B", "B"),  # the pronoun is no letter
        ("I", "I"),
        ("A dog", ""),
        ("Spider", ""),
    ],
)
def test_letters_among_words(said: str, letters: str) -> None:
    for gold in ("A", "B", "D", "I", "A, B, C, D"):
        item = Item(1, "1", "?", gold, letters="".join(gold.split(", ")), answer_type="choices")
        right = logicvista_right(letters, gold)
        assert GRADERS["logicvista"].grade(item, said).right is right


@pytest.mark.parametrize("name", ["wemath", "gpqa", "logicvista"])
def test_what_names_no_choice_is_not_right_where_the_published_answer_names_none(name: str) -> None:
    item = Item(1, "1", "?", "all of them", choices=CHOICES, answer_type="text")
    assert GRADERS[name].grade(item, "something else").right is False
    assert GRADERS[name].grade(item, "All of them").right is True
