"""Find what may state an answer in a solution: boxes, tags, phrases, headings, "####".

What a statement says, and whether it says anything, is `reading`'s to tell.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator

from vprm_search.answers.canonical import MAX_ANSWER_CHARS
from vprm_search.steps.phrases import marks_in, may_mark
from vprm_search.steps.thinking import thinking_spans

AnswerSource = Literal["boxed", "tag", "marker", "heading", "hashes", "choice"]
"""What a reading stood on; "choice" is a letter that no statement names as the answer."""


class AnswerFormat(BaseModel):
    """What counts as a final answer.

    `sources` are the kinds of evidence that are read. `markers` are phrases before the answer,
    matched without regard to case and Markdown emphasis, in place of the built-in ones of many
    languages. A statement of more than `max_chars` characters is not an answer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sources: frozenset[AnswerSource] = frozenset(get_args(AnswerSource))
    markers: tuple[str, ...] | None = None
    max_chars: int = Field(default=MAX_ANSWER_CHARS, ge=1)

    @field_validator("markers")
    @classmethod
    def _markers_say_something(cls, markers: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if any(not marker.strip(" :*_") for marker in markers or ()):
            raise ValueError("a marker must contain a word")
        return markers


DEFAULT_FORMAT = AnswerFormat()


@dataclass(frozen=True, slots=True)
class Statement:
    """Something that may state an answer: where it begins, and where its mark ends.

    `inside` are the places of the answers of boxes and tags; for the other kinds the answer stands
    behind `end`. `firm` marks say that an answer follows ("Answer:"), whatever it looks like;
    if a `letter` follows, that is the answer.
    """

    start: int
    end: int
    source: AnswerSource
    firm: bool = True
    inside: tuple[tuple[int, int], ...] = ()
    letter: bool = False


_BRACE = re.compile(r"(?:\\{1,2}b|\x08)oxed\s{0,8}\{|\\{1,2}fbox\s{0,8}\{|\\.|[{}]", re.DOTALL)
_GAP = re.compile(
    r"(?:[ \t$,;&]|\n(?!\n)|\\[()\[\],;: ]|\\\\|\\q?quad|\\text\{|\}"
    r"|\b(?:and|or|und|oder|y|o|et|ou|e)\b"
    r"|[和或及\u3001\uff0cи]|\b[A-Za-z]\w?\s?=)+"
)
_TAG = re.compile(
    r"<(final[_ -]?answer|answer|conclusion)>|</(final[_ -]?answer|answer|conclusion)>"
    r"|(<\|begin_of_box\|>)|(<\|end_of_box\|>)",
    re.IGNORECASE,
)
_HASHES = re.compile(
    r"^[ \t]*####(?:[ \t]+|(?=[-$\d]))(?!\d{1,2}[.)]\s)(?=[^\n]{0,80}$)(?![^\n]*:)"
    r"(?:[*$\\(]{0,4}[-+]?[\d$\u20ac\u00a3\u00a5.]|\\|\(?[A-J]\)?\.?[ \t]*$"
    r"|(?:yes|no|true|false)\b)",
    re.IGNORECASE | re.MULTILINE,
)
_IS_THE_ANSWER = (
    r"(?:,?[ \t]which)?[ \t]is[ \t](?:therefore[ \t]|thus[ \t])?(?:the|our|my)[ \t]"
    r"(?:(?:final|correct|right|best)[ \t]){0,2}(?:answer|option|choice)\b"
)
_TURNED_ROUND = re.compile(_IS_THE_ANSWER)
_REVERSED = re.compile(
    r"(\$[^$\n]{1,80}\$|\\\([^\n]{1,80}?\\\)|\*\*[^*\n]{1,60}\*\*|\([A-J]\)|\b[A-J]"
    r"|(?:(?<!\w)[A-Za-z]\s?=\s?)?(?<![\w.:/])(?<![-+*/^]\s)[-$\u20ac\u00a3]?\d(?:[\d.,:/]{0,20}\d)?"
    r"(?:\s?[\w%\u00b0]{1,12})?)" + _IS_THE_ANSWER,
)
_RUN_ON = re.compile(
    r"^[^\w\n<]{0,6}(?:(?:next|new|second|another|follow-up|sample)\s)?(?:question|problem|exercise|q"
    r"|human|user|问题|题目|問題|質問|质问|문제|질문|pregunta|problema|pergunta|frage"
    r"|aufgabe|вопрос|задача|سؤال|السؤال|प\u094dरश\u094dन)"
    r"(?:\s?\d{1,3})?[^\w\n]{0,3}[:\uff1a]|^<\|(?:im_start|start_header_id)\|>\s?user"
    r"|^[^\w\n]{0,6}(?:###\s?)?instruction[^\w\n]{0,3}:|^\[INST\]"
    r"|^[ \t]{0,3}(?:#{1,6}[ \t]?|\*\*)(?:(?:next|new|another)\s)?(?:question|problem|exercise)"
    r"(?:\s?\d{1,3})?[.:* \t]{0,4}$",
    re.IGNORECASE | re.MULTILINE,
)


def statements_in(text: str, fmt: AnswerFormat) -> Iterator[Statement]:
    """Return what may state an answer, of the wanted kinds, in any order."""
    if "boxed" in fmt.sources:
        yield from _boxes(text, fmt.max_chars)
    if "tag" in fmt.sources:
        yield from _tags(text)
    if "hashes" in fmt.sources:
        yield from (Statement(m.start(), text.index("####", m.start()) + 4, "hashes")
                    for m in _HASHES.finditer(text))  # fmt: skip
    if "marker" in fmt.sources and fmt.markers is not None:
        for marker in fmt.markers:
            for match in _marker_pattern(marker).finditer(text):
                yield Statement(match.start(), match.end(), "marker")
        return
    for mark in marks_in(text):
        source: AnswerSource = "heading" if mark.heading else "marker"
        if source in fmt.sources:
            yield Statement(mark.start, mark.end, source, mark.firm, letter=mark.letter)
    if "marker" in fmt.sources and _TURNED_ROUND.search(text):
        yield from (Statement(m.start(), m.end(), "marker", inside=(m.span(1),), letter=True)
                    for m in _REVERSED.finditer(text))  # fmt: skip


# TeX boxes the next token; writers mean what follows. "Put it in a \\boxed command" holds nothing.
_BARE_BOX = re.compile(
    r"\\(?:boxed|fbox)[ \t]*((?:(?<=[ \t])(?:[-+]?\d[^\s{}$\\]*|[A-Z](?![A-Za-z]))"
    r"|\\(?:[dt]?frac|sqrt|text)\b[^$\n]*?(?=\$|\\[\])]|$)))",
    re.MULTILINE,
)


def _boxes(text: str, max_chars: int) -> Iterator[Statement]:
    """Return the complete boxes that say something; those of one list are one statement."""
    if "oxed" not in text and "\\fbox" not in text:
        return
    stack: list[tuple[int, int]] = []
    found: list[tuple[int, int, int]] = []
    for match in _BRACE.finditer(text):
        bracket = match.group()
        if bracket == "}":
            start, inner = stack.pop() if stack else (-1, 0)
            if start >= 0 and _says_something(text[inner : match.start()], max_chars):
                found.append((start, inner, match.start()))
        elif bracket.endswith("{") and bracket != "\\{":
            stack.append((-1 if bracket == "{" else match.start(), match.end()))
    if bare := [(m.start(), *m.span(1)) for m in _BARE_BOX.finditer(text)]:
        found = [box for box in found if not any(box[0] < b[0] < box[2] for b in bare)] + bare
    group: list[tuple[int, int, int]] = []
    for box in sorted(found):
        if group and not _one_list(text[group[-1][2] + 1 : box[0]]):
            yield _box_statement(group)
            group = []
        group.append(box)
    if group:
        yield _box_statement(group)


def _says_something(content: str, max_chars: int) -> bool:
    return bool(content.strip(" \t\n.\u2026_$")) and len(content) <= 4 * max_chars


def _one_list(gap: str) -> bool:
    """Tell whether two boxes with `gap` between them belong to one list."""
    if len(gap) > 60 or "\n\n" in gap:
        return False
    listed = not gap.strip() and "\n" not in gap
    return listed or (bool(_GAP.fullmatch(gap)) and bool(re.search(r"[^\s$\\\[\]()]", gap)))


def _box_statement(boxes: Sequence[tuple[int, int, int]]) -> Statement:
    inside = tuple((inner, end) for _, inner, end in boxes)
    return Statement(boxes[0][0], boxes[-1][2] + 1, "boxed", inside=inside)


def _tags(text: str) -> Iterator[Statement]:
    """Return the tagged answers; one that is not closed goes to the end of the text."""
    if "<" not in text:
        return
    opened: re.Match[str] | None = None
    for tag in _TAG.finditer(text):
        if tag[1] or tag[3]:
            opened = tag
        elif opened is not None:
            inside = ((opened.end(), tag.start()),)
            yield Statement(opened.start(), opened.end(), "tag", inside=inside)
            opened = None
    if opened is not None:
        yield Statement(opened.start(), opened.end(), "tag", inside=((opened.end(), len(text)),))


@lru_cache(maxsize=64)
def _marker_pattern(marker: str) -> re.Pattern[str]:
    words = r"\s{1,4}".join(re.escape(word) for word in marker.rstrip(": ").split())
    start = r"(?<![^\W_])" if words[0].isascii() else ""
    emphasis = r"[*_`]{0,3}"
    colon = rf"\s{{0,4}}{emphasis}\s{{0,4}}[:\uff1a]" if marker.rstrip().endswith(":") else ""
    return re.compile(rf"{start}{words}{colon}(?:{emphasis}[ \t]{{0,4}})[:\uff1a]?", re.IGNORECASE)


def with_stops(text: str, statements: list[Statement]) -> list[tuple[Statement, int]]:
    """Return each statement with the place where what it says ends at the latest."""
    limits = {len(text), *(statement.start for statement in statements)}
    limits.update(question.start() for question in _RUN_ON.finditer(text) if statements)
    ordered = sorted(limits)
    return [(s, ordered[bisect_right(ordered, s.start)]) for s in statements]


def run_on(text: str, start: int) -> int:
    """Return where the model asks itself a question behind `start`, after it has answered."""
    question = _RUN_ON.search(text, start)
    return question.start() if question else len(text)


_NAMES_CHOICE = re.compile("answer|option|choice", re.IGNORECASE)


def is_silent(text: str) -> bool:
    """Tell whether `text` states no answer, whatever stands around it, and opens no box or tag.

    But for the letter of a choice alone on its last line.
    """
    if "oxed" in text or "\\fbox" in text or "####" in text:
        return False
    lower = text.lower() if text.isascii() else ""
    if "answer" in lower or "option" in lower or "choice" in lower:
        return False
    if not lower and _NAMES_CHOICE.search(text):
        return False
    if ("<" in text and _TAG.search(text)) or thinking_spans(text) or may_mark(text):
        return False
    deep = 0
    for match in _BRACE.finditer(text) if "{" in text else ():
        deep = deep + 1 if match.group() == "{" else max(0, deep - (match.group() == "}"))
    return not deep
