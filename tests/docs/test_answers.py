"""docs/answers.md shows what is read out of a text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vprm_search.answers import read_answer

TEXT = (Path(__file__).parents[2] / "docs" / "answers.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `(.+?)` \| (?:`(.+?)`|none) \| (\w*) ?\|$", re.MULTILINE)
ROWS = ROW.findall(TEXT)


def test_the_table_is_there() -> None:
    assert len(ROWS) == 17


@pytest.mark.parametrize(("text", "answer", "source"), ROWS)
def test_each_row_is_read_so(text: str, answer: str, source: str) -> None:
    text = text.replace("\u23ce", "\n")
    reading = read_answer(text)
    assert ((reading.text, reading.source) if reading else ("", "")) == (answer, source)


def test_the_example_is_true() -> None:
    (text, expected) = re.findall(r'^read_answer\(r"(.+)"\)  # (.+)$', TEXT, re.MULTILINE)[0]
    reading = read_answer(text)
    assert reading is not None
    assert f"AnswerReading({reading.text!r}, {reading.source!r}, {reading.span})" == expected
