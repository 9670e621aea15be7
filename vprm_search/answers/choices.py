"""The choices of a multiple-choice question: their letters, their texts, and both together.

Choices are given with a problem (`Problem.choices`) or stand in its question. They are read out of
a question only where they stand there beyond doubt: `(A) 3 (B) 4` anywhere, `A. 3`, `A) 3` or
`A: 3` from the beginning of a line; the letters in order, each once, each with a text of one line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

from vprm_search.answers.canonical import squeezed, tidy_answer
from vprm_search.types import Problem

LETTERS = "abcdefghij"
"""The letters that choices have; an eleventh choice has none."""

_LETTER = re.compile(
    r"(?:(?:option|choice|answer) ?)?[(\[]?([a-j])(?:[).:\]]|\)\.)?", re.IGNORECASE
)
_LABELLED = re.compile(
    r"(?:(?:option|choice) )?(?:[(\[]([a-j])[)\]][.:]?|([a-j])[).]|([a-j]): ) ?(.+)",
    re.IGNORECASE | re.DOTALL,
)
_ANY_LABEL = re.compile(
    r"(?:(?:option|choice) )?[(\[]?([a-j])(?:[)\]][.:]? ?|[.:] ?| )(.+)", re.IGNORECASE | re.DOTALL
)
_GOES_ON = re.compile(r"[*/^=]|[-+](?!(?<= [-+])[0-9.$\\])")  # (b) - 3 is no choice, (b) -3 is


def letter_of(tidy: str) -> str:
    """Return the letter that a tidy answer is ("(B)", "option b."), "" for any other answer."""
    letter = _LETTER.fullmatch(tidy)
    return letter[1].lower() if letter else ""


def label_of(tidy: str) -> tuple[str, str]:
    """Return letter and text of a tidy answer that is both ("B. 12 cm"), two "" for any other."""
    labelled = _LABELLED.fullmatch(tidy)
    if labelled is None or _GOES_ON.match(tidy, labelled.start(4)):
        return "", ""
    return (labelled[1] or labelled[2] or labelled[3]).lower(), labelled[4].strip()


def labelled_as(tidy: str) -> tuple[str, str]:
    """Return letter and text of a tidy answer in any shape, "B 12 cm" too, which may be none."""
    label = _ANY_LABEL.fullmatch(tidy)
    return (label[1].lower(), label[2].strip()) if label else ("", "")


def choice_texts(choices: Sequence[str]) -> list[str]:
    """Return the texts of choices, without labels if all that have a letter carry it."""
    labels = [label_of(tidy_answer(choice)) for choice in choices[: len(LETTERS)]]
    own = all(label == letter for (label, _), letter in zip(labels, LETTERS, strict=False))
    return [*(text for _, text in labels), *choices[len(LETTERS) :]] if own else list(choices)


def written_choice(answer: str, choices: Sequence[str]) -> int | None:
    """Return the place of the one choice that an answer is to the letter, with or without label."""
    tidy = tidy_answer(answer)
    label, text = labelled_as(tidy)
    at = LETTERS.index(label) if label else len(LETTERS)
    spelled = [squeezed(tidy_answer(choice)) for choice in choice_texts(choices)]
    places = [place for place, told in enumerate(spelled) if told and told == squeezed(tidy)]
    if len(places) == 1:
        return places[0]
    return at if at < len(spelled) and spelled[at] and spelled[at] == squeezed(text) else None


# --- in a question --------------------------------------------------------------------------------

_BRACKETED = re.compile(r"(?<!\S)\*{0,2}[(\uff08]([A-J])[)\uff09]\*{0,2}[.:]?")
_DOTTED = re.compile(
    r"(?:^|(?<=\n)|(?<=\s\s)|(?<=[\t\u3000]))(?:[-*]\s)?\*{0,2}([A-J])\*{0,2}[.:)\uff0e\uff1a\u3001\uff09]\*{0,2}"
)
_LEAD = re.compile(r"(?:^|\n|[?.:!)\]\uff1f\u3002\uff1a\uff09])[^\S\n]*$")
_BEFORE_NEXT = re.compile(r"\s*[,;](?:\s(?:and|or))?$|(?<=\S)\s(?:and|or)$")
_JOINT = re.compile(r"(?:and|or|und|oder|et|ou|和|或|与)?\s*[,;]?|[,;].*|.*[?\uff1f]", re.DOTALL)


def choices_of(problem: Problem) -> tuple[str, ...]:
    """Return the texts of the choices A, B, … of a problem: those given, else those it states."""
    return problem.choices or choices_in(problem.question)


@lru_cache(maxsize=1024)
def choices_in(question: str) -> tuple[str, ...]:
    """Return the texts of the choices that stand in a question, none where that is uncertain."""
    found = [choices for shape in (_BRACKETED, _DOTTED) if (choices := _stated(question, shape))]
    return found[0] if len(found) == 1 else ()


def with_choices(question: str, choices: Sequence[str]) -> str:
    """Return a question with its choices written below it, unless all stand there as choices."""
    stated = (
        re.search(rf"(?<![a-z]){letter}\W{{1,4}}{re.escape(text)}", question, re.IGNORECASE)
        for letter, text in zip(LETTERS, choice_texts(choices), strict=False)
    )
    if all(stated):
        return question
    lines = (f"({letter.upper()}) {text}"
             for letter, text in zip(LETTERS, choice_texts(choices), strict=False))  # fmt: skip
    return "\n".join([question, *lines])


def _stated(question: str, shape: re.Pattern[str]) -> tuple[str, ...]:
    """Return the choices whose letters are written in one shape."""
    labels = list(shape.finditer(question))
    letters = "".join(label[1] for label in labels).lower()
    if len(labels) < 2 or letters != LETTERS[: len(letters)]:
        return ()
    if _LEAD.search(question[: labels[0].start()]) is None:
        return ()
    last, _, _ = question[labels[-1].end() :].partition("\n")
    texts = (*(_BEFORE_NEXT.sub("", question[a.end() : b.start()].strip())
               for a, b in pairwise(labels)), last.strip())  # fmt: skip
    alone = all("\n" not in text and not _JOINT.fullmatch(text) for text in texts)
    return texts if alone else ()
