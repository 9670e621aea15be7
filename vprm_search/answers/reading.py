"""Read the final answer out of a solution.

`extract_answer` looks for `\\boxed{}`, then for a marker such as "Answer:", then for a
multiple-choice letter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from vprm_search.answers.canonical import MAX_ANSWER_CHARS

AnswerSource = Literal["boxed", "marker", "choice"]

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
