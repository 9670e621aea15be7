"""Which answers are the same: canonical spelling, units, choices, algebra, classes for voting."""

from __future__ import annotations

import itertools
import sys
import threading
from fractions import Fraction
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vprm_search.answers import algebra
from vprm_search.answers.algebra import is_expression, same_expression
from vprm_search.answers.canonical import MAX_ANSWER_CHARS, canonical_answer, read_form
from vprm_search.answers.quantities import parse_quantity
from vprm_search.answers.sameness import MAX_EXPRESSIONS, answer_classes, same_answer

EQUAL = [
    # case, white space, Markdown, punctuation, Unicode
    ("Blue", "blue"),
    ("blue  circle", " Blue circle "),
    ("the blue circle", "blue circle"),
    ("**blue**", "blue"),
    ("`blue`", '"blue"'),
    ("blue.", "blue"),
    ("\u201cblue\u201d", "blue"),
    ("caf\u00e9", "cafe\u0301"),
    ("STRASSE", "stra\u00dfe"),
    ("\uff11\uff12", "12"),
    ("\u22125", "-5"),
    ("Yes.", "yes"),
    (r"\text{blue}", "blue"),
    (r"$\text{blue circle}$", "blue circle"),
    (r"\(x\)", "x"),
    ("Answer: 5", "5"),
    (r"\boxed{5}", "5"),
    # numbers
    ("1,234", "1234"),
    ("1,234,567.80", "1234567.8"),
    (r"1{,}234", "1234"),
    (r"1\,234", "1234"),
    ("0.50", ".5"),
    ("0.5", "1/2"),
    ("2/4", "1/2"),
    (r"\frac{1}{2}", "0.5"),
    (r"\dfrac{1}{2}", r"\tfrac12"),
    (r"-\frac{3}{4}", "-0.75"),
    ("1 1/2", "1.5"),
    (r"1\frac{1}{2}", "3/2"),
    ("1\u00bd", "1.5"),
    ("+5", "5"),
    ("5.", "5.0"),
    ("-0", "0"),
    ("007", "7"),
    ("1.2e3", "1200"),
    (r"1.2\times10^{3}", "1200"),
    ("1.2 \u00d7 10^3", "1.2 * 10^3"),
    ("5e-1", "0.5"),
    ("two", "2"),
    ("Twelve", "12"),
    ("x = 5", "5"),
    ("= 5", "5"),
    ("about 5", "5"),
    (r"\approx 5", "\u2248 5"),
    ("(5)", "5"),
    ("(0.5, 1)", "(1/2, 1.0)"),
    ("1,2,3", "1, 2, 3"),
    # units
    ("12 cm", "12"),
    ("12cm", "12 centimeters"),
    (r"12\,\text{cm}", "12 cm"),
    (r"12\ \mathrm{cm}^2", "12 square centimetres"),
    ("12 cm\u00b2", "12 cm^2"),
    ("12 cm2", "12 sq cm"),
    ("3 cubic metres", "3 m^3"),
    ("3 meters squared", "3 m^2"),
    ("50%", "50"),
    (r"50\%", "50 percent"),
    ("$5", "5 dollars"),
    (r"\$5.00", "5"),
    ("-$5", "-5"),
    ("30\u00b0", "30 degrees"),
    (r"30^\circ", r"30^{\circ}"),
    ("20 \u00b0C", "20 celsius"),
    ("5 km/h", "5 kilometers per hour"),
    ("5 apples", "5 apple"),
    ("5 apples", "5"),
    ("1 foot", "1 ft"),
    ("5m", "5 m"),
    ("0.5 kg", "1/2 kilograms"),
    # choice letters
    ("(B)", "B"),
    ("B.", "b"),
    ("Option B", "(b)"),
    (r"\text{(B)}", "B"),
    ("B. 12 cm", "B"),
    ("(B) 12 cm", "B"),
    ("B: 12 cm", "(B)"),
    ("choice C", "C"),
]

