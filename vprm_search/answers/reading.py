"""Read the final answer out of a solution, and say what the reading stood on.

A solution states its answer in one of a few ways: a box, a tag, a phrase ("The answer is 5"), a
heading with the answer below it, "#### 5". The last statement of any kind wins over whatever
stands before it. What only mentions the answer ("check whether the answer is plausible") states
none, and what follows a question that the model asks itself after its answer is not read. Where
nothing is stated, the letter of a choice may be read from the last line or sentence.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial

from vprm_search.answers.choices import written_choice
from vprm_search.answers.statements import (
    DEFAULT_FORMAT,
    AnswerFormat,
    AnswerSource,
    Statement,
    is_silent,
    run_on,
    statements_in,
    with_stops,
)
from vprm_search.answers.trimming import answer_in, number_before, pieces, places_behind
from vprm_search.steps.phrases import marks_in
from vprm_search.steps.thinking import thinking_spans

_MOST_TRIED = 256  # statements that say nothing are passed over, but not without end
_MOST_KEPT = 1000  # characters of a text whose answer is remembered
_MOST_NESTED = 4  # statements within statements; some texts would go on for ever


@dataclass(frozen=True, slots=True)
class AnswerReading:
    """An answer that was read: its text, what it stood on, and where.

    `span` holds the first and the last place (excluded) of the answer in the text that was read,
    in characters.
    """

    text: str
    source: AnswerSource
    span: tuple[int, int]


def extract_answer(
    text: str, fmt: AnswerFormat = DEFAULT_FORMAT, *, choices: Sequence[str] = ()
) -> str | None:
    """Return the final answer that `text` gives, or None if there is none (`read_answer`)."""
    reading = read_answer(text, fmt, choices=choices)
    return reading.text if reading else None


def has_final_answer(text: str) -> bool:
    """Tell whether `text` states a final answer, which ends a path; a mention does not."""
    reading = read_answer(text)
    return reading is not None and reading.source != "choice"


def read_answer(
    text: str, fmt: AnswerFormat = DEFAULT_FORMAT, *, choices: Sequence[str] = ()
) -> AnswerReading | None:
    """Return the final answer that `text` gives and where it stands, or None if there is none.

    Thinking is not read. The time it takes grows with the length of the text, whatever that says.

    Args:
        text: a solution, or the end of one.
        fmt: what counts as a final answer.
        choices: the texts of the choices A, B, … of a multiple-choice question, if known. One that
            is stated is read whole, whatever it says ("It is 5, because 2 + 3 = 5"), and the last
            line may be one instead of its letter.
    """
    return _reading(text, fmt, tuple(choices))


def _reading(
    text: str, fmt: AnswerFormat, choices: tuple[str, ...], nested: int = 0
) -> AnswerReading | None:
    if fmt is DEFAULT_FORMAT and is_silent(text):
        return _chosen(text, choices)
    text = _without_thinking(text)
    statements = with_stops(text, sorted(statements_in(text, fmt), key=lambda s: (s.start, s.end)))
    read = cache(partial(_read, text, fmt=fmt, choices=choices, nested=nested))
    readings = (read(*statement) for statement in statements[:_MOST_TRIED])
    first = next((reading for reading in readings if reading is not None), None)
    end = len(text) if first is None else run_on(text, first.span[0])
    told = [pair for pair in statements if pair[0].start < end][-_MOST_TRIED:]
    readings = (read(*statement) for statement in reversed(told))
    last = next((reading for reading in readings if reading is not None), first)
    return last or (_chosen(text, choices) if "choice" in fmt.sources else None)


def answer_in_steps(steps: Sequence[str], choices: Sequence[str] = ()) -> str | None:
    """Return what `extract_answer` reads in the steps of a path, joined by blank lines.

    Paths share their steps, so what a step has to do with an answer is remembered, and those
    before the first one that may have to do with it are not read again.
    """
    speaking = (at for at, step in enumerate(steps[:-1]) if not _was_silent(step))
    text = "\n\n".join(steps[next(speaking, -1) :])
    if not text.strip() or thinking_spans(text):  # then the last line may be above
        text = "\n\n".join(steps)
    read = _read_again if len(text) <= _MOST_KEPT else _read_again.__wrapped__
    return read(text, tuple(choices), 0)


_was_silent = lru_cache(maxsize=1024)(is_silent)


def _without_thinking(text: str) -> str:
    """Blank out the thinking; what remains stands where it stood."""
    parts, at = [], 0
    for start, end in thinking_spans(text):
        parts += [text[at:start], "\n" * (end - start)]
        at = end
    return "".join([*parts, text[at:]])


# --- what a statement says -----------------------------------------------------------------------

_PLACEHOLDER = re.compile(
    r"[\[<({$]*(?:\.\.\.|\u2026|_{2,}|x{3,}|(?:(?:your|the|final|my|insert|letter|option|choice"
    r"|number|answer|here|value|result|of)[ _]?)+)[\]>)}$]*",
    re.IGNORECASE,
)
_BLANK = re.compile(
    r"[\[<{]\s?(?:your|the|final|my|insert|letter|option|choice|answer)\b", re.IGNORECASE
)


_PLAN = re.compile(
    r"step \d{1,2}\b|first,? (?:add|subtract|multiply|divide|find|count|compute|calculate|convert"
    r"|determine|solve|use|note|look|write|draw)\b|(?:we|you|i) (?:need|have|want|are going) to\b"
    r"|let(?:'s|\u2019s| us| me)\b"
    r"|(?:so |now |first |then |next ){0,2},? ?to (?:find|get|calculate|compute|solve|determine)\b",
    re.IGNORECASE,
)


def _is_placeholder(answer: str) -> bool:
    """Tell an instruction ("Answer: [your answer]"), a plan and a bare mark from an answer."""
    bare = any(mark.end == len(answer) for mark in marks_in(answer))
    words = (_PLACEHOLDER.fullmatch(answer), _BLANK.match(answer), _PLAN.match(answer))
    return bare or any(words)


_SUPPOSED = re.compile(
    r"\b(?:whether|if|suppose|supposing|assume|assuming|imagine|unless|until)\b[^.,;:!?\n]*$"
    r"|\b(?:si|se|ob|wenn|falls|если)\s(?:\w{1,3}\s)?$"
    r"|(?:如果|假设|假設|若)[^\u3002\uff0c,]{0,6}$"
    r"|\b(?:do not|don't|does not|doesn't|not|cannot|can't)\s(?:think|believe|say|know)[^.,;:\n]*$"
    r"|\b(?:let me|let's|let us|will|to|should|must|need|please|now)\s(?:\w+[ -]){0,3}"
    r"(?:check|recheck|verify|validate|confirm|ensure|make sure|sure)\b[^.,;:\n]*$",
    re.IGNORECASE,
)
_MENTION = re.compile(
    r"(?:therefore|thus|hence|then|indeed|also|still|very|most|more|too|so|quite|highly|always)?\s?"
    r"(?:computed|calculated|found|obtained|derived|determined|based|correct|right|wrong|incorrect"
    r"|plausible|reasonable|valid|consistent|clear|obvious|unclear|unknown|not|never|because|since"
    r"|also|what|which|how|why|where|whether|if|supposed|expected|likely to|required|shown|written"
    r"|one of|the same|among|ready|complete|close|explained|supported|confirmed|checked|verified"
    r"|accurate|sensible|possible|impossible to|independent|easy|hard|simple|good|fine|ok|sound"
    r"|justified|unique|in the|to be|going to|asked|needed|marked|boxed|presented|given|provided"
    r"|stated|rounded|expressed|that it|as follows|the following|below|above|achieved|set to"
    r"|already (?:given|known|there)|the (?:final )?answer"
    r"|correct[ao]|correcte|justa|plausibel|richtig|falsch|esatta|верн\w*|правиль\w*)\b"
    r"|within\s(?=[^\d\s])|[否不]|正[确確]|合理|错误",
    re.IGNORECASE,
)
_ABOUT_IT = re.compile(r"\b((?:for|of|to|from|in|with|by)\s)?(?:this|that)\s$", re.IGNORECASE)
_QUESTION = re.compile(r"(?:[^.!?\n]|\.(?=\d)){0,200}[?\uff1f\u061f]")
_OUGHT = re.compile(r"\b(?:must|should|has to|would|will) be\W*$", re.IGNORECASE)
_KIND = re.compile(
    r"(?:an?|the|some|some kind of)\s(?:\w+[\s-]){0,3}(?:integer|number|fraction|letter|value|word"
    r"|option|choice|result|product|sum|difference|percentage|decimal|answer)\b",
    re.IGNORECASE,
)
_DIGIT = re.compile(r"\d|[\\$]|\b[A-J]\b")
_ASSERTED = re.compile(
    r"(?:です|である|だ|になります|입니다|예요|이에요|이다|है|होगा|است)[.\u3002\u0964!\s*_]*$"
)
_DENIED = re.compile(
    r"(?:ではありません|ではない|아닙니다|아니다|नहीं है)[.\u3002\u0964]?$|か\u3002?$"
)


def _read(
    text: str,
    statement: Statement,
    stop: int,
    *,
    fmt: AnswerFormat,
    choices: tuple[str, ...],
    nested: int,
) -> AnswerReading | None:
    """Return what a statement says, None if it is none after all."""
    if statement.source in ("boxed", "tag") or statement.inside:
        places = statement.inside
        if statement.source == "marker" and _is_supposed(text, statement.start):
            return None
    else:
        stop = min(stop, statement.end + 4 * fmt.max_chars)
        stop = _end_of_quotation(text, statement, stop)
        places = places_behind(text, statement.end, max(statement.end, stop))
        if not statement.firm and not _asserts(text, statement, places[0]):
            return None
        if statement.firm and _is_supposed(text, statement.start):
            return None
    said = [(begin, _said(text[begin:end], statement, choices)) for begin, end in places
            if end - begin <= 4 * fmt.max_chars]  # fmt: skip
    listed = [(number_before(text, begin) if len(places) > 1 else "") + answer
              for begin, answer in said if answer]  # fmt: skip
    answer = ", ".join(dict.fromkeys(listed))
    if not answer or len(answer) > fmt.max_chars or _is_placeholder(answer):
        return None
    alone = f"\\boxed{{{answer}}}" if statement.source == "boxed" else f"Answer: {answer}"
    if text != alone and nested < _MOST_NESTED:
        again = _read_again(alone, choices, nested + 1)  # a statement within a statement
        if again is None:
            return None
        answer = again
    return AnswerReading(answer, statement.source, _span(text, places, answer))


@lru_cache(maxsize=512)  # most answers of a search have been read before
def _read_again(alone: str, choices: tuple[str, ...], nested: int) -> str | None:
    reading = _reading(alone, DEFAULT_FORMAT, choices, nested)
    return reading.text if reading else None


_LETTER_FIRST = re.compile(
    r"[\s*_(:$]*(?:option |choice )?\(?([A-J])(?![\w'\u2019])", re.IGNORECASE
)


def _said(raw: str, statement: Statement, choices: Sequence[str]) -> str:
    if choice := _written_choice(raw, choices):
        return choice
    letter = _LETTER_FIRST.match(raw) if statement.letter else None
    if letter is not None:
        return letter[1] if letter[1].isupper() or raw.strip(" *_:")[:1] == "(" else ""
    return answer_in(raw, prose=statement.source != "boxed")


def _written_choice(raw: str, choices: Sequence[str]) -> str:
    """Return all of a text, or its first sentence, if that is a choice; else ""."""
    found = (piece for piece in pieces(raw) if written_choice(piece, choices) is not None)
    return next(found, "") if choices else ""


def _span(text: str, places: Sequence[tuple[int, int]], answer: str) -> tuple[int, int]:
    """Return where the answer stands: itself if it is written so, else all it was read from."""
    begin, end = places[0][0], places[-1][1]
    found = text.find(answer, begin, end)
    if found >= 0:
        return found, found + len(answer)
    raw = text[begin:end]
    return begin + len(raw) - len(raw.lstrip()), begin + len(raw.rstrip())


def _is_supposed(text: str, place: int) -> bool:
    return bool(_SUPPOSED.search(_line_before(text, place)))


def _line_before(text: str, place: int) -> str:
    return text[max(0, place - 80) : place].rsplit("\n", 1)[-1]


def _end_of_quotation(text: str, statement: Statement, stop: int) -> int:
    """Return where the quotation ends that a mark stands in, else `stop`."""
    if '"' in text[statement.start : statement.end]:  # JSON
        return stop
    if _line_before(text, statement.start).count('"') % 2 == 0:
        return stop
    end = text.find('"', statement.end, stop)
    return stop if end < 0 else end


def _asserts(text: str, statement: Statement, place: tuple[int, int]) -> bool:
    """Tell a statement ("the answer is 5") from a mention ("the answer is computed by …")."""
    content = " ".join(text[place[0] : place[1]].split()).strip("*_` ")
    told_of = _ABOUT_IT.search(_line_before(text, statement.start))
    if told_of and (told_of[1] or content.startswith(("the ", "a ", "an "))):
        return False
    if _is_supposed(text, statement.start) or _MENTION.match(content) or _DENIED.search(content):
        return False
    if _QUESTION.match(content):
        return False
    answer = answer_in(content)
    if _DIGIT.search(answer):
        return True
    mark = text[statement.start : statement.end]
    if _OUGHT.search(mark):
        return False  # "the answer must be even"
    if not mark.isascii() and _ASSERTED.search(content):
        return True
    if _KIND.match(content):
        return False
    words = len(answer.split()) if mark.isascii() or " " in answer else len(answer) / 2
    return words <= 8 and (mark[-1:].isascii() or mark[-1:] not in "はが은는이")


# --- a letter without a statement ----------------------------------------------------------------

_CHOICE_SENTENCE = re.compile(
    r"\b(?:answer|option|choice)(?:\s{1,4}is)?\s{0,4}[:*_]{0,3}\s{0,4}(?:\(([A-Ja-j])\)|([A-J])(?!\w))",
    re.IGNORECASE,
)
_CHOICE_LINE = re.compile(r"[\W_]{0,8}([A-J])(?!\s?:$)[\W_]{0,8}")


def _chosen(text: str, choices: Sequence[str]) -> AnswerReading | None:
    """Return the choice that is all of the last line, or the letter that "option B" names last."""
    body = text.rstrip()
    begin = body.rfind("\n") + 1
    line = _CHOICE_LINE.fullmatch(body, max(len(body) - 40, begin))
    if line is not None:
        return AnswerReading(line[1], "choice", line.span(1))
    if choice := _written_choice(body[begin:], choices):
        return AnswerReading(choice, "choice", _span(text, [(begin, len(body))], choice))
    last: AnswerReading | None = None
    for match in _CHOICE_SENTENCE.finditer(text):
        group = 1 if match[1] else 2
        if group == 1 or match[2].isupper():
            last = AnswerReading(match[group].upper(), "choice", match.span(group))
    return last
