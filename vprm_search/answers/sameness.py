"""Decide which answers are the same.

`answer_classes` sorts answers into classes for voting. Answers with one key are the same (see
`forms`). Shorter answers join fuller ones where all fuller ones agree:

1. "12" joins "12 cm", but stays alone between "12 cm" and "12 m"; "red and blue" joins "red, blue",
   but stays alone beside "blue, red";
2. "5" joins "x = 5", but stays alone between "x = 5" and "y = 5";
3. a labelled choice is its letter ("B. 12 cm" = "B") if some answer is a bare letter A to J.

Where the choices are given, an answer that is one of them, by letter, text or both, is that choice,
and the others are compared among themselves.

The result is a partition and does not depend on the order of the answers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from functools import lru_cache

from vprm_search.answers.canonical import tidy_answer
from vprm_search.answers.choices import (
    LETTERS,
    choice_texts,
    label_of,
    labelled_as,
    letter_of,
    written_choice,
)
from vprm_search.answers.forms import STRICT, VOTING, AnswerForm, Key, Sameness, form_of


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
            choices are never the same answer: what means two of them by the rules is what it is by
            stricter ones, or neither.
        rules: what counts as the same where people differ.
    """
    offered, distinct = tuple(choices), list(dict.fromkeys(answers))
    places = [_choice_of(answer, offered, rules) if answer else None for answer in distinct]
    forms = [form_of(answer, rules) if answer and place is None else None
             for answer, place in zip(distinct, places, strict=True)]  # fmt: skip
    classes = _classes(forms, bool(choices))
    found = {answer: other if place is None else ("choice", place)
             for answer, place, other in zip(distinct, places, classes, strict=True)}  # fmt: skip
    numbers: dict[Hashable, int] = {}
    keys = [found[answer] for answer in answers]
    return [None if key is None else numbers.setdefault(key, len(numbers)) for key in keys]


@lru_cache(maxsize=4096)
def _choice_of(answer: str, choices: tuple[str, ...], rules: Sameness) -> int | None:
    """Return the place of the choice that an answer is, None if it is none or may be several.

    It is that of its letter, else that whose text it is to the letter, else that of its label, else
    the only one that means the same.
    """
    if not choices:
        return None
    tidy, texts = tidy_answer(answer), choice_texts(choices)
    if letter := letter_of(tidy):
        at = LETTERS.index(letter)
        return at if at < len(texts) else None
    if (written := written_choice(answer, choices)) is not None:
        return written
    label, inner = labelled_as(tidy)
    at = LETTERS.index(label) if label else len(texts)
    if at < len(texts) and (label_of(tidy)[0] or _choice_of(inner, choices, rules) == at):
        return at
    for each in (rules, STRICT):
        first, *others = _classes([form_of(text, each) for text in (answer, *texts)], False)
        if first is not None and others.count(first) == 1:
            return others.index(first)
    return None


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


def _classes(forms: Sequence[AnswerForm | None], labels_count: bool) -> list[Hashable]:
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