ALGEBRA_EQUAL = [
    (r"2\sqrt{2}", r"\sqrt{8}"),
    ("2\u221a2", "2*sqrt(2)"),
    (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"),
    ("x+1", "1 + x"),
    ("(x+1)^2", "x^{2}+2x+1"),
    ("8", "2^3"),
    ("3\u03c0", r"\pi \cdot 3"),
    ("2 x", "2x"),
    ("x < 3", "3 > x"),
    (r"\{1, 2\}", r"\{2, 1\}"),
]

DIFFERENT = [
    ("blue", "red"),
    ("1", "2"),
    ("0.5", "50%"),
    ("0.333", "1/3"),
    ("1,234", "1, 234"),
    ("1.234", "1,234"),
    ("5", "-5"),
    ("5 cm", "5 m"),
    ("5 cm", "5 cm^2"),
    ("5 million", "5"),
    ("5 apples", "5 oranges"),
    ("5x", "5"),
    ("3 and 4", "3"),
    ("3 to 4", "3"),
    ("$5", "5 euros"),
    ("A", "B"),
    ("A. 12", "B. 12"),
    ("B. 12", "B. 13"),
    ("(1, 2)", "(2, 1)"),
    ("(3, 1)", "(2, 1)"),
    ("[1, 2]", "(1, 2)"),
    ("10:30", "10.30"),
    ("1/2/2020", "1/2"),
    (r"\Delta", r"\delta"),
    (r"\sqrt{2}", "1.414"),
    (r"2\sqrt{2}", r"2\sqrt{3}"),
    ("x+1", "x+2"),
    ("y", "x"),
    ("3s", "3"),
    ("3s+1", "3+1"),
    ("1e400", "1e401"),
    ("1/0", "2/0"),
    ("yes", "no"),
    ("", ""),
    ("", "5"),
]


@pytest.mark.parametrize(("a", "b"), EQUAL)
def test_equal_without_any_dependency(a: str, b: str) -> None:
    assert same_answer(a, b, algebra=False)
    assert same_answer(b, a, algebra=False)


@pytest.mark.parametrize(("a", "b"), ALGEBRA_EQUAL)
def test_equal_by_algebra_only(a: str, b: str) -> None:
    assert same_answer(a, b)
    assert same_answer(b, a)
    assert not same_answer(a, b, algebra=False)


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_different(a: str, b: str) -> None:
    assert not same_answer(a, b)
    assert not same_answer(b, a)


# --- properties --------------------------------------------------------------------------------

any_text = st.text(alphabet=st.characters(exclude_categories=[]), max_size=40)
FRAGMENTS = [*"0123456789abcxyz.,+-*/^()[]{}%$:; \\=_"]
FRAGMENTS += ["cm", " cm", "\\frac", "\\text{", "\\sqrt", "sqrt(", "\\boxed{", "the ", "10^"]
FRAGMENTS += ["\\left(", "\\$", "~", "**", "\u00d7", "\u00b2", "\u00bd", "\u0130", "option "]
FRAGMENTS += ["per ", "square ", "\u221a", "pi", "e3", "\u00b0", "million", "{,}", "\\,"]
fragments = st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join)
answers = fragments | any_text | st.sampled_from([a for pair in EQUAL for a in pair])


@given(answers)
@example("\u0345\u0301")
def test_the_canonical_spelling_is_a_fixed_point_and_storable(text: str) -> None:
    canonical = canonical_answer(text)
    assert canonical_answer(canonical) == canonical
    canonical.encode("utf-8")


@given(answers)
def test_an_answer_is_the_same_as_itself_and_its_canonical_spelling(text: str) -> None:
    canonical = canonical_answer(text)
    assert same_answer(text, text) == bool(canonical)
    assert same_answer(text, canonical) == bool(canonical)


@given(answers, answers)
@settings(max_examples=60)
def test_symmetric(a: str, b: str) -> None:
    assert same_answer(a, b) == same_answer(b, a)


POOL = ["B", "(b)", "B. 12 cm", "b) 13", "A", "C: x", "12", "12 cm", "12 m", "12.0", "24/2", "x"]
POOL += ["2^2", "4", r"\sqrt{16}", "4 cm", "", "blue", "Blue."]
pools = st.lists(st.sampled_from([*POOL, None]), max_size=9)


@given(pools, st.randoms(use_true_random=False))
@settings(max_examples=150)
def test_classes_are_a_partition_that_ignores_the_order(
    pool: list[str | None], rng: Random
) -> None:
    classes = answer_classes(pool)
    seen = [c for c in classes if c is not None]
    assert list(dict.fromkeys(seen)) == list(range(len(set(seen))))  # numbered by first appearance
    order = list(range(len(pool)))
    rng.shuffle(order)
    shuffled = answer_classes([pool[i] for i in order])
    for (i, ci), (j, cj) in itertools.combinations(enumerate(order), 2):
        assert (shuffled[i] == shuffled[j]) == (classes[ci] == classes[cj])
    for answer, group in zip(pool, classes, strict=True):
        assert (group is None) == (not answer)


