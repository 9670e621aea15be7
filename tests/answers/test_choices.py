"""The choices of a question: read out of it, and letter, text and both together as one answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vprm_search.answers import (
    answer_classes,
    choices_in,
    choices_of,
    extract_answer,
    read_answer,
    same_answer,
    with_choices,
)
from vprm_search.answers.choices import LETTERS
from vprm_search.compare.worlds import is_right
from vprm_search.types import Problem

texts = st.one_of(
    st.integers(-99, 999).map(str),
    st.tuples(st.integers(1, 99), st.sampled_from(["cm", "m", "kg", "%", "apples"])).map(
        lambda pair: f"{pair[0]} {pair[1]}"
    ),
    st.sampled_from(
        ["red", "the red bar", "red, because it is longest", "None of the above", "x = 5", "5",
         r"\frac{1}{2}", "1/2", "0.5", "(1, 2)", "(2, 1)", "yes", "It is 5. It is odd", "5 cm",
         "50 mm", "\u4e09", "12:30", "[0, 5)", "$5", "3 and 5", "x < 3", "E. coli", "2 m", "2"]
    ),
)  # fmt: skip
lists = st.lists(texts, min_size=2, max_size=6, unique_by=lambda text: text.casefold())
MARKUP = [
    "{}",
    "({})",
    "{}.",
    "{})",
    "**{}**",
    "({}).",
    r"\text{{{}}}",
    "option {}",
    r"\boxed{{{}}}",
]


def spellings(letter: str, text: str) -> list[str]:
    """Write a choice by its letter, by its text, and by both."""
    cases = (letter, letter.upper())
    both = ("({}) {}", "{}. {}", "{}) {}")
    return [text, *(mark.format(case) for mark in MARKUP for case in cases),
            *(form.format(case, text) for form in both for case in cases)]  # fmt: skip


@given(lists)
def test_letter_text_and_both_are_one_answer_and_choices_stay_apart(choices: list[str]) -> None:
    written = [spellings(letter, text) for letter, text in zip(LETTERS, choices, strict=False)]
    classes = answer_classes([one for some in written for one in some], choices=choices)
    each = [
        set(classes[i * len(written[0]) : (i + 1) * len(written[0])]) for i in range(len(written))
    ]
    assert each == [{place} for place in range(len(choices))]


@given(lists, st.data())
def test_the_order_of_the_choices_changes_nothing(choices: list[str], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(choices))))
    letters = LETTERS[: len(choices)]
    given_ = data.draw(
        st.lists(st.sampled_from([*letters, *choices, "77 s", "neither"]), max_size=8)
    )
    moved = [letters[order.index(letters.index(a))] if a in letters else a for a in given_]
    shuffled = [choices[place] for place in order]
    assert answer_classes(given_, choices=choices) == answer_classes(moved, choices=shuffled)


@given(lists, texts)
def test_a_text_that_is_no_choice_stays_itself(choices: list[str], text: str) -> None:
    assume(not any(same_answer(text, choice) for choice in choices) and text != "E. coli")
    classes = answer_classes([text, *choices, *LETTERS[: len(choices)]], choices=choices)
    assert classes.count(classes[0]) == 1


@given(lists, st.data(), st.sampled_from(["Answer: {}", "The answer is {}.", "**Answer:** {}",
                                          "<answer>{}</answer>", "### Answer\n\n{}"]))  # fmt: skip
def test_a_stated_choice_is_read_as_that_choice(
    choices: list[str], data: st.DataObject, statement: str
) -> None:
    place = data.draw(st.integers(0, len(choices) - 1))
    said = data.draw(st.sampled_from(spellings(LETTERS[place], choices[place])))
    read = extract_answer(f"So.\n\n{statement.format(said)}", choices=choices)
    assert read is not None
    assert same_answer(read, LETTERS[place], choices=choices)
    assert extract_answer(f"Answer: {read}", choices=choices) == read


@pytest.mark.parametrize(
    ("said", "read"),
    [("so it has to be\n\n12 cm", "12 cm"), ("so\n\n**(B) 12 cm.**", "(B) 12 cm"), ("so\n\nB", "B"),
     ("so\n\nB 12 cm", "B 12 cm"), ("so\n\n13 cm", None), ("so it is 12 cm", None)],
)  # fmt: skip
def test_the_last_line_may_be_a_choice(said: str, read: str | None) -> None:
    found = read_answer(said, choices=["10 cm", "12 cm"])
    assert (found and found.text) == read
    if found is not None:
        assert found.source == "choice"
        assert said[slice(*found.span)] == read


def test_grading_takes_letter_or_text() -> None:
    choices = ["10 cm", "12 cm"]
    assert is_right("B", "12 cm", choices)
    assert is_right("12 cm", "(b)", choices)
    assert is_right("B", "B. 12 cm", choices)
    assert not is_right("B", "10 cm", choices)
    assert not is_right("B", "120 mm", choices)  # grading converts no unit


# --- in a question --------------------------------------------------------------------------------

FOUND = [
    ("How long? (A) 3 cm (B) 4 cm", ("3 cm", "4 cm")),
    ("How long?\n(A) 3, (B) 4, or (C) 5\nAnswer with the letter.", ("3", "4", "5")),
    ("How long?\nA. 3 cm\nB. 4 cm\n", ("3 cm", "4 cm")),
    ("The angle is ()\nChoices:\nA:40\u00b0\nB:60\u00b0\nC:120\u00b0",
     ("40\u00b0", "60\u00b0", "120\u00b0")),
    ("Choose\uff1a\nA.Fungi  B.Nematodes  C.I don't know", ("Fungi", "Nematodes", "I don't know")),
    ("\u54ea\u4e2a\uff1f\n\uff08A\uff09\u4e09 \uff08B\uff09\u56db", ("\u4e09", "\u56db")),
    ("Which?\n- A) red\n- B) blue", ("red", "blue")),
    ("Which?\n**A.** red\n**B.** blue\n**C.** None of the above",
     ("red", "blue", "None of the above")),
]  # fmt: skip
NOT_FOUND = [
    "", "How long is it?", "Points (A) 3 and (B) 4 lie on a line.", "(A) and (B) show bars. Which?",
    "A. Smith and B. Jones met C. Brown.", "Q\nA. 3\nB. 4\n\nR\nA. 5\nB. 6", "Which?\n(A) 3\n(C) 4",
    "Which?\nB. 3\nC. 4", "Which?\n(A) 3\n(B)", "Which?\n(A) the one\nwith a bar\n(B) the other",
    "Answer (A), (B) or (C).", "Is (A) 3 or (B) 4? Say (A) or (B).", "Only\n(A) one",
]  # fmt: skip


@pytest.mark.parametrize(("question", "choices"), FOUND)
def test_choices_in_a_question_are_read(question: str, choices: tuple[str, ...]) -> None:
    assert choices_in(question) == choices
    assert choices_of(Problem(question)) == choices
    assert choices_of(Problem(question, choices=("x", "y"))) == ("x", "y")


@pytest.mark.parametrize("question", NOT_FOUND)
def test_what_is_uncertain_is_no_choice(question: str) -> None:
    assert choices_in(question) == ()


@given(st.lists(texts, min_size=2, max_size=6, unique=True))
def test_choices_written_below_a_question_are_found_in_it(choices: list[str]) -> None:
    question = with_choices("Which of these is it?", choices)
    assert with_choices(question, choices) == question
    assert choices_in(question) == tuple(choices)


def test_choices_that_stand_in_a_question_by_accident_are_written_all_the_same() -> None:
    assert with_choices("What is 12 + 34?", ("1", "46")).endswith("\n(A) 1\n(B) 46")
    assert with_choices("What is 12 + 34?", ("1", "3")).endswith("\n(A) 1\n(B) 3")


@given(st.text(max_size=60) | st.lists(st.sampled_from(
    ["(A)", "(B)", "(C)", "A.", "B)", " ", "\n", "  ", "x", "?", ":", "**", ", or ", "\u3000"]
)).map("".join))  # fmt: skip
def test_any_question_has_whole_choices_or_none(question: str) -> None:
    choices = choices_in(question)
    assert len(choices) != 1
    assert all(choice.strip() and choice in question for choice in choices)


def test_the_choices_of_real_questions_are_found(shared_data: Path) -> None:
    """Three data sets that write them into the question in three ways."""
    found = wanted = 0
    for name in ("mathverse_testmini_text_only", "mmmu_val_evpv_form", "mathvista_testmini"):
        for line in (shared_data / "samples" / f"{name}.jsonl").read_text("utf-8").splitlines():
            record = json.loads(line)
            question = record.get("query") or record["question"]
            listed = record.get("choices") or []
            multiple = len(str(record["answer"])) == 1 and str(record["answer"]) in "ABCDEFGH"
            if listed or multiple:
                wanted += 1
                choices = choices_in(question)
                found += bool(choices)
                assert not listed or choices in ((), tuple(c.strip() for c in listed))
                assert (
                    not multiple or not choices or "ABCDEFGH".index(record["answer"]) < len(choices)
                )
    assert wanted > 40
    assert found >= 0.9 * wanted
