"""Decide which answers are the same.

`answer_classes` sorts answers into classes for voting. Answers with one key are the same (see
`forms`). Shorter answers join fuller ones where all fuller ones agree:

1. "12" joins "12 cm", but stays alone between "12 cm" and "12 m"; "red and blue" joins "red, blue",
   but stays alone beside "blue, red";
2. "5" joins "x = 5", but stays alone between "x = 5" and "y = 5";
3. a labelled choice is its letter ("B. 12 cm" = "B") if some answer is a bare letter A to J or if
   the choices are given; given choices also turn "12 cm" into "B".

The result is a partition and does not depend on the order of the answers.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence

from vprm_search.answers.forms import (
    STRICT,
    VOTING,
    AnswerForm,
    Key,
    Sameness,
    form_of,
    spelling,
    without_label,
)

_LETTERS = "abcdefghij"


def same_answer(a: str, b: str, *, choices: Sequence[str] = (), rules: Sameness = VOTING) -> bool:
    """Return whether two answers mean the same, by the rules of this module.

    An empty answer is the same as nothing, not even another empty one.
    """
    first, second = answer_classes([a, b], choices=choices, rules=rules)
    return first is not None and first == second


def answer_classes(
    answers: Sequence[str | None], *, choices: Sequence[str] = (), rules: Sameness = VOTING
) -> list[int | None]:
    """Return the class of each answer: 0, 1, … in order of first appearance; None has no class.

    Args:
        answers: `[candidates]`; None or an empty text is no answer.
        choices: the texts of the choices A, B, … of a multiple-choice question, if known. Two
            choices are never the same answer: if the rules say so, stricter ones are taken.
        rules: what counts as the same where people differ.
    """
    readers: list[Callable[[str], AnswerForm | None]] = [lambda text: form_of(text, rules)]
    if choices:
        readers += [lambda text: form_of(text, STRICT), spelling]
    spelled = {spelling(choice) for choice in choices}
    numbers: dict[Hashable, int] = {}
    classes: list[Hashable] = []
    for read in readers:
        offered = [read(without_label(choice, letter))
                   for letter, choice in zip(_LETTERS, choices, strict=False)]  # fmt: skip
        forms = [_choice(answer, offered, read) for answer in answers] + offered
        classes = _classes(forms, _linked_letters(offered), bool(choices))
        if len(set(classes[len(answers) :])) == len(spelled):
            break
    return [None if found is None else numbers.setdefault(found, len(numbers))
            for found in classes[: len(answers)]]  # fmt: skip


def _choice(
    answer: str | None,
    offered: Sequence[AnswerForm | None],
    read: Callable[[str], AnswerForm | None],
) -> AnswerForm | None:
    """Read an answer; "B 12 cm" is a labelled choice if B is 12 cm."""
    form = read(answer) if answer else None
    labelled = re.fullmatch(r"\s*([A-Ja-j])\s+(.+)", answer or "") if offered else None
    if labelled is not None:
        at = _LETTERS.index(labelled[1].lower())
        if at < len(offered) and offered[at] is not None and read(labelled[2]) == offered[at]:
            return offered[at]
    return form


def _linked_letters(offered: Sequence[AnswerForm | None]) -> dict[str, AnswerForm]:
    """Return the choice of each letter; equal choices, and one that is a letter, say nothing."""
    return {letter: form for letter, form in zip(_LETTERS, offered, strict=False)
            if form is not None and not form.letter and offered.count(form) == 1}  # fmt: skip


class _Sets:
    """Disjoint sets of keys."""

    def __init__(self) -> None:
        self._parent: dict[Hashable, Hashable] = {}

    def find(self, key: Hashable) -> Hashable:
        while (parent := self._parent.setdefault(key, key)) != key:
            key = parent
        return key

    def union(self, keys: Iterable[Hashable]) -> None:
        roots = [self.find(key) for key in keys]
        for root in roots[1:]:
            self._parent[self.find(root)] = self.find(roots[0])


def _classes(
    forms: Sequence[AnswerForm | None], letters: dict[str, AnswerForm], labels_count: bool
) -> list[Hashable]:
    """Return a key per form that is equal for equal answers; None stays None."""
    known = [form for form in forms if form is not None]
    values = _join_values({(form.full, form.bare) for form in known})
    names: dict[Hashable, set[str]] = defaultdict(set)
    for form in known:
        names[values.find(form.full)] |= {form.name} - {""}

    def place(form: AnswerForm) -> Hashable:
        value = values.find(form.full)
        return value, form.name if len(names[value]) > 1 else ""

    sets = _Sets()
    for form in known:
        sets.union([place(form), *([("equation", form.equation)] if form.equation else [])])
        if form.full[0] in ("equation", "<", "≤"):
            sets.union([place(form), ("equation", form.full)])
        if form.letter:
            sets.union([place(form), ("letter", form.letter)])
    if labels_count or any(form.letter for form in known):
        for form in known:
            if form.label:
                sets.union([place(form), ("letter", form.label)])
    for letter, form in letters.items():
        sets.union([place(form), ("letter", letter)])
    return [None if form is None else sets.find(place(form)) for form in forms]


def _join_values(keys: set[tuple[Key, Key]]) -> _Sets:
    """Let bare values join the one fuller value there is; two bare ones never join through it."""
    values = _Sets()
    fuller: dict[Key, set[Key]] = defaultdict(set)
    for full, bare in keys:
        if full != bare:
            fuller[bare].add(full)
    claims: dict[Key, set[Key]] = defaultdict(set)
    alone = {full for full, bare in keys if full == bare}
    for bare in alone & set(fuller):
        if len(fuller[bare]) == 1 and not fuller[bare] & alone:
            claims[next(iter(fuller[bare]))].add(bare)
    for full, bares in claims.items():
        if len(bares) == 1:
            values.union([full, *bares])
    return values