@given(pools)
def test_equal_spellings_share_a_class_and_pairs_are_never_split_by_company(
    pool: list[str | None],
) -> None:
    """What is the same in a pair stays the same in a crowd, except for the rule on units."""
    classes = answer_classes(pool, algebra=False)
    for (a, ca), (b, cb) in itertools.combinations(zip(pool, classes, strict=True), 2):
        if a and b and canonical_answer(a) == canonical_answer(b):
            assert ca == cb
        if a and b and same_answer(a, b, algebra=False) and ca != cb:
            forms = read_form(canonical_answer(a)), read_form(canonical_answer(b))
            assert forms[0].number is not None
            assert {bool(form.unit) for form in forms} == {True, False}


def test_a_number_between_two_units_stays_alone() -> None:
    assert answer_classes(["12 cm", "12", "12 m", "12.0 cm"]) == [0, 1, 2, 0]
    assert answer_classes(["12 cm", "12", "12.0 cm"]) == [0, 0, 0]


def test_labels_are_letters_only_beside_a_bare_letter() -> None:
    assert answer_classes(["B. 12 cm", "B. 13 cm"]) == [0, 1]
    assert answer_classes(["B. 12 cm", "B. 13 cm", "A"]) == [0, 0, 1]
    assert answer_classes(["E. coli", "E. faecalis"]) == [0, 1]


def test_given_choices_link_texts_to_letters() -> None:
    choices = ["10 cm", "12 cm", "14 cm"]
    assert same_answer("12 centimeters", "(B)", choices=choices)
    assert same_answer("12", "B", choices=choices)
    assert same_answer("B. 12 cm", "12 cm", choices=choices)
    assert not same_answer("10 cm", "B", choices=choices)
    assert not same_answer("15 cm", "B", choices=choices)
    assert answer_classes(["c", "14.0 cm", "x", "C. 14"], choices=choices) == [0, 0, 1, 0]


def test_choices_that_mislead_are_ignored() -> None:
    assert not same_answer("A", "B", choices=["5", "5.0"])  # equal texts
    assert not same_answer("A", "B", choices=["B", "A"])  # letters of points in a figure
    assert not same_answer("A", "B", choices=["", ""])


# --- numbers against exact arithmetic ----------------------------------------------------------


@given(st.integers(-(10**15), 10**15))
def test_every_way_to_write_an_integer(n: int) -> None:
    spellings = [str(n), f"{n:,}", f"{n}.0", f"{n}.", f"{2 * n}/2", f"  {n} ", f"${n}$", f"{n}e0"]
    spellings += [f"\\frac{{{n}}}{{1}}", f"{n:+}"]
    assert {canonical_answer(s) for s in spellings} == {str(n)}


@given(st.decimals(-(10**9), 10**9, places=4, allow_nan=False))
def test_every_way_to_write_a_decimal(value: object) -> None:
    exact = Fraction(str(value))
    spellings = [f"{value}", f"{value}000", f"{value:,}", f"{value:E}".replace("E", "e")]
    assert {canonical_answer(s) for s in spellings} == {str(exact)}


@given(st.integers(-99, 99), st.integers(1, 99), st.integers(-99, 99), st.integers(1, 99))
def test_fractions_are_the_same_exactly_when_they_are_equal(a: int, b: int, c: int, d: int) -> None:
    assert same_answer(f"{a}/{b}", f"\\frac{{{c}}}{{{d}}}") == (Fraction(a, b) == Fraction(c, d))


@given(st.sampled_from(["cm", "m^2", "%", "kg", "apple", "km/h"]), st.integers(0, 999))
def test_a_unit_is_kept_apart_from_the_number(unit: str, n: int) -> None:
    form = read_form(canonical_answer(f"{n} {unit}"))
    assert (form.number, form.unit) == (Fraction(n), unit)


NOT_QUANTITIES = ["", "cm", "1..2", "1,23", "1/2/3", "5 /", "5 km//h", "5 square", "5 a b c d"]
NOT_QUANTITIES += ["5 x", "5xy", "5 /s", "5 1", "$5 euro", "1e301", "1" * 101, "1/0", "5 and"]
NOT_QUANTITIES += ["5 cm and", "squared 5", "5 squared", "4s"]


