"""Decide which answers are the same.

`answer_classes` sorts answers into classes for voting:

1. answers with one canonical spelling are the same (see `canonical.canonical_answer`);
2. a number without a unit joins the same number with a unit, if all units given for that number
   are the same: "12" = "12 cm", but it stays alone between "12 cm" and "12 m";
3. a labelled choice is its letter ("B. 12 cm" = "B") if some answer is a bare letter A to J or if
   the choices are given; given choices also turn "12 cm" into "B";
4. expressions that math-verify proves equal are the same (extra `math`; see `algebra`).

Sameness is closed under transitivity, so the result is a partition, and it does not depend on
the order of the answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from vprm_search.answers.algebra import is_expression, same_expression
from vprm_search.answers.canonical import AnswerForm, canonical_answer, read_form

MAX_EXPRESSIONS = 16
"""At most so many different expressions of one vote are compared pairwise."""

_LETTERS = "abcdefghij"


def same_answer(a: str, b: str, *, choices: Sequence[str] = (), algebra: bool = True) -> bool:
    """Return whether two answers mean the same, by the rules of this module.

    An empty answer is the same as nothing, not even another empty one.
    """
    first, second = answer_classes([a, b], choices=choices, algebra=algebra)
    return first is not None and first == second


def answer_classes(
    answers: Sequence[str | None], *, choices: Sequence[str] = (), algebra: bool = True
) -> list[int | None]:
    """Return the class of each answer: 0, 1, … in order of first appearance; None has no class.

    Args:
        answers: `[candidates]`; None or an empty text is no answer.
        choices: the texts of the choices A, B, … of a multiple-choice question, if known.
        algebra: whether expressions may be compared with math-verify.
    """
    spelled = [canonical_answer(answer) if answer else "" for answer in answers]
    classes = _Classes(set(spelled) - {""})
    _merge_choices(classes, choices)
    _merge_units(classes)
    if algebra:
        _merge_expressions(classes)
    numbers: dict[str, int] = {}
    return [numbers.setdefault(classes.find(text), len(numbers)) if text else None
            for text in spelled]  # fmt: skip


class _Classes:
    """Disjoint sets of canonical answers; the smallest text names its set."""

    def __init__(self, texts: set[str]) -> None:
        self._parent: dict[str, str] = {}
        self.forms: dict[str, AnswerForm] = {}
        for text in sorted(texts):
            self.add(text)

    def add(self, text: str) -> None:
        if text not in self._parent:
            self._parent[text] = text
            self.forms[text] = read_form(text)

    def find(self, text: str) -> str:
        while (parent := self._parent[text]) != text:
            self._parent[text] = text = self._parent[parent]
        return text

    def union(self, a: str, b: str) -> None:
        self.add(a)
        self.add(b)
        low, high = sorted((self.find(a), self.find(b)))
        self._parent[high] = low


def _merge_choices(classes: _Classes, choices: Sequence[str]) -> None:
    forms = list(classes.forms.values())
    if choices or any(form.letter for form in forms):
        for form in forms:
            if form.labelled:
                classes.union(form.text, form.labelled)
    contents = [canonical_answer(choice) for choice in choices[: len(_LETTERS)]]
    for letter, content in zip(_LETTERS, contents, strict=False):
        # Two equal choices, or one that reads "B" itself, say nothing about the letter.
        if content and contents.count(content) == 1 and not read_form(content).letter:
            classes.union(content, letter)


def _merge_units(classes: _Classes) -> None:
    same_number: dict[object, list[AnswerForm]] = {}
    for form in classes.forms.values():
        if form.number is not None:
            same_number.setdefault(form.number, []).append(form)
    for forms in same_number.values():
        if len({form.unit for form in forms if form.unit}) == 1:
            for form in forms[1:]:
                classes.union(forms[0].text, form.text)


def _merge_expressions(classes: _Classes) -> None:
    """Compare expressions pairwise; two plain numbers are already decided exactly."""
    texts = [text for text, form in sorted(classes.forms.items())
             if is_expression(text) and not form.letter and not form.unit]  # fmt: skip
    numbers = {text for text in texts if classes.forms[text].number is not None}
    # Numbers last: when there are too many, two expressions are the more useful pair.
    texts = sorted(texts, key=lambda text: (text in numbers, text))[:MAX_EXPRESSIONS]
    for a, b in combinations(texts, 2):
        decided = {a, b} <= numbers or classes.find(a) == classes.find(b)
        if not decided and same_expression(a, b):
            classes.union(a, b)
