"""Read the final answer out of a solution, and say what the reading stood on.

A solution states its answer in one of a few ways: a box, a tag, a phrase ("The answer is 5"), a
heading with the answer below it, "#### 5". The last statement of any kind wins over whatever
stands before it. What only mentions the answer ("check whether the answer is plausible") states
none, and what follows a question that the model asks itself after its answer is not read. Where
nothing is stated, the letter of a choice may be read from the last line or sentence.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator

from vprm_search.answers.canonical import MAX_ANSWER_CHARS
from vprm_search.answers.choices import written_choice
from vprm_search.answers.trimming import answer_in, number_before, pieces, places_behind
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
    if fmt is DEFAULT_FORMAT and _is_silent(text):
        return _chosen(text, choices)
    text = _without_thinking(text)
    statements = _with_stops(text, sorted(_statements(text, fmt), key=lambda s: (s.start, s.end)))
    read = cache(partial(_read, text, fmt=fmt, choices=choices, nested=nested))
    readings = (read(*statement) for statement in statements[:_MOST_TRIED])
    first = next((reading for reading in readings if reading is not None), None)
    end = len(text) if first is None else _run_on(text, first.span[0])
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


_NAMES_CHOICE = re.compile("answer|option|choice", re.IGNORECASE)


def _is_silent(text: str) -> bool:
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


_was_silent = lru_cache(maxsize=1024)(_is_silent)


def _without_thinking(text: str) -> str:
    """Blank out the thinking; what remains stands where it stood."""
    parts, at = [], 0
    for start, end in thinking_spans(text):
        parts += [text[at:start], "\n" * (end - start)]
        at = end
    return "".join([*parts, text[at:]])


# --- statements ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Statement:
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


def _statements(text: str, fmt: AnswerFormat) -> Iterator[_Statement]:
    """Return what may state an answer, of the wanted kinds, in any order."""
    if "boxed" in fmt.sources:
        yield from _boxes(text, fmt.max_chars)
    if "tag" in fmt.sources:
        yield from _tags(text)
    if "hashes" in fmt.sources:
        yield from (_Statement(m.start(), text.index("####", m.start()) + 4, "hashes")
                    for m in _HASHES.finditer(text))  # fmt: skip
    if "marker" in fmt.sources and fmt.markers is not None:
        for marker in fmt.markers:
            for match in _marker_pattern(marker).finditer(text):
                yield _Statement(match.start(), match.end(), "marker")
        return
    for mark in marks_in(text):
        source: AnswerSource = "heading" if mark.heading else "marker"
        if source in fmt.sources:
            yield _Statement(mark.start, mark.end, source, mark.firm, letter=mark.letter)
    if "marker" in fmt.sources and _TURNED_ROUND.search(text):
        yield from (_Statement(m.start(), m.end(), "marker", inside=(m.span(1),), letter=True)
                    for m in _REVERSED.finditer(text))  # fmt: skip


# TeX boxes the next token; writers mean what follows. "Put it in a \\boxed command" holds nothing.
_BARE_BOX = re.compile(
    r"\\(?:boxed|fbox)[ \t]*((?:(?<=[ \t])(?:[-+]?\d[^\s{}$\\]*|[A-Z](?![A-Za-z]))"
    r"|\\(?:[dt]?frac|sqrt|text)\b[^$\n]*?(?=\$|\\[\])]|$)))",
    re.MULTILINE,
)


def _boxes(text: str, max_chars: int) -> Iterator[_Statement]:
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


def _box_statement(boxes: Sequence[tuple[int, int, int]]) -> _Statement:
    inside = tuple((inner, end) for _, inner, end in boxes)
    return _Statement(boxes[0][0], boxes[-1][2] + 1, "boxed", inside=inside)


def _tags(text: str) -> Iterator[_Statement]:
    """Return the tagged answers; one that is not closed goes to the end of the text."""
    if "<" not in text:
        return
    opened: re.Match[str] | None = None
    for tag in _TAG.finditer(text):
        if tag[1] or tag[3]:
            opened = tag
        elif opened is not None:
            inside = ((opened.end(), tag.start()),)
            yield _Statement(opened.start(), opened.end(), "tag", inside=inside)
            opened = None
    if opened is not None:
        yield _Statement(opened.start(), opened.end(), "tag", inside=((opened.end(), len(text)),))


@lru_cache(maxsize=64)
def _marker_pattern(marker: str) -> re.Pattern[str]:
    words = r"\s{1,4}".join(re.escape(word) for word in marker.rstrip(": ").split())
    start = r"(?<![^\W_])" if words[0].isascii() else ""
    emphasis = r"[*_`]{0,3}"
    colon = rf"\s{{0,4}}{emphasis}\s{{0,4}}[:\uff1a]" if marker.rstrip().endswith(":") else ""
    return re.compile(rf"{start}{words}{colon}(?:{emphasis}[ \t]{{0,4}})[:\uff1a]?", re.IGNORECASE)


def _with_stops(text: str, statements: list[_Statement]) -> list[tuple[_Statement, int]]:
    """Return each statement with the place where what it says ends at the latest."""
    limits = {len(text), *(statement.start for statement in statements)}
    limits.update(question.start() for question in _RUN_ON.finditer(text) if statements)
    ordered = sorted(limits)
    return [(s, ordered[bisect_right(ordered, s.start)]) for s in statements]


def _run_on(text: str, start: int) -> int:
    """Return where the model asks itself a question behind `start`, after it has answered."""
    question = _RUN_ON.search(text, start)
    return question.start() if question else len(text)


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
    statement: _Statement,
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


def _said(raw: str, statement: _Statement, choices: Sequence[str]) -> str:
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


def _end_of_quotation(text: str, statement: _Statement, stop: int) -> int:
    """Return where the quotation ends that a mark stands in, else `stop`."""
    if '"' in text[statement.start : statement.end]:  # JSON
        return stop
    if _line_before(text, statement.start).count('"') % 2 == 0:
        return stop
    end = text.find('"', statement.end, stop)
    return stop if end < 0 else end


def _asserts(text: str, statement: _Statement, place: tuple[int, int]) -> bool:
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
