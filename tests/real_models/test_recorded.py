"""Answers and steps over what a real language model wrote: 600 solutions in its own words."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.real_models.corpus import Solution, recorded
from tests.real_models.word_problems import WORD_PROBLEMS
from vprm_search.answers import (
    STRICT,
    AnswerReading,
    answer_classes,
    extract_answer,
    read_answer,
    same_answer,
)
from vprm_search.steps import SPLITTERS, join_steps, normalise_text, split_solution, split_steps

HEADER, SOLUTIONS = recorded()
READ_BY_HAND = json.loads((Path(__file__).parent / "readings.json").read_text(encoding="utf-8"))
NAMES = ["auto", *SPLITTERS, "tokens:16"]
RULE = re.compile(r"^[ \t]*(?:[-*_][ \t]*){3,}$", re.MULTILINE)


def bare(text: str) -> str:
    """Return what a cut may not lose: all but white space and rules across the page."""
    return "".join(RULE.sub("", text).split())


def test_the_corpus_is_what_it_says() -> None:
    assert HEADER["licence"] == "Apache-2.0"
    assert {"model", "settings", "date", "server"} <= HEADER.keys()
    assert len(SOLUTIONS) >= 500
    assert {s.problem for s in SOLUTIONS} == set(WORD_PROBLEMS)
    assert {s.asked for s in SOLUTIONS} == HEADER["instructions"].keys()
    assert len({s.text for s in SOLUTIONS}) > 0.9 * len(SOLUTIONS)


# --- answers -------------------------------------------------------------------------------------


@cache
def reading_of(text: str) -> AnswerReading | None:
    return read_answer(text)


def test_every_reading_stands_in_its_text_and_reads_itself() -> None:
    for solution in SOLUTIONS:
        reading = reading_of(solution.text)
        if reading is None:
            continue
        start, end = reading.span
        assert 0 <= start < end <= len(solution.text)
        assert reading.text.strip() == reading.text != ""
        assert "\n" not in reading.text
        again = r"\boxed{%s}" if reading.source == "boxed" else "Answer: %s"
        assert extract_answer(again.replace("%s", reading.text)) == reading.text


def bold(text: str) -> str:
    """Put the answer that is read in bold, unless it stands in mathematics."""
    reading = reading_of(text)
    if reading is None or reading.source == "boxed" or "$" in reading.text:
        return text
    start, end = reading.span
    if text[start:end] != reading.text:
        return text
    return f"{text[:start]}**{reading.text}**{text[end:]}"


CHANGES = (
    lambda text: f"\n\n {text} \n",
    lambda text: text.replace("\n", "\r\n"),
    lambda text: text.replace("\n", " \t\n"),
    lambda text: text.replace("\n\n", "\n\n\n\n"),
    lambda text: f"**Solution**\n\n{text}\n\n---\n",
    lambda text: f"<think>Answer: 0</think>{text}",
    bold,
)
STATEMENTS = tuple(
    (value, statement)
    for value in ("42", "x = 5", "$7.50", "Sunday")
    for statement in (
        "Answer: {}",
        "The final answer is {}.",
        "\\boxed{{{}}}",
        "### Answer\n\n{}",
        "So {} is the answer.",
    )
    if "is the answer" not in statement or value == "42"
)


def check_change(solution: Solution, change: Callable[[str], str]) -> None:
    before = reading_of(solution.text)
    assert extract_answer(change(solution.text)) == (before and before.text)


def check_statement(solution: Solution, value: str, statement: str) -> None:
    assert extract_answer(f"{solution.text}\n\n{statement.format(value)}") == value


def test_white_space_and_markup_change_nothing_and_a_statement_wins() -> None:
    """Each solution in one way of each kind; the slow lane takes all of them."""
    for number, solution in enumerate(SOLUTIONS):
        check_change(solution, CHANGES[number % len(CHANGES)])
        check_statement(solution, *STATEMENTS[number % len(STATEMENTS)])


@pytest.mark.slow
def test_every_change_and_every_statement() -> None:
    for solution in SOLUTIONS:
        for change in CHANGES:
            check_change(solution, change)
        for value, statement in STATEMENTS:
            check_statement(solution, value, statement)


def test_readings_are_what_a_person_reads() -> None:
    assert len(READ_BY_HAND) >= 100
    for number, answer in READ_BY_HAND.items():
        reading = reading_of(SOLUTIONS[int(number)].text)
        assert (reading and reading.text) == answer


def test_every_answer_is_graded_and_counted_once() -> None:
    for problem in WORD_PROBLEMS:
        readings = [reading_of(s.text) for s in SOLUTIONS if s.problem == problem]
        read = [reading.text for reading in readings if reading is not None]
        classes = answer_classes([problem.answer, *read])
        for answer, number in zip(read, classes[1:], strict=True):
            if same_answer(answer, problem.answer, rules=STRICT):
                assert same_answer(answer, problem.answer)
                assert number == classes[0]


def test_the_page_says_what_came_of_them() -> None:
    page = (Path(__file__).parents[2] / "docs" / "policies.md").read_text(encoding="utf-8")
    for asked in HEADER["instructions"]:
        mine = [s for s in SOLUTIONS if s.asked == asked]
        readings = [(reading_of(s.text), s.problem.answer) for s in mine]
        read = [(reading.text, answer) for reading, answer in readings if reading is not None]
        right = sum(same_answer(*pair, rules=STRICT) for pair in read)
        ended = sum(s.finish == "stop" for s in mine)
        assert f" | {len(mine)} | {ended} | {len(read)} | {right} |\n" in page


# --- steps ---------------------------------------------------------------------------------------


def check_cut(solution: Solution, split: str) -> None:
    steps = split_steps(solution.text, splitter=split)
    assert all(step == step.strip() != "" for step in steps)
    assert bare(join_steps(steps)) == bare(solution.text)


def test_a_cut_loses_nothing() -> None:
    """Each solution in one way; the slow lane takes all of them."""
    for number, solution in enumerate(SOLUTIONS):
        check_cut(solution, NAMES[number % len(NAMES)])


@pytest.mark.slow
@pytest.mark.parametrize("split", NAMES)
def test_no_cut_loses_anything(split: str) -> None:
    for solution in SOLUTIONS:
        check_cut(solution, split)


def test_the_reference_cut_joins_back_to_the_text() -> None:
    for solution in SOLUTIONS:
        text = normalise_text(solution.text)
        assert normalise_text(text) == text
        assert join_steps(split_solution(text, max_steps=None)) == text
        merged = split_solution(text)
        assert len(merged) <= 12
        assert join_steps(merged) == text


def test_all_of_them_in_one_text_are_read_and_cut() -> None:
    """200 kB of real text: a quadratic rule would not come back within the hour."""
    text = "\n\n".join(s.text for s in SOLUTIONS)[:190_000]
    read_answer(text)
    assert split_steps(text, splitter="auto")
