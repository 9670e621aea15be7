"""How people and models say what their final answer is, in the languages large models write.

A statement is a noun ("answer") with a link ("is", a colon) and the answer behind it. In a heading
or in front of a colon the noun may have company ("Final Answer", "Réponse finale").
"""

from __future__ import annotations

import pkgutil
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

_ASIDE = r"[ \t*_`\"'\u2019]{0,6}"
"""What may stand between the words of a statement besides letters: white space and markup."""


@dataclass(frozen=True, slots=True)
class Phrases:
    """The final-answer phrases of one language.

    `nouns` stand before a link or a colon, `company` beside a noun in a heading, `links` between
    noun and answer, `endings` behind an answer, to be cut off.
    """

    language: str
    nouns: tuple[str, ...]
    links: tuple[str, ...]
    company: tuple[str, ...] = ()
    endings: tuple[str, ...] = ()


_TABLE = tomllib.loads((pkgutil.get_data(__name__, "phrases.toml") or b"").decode())
LANGUAGES = tuple(
    Phrases(name, **{kind: tuple(words) for kind, words in table.items()})
    for name, table in _TABLE.items()
)

_SPACED = re.compile(r"[\u3040-ヿ\u3400-鿿\uac00-\ud7af\u0e00-\u0e7f]")
_FILLER = (
    r"(?:,?[ \t]{1,4}(?:then|thus|therefore|hence|indeed|also|really|simply|clearly|finally),?)?"
)
_THEN = (
    r"(?:[ \t,]{1,4}(?:therefore|thus|hence|then|indeed|simply|just|clearly|definitely|probably"
    r"|likely|obviously|actually|finally|only|now|still|exactly|precisely|approximately|approx\."
    r"|about|roughly|around|donc|daher|also|somit|entonces|por tanto|portanto|dunque|quindi|dus)"
    r"\b,?){0,2}"
)
_ABOUT = (
    r"(?:,[ \t]which(?=[ \t])|[ \t]{1,4}(?:to|for|of|in|on|from|within|we|i|you|that|which|here"
    r"|choice|option|letter)\b[^.:\n!?]{0,80}?(?:[\"\u201c][^\"\u201c\u201d\n]{1,200}[\"\u201d])?)?"
)
_TO_WHAT = (
    r"(?:[ \t]{1,4}(?:to|for|of)"
    r"(?:[ \t](?!(?:is|are|was|were|be|can|will|has|have|we|you|i)\b)[\w()]{1,20}){1,4}"
    r"(?=[ \t*]{0,4}:(?!\d)))?"
)
_DASH = (
    r"(?:[ \t]{1,4}[\u2013\u2014]{1,2}(?=\s)|[ \t]-[ \t](?=[*$\\(]{0,4}(?:\d|[A-J]\b))"
    r"|\u3011[:\uff1a]?)"
)
_SIGN = r"(?:(?<!\d):|:(?!\d)|\uff1a|={1,2}>?|->|\u2192|\u21d2|\u2248|\\approx\b)"


@dataclass(frozen=True, slots=True)
class Mark:
    """Where a phrase says that an answer follows: from the noun to the link or the line's end.

    It is `firm` if it can hardly be anything else ("Answer:"), a `heading` if it stands alone on
    its line, and says that a `letter` follows if the noun is a choice ("correct option").
    """

    start: int
    end: int
    firm: bool
    heading: bool = False
    letter: bool = False


def _any(words: tuple[str, ...]) -> str:
    ordered = sorted(words, key=len, reverse=True)
    return "|".join(re.escape(word).replace("\\ ", r"[ \t]{1,4}") for word in ordered)


def _edge(words: str) -> str:
    """Return the words as a pattern that ends where a word ends, in scripts that have spaces."""
    return rf"(?:{words})" if _SPACED.search(words) else rf"(?:{words})(?!\w)"


def _behind_noun(language: Phrases) -> re.Pattern[str]:
    """Return what follows a noun that marks an answer."""
    english = language.language == "English"
    company = rf"(?:[ \t]{{0,4}}{_edge(_any(language.company))}){{0,2}}" if language.company else ""
    middle = f"{_FILLER}{_ABOUT}" if english else ""
    link = ("" if _SPACED.search(language.nouns[0]) else r"(?<!\w)") + _edge(_any(language.links))
    if language.language == "Chinese":
        link += r"|(?<=[选選])(?=[ \t*$\\(]{0,5}[A-J])"
    to_what = _TO_WHAT if english else ""
    sign = rf"(?P<sign>{to_what}{_ASIDE}(?:\([^()\n]{{0,30}}\)[ \t]{{0,2}})?{_SIGN}|{_DASH})"
    return re.compile(
        rf"{company}(?:{sign}|{middle}{_ASIDE}(?P<link>{link}){_THEN})", re.IGNORECASE
    )


def _heading(language: Phrases) -> re.Pattern[str]:
    company = rf"(?:{_edge(_any(language.company))}[ \t]{{0,4}}){{0,3}}" if language.company else ""
    noun = rf"(?:{_any(language.nouns)})"
    after = rf"(?:[ \t]{{0,4}}{_edge(_any(language.company))}){{0,2}}" if language.company else ""
    return re.compile(
        rf"(?:[^\w\n]|_){{0,12}}(?:\d[.)][ \t])?{company}{noun}{after}"
        rf"(?:(?:[^\w\n]|_){{0,8}}$|(?<=\w)(?:[ \t*]{{1,4}}(?=[-$\d(])|[ \t*]{{0,4}}(?=\\)))",
        re.IGNORECASE | re.MULTILINE,
    )


