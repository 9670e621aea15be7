"""The sets' rules: what the field's graders say where they are right, and what they get wrong."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vprm_search.datasets.graders import (
    GRADERS,
    SAMENESS,
    grader_of,
    letter_chosen,
    letters_chosen,
    number_said,
)
from vprm_search.datasets.known import AnswerType, SetName
from vprm_search.datasets.problem_set import Item
from vprm_search.datasets.set_scores import by_category, set_scores
from vprm_search.errors import InputError

CHOICES = ("yes", "no", "maybe", "12 cm")


def item(answer: str, kind: AnswerType = "text", **told: object) -> Item:
    return replace(Item(1, "1", "?", answer, answer_type=kind), **told)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        # as VLMEvalKit's can_infer reads them
        ("B", "B"),
        ("(B)", "B"),
        ("**B**", "B"),
        (r"\boxed{\text{B}}", "B"),
        ("the answer is no", "B"),
        ("12 cm", "D"),
        ("option C", "C"),
        ("B. no", "B"),
        ("Both A and C", ""),
        ("neither of them", ""),
        # where it is wrong: an article, a small letter, a letter inside a word
        ("A triangle", ""),
        ("b", "B"),
        ("CD", ""),
        ("(A) at first, but finally (C)", "C"),  # MMMU: the last one
    ],
)
def test_the_letter_of_a_choice(said: str, letter: str) -> None:
    assert letter_chosen(said, CHOICES) == letter


def test_a_whole_solution_is_read_before_it_is_compared() -> None:
    whole = "Step 1: A triangle has three sides.\n\nStep 2: C is too long.\n\nAnswer: \\boxed{B}"
    asked = item("B", "choice", letters="B", choices=CHOICES)
    for name in ("mathvista", "mathvision", "mathverse", "mmmu", "dynamath", "wemath", "sameness"):
        grade = GRADERS[name].grade(asked, whole)
        assert (grade.right, grade.said) == (True, "B"), name
        assert GRADERS[name].grade(asked, whole.replace("{B}", "{C}")).right is False


def test_a_solution_without_an_answer_is_wrong_and_a_set_without_one_is_not_graded() -> None:
    asked = item("B", "choice", letters="B", choices=CHOICES)
    for grader in GRADERS.values():
        assert grader.grade(asked, "").right is False
        assert grader.grade(asked, "I do not know.\n\nLet me think again.").right is False
        assert grader.grade(item("", "none"), "B").right is None


@pytest.mark.parametrize(
    ("answer", "kind", "told", "said", "right"),
    [
        ("5", "integer", {}, "5.0", True),
        ("5", "integer", {}, "5.9", False),
        ("1.2", "float", {"precision": 1}, "1.20", True),
        ("1.2", "float", {"precision": 1}, "1.23", True),
        ("1.2", "float", {"precision": 1}, "1.26", False),
        ("0.21", "float", {"precision": 2}, "0.2", False),
        ("51.04", "float", {"precision": 2}, "51.04 m", True),
        ("[2014, 2016]", "list", {}, "[2014, 2016]", True),
        ("[2014, 2016]", "list", {}, "[2014.0,2016]", True),
        ("[2014, 2016]", "list", {}, "[2016, 2014]", False),
        ("[2014, 2016]", "list", {}, "[2014]", False),
        ("[0, 2]", "list", {}, "__import__('os')", False),
    ],
)
def test_mathvista(
    answer: str, kind: AnswerType, told: dict[str, object], said: str, right: bool
) -> None:
    assert GRADERS["mathvista"].grade(item(answer, kind, **told), said).right is right


@pytest.mark.parametrize(
    ("set_name", "answer", "kind", "said", "right"),
    [
        ("mathvision", r"\frac{1}{2}", "text", "0.5", True),
        ("mathvision", r"2\sqrt{2}", "text", "2.8284271", True),
        ("mathvision", "61", "integer", "61.01", False),
        ("mathvision", "10", "integer", "9+1", True),
        ("mathvision", "1", "integer", "exit()", False),
        ("dynamath", "2.0944", "float", "2.095", True),
        ("dynamath", "2.0944", "float", "2.0955", False),
        ("dynamath", "x = 0", "text", "x=0", True),
        ("dynamath", "x = 0", "text", "x", False),  # a part of the answer is not the answer
        ("dynamath", "13:18", "text", "3:18", False),
        ("dynamath", "(4, 3)", "text", "(4,3)", True),
        ("dynamath", "May", "text", "may", True),
        ("mmmu", "24.32", "float", "24.321", True),
        ("mmmu", "24.32", "float", "24.4", False),
        ("mmmu", "Transformation", "text", "It is a transformation of genes", True),
        ("mmmu", "1/64", "text", "0.015625", True),
        ("mathverse", "230 ^\\circ T", "text", "230^\\circ T", True),
        ("mathverse", "11.8", "float", "11.80", True),
    ],
)
def test_free_answers(set_name: str, answer: str, kind: AnswerType, said: str, right: bool) -> None:
    assert GRADERS[set_name].grade(item(answer, kind), said).right is right


def test_mmmu_takes_any_of_its_answers() -> None:
    asked = item("$MgS$", "text", also=("MgS",))
    assert GRADERS["mmmu"].grade(asked, "The formula is MgS").right
    assert not GRADERS["mmmu"].grade(asked, "MgO").right


@pytest.mark.parametrize(
    ("said", "letters"),
    [("B, D", "BD"), ("D and B", "BD"), ("(B)(D)", "BD"), ("BD", "BD"), ("B", "B"), ("b", "B")],
)
def test_logicvista_compares_sets_of_letters(said: str, letters: str) -> None:
    assert letters_chosen(said, ()) == letters
    asked = item("B, D", "choices", letters="BD")
    assert GRADERS["logicvista"].grade(asked, f"Answer: {said}").right is (letters == "BD")


@given(st.integers(-(10**6), 10**6), st.integers(0, 999))
def test_a_number_is_its_value(whole: int, part: int) -> None:
    text = f"{whole:,}.{part:03d}"
    found = number_said(f"{text} cm")
    assert found is not None
    assert float(found) == float(text.replace(",", ""))


def test_a_set_that_is_not_known_is_graded_by_sameness() -> None:
    assert grader_of("") is SAMENESS
    assert SAMENESS.grade(item("1/2"), "The answer is 0.5.").right
    assert SAMENESS.grade(item("D", "choice", letters="D", choices=CHOICES), "12 cm").right


# --- the figures of a set ------------------------------------------------------------------------


def test_dynamath_worst_case_and_average() -> None:
    graded = [
        (item("1", group=str(seed), variant=str(n)), right == "1")
        for seed, rights in enumerate(("111", "101", "000", "111"))
        for n, right in enumerate(rights)
    ]
    scores = set_scores("dynamath", graded)
    assert scores["worst case"] == 0.5
    assert scores["average"] == pytest.approx(2 / 3)
    assert next(iter(scores)) == "worst case"


def unit(kind: str, number: int, rights: tuple[bool, ...]) -> list[tuple[Item, bool]]:
    steps = [*(str(n) for n in range(1, len(rights))), "multi"]
    return [
        (item("A", group=str(number), variant=f"{kind}_{step}"), right)
        for step, right in zip(steps, rights, strict=True)
    ]


def worth(rights: tuple[bool, ...], *, strict: bool) -> float:
    """What a problem is worth, said another way: 1, or .5 if only the whole is wrong, or 0."""
    *parts, whole = rights
    if not whole:
        return 0.5 if all(parts) else 0.0
    return float(all(parts) if strict else any(parts))


TWO = list(product((True, False), repeat=3))
THREE = list(product((True, False), repeat=4))


@given(st.lists(st.sampled_from([*TWO, *THREE]), min_size=1, max_size=30))
def test_we_math_over_its_problems(outcomes: list[tuple[bool, ...]]) -> None:
    graded = [
        row
        for number, rights in enumerate(outcomes)
        for row in unit(f"{len(rights) - 1}steps", number, rights)
    ]
    scores = set_scores("wemath", graded)
    for rule in ("strict", "loose"):
        worths = [worth(rights, strict=rule == "strict") for rights in outcomes]
        assert scores[f"score ({rule})"] == pytest.approx(sum(worths) / len(worths))
    assert scores["units"] == len(outcomes)


@given(
    st.sampled_from(["dynamath", "wemath"]),
    st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=3, max_size=4),
)
def test_of_chances_the_figures_are_those_to_be_expected(
    name: SetName, chances: list[float]
) -> None:
    rows = [one for one, _ in unit(f"{len(chances) - 1}steps", 1, (True,) * len(chances))]
    found = set_scores(name, list(zip(rows, chances, strict=True)))
    expected = dict.fromkeys(found, 0.0)
    for rights in product((True, False), repeat=len(chances)):
        weight = math.prod(c if r else 1 - c for c, r in zip(chances, rights, strict=True))
        for key, value in set_scores(name, list(zip(rows, rights, strict=True))).items():
            expected[key] += weight * value
    assert found == pytest.approx(expected)


def test_we_math_leaves_out_problems_that_lack_a_step() -> None:
    whole = unit("2steps", 1, (True, True, True))
    part = unit("3steps", 2, (True, True, True, True))[:-1]
    assert set_scores("wemath", whole + part)["incomplete"] == 1
    with pytest.raises(InputError, match="give the whole set"):
        set_scores("wemath", part)
    with pytest.raises(InputError, match="no problem"):
        set_scores("", [])


def test_categories() -> None:
    graded = [(item("1", category=name), right) for name, right in (("b", True), ("a", False))]
    assert by_category(graded) == {"a": (0, 1), "b": (1, 1)}
