"""Read the final answer out of a solution, and decide which answers are the same.

`extract_answer` looks for `\\boxed{}`, then for a marker such as "Answer:", then for a
multiple-choice letter. `answer_classes` sorts answers into classes for voting:

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

import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import combinations
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from vprm_search.algebra import is_expression, same_expression
from vprm_search.canonical import MAX_ANSWER_CHARS, AnswerForm, canonical_answer, read_form

AnswerSource = Literal["boxed", "marker", "choice"]

MAX_EXPRESSIONS = 16
"""At most so many different expressions of one vote are compared pairwise."""

_LETTERS = "abcdefghij"
_LAST_CHARS = 1024


class AnswerFormat(BaseModel):
    """Where the final answer stands in a solution.

    `order` is the order in which the sources are tried. `markers` are phrases before the answer,
    matched without regard to case and Markdown emphasis; the last one in the text counts. A line
    of more than `max_chars` characters is not an answer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    order: tuple[AnswerSource, ...] = ("boxed", "marker", "choice")
    markers: tuple[str, ...] = ("final answer:", "answer:", "the answer is", "答案:", "答案是")
    max_chars: int = Field(default=MAX_ANSWER_CHARS, ge=1)

    @field_validator("markers")
    @classmethod
    def _markers_say_something(cls, markers: tuple[str, ...]) -> tuple[str, ...]:
        if any(not marker.strip(" :*_") for marker in markers):
            raise ValueError("a marker must contain a word")
        return markers


DEFAULT_FORMAT = AnswerFormat()


# --- extraction --------------------------------------------------------------------------------

_BRACE = re.compile(r"\\boxed\s{0,8}\{|\\.|[{}]", re.DOTALL)
_EMPHASIS = r"[*_`]{0,3}"
_CHOICE_SENTENCE = re.compile(
    r"\b(?:answer|option|choice)(?:\s{1,4}is)?\s{0,4}[:*_]{0,3}\s{0,4}(?:\(([A-Ja-j])\)|([A-J])(?!\w))",
    re.IGNORECASE,
)
_CHOICE_LINE = re.compile(r"[\W_]{0,8}([A-J])[\W_]{0,8}")


def extract_answer(text: str, fmt: AnswerFormat = DEFAULT_FORMAT) -> str | None:
    """Return the final answer as written in `text`, or None if there is none."""
    sources: dict[AnswerSource, Callable[[str, AnswerFormat], str | None]] = {
        "boxed": _boxed_answer,
        "marker": _marked_answer,
        "choice": _choice_answer,
    }
    for source in fmt.order:
        answer = sources[source](text, fmt)
        if answer is not None and len(answer) <= fmt.max_chars:
            return answer
    return None


def _boxed_answer(text: str, _fmt: AnswerFormat) -> str | None:
    """Return the content of the last complete, non-empty `\\boxed{}`, in one pass."""
    if "\\boxed" not in text:
        return None
    stack: list[tuple[bool, int]] = []
    best: tuple[int, str] | None = None
    for match in _BRACE.finditer(text):
        bracket = match.group()
        if bracket == "}":
            boxed, start = stack.pop() if stack else (False, 0)
            content = " ".join(text[start : match.start()].split()) if boxed else ""
            if content and (best is None or start > best[0]):
                best = (start, content)
        elif bracket.endswith("{") and bracket != "\\{":
            stack.append((bracket != "{", match.end()))
    return best[1] if best else None


def _marked_answer(text: str, fmt: AnswerFormat) -> str | None:
    """Return the first line behind the last marker that has one.

    As a rule it stands in the last lines of a solution, so these are searched first.
    """
    longest = 64 + 4 * max(map(len, fmt.markers), default=0)  # with white space and mark-up
    for begin in dict.fromkeys((max(0, len(text) - _LAST_CHARS), 0)):
        starts: dict[int, int] = {}
        for marker in fmt.markers:
            for match in _marker_pattern(marker).finditer(text, begin):
                starts[match.end()] = min(match.start(), starts.get(match.end(), match.start()))
        until = len(text)
        for end in sorted(starts, reverse=True):
            if begin and starts[end] < begin + longest:
                break  # another one may begin before this part and end after it
            region = text[end : max(end, min(until, end + 4 * fmt.max_chars))]
            lines = (line for line in region.split("\n") if line.strip())
            answer = _without_markup(next(lines, ""))
            if answer:
                return answer
            until = starts[end]
    return None


@lru_cache(maxsize=64)
def _marker_pattern(marker: str) -> re.Pattern[str]:
    words = r"\s{1,4}".join(re.escape(word) for word in marker.rstrip(": ").split())
    start = r"(?<![^\W_])" if words[0].isascii() else ""
    colon = rf"\s{{0,4}}{_EMPHASIS}\s{{0,4}}[:\uff1a]" if marker.rstrip().endswith(":") else ""
    return re.compile(rf"{start}{words}{colon}(?:{_EMPHASIS}[ \t]{{0,4}})[:\uff1a]?", re.IGNORECASE)


def _without_markup(line: str) -> str:
    boxed = _boxed_answer(line, DEFAULT_FORMAT)
    line = boxed if boxed is not None else line.strip(" \t*_`")
    if len(line) > 2 and line[0] == line[-1] == "$" and line.count("$") == 2:
        line = line[1:-1].strip()
    return line[:-1].rstrip() if line.endswith(".") and not line.endswith("..") else line


def _choice_answer(text: str, _fmt: AnswerFormat) -> str | None:
    last_line = text.rstrip()[-40:].rsplit("\n", 1)[-1]
    line = _CHOICE_LINE.fullmatch(last_line)
    if line is not None:
        return line[1]
    sentences: Iterator[re.Match[str]] = _CHOICE_SENTENCE.finditer(text)
    letters = [letter for m in sentences if (letter := m[1] or m[2]) and (m[1] or letter.isupper())]
    return letters[-1].upper() if letters else None


# --- equality ----------------------------------------------------------------------------------


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
