r"""What an answer says: a number with a unit, an expression, a set, a tuple, an interval, words.

`form_of` gives an `AnswerForm` of hashable keys; equal keys are equal answers. Keys are made so
that a false merge is the harder error: what cannot be read for certain is its own text.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from vprm_search.answers.algebra import MAX_CHARS, evaluate
from vprm_search.answers.canonical import (
    MAX_ANSWER_CHARS,
    balanced,
    fold,
    one_bracket,
    split_list,
    squeezed,
    tidy_answer,
)
from vprm_search.answers.choices import label_of, letter_of
from vprm_search.answers.quantities import (
    Unit,
    compound_quantity,
    digits_for_words,
    split_quantity,
    spread_units,
)
from vprm_search.answers.values import Number, Unreadable, differences, proportion, scaled
from vprm_search.answers.values import key as value_key

Key = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Sameness:
    """Which answers count as the same where people differ.

    Args:
        convert_units: whether 1900 cm is 19 m.
        percent_is_fraction: whether 50 % is 0.5 (it is always 50 where nobody gives another unit).
    """

    convert_units: bool = True
    percent_is_fraction: bool = False


VOTING = Sameness()
"""For votes among candidates."""
STRICT = Sameness(convert_units=False)
"""For grading against a reference, which asks for its own unit."""


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """An answer taken apart.

    Attributes:
        full: what it is, units and order included.
        bare: the same without what a shorter answer leaves out: 12 of "12 cm", the unordered words
            of "red, blue". Equal to `full` if there is nothing to leave out.
        name: the variable of "x = 5".
        equation: the key of the equation that "y = 2x" is; it is also 2x.
        letter: the letter of a bare choice ("(B)").
        label: the letter of a choice with its text ("B. 12 cm").
    """

    full: Key
    bare: Key
    name: str = ""
    equation: Key = ()
    letter: str = ""
    label: str = ""


_OPENING, _CLOSING = "([{", ")]}"
_NAMED_SETS = {
    r"\mathbb{R}": "(-∞,∞)", "all real numbers": "(-∞,∞)", "all reals": "(-∞,∞)",
    "real numbers": "(-∞,∞)", "no solutions": "no solution", "empty set": "∅", "{}": "∅",
    r"\{\}": "∅", r"\{ \}": "∅",
}  # fmt: skip
_RELATION = re.compile(r"([=≈<>≤≥≠∈]|\\equiv(?![A-Za-z]))")
_VARIABLE = re.compile(
    r"(?:m?\\(?:angle|overline|vec|triangle) ?)?(?:[A-Za-zα-ωΑ-Ω]|\{?[A-Z]{2,3}\}?)'*"
    r"(?:_(?:[A-Za-z0-9]|\{[^{}]{1,12}\}))?(?:\([A-Za-z](?:, ?[A-Za-z])*\))?|P\([^()]{1,30}\)"
)
_VARIABLES = re.compile(r"\(([A-Za-z](?:_[0-9])?(?: ?, ?[A-Za-z](?:_[0-9])?)+)\)")
_WORDY = re.compile(r"[^\W\d_]{2}[^=<>\d\\]{0,60}|[^\W\d_ ]+(?: [^\W\d_ ]+){1,6}")
_COMPUTATION = re.compile(
    r"[$€£(]*[0-9][0-9.,]*%?\)?(?: ?[^\W\d_]{2,}\.?)?(?: ?(?:[-+*/×÷·x]|\\times|\\cdot|\\div|of) ?"
    r"[$€£(]*[0-9][0-9.,]*%?\)?(?: ?[^\W\d_]{2,}\.?)?){1,12}"
)
_MATRIX = re.compile(
    r"\\begin\{([bpvBV]?)(?:small)?(?:matrix|array)\}(?:\{[lcr|]*\})?(.*?)\\end\{\1?(?:small)?(?:matrix|array)\}"
)
_FIXED = re.compile(
    r"[0-9]+(?: ?[:] ?[0-9]+)+(?: ?[ap]m)?|(?:from )?[-+]?[0-9.]+(?: ?(?:-|to) ?[0-9.]+)+"
    r"|[0-9]+(?: ?/ ?[0-9]+){2,}",
    re.IGNORECASE,
)
_GENOTYPE = re.compile(r"(?:([A-Za-z])(?i:\1))+")  # Aa is not aa
_NUMBER = re.compile(r"[-+]?(?:[0-9]{1,400}(?:\.[0-9]{0,100})?|\.[0-9]{1,100})")


@lru_cache(maxsize=8192)
def form_of(text: str, rules: Sameness = VOTING) -> AnswerForm | None:
    """Take an answer apart; None if it is empty.

    Args:
        text: the answer as it was written.
        rules: what counts as the same.
    """
    tidy = tidy_answer(text)
    if not tidy:
        return None
    if len(tidy) > MAX_ANSWER_CHARS:
        return _of(("text", fold(tidy)))
    if letter := letter_of(tidy):
        return replace(_of(("text", letter)), letter=letter)
    label, inner = label_of(tidy)
    form = _Reader(tidy, rules).read(inner or tidy)
    if not label:
        return form
    return AnswerForm(("labelled", label, form.full), ("labelled", label, form.bare), label=label)


def _of(key: Key) -> AnswerForm:
    return AnswerForm(key, key)


class _Reader:
    """Reads one answer. Cases of letters differ only where an answer has both (R^2 - r^2)."""

    def __init__(self, text: str, rules: Sameness) -> None:
        letters = set(re.findall(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])", text))
        self._fold = not any(c.islower() and c.upper() in letters for c in letters)
        self._rules = rules
        self._left = MAX_CHARS

    def read(self, text: str, depth: int = 0) -> AnswerForm:
        """Read a whole answer or a part of a list."""
        text = text.strip()
        if _NUMBER.fullmatch(text):
            return _of(("number", _fraction(text)))
        text = _NAMED_SETS.get(text.lower() if "\\" not in text else text, text)
        if depth > 8:
            return self._words(text)
        text = digits_for_words(text)
        for attempt in (
            self._fixed, self._matrix, self._bracketed, self._compound, self._listed,
            self._related, self._union, self._signs, self._quantity, self._value,
        ):  # fmt: skip
            form = attempt(text, depth)
            if form is not None:
                return form
        return self._words(text)

    # --- what is no arithmetic -------------------------------------------------------------------

    def _fixed(self, text: str, _depth: int) -> AnswerForm | None:
        """Times, ratios, scores, ranges and dates are what they are."""
        match = _FIXED.fullmatch(text)
        if match is None:
            return None
        key = text.lower().replace(" ", "").removeprefix("from").replace("to", "-")
        key = re.sub(r"(?<![0-9.])0+(?=[0-9])", "", key) if ":" in key else key
        bare = re.sub(r"[ap]m$", "", key)
        return AnswerForm(("fixed", key), ("fixed", bare))

    def _words(self, text: str) -> AnswerForm:
        return _of(("text", text if _GENOTYPE.fullmatch(text) else squeezed(text)))

    # --- brackets, lists, matrices ---------------------------------------------------------------

    def _matrix(self, text: str, depth: int) -> AnswerForm | None:
        match = _MATRIX.fullmatch(re.sub(r"^[(\[](?=\\begin)|(?<=\})[)\]]$", "", text))
        if match is None or r"\begin" in match[2]:
            return None
        rows = [
            row
            for row in re.split(r"\\\\(?:\[[^\]]*\])?", match[2].replace(r"\hline", ""))
            if row.strip()
        ]
        cells = [[self.read(cell, depth + 1) for cell in row.split("&")] for row in rows]
        kind = "determinant" if match[1] in ("v", "V") else "matrix"
        return AnswerForm(
            (kind, *(tuple(cell.full for cell in row) for row in cells)),
            (kind, *(tuple(cell.bare for cell in row) for row in cells)),
        )

    def _bracketed(self, text: str, depth: int) -> AnswerForm | None:
        if text == "∅":
            return _of(("set",))
        braces = text.startswith(r"\{")
        inside = text[2:-2] if braces else text[1:-1]
        opening, closing = text[:1], text[-1:]
        if braces and not text.endswith(r"\}"):
            return None
        if not braces and (opening not in _OPENING or closing not in _CLOSING or len(text) < 3):
            return None
        if not one_bracket(text if not braces else "{" + inside + "}"):
            return None
        items = split_list(inside)
        if braces or (opening == "{" and closing == "}"):
            if len(items) == 1 and not braces and not inside.strip(" -").replace(".", "").isdigit():
                return self.read(inside, depth + 1)
            return self._many([self.read(item, depth + 1) for item in items])
        if len(items) == 1:
            return None if opening != "(" or closing != ")" else self._grouped(inside, depth)
        if any(item.strip() == "" for item in items):
            return None
        return self._sequence(opening, [self.read(item, depth + 1) for item in items], closing)

    def _grouped(self, inside: str, depth: int) -> AnswerForm | None:
        form = self.read(inside, depth + 1)
        if form.full[0] != "text":
            return form
        return self._words(inside) if inside.isalpha() else None  # (iii) is no product

    def _sequence(self, opening: str, items: list[AnswerForm], closing: str) -> AnswerForm:
        # An infinite end is open, however it is written.
        opening = "(" if items[0].full == ("infinity", -1) else opening
        closing = ")" if items[-1].full == ("infinity", 1) else closing
        return AnswerForm(
            ("sequence", opening, *(item.full for item in items), closing),
            ("sequence", opening, *(item.bare for item in items), closing),
        )

    def _many(self, items: list[AnswerForm]) -> AnswerForm:
        """A set, or a list, of mathematical things; how often each is there counts."""
        if len(items) == 1:
            empty = items[0].full == ("set",)
            return _of(_bag("set", [("set",)])) if empty else items[0]
        names = {item.name for item in items} - {""}
        if len(names) > 1:
            if len(names) == len(items):  # x = 2, y = 3 is the point (2, 3)
                ordered = sorted(items, key=lambda item: item.name)
                form = self._sequence("(", ordered, ")")
                if len({item.name.partition("_")[0] for item in items}) == 1:  # x_1 = 2, x_2 = 3
                    form = replace(form, bare=_bag("set", [item.bare for item in items]))
                return replace(form, name=f"({','.join(item.name for item in ordered)})")
            return AnswerForm(_bag("set", [(item.name, item.full) for item in items]),
                              _bag("set", [(item.name, item.bare) for item in items]))  # fmt: skip
        return AnswerForm(
            _bag("set", [item.full for item in items]),
            _bag("set", [item.bare for item in items]),
            name=next(iter(names), ""),
        )

    def _listed(self, text: str, depth: int) -> AnswerForm | None:
        joints = "or|and|∨|∧" if re.search("[=<>≤≥∈]", text) else "or|and"
        clauses = re.split(rf",?\s+(?:{joints})\s+|\s*;\s*", text, flags=re.IGNORECASE)
        items = [item for clause in clauses for item in split_list(clause)]
        if len(items) < 2 or not all(item.strip() for item in items):
            return None
        if not all(balanced(item) for item in items):
            return None
        items = spread_units(items)
        forms = [self.read(item, depth + 1) for item in items]
        if any("…" in item for item in items):
            return _of(("listed", *(form.full for form in forms)))
        many = self._many(forms)
        if many.full[0] == "set" and all(
            form.full[0] == "sequence" and form.name for form in forms
        ):
            either = re.search(r"\s(?:or|∨)\s", text) is not None  # x < -1 or x > 1
            return replace(many, full=("∪" if either else "∩", *many.full[1:]),
                           bare=("∪" if either else "∩", *many.bare[1:]))  # fmt: skip
        if len(clauses) == 1 and all(form.full[0] == "text" for form in forms):
            return replace(many, full=("listed", *(form.full for form in forms)))
        return many

    def _union(self, text: str, depth: int) -> AnswerForm | None:
        for mark in ("∪", "∩", "∖"):
            parts = [part.strip() for part in text.split(mark)]
            if len(parts) < 2 or not all(part and balanced(part) for part in parts):
                continue
            forms = [self.read(part, depth + 1) for part in parts]
            if mark == "∖":
                return _of((mark, *(form.full for form in forms)))
            return AnswerForm(
                _bag(mark, [form.full for form in forms]), _bag(mark, [form.bare for form in forms])
            )
        return None

    # --- equations and inequalities --------------------------------------------------------------

    def _related(self, text: str, depth: int) -> AnswerForm | None:
        pieces = _RELATION.split(text)
        for at in range(len(pieces) - 2, 0, -2):  # P(x > 2) is one side
            if not balanced(pieces[at - 1]) and not balanced(pieces[at + 1]):
                pieces[at - 1 : at + 2] = ["".join(pieces[at - 1 : at + 2])]
        sides, signs = [piece.strip() for piece in pieces[::2]], pieces[1::2]
        if not signs or not all(sides) or not all(balanced(side) for side in sides):
            return None
        if set(signs) <= {"=", "≈"}:
            exact = sides[: signs.index("≈") + 1] if "≈" in signs else sides  # x = 1/3 ≈ 0.33
            named = _VARIABLE.fullmatch(exact[-1]) and len(exact) == 1
            exact = sides if named else exact
            return (
                self._equation(exact, depth) if len(exact) > 1 else self.read(exact[0], depth + 1)
            )
        if signs == ["∈"]:
            form = self.read(sides[1], depth + 1)
            return (
                replace(form, name=self._name(sides[0])) if _VARIABLE.fullmatch(sides[0]) else None
            )
        if set(signs) <= set("<≤") or set(signs) <= set(">≥"):
            return self._inequality(sides, signs, depth)
        if signs == ["≠"] and _VARIABLE.fullmatch(sides[0]):
            form = self.read(sides[1], depth + 1)
            return AnswerForm(
                ("≠", self._name(sides[0]), form.full), ("≠", self._name(sides[0]), form.bare)
            )
        return None

    def _equation(self, sides: list[str], depth: int) -> AnswerForm | None:
        if _VARIABLE.fullmatch(sides[-1]) and not _VARIABLE.fullmatch(sides[0]) and len(sides) == 2:
            sides = sides[::-1]
        first, last = sides[0], sides[-1]
        if len(sides) > 6:
            return None
        tupled = _VARIABLES.fullmatch(first)
        if tupled is not None:
            return self._point(tupled[1], self.read(last, depth + 1))
        if _VARIABLE.fullmatch(first):
            form = self.read(last, depth + 1)
            return replace(form, name=self._name(first), equation=self._equated(first, last))
        if _WORDY.fullmatch(first) and not re.search(r"[*/^+]", first):
            return self.read(last, depth + 1)  # "total cost = 5"
        if all(_COMPUTATION.fullmatch(side) for side in sides[:-1]):
            form = self.read(last, depth + 1)  # 12 × 7 pencils = 84 pencils
            if form.full[0] in ("number", "quantity", "value"):
                return form
        try:
            values = [value_key(self._values(side)) for side in sides]
            if all(value == values[0] and len(value) == 1 for value in values):
                return self.read(last, depth + 1)  # 3 + 4 = 7
        except Unreadable:
            return None
        equation = self._equated(first, last) if len(sides) == 2 else ()
        return _of(equation) if equation else None

    def _point(self, names: str, form: AnswerForm) -> AnswerForm:
        """(x, y) = (2, 3) is x = 2, y = 3."""
        split = [self._name(name.strip()) for name in names.split(",")]
        if form.full[:2] != ("sequence", "(") or len(form.full) != len(split) + 3:
            return form
        order = sorted(range(len(split)), key=split.__getitem__)
        full, bare = (
            ("sequence", "(", *(key[2 + i] for i in order), ")") for key in (form.full, form.bare)
        )
        return AnswerForm(full, bare, name=f"({','.join(sorted(split))})")

    def _equated(self, left: str, right: str) -> Key:
        try:
            sides = (self._values(side) for side in (left, right))
            return ("equation", *proportion(differences(*sides), signed=False))
        except Unreadable:
            return ()

    def _inequality(self, sides: list[str], signs: list[str], depth: int) -> AnswerForm | None:
        if set(signs) <= set(">≥"):
            sides, signs = sides[::-1], ["<" if sign == ">" else "≤" for sign in reversed(signs)]
        unknown = [i for i, side in enumerate(sides) if _VARIABLE.fullmatch(side)]
        if len(unknown) == 1 and len(sides) <= 3:
            at, infinity = unknown[0], _of(("infinity", 1))
            below = self.read(sides[at - 1], depth + 1) if at > 0 else _of(("infinity", -1))
            above = self.read(sides[at + 1], depth + 1) if at + 1 < len(sides) else infinity
            opening = "[" if at > 0 and signs[at - 1] == "≤" else "("
            closing = "]" if at + 1 < len(sides) and signs[at] == "≤" else ")"
            if below.full[0] in ("number", "value", "infinity", "quantity") and above.full[0] in (
                "number", "value", "infinity", "quantity"):  # fmt: skip
                interval = self._sequence(opening, [below, above], closing)
                return replace(
                    interval, name=self._name(sides[at]), equation=self._compared(sides, signs)
                )
        key = self._compared(sides, signs)
        return _of(key) if key else None

    def _compared(self, sides: list[str], signs: list[str]) -> Key:
        if len(sides) != 2:
            return ()
        try:
            values = (self._values(side) for side in sides)
            return (signs[0], *proportion(differences(*values), signed=True))
        except Unreadable:
            return ()

    def _name(self, text: str) -> str:
        name = re.sub(r"[{} ]", "", text)
        return name.lower() if self._fold else name

    # --- values ----------------------------------------------------------------------------------

    def _signs(self, text: str, depth: int) -> AnswerForm | None:
        """1 ± √19 is two values."""
        if "±" not in text or "=" in text:
            return None
        less = "+(-1)*"  # not "-": 5 - 2 would be a score
        both = [text.replace("±", a).replace("∓", b) for a, b in (("+", less), (less, "+"))]
        forms = [self.read(side.strip().removeprefix("+"), depth + 1) for side in both]
        return self._many(forms) if forms[0].full != forms[1].full else forms[0]

    def _value(self, text: str, _depth: int) -> AnswerForm | None:
        if text.lstrip("+-").strip() == "∞":
            return _of(("infinity", -1 if text.startswith("-") else 1))
        if re.fullmatch(r"[^\W\d_]+", text):
            return None if text not in "πe" else _of(_keyed(self._values(text)))
        try:
            return _of(_keyed(self._values(text)))
        except Unreadable:
            return None

    def _values(self, text: str) -> tuple[Number, ...]:
        if len(text) > self._left:
            raise Unreadable("too much for one answer")
        values = evaluate(text, fold=self._fold)
        self._left -= len(text)
        return values

    def _quantity(self, text: str, _depth: int) -> AnswerForm | None:
        """A value and its unit: 12 cm, 25π cm², $5, 1/2 kg."""
        found = split_quantity(text)
        return self._with_unit(*found) if found else None

    def _with_unit(self, number: str, unit: Unit) -> AnswerForm | None:
        factor = unit.factor if self._rules.convert_units else Fraction(1)
        names = unit.bases if self._rules.convert_units else unit.name
        if self._rules.percent_is_fraction and unit.name == (("%", 1),):
            factor, names = Fraction(1, 100), ()
        try:
            values = self._values(number)
        except Unreadable:
            return None
        bare, key = _keyed(values), _keyed(scaled(values, factor))
        return AnswerForm(("quantity", names, key) if names else key, bare)

    def _compound(self, text: str, _depth: int) -> AnswerForm | None:
        """2 h 30 min, 5 feet and 3 inches."""
        total = compound_quantity(text)
        return _of(("quantity", total.bases, ("number", total.factor))) if total else None


# --- text -----------------------------------------------------------------------------------------


def _fraction(text: str) -> Fraction:
    return Fraction(text[:-1] if text.endswith(".") else text)


def _keyed(values: tuple[Number, ...]) -> Key:
    key = value_key(values)
    return ("number", *key) if len(key) == 1 and isinstance(key[0], Fraction) else ("value", *key)


def _bag(kind: str, keys: list[object]) -> Key:
    return (kind, *sorted(Counter(keys).items(), key=repr))
