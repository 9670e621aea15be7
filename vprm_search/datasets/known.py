"""What is known of the published sets: how they are told apart, and what their columns mean.

The columns are those of the sets' own files and of VLMEvalKit's TSV files. Where a set is not
known, the same names are looked for.
"""

from __future__ import annotations

import re
import string
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal, get_args

from vprm_search.answers import choices_in
from vprm_search.datasets.cells import as_list, as_text, column_choices, is_empty, lettered_choices
from vprm_search.datasets.tables import Row
from vprm_search.ids import digest

PublishedSet = Literal[
    "mathvista",
    "mathvision",
    "mathverse",
    "mmmu",
    "dynamath",
    "wemath",
    "logicvista",
    "gsm8k",
    "math500",
    "gpqa",
]
SetName = Literal["", PublishedSet]
SET_NAMES: tuple[SetName, ...] = get_args(SetName)
AnswerType = Literal["choice", "choices", "integer", "float", "list", "text", "none"]
"""One choice, several, a whole number, a number, a list, words; "none": no answer is known."""

PICTURE_COLUMNS = ("image", "images", "image_path", "imagename", "decoded_image")
_QUESTIONS = ("question", "problem", "query_cot", "query", "query_wo", "Question")
_ANSWERS = ("answer", "ground_truth", "Correct Answer")
_IDS = ("index", "id", "pid", "sample_index", "question_id", "unique_id", "Record ID")
_CATEGORIES = (
    "category", "subject", "skill", "knowledge concept", "field", "source", "High-level domain"
)  # fmt: skip
_CHOICES = ("choices", "options", "option")
_GPQA_CHOICES = ("Correct Answer", *(f"Incorrect Answer {n}" for n in range(1, 4)))
_BY_COLUMNS: tuple[tuple[SetName, frozenset[str]], ...] = (
    ("dynamath", frozenset({"qid", "varid"})),
    ("mathverse", frozenset({"problem_version"})),
    ("mathvista", frozenset({"pid", "answer_type"})),
    ("mathvista", frozenset({"answer_option", "answer_type"})),
    ("logicvista", frozenset({"skill", "imagename"})),
    ("logicvista", frozenset({"skill", "broad_capability"})),
    ("wemath", frozenset({"ID", "key"})),
    ("mathvision", frozenset({"options", "level", "subject"})),
    ("math500", frozenset({"problem", "answer", "subject", "unique_id"})),
    ("gpqa", frozenset({"Question", *_GPQA_CHOICES})),
)
_MMMU_ID = re.compile(r"(?:dev|validation|test)_(\w+)_\d+")
_GSM8K_MARK = "####"  # stands before the number that a solution of GSM8K ends in
_GSM8K_END = re.compile(rf"{_GSM8K_MARK}\s*([-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+))\s*$")
GPQA_SEED = 0
"""GPQA publishes its choices in columns, the right one first; they are put in another order by a
hash of this seed, the record's id and each choice's text, so that no other row changes it."""


def set_of(path: Path, columns: Collection[str], first: Row) -> SetName:
    """Return which set a file is of, by its columns, else by its name; "" for none of them."""
    for name, needed in _BY_COLUMNS:
        if needed <= set(columns):
            return name
    if _MMMU_ID.fullmatch(as_text(first.get("id"))):
        return "mmmu"
    if _GSM8K_END.search(as_text(first.get("answer"))):
        return "gsm8k"
    told = re.sub(r"[^a-z0-9]", "", path.name.lower())
    return next((name for name in SET_NAMES if name and name in told), "")


def first_text(row: Row, names: Sequence[str]) -> str:
    """Return the first of some columns that says something, "" if none does."""
    return next((text for name in names if (text := as_text(row.get(name)))), "")


def question_of(row: Row) -> str:
    """Return the question; where it is drawn in the picture, the prompt that says so."""
    return first_text(row, _QUESTIONS)


def answer_of(row: Row, name: SetName) -> tuple[str, tuple[str, ...]]:
    """Return the published answer, and others that are as right: MMMU gives some as lists.

    Of a solution of GSM8K it is the number at its end. Raises `ValueError`, which begins with the
    column, for what is neither a text nor a number.
    """
    value = next((row[column] for column in _ANSWERS if not is_empty(row.get(column))), None)
    if name == "mmmu" and as_text(value).startswith("["):
        try:
            first, *others = as_list(value)
        except ValueError:
            return as_text(value), ()
        return first, tuple(others)
    if isinstance(value, bool | dict):
        raise ValueError(f"column answer: {value!r:.80} is neither a text nor a number")
    text = as_text(value)
    if name == "gsm8k" and text:  # of copies that have the number alone, too
        found = _GSM8K_END.search(text if _GSM8K_MARK in text else f"{_GSM8K_MARK} {text}")
        if found is None:
            raise ValueError(f"column answer: no number behind {_GSM8K_MARK!r}")
        text = found[1].replace(",", "")
    return text, ()