_NOUNS = {
    noun: noun.split()[0].casefold()
    for noun in sorted({noun for language in LANGUAGES for noun in language.nouns})
}
"""Each noun with its first word, by which a text is searched before any pattern is."""
_ROOTS = tuple(
    sorted({w for w in _NOUNS.values() if not any(o in w for o in _NOUNS.values() if o != w)})
)
"""The shortest of those words: where none of them is, there is no noun."""
_ASCII_ROOTS = tuple(root for root in _ROOTS if root.isascii())
_BEHIND = tuple(_behind_noun(language) for language in LANGUAGES)
_HEADINGS = tuple(_heading(language) for language in LANGUAGES)
_LETTER_NOUN = re.compile(
    "option|choice|letter|opci|opç|alternativa|opzione|optie|вариант|варіант|opcja|seçenek|pilihan"
    "|选|選|الخيار|الاختيار|گزینه|विकल्प"
)
_HEADING_LINE = re.compile(r"[ \t]*(?:[#>]|\*\*|__|[^\w\s]{1,3}[ \t])")
_SHORT = re.compile(r"[ \t*]*[-$\d(\\][^.\n]{0,40}\.?[ \t*]*$", re.MULTILINE)
_DIRECT = frozenset({"Hindi", "Persian", "Bengali", "Hungarian", "Urdu", "Tamil"})
_INVERTED = frozenset({"German", "Dutch", "Swedish, Norwegian, Danish"})
_LINK_BEFORE = re.compile(r"\b(?:ist|lautet|is|är|er|blir)\s(?:\w{1,12}\s){0,3}$", re.IGNORECASE)
_DIRECT_VALUE = re.compile(
    r"[ \t]{1,4}(?=[*$\\(]{0,4}[-\d(A-J\u0660-\u0669\u06f0-\u06f9\u0966-\u096f])"
)


_COMPANY = _any(tuple({word for language in LANGUAGES for word in language.company}))
_OPENING = re.compile(
    r"(?:[^\w\n]|_){0,12}(?:(?:and so|so|thus|hence|therefore|finally|所以|因此|因而|故|したがって"
    r"|따라서|por lo tanto|donc|daher|also|portanto|quindi|поэтому|следовательно)"
    rf"[,\uff0c\u3001]?\s?)?(?:(?:{_COMPANY})[\s*_]{{0,4}}){{0,3}}",
    re.IGNORECASE,
)


def opening_mark(line: str) -> Mark | None:
    """Return the phrase that a line begins with, if it begins with one: "So the answer is"."""
    return next((m for m in marks_in(line) if _OPENING.fullmatch(line, 0, m.start)), None)


def marks_in(text: str) -> list[Mark]:
    """Return the phrases of `text` that may mark an answer, in order."""
    marks = (_mark_at(text, noun) for noun in _nouns_in(text))
    return [mark for mark in marks if mark is not None]


def may_mark(text: str) -> bool:
    """Tell whether a noun stands in `text` as a word; where none does, nothing marks an answer."""
    return any(True for _ in _nouns_in(text))


def _nouns_in(text: str) -> Iterator[re.Match[str]]:
    """Return the nouns of `text` that are words of their own, in order."""
    folded = text.casefold()
    for root in _ASCII_ROOTS if folded.isascii() else _ROOTS:
        if root in folded:
            break
    else:
        return
    there = tuple(noun for noun, word in _NOUNS.items() if word in folded)
    for noun in _pattern(there).finditer(text) if there else ():
        before = text[max(0, noun.start() - 1) : noun.start()]
        if _SPACED.match(noun[0].lower()) or not before.isalnum() or before in "فول":
            yield noun


@lru_cache(maxsize=256)
def _pattern(nouns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(_any(nouns), re.IGNORECASE)


def _mark_at(text: str, noun: re.Match[str]) -> Mark | None:
    start, word = noun.start(), " ".join(noun[0].lower().split())
    for place, language in enumerate(LANGUAGES):
        if word not in language.nouns:
            continue
        behind = _BEHIND[place].match(text, noun.end())
        if behind is not None:
            firm = behind["sign"] is not None
            return Mark(start, behind.end(), firm, letter=bool(_LETTER_NOUN.search(word)))
        line = text.rfind("\n", max(0, start - 80), start) + 1
        head = _HEADINGS[place].match(text, line) if line or start < 80 else None
        alone = head is not None and "\n" not in head[0] and head.end() >= noun.end()
        if head is not None and alone:
            bare = not text[head.end() :].lstrip(" \t").startswith("\n")
            marked = bool(_HEADING_LINE.match(text, line))
            said = len(head[0].strip("*_# \t")) > len(word) and _SHORT.match(text, head.end())
            if marked or not bare or said:
                return Mark(line, head.end(), firm=True, heading=True)
        direct = language.language in _DIRECT or (
            language.language in _INVERTED
            and _LINK_BEFORE.search(text[max(0, start - 60) : start]) is not None
        )
        if direct and (value := _DIRECT_VALUE.match(text, noun.end())):
            return Mark(start, value.end(), firm=False)
    return None
