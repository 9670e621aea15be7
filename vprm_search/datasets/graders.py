"""Whether a solution is right, by the rule that each set publishes.

The final answer is read out of a solution first (`answers.extract_answer`), then a rule compares.
The rules are those of the sets' own evaluations and of VLMEvalKit, without what is plainly wrong
there: an article taken for choice A, an answer that counts because it is a part of the right one,
a list that can never be right, a choice drawn at random where none was read. Nothing a model wrote
is evaluated. `SAMENESS` compares by this package's own rules, for every set.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Any

from vprm_search.answers import STRICT, extract_answer, same_answer
from vprm_search.answers.algebra import evaluate
from vprm_search.answers.canonical import fold, tidy_answer
from vprm_search.answers.values import Unreadable
from vprm_search.datasets.cells import as_list
from vprm_search.datasets.known import GPQA_SEED
from vprm_search.datasets.problem_set import Item

_LONGEST_ANSWER = 300  # characters of a text without a statement that may be the bare answer


@dataclass(frozen=True, slots=True)
class Grade:
    """Whether a solution is right (None: the set publishes no answer), and what it answered."""

    right: bool | None
    said: str | None


@dataclass(frozen=True, slots=True)
class Grader:
    """A rule by name.

    Args:
        name: its name.
        rule: tells whether an answer is right: the item, what was answered.
        source: whose rule it is, and where it differs.
    """

    name: str
    rule: Callable[[Item, str], bool]
    source: str

    def grade(self, item: Item, solution: str) -> Grade:
        """Grade a whole solution, or a bare answer. One without an answer is wrong."""
        said = answer_said(solution)
        if item.answer_type == "none":
            return Grade(None, said)
        return Grade(said is not None and self.rule(item, said), said)


def answer_said(solution: str) -> str | None:
    """Return the answer that a solution gives; a short text that states none is one itself.

    Of a reply in the form that DynaMath asks for, JSON with a field "short answer", it is what that
    field says.
    """
    field = _short_answer(solution)
    text = solution if field is None else field
    said = extract_answer(text)
    bare = text.strip()
    if said is None and bare and len(bare) <= _LONGEST_ANSWER and "\n\n" not in bare:
        return bare
    return said


_FIELD = re.compile(r'"short answer"\s{0,9}:\s{0,9}(?P<text>"(?:[^"\\]|\\.){0,2000}")', re.DOTALL)
_ESCAPE = re.compile(r'\\(?:[\\"/n]|u[0-9a-fA-F]{4}|[bfrt](?![a-z]))?')


def _short_answer(solution: str) -> str | None:
    """Return the text of the last field "short answer"; None if there is none that can be read.

    A backslash that begins a LaTeX command, which JSON would have doubled, is one.
    """
    fields = [match["text"] for match in _FIELD.finditer(solution)]
    if not fields:
        return None
    text = _ESCAPE.sub(lambda match: match[0] if len(match[0]) > 1 else r"\\", fields[-1])
    try:
        return str(json.loads(text, strict=False))
    except ValueError:  # half of a surrogate pair
        return None


# --- choices -------------------------------------------------------------------------------------

_EDGES = string.punctuation + "\u3002\uff0c\uff1a\u00b0"
_MARKED = re.compile(r"(?<![A-Za-z\\])[(\[*]{1,3}([A-Z])[)\]*]{1,3}(?![A-Za-z])")
_LETTER = re.compile(r"(?<![A-Za-z\\'])([A-Z])(?![A-Za-z'])")
_WORD = re.compile(  # the article, and the pronoun
    r"\bA(?=\s+(?!(?:and|or|is|as|was|because|since)\b)[a-z]{2,})"
    r"|\bI(?=\s+(?!(?:and|or|is|was|because|since)\b)[a-z]{2,})"
)
_LETTERS = re.compile(r"\W*[A-Za-z](?:\W+(?:and\W+)?[A-Za-z])*\W*")  # nothing else
_LAST_WORDS = 4


def letter_chosen(said: str, choices: Sequence[str]) -> str:
    """Return the letter of the choice that an answer names, "" if it names none or several.

    The letter stands alone among the last four words, or is the last one in brackets; else the
    answer holds the text of one choice and is at most twice as long as all choices together
    (VLMEvalKit's `can_infer`, and MMMU's rule that the last of several counts).
    """
    known = string.ascii_uppercase[: len(choices) or 26]
    bare = said.strip(_EDGES + string.whitespace)
    if len(bare) == 1 and bare.upper() in known:
        return bare.upper()
    plain = re.sub(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}", r"(\1)", said)
    marked = [letter for letter in _MARKED.findall(plain) if letter in known]
    if marked:
        return str(marked[-1])
    found = [m for m in _LETTER.finditer(_WORD.sub("a", plain)) if m[1] in known]
    if len({match[1] for match in found}) == 1:
        behind = plain[found[-1].end() :].split()
        labelled = found[0].start() == 0 and re.match(r"\s*[.:)]", plain[found[0].end() :])
        if labelled or len([w for w in behind if w.strip(_EDGES)]) < _LAST_WORDS:
            return str(found[0][1])
    return "" if found else _by_text(said, choices)


def _by_text(said: str, choices: Sequence[str]) -> str:
    if len(said) > 2 * sum(map(len, choices)):
        return ""
    folded = _plain(said)
    spelled = [_plain(choice) for choice in choices]
    exact = [place for place, choice in enumerate(spelled) if choice == folded]
    inside = exact or [n for n, choice in enumerate(spelled) if choice and _holds(folded, choice)]
    return string.ascii_uppercase[inside[0]] if len(inside) == 1 else ""


def _holds(text: str, part: str) -> bool:
    """Tell whether a text holds another as whole words."""
    return bool(re.search(rf"(?<!\w){re.escape(part)}(?!\w)", text))


def letters_chosen(said: str, choices: Sequence[str]) -> str:
    """Return all letters that an answer names, sorted: "B, D", "B and D", "(B)(D)", "BD"."""
    known = string.ascii_uppercase[: len(choices) or 10]
    bare = said.strip(_EDGES + string.whitespace)
    if bare.isalpha() and bare.isupper() and set(bare) <= set(known):
        return "".join(sorted(set(bare)))
    listed = said.upper() if _LETTERS.fullmatch(said) else _WORD.sub("a", said)
    found = {m for m in _LETTER.findall(listed) if m in known}
    return "".join(sorted(found)) or letter_chosen(said, choices)


def _chooses(item: Item, said: str) -> bool:
    if not item.letters:  # what is published names no choice
        return _same_words(said, item.answer)
    read = letter_chosen if len(item.letters) == 1 else letters_chosen
    return read(said, item.choices) == item.letters


# --- numbers and words ---------------------------------------------------------------------------

_NUMBER = re.compile(r"[-+\u2212]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+|(?<=\d)\.?)"
                     r"(?:[eE][-+]?\d{1,3})?")  # fmt: skip

_UNIT_POWER = re.compile(r"(?<=[a-z])\s?\^?\{?[23]\}?(?!\w)")


def number_said(text: str) -> Fraction | None:
    """Return the number that an answer is, alone or as its only one ("12 cm"); None if it is none.

    Expressions are computed exactly or to 120 digits, by this package's own reader.
    """
    tidy = tidy_answer(text)
    if "\u00b1" in tidy:
        return None
    try:
        values = evaluate(tidy)
        if len(values) == 1:
            return _fraction(values[0])
    except Unreadable:
        pass
    tidy = _UNIT_POWER.sub("", tidy)
    found = [match[0] for match in _NUMBER.finditer(tidy) if any(map(str.isdigit, match[0]))]
    if len(found) != 1:
        return None
    return Fraction(found[0].replace(",", "").replace("\u2212", "-"))


def _fraction(value: Any) -> Fraction | None:
    if isinstance(value, Fraction):
        return value
    try:
        return Fraction(float(value))
    except (TypeError, ValueError, OverflowError):  # complex, or not finite
        return None


def _near(said: str, answer: str, within: Fraction) -> bool:
    one, other = number_said(said), number_said(answer)
    return one is not None and other is not None and abs(one - other) <= within


def _plain(text: str) -> str:
    return fold(tidy_answer(text))


def _same_words(said: str, answer: str) -> bool:
    return "".join(_plain(said).split()) == "".join(_plain(answer).split())


def _same_list(said: str, answer: str) -> bool:
    """Tell whether two lists have equal items in the same order, numbers by their value."""
    try:
        wanted = as_list(answer)
        given = as_list(said if said.startswith("[") else f"[{said.strip('()')}]")
    except ValueError:
        return False
    return len(wanted) == len(given) and all(
        _same_words(one, other) or _near(one, other, Fraction(0))
        for one, other in zip(given, wanted, strict=True)
    )


# --- the sets' rules -----------------------------------------------------------------------------


def _mathvista(item: Item, said: str) -> bool:
    if item.letters:
        return _chooses(item, said)
    if item.answer_type == "list":
        return _same_list(said, item.answer)
    if item.answer_type == "float":
        decimals = item.precision
        if decimals is None:
            decimals = len(item.answer.partition(".")[2])
        return _near(said, item.answer, Fraction(1, 2 * 10**decimals))
    if item.answer_type == "integer":
        return _near(said, item.answer, Fraction(0))
    return _same_words(said, item.answer)


def _mathvision(item: Item, said: str) -> bool:
    if item.letters:
        return _chooses(item, said)
    return _same_words(said, item.answer) or _near(said, item.answer, Fraction(1, 10**6))


def _mathverse(item: Item, said: str) -> bool:
    if item.letters:
        return _chooses(item, said)
    return _same_words(said, item.answer) or (
        item.answer_type in ("integer", "float") and _near(said, item.answer, Fraction(0))
    )


def _mmmu(item: Item, said: str) -> bool:
    if item.letters:
        return _chooses(item, said)
    for answer in (item.answer, *item.also):
        wanted = number_said(answer) if re.fullmatch(r"[-\d.,/\s$\\%]+", answer) else None
        given = number_said(said)
        if wanted is not None:
            if given is not None and round(wanted, 2) == round(given, 2):
                return True
        elif _holds(_plain(said), _plain(answer)):
            return True
    return False


def _dynamath(item: Item, said: str) -> bool:
    if item.letters:
        return _chooses(item, said)
    if item.answer_type in ("integer", "float"):
        return _near(said, item.answer, Fraction(1, 1000))
    return _same_words(said, item.answer) or same_answer(said, item.answer, rules=STRICT)


def _logicvista(item: Item, said: str) -> bool:
    if not item.letters:
        return _same_words(said, item.answer)
    return letters_chosen(said, item.choices) == item.letters


def _gsm8k(item: Item, said: str) -> bool:
    return _near(said, item.answer, Fraction(0))


def _sameness(item: Item, said: str) -> bool:
    if len(item.letters) > 1:
        return _logicvista(item, said)
    wanted = (item.letters, item.answer) if item.letters else (item.answer, *item.also)
    return any(same_answer(said, one, choices=item.choices, rules=STRICT) for one in wanted)


SAMENESS = Grader("sameness", _sameness, "this package's own sameness of answers")

GRADERS: Mapping[str, Grader] = MappingProxyType(
    {
        grader.name: grader
        for grader in (
            Grader(
                "mathvista",
                _mathvista,
                "MathVista: the letter of a choice, whole numbers by value, numbers rounded to the "
                "published precision, lists item by item (by value and not by spelling)",
            ),
            Grader(
                "mathvision",
                _mathvision,
                "MATH-Vision: the letter of a choice, else equal spelling or values within 1e-6",
            ),
            Grader(
                "mathverse",
                _mathverse,
                "MathVerse without its judge: the letter of a choice, else equal spelling, or "
                "equal values of plain numbers",
            ),
            Grader(
                "mmmu",
                _mmmu,
                "MMMU: the letter of a choice, never drawn at random; short answers by value to "
                "two decimals, or as words in the answer",
            ),
            Grader(
                "dynamath",
                _dynamath,
                "DynaMath: numbers within .001, the letter of a choice, words that are the same "
                "(a part of the right words is not right)",
            ),
            Grader("wemath", _chooses, "We-Math: the letter of a choice"),
            Grader("logicvista", _logicvista, "LogicVista: the set of letters"),
            Grader(
                "gsm8k",
                _gsm8k,
                "GSM8K: the number, by its value (its own code compares the digits behind '####')",
            ),
            Grader(
                "math500",
                _sameness,
                "MATH-500: this package's own sameness of answers, in place of PRM800K's rule",
            ),
            Grader(
                "gpqa",
                _chooses,
                f"GPQA: the letter of a choice; choices in an order drawn by id, seed {GPQA_SEED}",
            ),
            SAMENESS,
        )
    }
)
"""The graders by name; those of the sets have the set's name."""


def grader_of(name: str) -> Grader:
    """Return the published grader of a set, this package's own where the set is not known."""
    return GRADERS.get(name, SAMENESS)
