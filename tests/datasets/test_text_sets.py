"""GSM8K, MATH-500 and GPQA as they are published, and the paper's figures of them.

The records of GSM8K (openai/grade-school-math) and MATH-500 (openai/prm800k, hendrycks/math) are
published ones, both under the MIT licence, long solutions cut to their ends. GPQA asks that none of
its records be shown in public, so those are made up.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vprm_search.datasets.graders import GRADERS, SAMENESS, grader_of
from vprm_search.datasets.known import GPQA_SEED, answer_of, choices_of_row, letters_of
from vprm_search.datasets.problem_set import Item, ProblemSet, read_problem_set
from vprm_search.datasets.set_scores import PAPER_TEXT_ROWS, PAPER_TEXT_SETS
from vprm_search.errors import RecordError

GSM8K = [
    (
        "A robe takes 2 bolts of blue fiber and half that much white fiber.  How many bolts in "
        "total does it take?",
        "It takes 2/2=<<2/2=1>>1 bolt of white fiber\nSo the total amount of fabric is "
        "2+1=<<2+1=3>>3 bolts of fabric\n#### 3",
        "3",
    ),
    (
        "Josh decides to try flipping a house.  He buys a house for $80,000 and then puts in "
        "$50,000 in repairs.  This increased the value of the house by 150%.  How much profit did "
        "he make?",
        "So he made a profit of 200,000-130,000=$<<200000-130000=70000>>70,000\n#### 70000",
        "70000",
    ),
    (
        "In a dance class of 20 students, 20% enrolled in contemporary dance, 25% of the remaining "
        "enrolled in jazz dance, and the rest enrolled in hip-hop dance. What percentage of the "
        "entire students enrolled in hip-hop dance?",
        "This is 12/20 x 100% = 60% of the entire students.\n#### 60",
        "60",
    ),
]
MATH_500 = [
    {
        "problem": "How many positive whole-number divisors does 196 have?",
        "solution": "In total, there are $3\\times 3=9$ possibilities for the prime factorization "
        "of a divisor of 196. … so there are $\\boxed{9}$ divisors of 196.",
        "answer": "9",
        "subject": "Number Theory",
        "level": 3,
        "unique_id": "test/number_theory/572.json",
    },
    {
        "problem": "Convert the point $(0,3)$ in rectangular coordinates to polar coordinates.  "
        "Enter your answer in the form $(r,\\theta),$ where $r > 0$ and $0 \\le \\theta < 2 \\pi.$",
        "solution": "Therefore, the polar coordinates are "
        "$\\boxed{\\left( 3, \\frac{\\pi}{2} \\right)}.$",
        "answer": "\\left( 3, \\frac{\\pi}{2} \\right)",
        "subject": "Precalculus",
        "level": 2,
        "unique_id": "test/precalculus/807.json",
    },
    {
        "problem": "Compute: $1-2+3-4+5- \\dots +99-100$.",
        "solution": "$(1-2)+(3-4)+ \\dots +(97-98)+(99-100) = 50(-1) = \\boxed{-50}.$",
        "answer": "-50",
        "subject": "Intermediate Algebra",
        "level": 1,
        "unique_id": "test/intermediate_algebra/134.json",
    },
]


def lines(path: Path, rows: Sequence[Mapping[str, object]]) -> ProblemSet:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_problem_set(path)


# --- GSM8K ---------------------------------------------------------------------------------------


def test_gsm8k_is_told_by_its_answers_and_graded_by_the_number_at_their_end(tmp_path: Path) -> None:
    rows = [{"question": asked, "answer": solution} for asked, solution, _ in GSM8K]
    found = lines(tmp_path / "test.jsonl", rows)
    assert found.name == "gsm8k"
    grader = grader_of(found.name)
    for item, (asked, solution, answer) in zip(found, GSM8K, strict=True):
        assert (item.question, item.answer, item.answer_type) == (asked, answer, "integer")
        assert grader.grade(item, solution).right  # GSM8K's own form of an answer
        for said in (f"\\boxed{{{answer}}}", f"${answer}.00", f"{int(answer):,} of them"):
            assert grader.grade(item, f"Step 1: 5 and 7.\n\nFinal answer: {said}").right, said
        assert not grader.grade(item, f"Final answer: {answer}1").right
        assert not grader.grade(item, "I cannot tell.\n\nSorry.").right


@given(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9))
def test_gsm8k_compares_values(answer: int, other: int) -> None:
    for solution in (f"So.\n#### {answer}", f"So.\n#### {answer:,}"):
        published, _ = answer_of({"answer": solution}, "gsm8k")
        item = Item(1, "1", "?", published, answer_type="integer")
        assert published == str(answer)
        assert GRADERS["gsm8k"].grade(item, f"… \n#### {other}").right is (answer == other)
        assert GRADERS["gsm8k"].grade(item, f"The answer is {answer:,}.").right


def test_an_answer_of_gsm8k_without_a_number_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"row 1, column answer: no number behind '####'"):
        lines(tmp_path / "gsm8k.jsonl", [{"question": "q", "answer": "So.\n#### many"}])


def test_the_number_alone_and_headings_that_are_no_numbers(tmp_path: Path) -> None:
    (alone,) = lines(tmp_path / "gsm8k.jsonl", [{"question": "q", "answer": "1,450"}])
    assert (alone.answer, alone.answer_type) == ("1450", "integer")
    other = lines(tmp_path / "a.jsonl", [{"question": "q", "answer": "#### Result\nIt is 5 m."}])
    assert other.name == ""
    quiz = lines(tmp_path / "quiz.jsonl", [{"Question": "q", "Correct Answer": "a"}])
    assert (quiz.name, quiz[0].answer, quiz[0].answer_type) == ("", "a", "text")


# --- MATH-500 ------------------------------------------------------------------------------------


def test_math_500(tmp_path: Path) -> None:
    found = lines(tmp_path / "test.jsonl", MATH_500)
    assert found.name == "math500"
    assert [item.id for item in found] == [row["unique_id"] for row in MATH_500]
    assert [item.category for item in found] == [row["subject"] for row in MATH_500]
    grader = grader_of(found.name)
    for place, (item, row) in enumerate(zip(found, MATH_500, strict=True)):
        assert item.question == row["problem"]
        assert grader.grade(item, str(row["solution"])).right
        other = MATH_500[(place + 1) % len(MATH_500)]
        assert not grader.grade(item, str(other["solution"])).right
    assert grader.grade(found[1], "Final answer: $(3, \\pi/2)$").right
    assert not grader.grade(found[1], "Final answer: $(\\pi/2, 3)$").right


# --- GPQA ----------------------------------------------------------------------------------------

COLUMNS = (
    "Pre-Revision Question",
    "Pre-Revision Correct Answer",
    "Question",
    "Correct Answer",
    "Incorrect Answer 1",
    "Incorrect Answer 2",
    "Incorrect Answer 3",
    "Subdomain",
    "High-level domain",
    "Record ID",
)


def gpqa(path: Path, ids: Sequence[str]) -> ProblemSet:
    """Made-up records, all with the same question and choices."""
    wrong = ("0.5 x_A", "0.5 X_a", "none, or\nall of them")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for own in ids:
            writer.writerow(
                {
                    "Pre-Revision Question": "an earlier one",
                    "Pre-Revision Correct Answer": "an earlier one",
                    "Question": 'Which of them,\nsaid "here", is it?\n',
                    "Correct Answer": "1.5 x_A\n",
                    **{f"Incorrect Answer {n}": text for n, text in enumerate(wrong, start=1)},
                    "High-level domain": "Physics",
                    "Record ID": own,
                }
            )
    return read_problem_set(path)


def test_gpqa(tmp_path: Path) -> None:
    found = gpqa(tmp_path / "gpqa_diamond.csv", ["rec1", "rec2"])
    assert found.name == "gpqa"
    grader = grader_of(found.name)
    assert f"seed {GPQA_SEED}" in grader.source
    for item, own in zip(found, ("rec1", "rec2"), strict=True):
        assert (item.id, item.category, item.answer_type) == (own, "Physics", "choice")
        assert item.choices["ABCD".index(item.letters)] == item.answer == "1.5 x_A"
        for letter, text in zip("ABCD", item.choices, strict=True):
            assert f"\n({letter}) {text}" in item.question
            right = letter == item.letters
            assert grader.grade(item, f"A long way.\n\nAnswer: ({letter})").right is right
            assert SAMENESS.grade(item, f"A long way.\n\nAnswer: ({letter})").right is right


@given(st.text(min_size=1), st.lists(st.text(min_size=1), min_size=4, max_size=4, unique=True))
def test_the_order_of_choices_hangs_on_the_id_and_the_choices_alone(
    own: str, texts: list[str]
) -> None:
    texts = [f"a{text.encode('unicode_escape').decode()}b" for text in texts]
    right, *wrong = texts
    columns = [f"Incorrect Answer {n}" for n in (1, 2, 3)]
    row = {"Record ID": f"rec{own.encode('unicode_escape').decode()}", "Correct Answer": right}
    found = choices_of_row({**row, **dict(zip(columns, wrong, strict=True))}, "gpqa", "one")
    turned = dict(zip(columns, reversed(wrong), strict=True))
    assert choices_of_row({**row, **turned}, "gpqa", "another") == found
    assert sorted(found) == sorted(texts)
    assert found["ABCD".index(letters_of(row, "gpqa", right, found))] == right


def test_the_right_choice_stands_everywhere_alike_often(tmp_path: Path) -> None:
    found = gpqa(tmp_path / "gpqa.csv", [f"rec{n}" for n in range(800)])
    counts = Counter(item.letters for item in found)
    assert set(counts) == set("ABCD")
    assert all(abs(count - 200) < 50 for count in counts.values())  # four standard deviations


def test_a_choice_that_lacks_is_named(tmp_path: Path) -> None:
    row = {"Question": "q", "Correct Answer": "a", "Incorrect Answer 1": "b",
           "Incorrect Answer 2": "", "Incorrect Answer 3": "c"}  # fmt: skip
    with pytest.raises(RecordError, match="row 1, column Incorrect Answer 2: it is empty"):
        lines(tmp_path / "gpqa.jsonl", [row])


def test_a_copy_of_gpqa_with_letters_keeps_them(tmp_path: Path) -> None:
    row = {"question": "q?", "options": ["a", "b", "c", "d"], "answer": "C"}
    (item,) = lines(tmp_path / "gpqa.jsonl", [row])
    assert (item.choices, item.letters) == (("a", "b", "c", "d"), "C")


# --- the paper's figures -------------------------------------------------------------------------

GAINS = {  # points, as the paper prints them beside
    "Qwen2.5-7B": (2.9, 6.1, 5.0),
    "Qwen2.5-32B": (0.2, 2.3, 4.0),
    "Qwen2.5-72B": (0.7, 2.1, 6.6),
    "InternVL2.5-8B": (1.1, 9.4, 5.0),
    "InternVL2.5-38B": (1.0, 4.6, 8.1),
    "InternVL2.5-78B": (0.9, 7.4, 3.5),
}


def test_the_papers_rows_fit_the_gains_that_it_prints() -> None:
    assert set(PAPER_TEXT_ROWS) == set(GAINS)
    assert set(PAPER_TEXT_SETS) <= set(GRADERS)
    for policy, pairs in PAPER_TEXT_ROWS.items():
        for (alone, best), gain in zip(pairs, GAINS[policy], strict=True):
            assert best - alone == pytest.approx(gain, abs=0.11)  # 82.9 - 81.9 is printed as 1.1
