"""Numbers and units as people write them, read exactly (fractions, never floats)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

_MAX_DIGITS = 100
_MAX_EXPONENT = 300

_NUMBER = (
    r"(?P<sign>[-+]?)(?P<currency>[$€£¥]?)(?:"
    r"(?P<whole>[0-9]+) (?P<part>[0-9]+/[0-9]+)"  # 1 1/2
    r"|(?P<ratio>[0-9]+/[0-9]+)"
    r"|(?:(?P<decimal>(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)"
    r"(?:e(?P<e>[-+]?[0-9]{1,3})|\*10\^\{?(?P<ten>[-+]?[0-9]{1,3})\}?)?)"
    r")"
)
_QUANTITY = re.compile(_NUMBER + r"(?P<space> ?)(?P<unit>[^\W\d_%°$€£¥].*|[%°$€£¥][cf]?|)")

_SPELLINGS = {
    "%": "percent percentage pct",
    "°": "degree deg",
    "$": "dollar usd",
    "€": "euro eur",
    "£": "pound gbp",
    "¥": "yuan yen rmb",
    "mm": "millimeter millimetre",
    "cm": "centimeter centimetre",
    "dm": "decimeter decimetre",
    "m": "meter metre",
    "km": "kilometer kilometre",
    "in": "inch inche",
    "ft": "foot feet",
    "yd": "yard",
    "mi": "mile",
    "mg": "milligram",
    "g": "gram gramme",
    "kg": "kilogram",
    "lb": "lbs",
    "oz": "ounce",
    "ml": "milliliter millilitre",
    "l": "liter litre",
    "ms": "millisecond",
    "s": "second sec",
    "min": "minute",
    "h": "hour hr hrs",
    "day": "day",
    "week": "week",
    "month": "month",
    "year": "year yr",
    "n": "newton",
    "j": "joule",
    "kj": "kilojoule",
    "w": "watt",
    "kw": "kilowatt",
    "v": "volt",
    "a": "ampere amp",
    "hz": "hertz",
    "pa": "pascal",
    "kpa": "kilopascal",
    "k": "kelvin",
    "°c": "celsius",
    "°f": "fahrenheit",
    "mol": "mole",
    "mph": "mph",
    "ω": "ohm",
    "unit": "unit",
}
_UNITS = {word: unit for unit, words in _SPELLINGS.items() for word in (unit, *words.split())}

# Words behind a number that change it or make it an expression: not units.
_NOT_UNIT_NAMES = (
    "and or to by of in from with less more over plus minus times divided point half hundred "
    "thousand million billion trillion dozen sin cos tan log ln exp sqrt pi mod is are than"
)
_NOT_UNITS = frozenset(_NOT_UNIT_NAMES.split())
# "5m" is five metres; "4s" is more often four times a side s than four seconds.
_GLUED_LETTERS = frozenset("mg")
_UNIT_WORD = re.compile(r"(%|°[cf]?|[$€£¥]|[^\W\d_]{1,40})(?:\^([1-9])|([23]))?")


@dataclass(frozen=True, slots=True)
class Quantity:
    """An exact number with a canonical unit ("" if there is none)."""

    number: Fraction
    unit: str = ""

    def __str__(self) -> str:
        return f"{self.number} {self.unit}" if self.unit else str(self.number)


def parse_quantity(text: str) -> Quantity | None:
    """Read "1,234.50 cm", "-3/4", "1 1/2", "$5", "1.2e3", "3*10^4 m/s"; None for anything else.

    `text` is expected in lower case with single spaces. Any word behind a space is a unit, except
    those that change the number ("million", "and"); without a space only known units are, so that
    "5xy" stays algebra. Numbers beyond 100 digits or 10^±300 stay text.
    """
    match = _QUANTITY.fullmatch(text)
    if match is None:
        return None
    number = _number(match)
    if number is None:
        return None
    written = match["unit"]
    if not written:
        return Quantity(number, match["currency"])
    unit = _unit(written, only_known=not match["space"])
    if unit is None or (match["currency"] and match["currency"] != unit):
        return None
    return Quantity(number, unit)


def _number(match: re.Match[str]) -> Fraction | None:
    if len(match.group()) - len(match["unit"]) > _MAX_DIGITS:
        return None
    exponent = int(match["e"] or match["ten"] or 0)
    if abs(exponent) > _MAX_EXPONENT:
        return None
    try:
        if match["decimal"]:
            value = Fraction(match["decimal"].replace(",", "")) * Fraction(10) ** exponent
        else:
            value = int(match["whole"] or 0) + Fraction(match["part"] or match["ratio"])
    except ZeroDivisionError:
        return None
    return -value if match["sign"] == "-" else value


def _unit(written: str, *, only_known: bool) -> str | None:
    """Return the canonical unit, or None if `written` is not a unit."""
    words = re.sub(r"\bper\b", "/", written).replace("*", " ").replace("/", " / ").split()
    parts: list[str] = []
    power = ""
    for word in words:
        if word in ("square", "sq", "cubic"):
            power = "3" if word == "cubic" else "2"
        elif word in ("squared", "cubed"):
            if not parts:
                return None
            parts[-1] += "^3" if word == "cubed" else "^2"
        elif word == "/":
            parts.append("/")
        else:
            name = _unit_word(word, only_known=only_known)
            if name is None:
                return None
            parts.append(name + (f"^{power}" if power else ""))
            power = ""
    named = [part for part in parts if part != "/"]
    text = " ".join(parts)
    if not 1 <= len(named) <= 3 or power or text.endswith("/") or "/ /" in text:
        return None
    return text.replace(" / ", "/").replace("/ ", "/")


def _unit_word(word: str, *, only_known: bool) -> str | None:
    match = _UNIT_WORD.fullmatch(word)
    if match is None or match[1] in _NOT_UNITS - {"in"}:
        return None
    name = match[1]
    singular = name[:-1] if len(name) > 2 and name.endswith("s") and name[-2] != "s" else name
    known = _UNITS.get(name) or _UNITS.get(singular)
    if known is None and (only_known or len(name) == 1):
        return None
    if only_known and len(name) == 1 and name.isalpha() and name not in _GLUED_LETTERS:
        return None
    power = match[2] or match[3]
    return (known or singular) + (f"^{power}" if power else "")