def id_of(row: Row, name: SetName) -> str:
    """Return the id that a row gives itself, "" if none."""
    if "index" not in row:
        if name == "wemath":
            return "/".join(filter(None, (as_text(row.get("ID")), as_text(row.get("key")))))
        if name == "dynamath" and "qid" in row:
            return f"{as_text(row['qid'])}/{as_text(row['varid'])}"
    return first_text(row, _IDS)


def group_of(row: Row, name: SetName, own: str) -> tuple[str, str]:
    """Return what a row belongs to and which part of it: DynaMath's seed and variant, WeMath's
    problem and step ("2steps_1", "3steps_multi"); the row's own id and "" for others.
    """
    if name == "dynamath":
        return as_text(row.get("qid")) or own, as_text(row.get("varid"))
    if name == "wemath":
        return as_text(row.get("ID")), as_text(row.get("key"))
    return own, ""


def category_of(row: Row, name: SetName, own: str) -> str:
    """Return the category, spaced once, "" if there is none; of several, the first."""
    return " ".join(_category(row, name, own).split())


def _category(row: Row, name: SetName, own: str) -> str:
    found = _MMMU_ID.fullmatch(own)
    if name == "mmmu" and found is not None and not first_text(row, ("category",)):
        return found[1]
    metadata = row.get("metadata")
    places = [row, metadata] if isinstance(metadata, dict) else [row]
    for place in places:
        for column in _CATEGORIES:
            if (value := place.get(column)) and not is_empty(value):
                try:
                    return as_list(value)[0]
                except (ValueError, IndexError):
                    return as_text(value)
    return ""


def choices_of_row(row: Row, name: SetName, question: str) -> tuple[str, ...]:
    """Return the choices of a row: its columns A, B, …, a list, a text, or those of the question.

    Raises `ValueError` whose text begins with the column.
    """
    if name == "gpqa" and _GPQA_CHOICES[0] in row:
        return _gpqa_choices(row, question)
    try:
        if found := column_choices(row):
            return found
    except ValueError as error:
        raise ValueError(f"column A…: {error}") from error
    for column in _CHOICES:
        value = row.get(column)
        if isinstance(value, str) and (lettered := lettered_choices(value)):
            return lettered
        try:
            listed = as_list(value)
        except ValueError as error:
            raise ValueError(f"column {column}: {error}") from error
        if "" in listed:
            raise ValueError(f"column {column}: one of the choices is empty")
        if listed:
            return tuple(listed)
    return choices_in(question)


def _gpqa_choices(row: Row, question: str) -> tuple[str, ...]:
    given = [as_text(row.get(column)) for column in _GPQA_CHOICES]
    if "" in given:
        raise ValueError(f"column {_GPQA_CHOICES[given.index('')]}: it is empty")
    own = as_text(row.get("Record ID")) or question
    return tuple(sorted(given, key=lambda text: digest("gpqa", GPQA_SEED, own, text)))


def letters_of(row: Row, name: SetName, answer: str, choices: Sequence[str]) -> str:
    """Return the letters of the right choices ("B", "BD"), "" if no choice is asked for.

    MathVista and GPQA publish the text of a choice, the others its letter; a short answer of MMMU
    may look like a letter and is none.
    """
    kind = f"{as_text(row.get('question_type'))} {as_text(row.get('answer_type'))}".lower()
    if option := as_text(row.get("answer_option")):
        return option if option in string.ascii_uppercase else ""
    if not answer or (not choices and "multi" not in kind and name != "logicvista"):
        return ""
    if name == "mathvista" or (name == "gpqa" and _GPQA_CHOICES[0] in row):
        return _letter_of(answer, choices)
    several = name == "logicvista"  # its questions may have several right choices
    answer = answer.upper() if several else answer
    found = re.findall(r"\b[A-Z]\b", answer)
    told = re.fullmatch(r"\(?[A-Z]\)?(?:(?:\s*[,;&]\s*|\s+(?i:and)\s+|\s+)\(?[A-Z]\)?)*\.?", answer)
    known = string.ascii_uppercase[: len(choices) or 26]
    if (
        told
        and all(letter in known for letter in found)
        and (several or len(found) == 1 or not choices)
    ):
        return "".join(sorted(set(found)))
    return _letter_of(answer, choices)


def _letter_of(answer: str, choices: Sequence[str]) -> str:
    """Return the letter of the choice that an answer spells, "" if none does."""
    for spell in (str, str.casefold):
        spelled = [spell(choice) for choice in choices]
        if spell(answer) in spelled:
            return string.ascii_uppercase[spelled.index(spell(answer))]
    return ""


def answer_type_of(row: Row, answer: str, letters: str) -> AnswerType:
    """Return what kind of answer is asked for: as the set says, else as the answer looks."""
    if not answer:
        return "none"
    if letters:
        return "choice" if len(letters) == 1 else "choices"
    told = as_text(row.get("answer_type")).lower()
    if told in ("integer", "float", "list"):
        return "integer" if told == "integer" else "float" if told == "float" else "list"
    if told != "text" and re.fullmatch(r"[-+]?\d{1,18}", answer):
        return "integer"
    if told != "text" and re.fullmatch(r"[-+]?\d*\.\d+", answer):
        return "float"
    if re.fullmatch(r"\[.*\]", answer, re.DOTALL):
        return "list"
    return "text"