@pytest.mark.parametrize("text", NOT_QUANTITIES)  # fmt: skip
def test_what_is_not_a_quantity(text: str) -> None:
    assert parse_quantity(text) is None


def test_huge_exponents_are_exact_or_text_never_a_giant_number() -> None:
    assert canonical_answer("1e300") == str(10**300)
    assert canonical_answer("1e301") == "1e301"
    assert canonical_answer("9" * 400 + "e300") == "9" * 400 + "e300"


# --- algebra -----------------------------------------------------------------------------------


NOT_SAFE = ["9^{9^9}", "2^{1000}", "x^{99}y^{99}", "blue", "a b", r"\int x", r"\sum_n n", "1" * 16]
NOT_SAFE += [r"\text{x}", "", "()", "(1, 2)", "x" * 201, "5!", "x^", "2^(9)", "f x", "\\ ", "x\\"]


@pytest.mark.parametrize("text", [*NOT_SAFE, "\u0394"])  # fmt: skip
def test_what_is_never_handed_to_the_algebra(text: str) -> None:
    assert not is_expression(text)
    assert not same_expression(text, "1")


@given(answers)
@settings(max_examples=60)
def test_algebra_survives_whatever_passes_its_gate(text: str) -> None:
    canonical = canonical_answer(text)
    assert same_expression(canonical, "x+1") == same_expression("x+1", canonical)


@pytest.mark.parametrize(
    "text", [r"\frac{", "}{", "^{2}", "||", r"\{", "1/0", "=", "x==", "<", "-"]
)
def test_broken_expressions_are_equal_to_nothing_else(text: str) -> None:
    assert not same_answer(text, "x+7")


def test_algebra_works_in_any_thread_and_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    algebra._compare.cache_clear()
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(same_answer("a+b", "b+a")))
    thread.start()
    thread.join()
    assert found == [True]
    assert not caplog.records


def test_a_comparison_that_needs_too_much_work_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(algebra, "MAX_CALLS", 100)
    assert not same_expression("p+2q", "2q+p")
    assert sys.getprofile() is None
    algebra._compare.cache_clear()
    monkeypatch.undo()
    assert same_expression("p+2q", "2q+p")


def test_a_profiler_is_left_alone() -> None:
    seen: list[str] = []

    def profile(_frame: object, event: str, _argument: object) -> None:
        seen.append(event)

    sys.setprofile(profile)
    try:
        equal = same_expression("r+3s", "3s+r")
        assert sys.getprofile() is profile
    finally:
        sys.setprofile(None)
    assert equal
    assert seen


def test_without_the_extra_expressions_stay_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(algebra, "find_spec", lambda _name: None)
    assert not same_answer("x+1", "1+x")


def test_a_crowd_of_expressions_is_compared_up_to_a_bound() -> None:
    crowd = [f"z+{i}" for i in range(10, 10 + 2 * MAX_EXPRESSIONS)]
    classes = answer_classes(crowd)
    assert classes == list(range(len(crowd)))
    assert answer_classes(["1+z", "z+1", *map(str, range(40))])[:2] == [0, 0]


# --- hostile input -----------------------------------------------------------------------------

HOSTILE = ["1", "1,", "a ", "(", "{", "\\text{", "\\frac", "$", "sqrt(", " ", "-", "5 ", "^{", "**"]
HOSTILE += ["the ", "cm ", ".", "\u00bd", "\\", "=", "x=", ":", "\u0345", "1/", "e1", "~"]


@pytest.mark.parametrize("piece", HOSTILE)
def test_hostile_lengths_finish(piece: str) -> None:
    long = piece * (200_000 // len(piece))
    short = piece * (MAX_ANSWER_CHARS // len(piece))
    for text in (long, short, short + ")", "5" + short[:-1]):
        canonical = canonical_answer(text)
        read_form(canonical)
        assert not same_answer(text, "another answer")


@given(st.text(alphabet="aB 1", max_size=20))
def test_very_long_answers_are_only_folded(tail: str) -> None:
    text = "1" * MAX_ANSWER_CHARS + "A " + tail
    assert canonical_answer(text) == " ".join(text.split()).casefold()
    assert read_form(canonical_answer(text)).number is None
