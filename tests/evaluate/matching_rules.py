"""VLMEvalKit's exact matching, written down anew from its description (no judge, no `eval`).

Dots, brackets, commas, colons and the like become blanks. If exactly one option letter stands among
the words, and it is one of the last four, it is the answer; else "answer is X"; else the one option
whose text is in an answer that is at most twice as long as all options. Then each set compares:
MathVista the letter, whole numbers by `int`, numbers by `float`, never a list; MathVision the
letter, else equal text or equal numbers within 1e-6; MMMU and WeMath the letter, or wrong.

DynaMath has a rule of its own: of a reply in JSON the field "short answer" counts, else the whole;
its first word as a number within .001 (before a pi, as many of them); the letter, if it is all or
the only one of A to E among its letters; or else any text that the right one contains. LogicVista
asks a judge for the letters, and compares them as sets.
"""

from __future__ import annotations

import ast
import contextlib
import json
import math
import re
from collections.abc import Mapping

from tests.evaluate.vlmevalkit_grades import letters_listed

_BLANK = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))


def option_inferred(answer: str, choices: Mapping[str, str]) -> str | None:
    """Return the letter that exact matching reads, None if it reads none."""
    words = answer.translate(_BLANK).split()
    named = [letter for letter in choices if letter in words]
    if len(named) == 1 and words.index(named[0]) > len(words) - 5:
        return named[0]
    stated = re.search(r"(?i)answer\s+is\s+\**([ABCD])\**", answer)
    if stated and stated[1].upper() in choices:
        return stated[1].upper()
    if len(answer) > 2 * sum(map(len, choices.values())):
        return None
    inside = [letter for letter, text in choices.items() if text.lower() in answer.lower()]
    return inside[0] if len(inside) == 1 else None


def dynamath_right(said: str, answer: str, kind: str) -> bool:
    """Tell whether DynaMath's rule calls an answer right."""
    whole = re.search(r"\{.*\}", said, re.DOTALL)
    with contextlib.suppress(ValueError, TypeError, KeyError):
        said = str(json.loads((whole[0] if whole else said).replace("\\", ""))["short answer"])
    if kind == "float":
        number, pi, _ = said.partition(" ")[0].partition("\u03c0")
        try:
            return abs(float(number) * (math.pi if pi else 1) - float(answer)) <= 0.001
        except ValueError:
            return False
    if kind == "multiple choice":
        letters = [said.upper()] if len(said) == 1 else [c for c in "ABCDE" if c in said.upper()]
        return letters == [answer] or (len(letters) != 1 and answer in said[:3].upper())
    return said.lower() in answer.lower()


def logicvista_right(letters: str, answer: str) -> bool:
    """Tell whether LogicVista's rule calls the letters that a judge read right."""
    return sorted(letters.lower()) == sorted(answer.lower().split(", "))


def is_right(row: Mapping[str, str], kind: str) -> bool:
    """Tell whether a row of a result file counts as right."""
    said, answer = row["prediction"], row["answer"]
    if kind == "dynamath":
        return dynamath_right(said, answer, row["answer_type"])
    if kind == "logicvista":
        return logicvista_right(letters_listed(said), answer)
    listed = ast.literal_eval(row.get("choices") or "[]")
    choices = {chr(65 + place): str(text) for place, text in enumerate(listed)}
    choices |= {letter: row[letter] for letter in "ABCDEFGHIJ" if row.get(letter)}
    if kind == "mathvista":
        if row["question_type"] == "multi_choice":
            return option_inferred(said, choices) == row["answer_option"]
        reader = {"integer": int, "float": float}.get(row["answer_type"])
        if reader is None:
            return False
        try:
            return reader(said) == reader(answer)
        except ValueError:
            return False
    if choices:
        return option_inferred(said, choices) == answer
    if said.strip().lower() == answer.strip().lower():
        return True
    try:
        return abs(float(said) - float(answer)) < 1e-6
    except ValueError:
        return False
