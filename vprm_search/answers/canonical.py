"""One spelling for answers that are written differently but mean the same.

`canonical_answer` knows, without any dependency: case, white space, Unicode and Markdown
variants, LaTeX cosmetics, exact numbers (1,234 = 1234; 0.50 = .5 = 1/2 = \\frac12; 1.2e3 = 1200;
1 1/2 = 3/2; "two" = 2), units in their common spellings, and choice letters ("(B)" = "B.").
A percent sign is a unit: "50%" is the number 50 with the unit %, never 0.5.

What it does not know is left to `answers.same_answer`: missing units, labelled choices, algebra.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

from vprm_search.answers.quantities import parse_quantity
from vprm_search.steps import normalise_text

MAX_ANSWER_CHARS = 1_000
_MAX_PASSES = 200

_SPELLINGS = str.maketrans(
    {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}  # full-width ASCII
    | dict.fromkeys("\u2212\u2012\u2013\u2014\u2010\u2011", "-")
    | dict.fromkeys("\u2018\u2019\u2032\u00b4", "'")
    | dict.fromkeys("\u201c\u201d\u2033", '"')
    | dict.fromkeys("\u00d7\u00b7\u22c5\u2217", "*")
    | {"\u00f7": "/", "\u2044": "/", "\u2215": "/", "\u3002": ".", "\u03c0": r"\pi "}
    | {"\u00b2": "^2", "\u00b3": "^3", "\u00ba": "°", "\u03bc": "µ", "\u2126": "\u03c9"}
    | {"\u00bd": " 1/2", "\u00bc": " 1/4", "\u00be": " 3/4", "\u2153": " 1/3", "\u2154": " 2/3"}
    | {"\u200b": "", "\u2060": "", "\ufeff": "", "\u2248": r"\approx "}
)

_COMMAND = re.compile(r"\\[A-Za-z]+")
_LATEX_RULES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right|displaystyle|limits)(?![A-Za-z])", ""),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\(?:cdot|times|ast)(?![A-Za-z])", "*"),
        (r"\\div(?![A-Za-z])", "/"),
        (r"(?<=[0-9])\\,(?=[0-9]{3}(?![0-9]))", ""),
        (r"\\(?:quad|qquad)(?![A-Za-z])|\\[,;:! ~]|(?<!\\)~", " "),
        (r"\\\(|\\\)|\\\[|\\\]", ""),
        (r"\{,\}", ","),
        (r"\^\s*\{\s*(?:\\circ|°)\s*\}|\^\s*\\circ(?![A-Za-z])|\\degree(?![A-Za-z])", "°"),
        (
            r"\\(?:text|mathrm|textrm|mathbf|textbf|mathit|textit|mathsf|mbox|operatorname|boxed"
            r"|fbox)\s?\{([^{}]*)\}",
            r" \1 ",
        ),
        (r"^\\boxed\s?\{(.*)\}$", r"\1"),
        (r"\\frac\s?([0-9])\s?([0-9])(?![0-9])", r"\\frac{\1}{\2}"),
        (r"\\sqrt\s?([0-9a-z])(?![0-9a-z])", r"\\sqrt{\1}"),
        (r"(?<![\\a-z])(?:sqrt|\u221a)\s?\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\u221a\s?([0-9]+|[a-z])", r"\\sqrt{\1}"),
        (r"\\frac\s?\{\s*(-?[0-9]+)\s*\}\s?\{\s*([0-9]+)\s*\}", r" \1/\2 "),
        (r"(?<![\\a-z])pi(?![a-z])", r"\\pi "),
        (r"\^\s?\{\s*(-?[0-9]+|[a-z])\s*\}", r"^\1"),
        (r"\\([%$#&])", r"\1"),
    )
)
_TIGHT = re.compile(r"\s*([-+*/=<>^()\[\]{}%$°;])\s*")
_COMMA = re.compile(r"\s*,\s+|(?<![0-9]),|,(?![0-9]{3}(?![0-9]))")
_WRAPPERS = ("**", "__", "`", "*", '"', "'")
_PREFIX = re.compile(
    r"(?:\\approx|approximately|approx\.?|about|roughly|the|answer:|:|~|=)(?![a-z])\s*(?=\S)"
)
_ASSIGNMENT = re.compile(r"[a-z][a-z ]{0,20}=([^=<>]+)")
_WORDS = {
    word: str(value)
    for value, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve".split()  # noqa: SIM905
    )
}
_LETTER = re.compile(r"(?:(?:option|choice) ?)?\(?([a-j])(?:[).:]|\)\.)?")
_LABELLED = re.compile(r"(?:(?:option|choice) )?(?:\(([a-j])\)[.:]?|([a-j])[).]|([a-j]): ) ?(.+)")
_BRACKETED = re.compile(r"(\\?[(\[{])(.*?)(\\?[)\]}])")


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """A canonical answer taken apart.

    `number` and `unit` are set for a quantity, `letter` for a bare choice letter, `labelled` and
    `content` for a choice letter followed by text ("b" and "12 cm" for "B. 12 cm").
    """

    text: str
    number: Fraction | None = None
    unit: str = ""
    letter: str = ""
    labelled: str = ""
    content: str = ""


def canonical_answer(text: str) -> str:
    """Return the canonical spelling of an answer; idempotent, and "" for an empty answer.

    An answer longer than `MAX_ANSWER_CHARS` is only folded (case and white space), which bounds
    the work for hostile input.
    """
    text = _fold(" ".join(normalise_text(text).split()))
    if len(text) > MAX_ANSWER_CHARS:
        return text
    for _ in range(_MAX_PASSES):
        rewritten = _one_pass(text)
        if rewritten == text:
            break
        text = rewritten
    return text


def read_form(canonical: str) -> AnswerForm:
    """Take a canonical answer apart."""
    if len(canonical) > MAX_ANSWER_CHARS:
        return AnswerForm(canonical)
    quantity = parse_quantity(canonical)
    if quantity is not None:
        return AnswerForm(canonical, number=quantity.number, unit=quantity.unit)
    if len(canonical) == 1 and _LETTER.fullmatch(canonical):
        return AnswerForm(canonical, letter=canonical)
    labelled = _LABELLED.fullmatch(canonical)
    if labelled is not None:
        letter = labelled[1] or labelled[2] or labelled[3]
        return AnswerForm(canonical, labelled=letter, content=canonical_answer(labelled[4].strip()))
    return AnswerForm(canonical)


def _fold(text: str) -> str:
    """Fold case and composition, but keep LaTeX commands: `\\Delta` is not `\\delta`."""
    folded, end = [], 0
    for match in _COMMAND.finditer(text):
        folded += [_fold_plain(text[end : match.start()]), match.group()]
        end = match.end()
    return "".join([*folded, _fold_plain(text[end:])])


def _fold_plain(text: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())


def _one_pass(text: str) -> str:
    text = _strip_dollars(_fold(text.translate(_SPELLINGS)))
    for pattern, replacement in _LATEX_RULES:
        text = pattern.sub(replacement, text)
    text = _unwrap(" ".join(text.split()))
    text = _COMMA.sub(", ", _TIGHT.sub(r"\1", text)).strip()
    text = _PREFIX.sub("", text, count=1) if _PREFIX.match(text) else text
    assignment = _ASSIGNMENT.fullmatch(text)
    text = assignment[1] if assignment else text
    letter = _LETTER.fullmatch(text)
    return letter[1] if letter else _canonical_value(text)


def _strip_dollars(text: str) -> str:
    """Drop `$` where they come in pairs (maths mode); a single one is a currency sign."""
    dollars = len(re.findall(r"(?<!\\)\$", text))
    return re.sub(r"(?<!\\)\$", "", text) if dollars and dollars % 2 == 0 else text


def _unwrap(text: str) -> str:
    """Drop Markdown and quotes around the answer, and the full stop behind it."""
    text = text.rstrip(" .;,!")
    for mark in _WRAPPERS:
        if len(text) > 2 * len(mark) and text.startswith(mark) and text.endswith(mark):
            return text[len(mark) : -len(mark)].strip()
    return text


def _canonical_value(text: str) -> str:
    """Spell numbers and quantities, also inside one pair of brackets or a list, canonically."""
    quantity = parse_quantity(_WORDS.get(text, text))
    if quantity is not None:
        return str(quantity)
    bracketed = _BRACKETED.fullmatch(text)
    opening, inner, closing = bracketed.groups() if bracketed else ("", text, "")
    if any(bracket in inner for bracket in "()[]{}"):
        return text
    if opening == "(" and closing == ")" and (alone := parse_quantity(inner)) is not None:
        return str(alone) if "," not in inner else text
    if ", " not in inner:
        return text
    items = (parse_quantity(item) or item for item in inner.split(", "))
    return opening + ", ".join(map(str, items)) + closing
