"""Which answers are the same: a table of pairs, properties, votes, choices, hostile input."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import re
import sys
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vprm_search.answers import STRICT, Sameness, answer_classes, same_answer
from vprm_search.answers.algebra import evaluate
from vprm_search.answers.canonical import MAX_ANSWER_CHARS, tidy_answer
from vprm_search.answers.forms import form_of
from vprm_search.answers.quantities import digits_for_words, read_unit
from vprm_search.answers.values import MAX_BITS, Unreadable, key

TABLE = (Path(__file__).parent / "pairs.txt").read_text(encoding="utf-8").splitlines()[1:]
SAME = [tuple(line.split(" == ")) for line in TABLE if " == " in line]
DIFFERENT = [tuple(line.split(" != ")) for line in TABLE if " != " in line and " == " not in line]
ANSWERS = sorted({answer for pair in SAME + DIFFERENT for answer in pair})


def test_the_table_is_read_whole() -> None:
    assert len(SAME) > 400
    assert len(DIFFERENT) > 300
    assert len(SAME) + len(DIFFERENT) == sum(map(bool, TABLE))


def test_the_table_comes_out_as_it_says_from_either_side() -> None:
    assert [(a, b) for a, b in SAME if not (same_answer(a, b) and same_answer(b, a))] == []
    assert [(a, b) for a, b in DIFFERENT if same_answer(a, b) or same_answer(b, a)] == []


def test_nothing_is_the_same_as_nothing() -> None:
    assert not same_answer("", "")
    assert not same_answer("", "5")
    assert not same_answer("$$", "  ")


# --- markup, white space, idempotence -------------------------------------------------------------


def marked_up(answer: str) -> Iterator[str]:
    """Write an answer in other markup."""
    yield f"  {answer}\n"
    yield f"**{answer}**"
    yield f"`{answer}`"
    yield f"\\boxed{{{answer}}}"
    yield f"\\( {answer} \\)"
    yield f"Answer: {answer}"
    yield f"the final answer is {answer}."
    yield re.sub(r" +", "  ", answer)
    if "$" not in answer:
        yield f"${answer}$"
        yield f"$${answer}$$."
        yield f"$\\boxed{{{answer}}}$"
    if not re.search(r"[\\^_{}$%]", answer):
        yield f"\\text{{{answer}}}"
        yield f'"{answer}"'


def balanced(answer: str) -> bool:
    return answer.count("{") == answer.count("}") and not re.search('["“*]', answer)


def test_markup_and_white_space_change_nothing() -> None:
    wrong = [(answer, marked) for answer in ANSWERS if balanced(answer)
             for marked in marked_up(answer) if not same_answer(answer, marked)]  # fmt: skip
    assert wrong == []


any_text = st.text(alphabet=st.characters(exclude_categories=[]), max_size=40)
FRAGMENTS = [*"0123456789abcxyz.,+-*/^()[]{}%$:; \\=_!|<>'"]
FRAGMENTS += ["cm", " cm", "\\frac", "\\text{", "\\sqrt", "sqrt(", "\\boxed{", "the ", "10^"]
FRAGMENTS += ["\\left(", "\\$", "~", "**", "\u00d7", "\u00b2", "\u00bd", "\u0130", "option "]
FRAGMENTS += ["per ", "square ", "\u221a", "pi", "e3", "\u00b0", "million", "{,}", "\\,", " and "]
FRAGMENTS += ["\\pm", " or ", "x = ", "\\in", "\\cup", "\\begin{pmatrix}", "\\\\", "&", "∞", "٣"]
FRAGMENTS += ["\\sin", "\\ln", "\\le", "twenty", "half", "厘米", "\\infty", "…", "\\end{pmatrix}"]
fragments = st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join)
answers = fragments | any_text | st.sampled_from(ANSWERS)


@given(answers)
@example("\u0345\u0301")
@example(":=" * 99 + "$" + ":=" * 99)
@settings(max_examples=400)
def test_the_tidy_spelling_is_a_fixed_point_storable_and_the_same_answer(text: str) -> None:
    tidy = tidy_answer(text)
    assert tidy_answer(tidy) == tidy
    tidy.encode("utf-8")
    assert same_answer(text, text) == bool(tidy)
    assert same_answer(text, tidy) == bool(tidy)


@given(answers, answers)
@settings(max_examples=100)
def test_symmetric(a: str, b: str) -> None:
    assert same_answer(a, b) == same_answer(b, a)


# --- votes ----------------------------------------------------------------------------------------

POOL = ["B", "(b)", "B. 12 cm", "b) 13", "A", "C: x", "12", "12 cm", "12 m", "12.0", "24/2", "x"]
POOL += ["2^2", "4", r"\sqrt{16}", "4 cm", "", "blue", "Blue.", "120 mm", "1200", "1200 cm", "120"]
POOL += ["x = 12", "y = 12", "x=4", "{1, 2}", "2, 1", "(1,2)", "red, blue", "blue and red", "x, y"]
POOL += ["y = 2x", "2x", "2x - y = 0", "x < 3", "2x < 6", "blue, red", "50%", "0.5", "50", "1 or 2"]
pools = st.lists(st.sampled_from([*POOL, None]), max_size=12)


@given(pools, st.randoms(use_true_random=False))
@settings(max_examples=300)
def test_classes_are_a_partition_that_ignores_order_and_repetition(
    pool: list[str | None], rng: Random
) -> None:
    classes = answer_classes(pool)
    seen = [c for c in classes if c is not None]
    assert list(dict.fromkeys(seen)) == list(range(len(set(seen))))  # numbered by first appearance
    order = [*range(len(pool)), *range(0, len(pool), 2)]
    rng.shuffle(order)
    shuffled = answer_classes([pool[i] for i in order])
    for (i, ci), (j, cj) in itertools.combinations(enumerate(order), 2):
        assert (shuffled[i] == shuffled[j]) == (classes[ci] == classes[cj])
    for answer, group in zip(pool, classes, strict=True):
        assert (group is None) == (not answer)


@given(st.lists(st.sampled_from(ANSWERS), min_size=3, max_size=3))
def test_transitive(three: list[str]) -> None:
    a, b, c = (answer_classes(three)[i] for i in range(3))
    assert not (a == b and b == c) or a == c
    exact = [form_of(answer) for answer in three]
    for (i, first), (j, second) in itertools.combinations(enumerate(exact), 2):
        if first and second and (first.full, first.name) == (second.full, second.name):
            assert answer_classes(three)[i] == answer_classes(three)[j]


@given(pools)
@settings(max_examples=200)
def test_two_answers_without_a_unit_meet_only_if_they_are_equal(pool: list[str | None]) -> None:
    """No company makes 19 and 1900 one answer, though 19 m and 1900 cm are."""
    numbers = {a: Fraction(a) for a in pool if a and re.fullmatch(r"[0-9./]+", a)}
    classes = dict(zip(pool, answer_classes(pool), strict=True))
    for a, b in itertools.combinations(numbers, 2):
        assert (classes[a] == classes[b]) == (numbers[a] == numbers[b])


def test_a_number_between_two_units_stays_alone() -> None:
    assert answer_classes(["12 cm", "12", "12 m", "12.0 cm"]) == [0, 1, 2, 0]
    assert answer_classes(["12 cm", "12", "12.0 cm"]) == [0, 0, 0]
    assert answer_classes(["19 m", "1900 cm", "19"]) == [0, 0, 0]
    assert answer_classes(["19 m", "1900 cm", "19", "1900"]) == [0, 0, 1, 2]


def test_a_value_between_two_variables_stays_alone() -> None:
    assert answer_classes(["x = 5", "5", "X=5.0"]) == [0, 0, 0]
    assert answer_classes(["x = 5", "5", "y = 5"]) == [0, 1, 2]
    assert answer_classes(["x = 5", "5", "total = 5"]) == [0, 0, 0]  # a word is no variable


def test_words_in_order_or_not() -> None:
    assert answer_classes(["red, blue", "blue and red", "red and blue"]) == [0, 0, 0]
    assert answer_classes(["red, blue", "blue and red", "blue, red"]) == [0, 1, 2]
    assert answer_classes(["1, 2", "2, 1", "(1, 2)", "(2, 1)"]) == [0, 0, 1, 2]


# --- options --------------------------------------------------------------------------------------


def test_strict_grading_converts_no_unit() -> None:
    assert same_answer("1900 cm", "19 m")
    assert not same_answer("1900 cm", "19 m", rules=STRICT)
    assert same_answer("12 centimeters", "12 cm", rules=STRICT)
    assert same_answer("12", "12 cm", rules=STRICT)
    assert same_answer("5 km/h", "5 kilometers per hour", rules=STRICT)


def test_a_percentage_is_a_fraction_on_wish() -> None:
    rules = Sameness(percent_is_fraction=True)
    assert same_answer("50%", "1/2", rules=rules)
    assert same_answer("12.5 percent", "0.125", rules=rules)
    assert same_answer("50%", "50", rules=rules)
    assert answer_classes(["50%", "0.5", "50"], rules=rules)[0::2] == [0, 1]
    assert not same_answer("50%", "1/2")


# --- choices --------------------------------------------------------------------------------------


def test_labels_are_letters_only_beside_a_bare_letter() -> None:
    assert answer_classes(["B. 12 cm", "B. 13 cm"]) == [0, 1]
    assert answer_classes(["B. 12 cm", "B. 13 cm", "A"]) == [0, 0, 1]
    assert answer_classes(["E. coli", "E. faecalis"]) == [0, 1]


def test_given_choices_link_texts_to_letters() -> None:
    choices = ["10 cm", "12 cm", "14 cm"]
    assert same_answer("12 centimeters", "(B)", choices=choices)
    assert same_answer("12", "B", choices=choices)
    assert same_answer("B. 12 cm", "12 cm", choices=choices)
    assert same_answer("B 12 cm", "b", choices=choices)
    assert same_answer("(B) 12 cm", "0.12 m", choices=choices)
    assert not same_answer("10 cm", "B", choices=choices)
    assert not same_answer("15 cm", "B", choices=choices)
    assert answer_classes(["c", "14.0 cm", "x", "C. 14"], choices=choices) == [0, 0, 1, 0]
    assert same_answer("B", "12 cm", choices=["A. 10 cm", "B. 12 cm"])
    assert same_answer("B", r"\frac{1}{2}", choices=["1", "0.5", "2"])


def test_choices_that_mislead_are_ignored() -> None:
    assert not same_answer("A", "B", choices=["5", "5.0"])  # equal texts
    assert not same_answer("A", "B", choices=["B", "A"])  # letters of points in a figure
    assert not same_answer("A", "B", choices=["", ""])


@pytest.mark.parametrize(
    "choices",
    [["5 cm", "50 mm"], ["12", "12 cm"], ["12 cm", "12", "12 m"], ["x=5", "5"], ["0.5", "1/2"],
     ["red, blue", "blue, red", "red and blue"], ["5", "5.0", "5.00"], ["100%", "1", "100"]],
)  # fmt: skip
def test_two_choices_are_never_one_answer(choices: list[str]) -> None:
    letters = [chr(65 + i) for i in range(len(choices))]
    classes = answer_classes([*choices, *letters], choices=choices)
    assert len(set(classes[: len(choices)])) == len(choices)
    assert len(set(classes[len(choices) :])) == len(choices)


# --- numbers, units and words against exact arithmetic --------------------------------------------


@given(st.integers(-(10**15), 10**15))
def test_every_way_to_write_an_integer(n: int) -> None:
    spellings = [str(n), f"{n:,}", f"{n}.0", f"{n}.", f"{2 * n}/2", f"  {n} ", f"${n}$", f"{n}e0"]
    spellings += [f"\\frac{{{n}}}{{1}}", f"{n:+}", f"{n:,}".replace(",", r",\!"), f"{n} \\cdot 1"]
    spellings += [f"{n:,}".replace(",", "{,}"), f"{n:,}".replace(",", "\u202f"), f"({n})"]
    assert set(answer_classes(spellings)) == {0}
    assert not same_answer(str(n), str(n + 1))


@given(st.decimals(-(10**9), 10**9, places=4, allow_nan=False))
def test_every_way_to_write_a_decimal(value: object) -> None:
    exact = Fraction(str(value))
    spellings = [f"{value}", f"{value}000", f"{value:,}", f"{value:E}".replace("E", "e")]
    spellings += [f"{exact.numerator}/{exact.denominator}"]
    assert set(answer_classes(spellings)) == {0}


@given(st.integers(-99, 99), st.integers(1, 99), st.integers(-99, 99), st.integers(1, 99))
def test_fractions_are_the_same_exactly_when_they_are_equal(a: int, b: int, c: int, d: int) -> None:
    assert same_answer(f"{a}/{b}", f"\\frac{{{c}}}{{{d}}}") == (Fraction(a, b) == Fraction(c, d))


@given(st.integers(-300, 300), st.integers(-300, 300), st.sampled_from([2, 3, 10]))
def test_powers_compare_exactly(m: int, n: int, base: int) -> None:
    assert same_answer(f"{base}^{{{m}}}", f"{base}^{{{n}}}") == (m == n)


def polynomial(coefficients: list[int]) -> str:
    return "+".join(f"{c}x^{{{power}}}" for power, c in enumerate(coefficients)).replace("+-", "-")


@given(st.sampled_from(["e", r"\pi", r"\sqrt{2}", r"\ln 3", r"\frac{e}{2}", "x", "7", "2/3"]),
       st.integers(-6, 6), st.integers(-6, 6))  # fmt: skip
def test_exponents_add(base: str, m: int, n: int) -> None:
    product = f"({base})^{{{m}}} \\cdot ({base})^{{{n}}}"
    assert same_answer(product, f"({base})^{{{m + n}}}")
    assert same_answer(f"({base})^{{{m}-{m}}}", "1")


@given(st.lists(st.integers(-9, 9), min_size=2, max_size=4),
       st.lists(st.integers(-9, 9), min_size=2, max_size=4))  # fmt: skip
def test_a_product_of_polynomials_is_what_multiplying_out_gives(a: list[int], b: list[int]) -> None:
    product = [0] * (len(a) + len(b) - 1)
    for (i, x), (j, y) in itertools.product(enumerate(a), enumerate(b)):
        product[i + j] += x * y
    written = f"({polynomial(a)})({polynomial(b)})"
    assert same_answer(written, polynomial(product))
    product[0] += 1
    assert not same_answer(written, polynomial(product))


LENGTHS = {"mm": Fraction(1, 1000), "cm": Fraction(1, 100), "m": Fraction(1), "km": Fraction(1000)}


@given(st.integers(1, 10**6), st.sampled_from(sorted(LENGTHS)), st.integers(1, 10**6),
       st.sampled_from(sorted(LENGTHS)))  # fmt: skip
def test_lengths_are_the_same_exactly_when_they_are_equal(m: int, a: str, n: int, b: str) -> None:
    assert same_answer(f"{m} {a}", f"{n} {b}") == (m * LENGTHS[a] == n * LENGTHS[b])


def test_units_that_are_none() -> None:
    for text in ("x", "and", "of", "sin x", "cm cm cm cm cm", "/"):
        assert read_unit(text, glued=False) is None
    for text in ("s", "xy", "apples"):
        assert read_unit(text, glued=True) is None


@pytest.mark.parametrize(
    ("text", "digits"),
    [("twenty-five apples", "25 apples"), ("one hundred and five", "105"), ("two thirds", "2/3"),
     ("two million three hundred thousand", "2300000"), ("the", "the"),
     ("one and two", "1 and two"), ("two three", "two three"),
     ("-2.5 million people", "-2500000 people"), ("$3 billion", "$3000000000"), ("none", "none")],
)  # fmt: skip
def test_words_for_numbers(text: str, digits: str) -> None:
    assert digits_for_words(text) == digits


# --- what is not computed -------------------------------------------------------------------------

NOT_COMPUTED = ["9^{9^9}", f"2^{{{MAX_BITS}}}", "(9999)!", "1/0", "0^{0}", "blue", "1/2x"]
NOT_COMPUTED += ["a/b/c"]
NOT_COMPUTED += ["3-2", "2020-01-05", "1/2/2020", r"\int x", "f(x)", "x^", "", "()", "x" * 301]
NOT_COMPUTED += [
    r"2\frac{5}{3}",
    "1 2",
    "3!!",
    "--2",
    r"e^{e^{e^{e^9}}}",
    r"\sin 10^{99}",
    "((" * 99,
]
NOT_COMPUTED += ["2 apples + 3", r"\frac{1}{2", "|x", r"10^{60}+\sqrt{2}", r"\ln 0", r"\sqrt[0]{2}"]


@pytest.mark.parametrize("text", NOT_COMPUTED)
def test_what_is_uncertain_or_too_large_is_not_computed(text: str) -> None:
    with pytest.raises(Unreadable):
        evaluate(text)


@given(fragments)
@settings(max_examples=300)
def test_the_grammar_reads_or_refuses(text: str) -> None:
    with contextlib.suppress(Unreadable):
        key(evaluate(text))


def test_answers_are_compared_in_any_thread_and_under_a_profiler() -> None:
    found: list[bool] = []
    work = threading.Thread(target=lambda: found.append(same_answer(r"\sqrt{8}+a", r"a+2\sqrt{2}")))
    sys.setprofile(lambda *_: None)
    try:
        work.start()
        found.append(same_answer(r"\sqrt{18}+a", r"a+3\sqrt{2}"))
    finally:
        sys.setprofile(None)
    work.join()
    assert found == [True, True]


# --- hostile input --------------------------------------------------------------------------------

HOSTILE = ["1", "1,", "a ", "(", "{", "\\text{", "\\frac", "$", "sqrt(", " ", "-", "5 ", "^{", "**"]
HOSTILE += [
    "the ",
    "cm ",
    ".",
    "\u00bd",
    "\\",
    "=",
    "x=",
    ":",
    "\u0345",
    "1/",
    "e1",
    "~",
    "9^",
    "9!",
]
HOSTILE += [
    " and ",
    "\\begin{pmatrix}",
    "\\pm",
    "x<",
    "\\cup",
    "two ",
    "1-",
    "\u0660",
    "cm^2/",
    "{,}",
]


@pytest.mark.parametrize("piece", HOSTILE)
def test_hostile_lengths_finish(piece: str) -> None:
    long = piece * (200_000 // len(piece))
    short = piece * (MAX_ANSWER_CHARS // len(piece))
    for text in (long, short, short + ")", "5" + short[:-1]):
        assert not same_answer(text, "another answer")


@given(st.text(alphabet="aB 1", max_size=20))
def test_very_long_answers_are_only_folded(tail: str) -> None:
    text = "1" * MAX_ANSWER_CHARS + "A " + tail
    assert tidy_answer(text) == " ".join(text.split()).casefold()


# --- real records ---------------------------------------------------------------------------------


def records(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield answer and choices of every real sample."""
    for name in ("mathvision_testmini", "mathvista_testmini", "mathverse_testmini_text_only",
                 "mmmu_val_evpv_form", "dynamath_seed"):  # fmt: skip
        for line in (folder / "samples" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            choices = record.get("options") or record.get("choices") or []
            if not choices and "hoices:" in record["question"]:
                choices = re.findall(r"(?m)^[A-E][:.]\s?(.+)$", record["question"])
            elif not choices:
                choices = re.findall(
                    r"(?<![A-Za-z])[A-E]\.(.+?)(?=\s+[A-E]\.|$)", record["question"]
                )
            yield str(record["answer"]), [str(choice) for choice in choices]
    with (folder / "samples" / "mathvision_vlmevalkit_form.tsv").open(encoding="utf-8") as file:
        csv.field_size_limit(10**8)
        for row in csv.DictReader(file, delimiter="\t"):
            yield row["answer"], []


def test_real_answers_are_the_same_as_themselves_in_any_markup(shared_data: Path) -> None:
    texts = {text for answer, choices in records(shared_data) for text in (answer, *choices)}
    assert len(texts) > 200
    for text in filter(tidy_answer, texts):
        for marked in marked_up(text) if balanced(text) else [f" {text} "]:
            assert same_answer(text, marked), (text, marked)


def test_no_two_real_choices_of_one_question_are_the_same(shared_data: Path) -> None:
    asked = 0
    for _, choices in records(shared_data):
        different = [choice for choice in choices if tidy_answer(choice)]
        if len(different) == len(choices) > 1:
            asked += 1
            assert answer_classes(choices) == list(range(len(choices))), choices
            letters = [chr(65 + i) for i in range(len(choices))]
            both = answer_classes([*choices[:10], *letters[:10]], choices=choices)
            assert len(set(both)) >= len(choices[:10])
    assert asked > 60
