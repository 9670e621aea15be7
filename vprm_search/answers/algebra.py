r"""Values of mathematical expressions, so that equal expressions have equal keys.

An expression is read by a small grammar (ASCII and LaTeX: fractions, powers, roots, factorials,
functions, subscripts, implied products) and computed: exactly where it is rational, else to 120
digits. Variables get fixed pseudo-random values that hang on their names; two expressions in the
same variables are equal at three such points only if they are equal (Schwartz 1980, "Fast
probabilistic algorithms for verification of polynomial identities", J. ACM 27:4). One point is
negative, so that √(x²) is not x.

Nothing here needs a clock: the work is bounded by the length of the text and the size of every
intermediate number, so it is the same in any thread and under any load. What cannot be read for
certain (`1/2x`), is too large, or loses its digits is `Unreadable`; such a text is equal to itself
only.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

from vprm_search.answers.values import (
    POINTS,
    Number,
    Unreadable,
    absolute,
    applied,
    binomial,
    checked,
    constant,
    factorial,
    over,
    plus,
    power,
    root,
    snapped,
    times,
    value_of,
)

MAX_CHARS = 240
"""So much of one answer is computed, in one expression or in several."""
_MAX_DEPTH = 40

_FUNCTIONS_NAMES = "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log lg exp"
_FUNCTIONS = frozenset(_FUNCTIONS_NAMES.split())

_TOKEN = re.compile(
    r"(?P<blank> +)|(?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
    r"(?:\\overline ?\{[0-9]+\}|[eE][-+]?[0-9]{1,5}(?![0-9A-Za-z.]))?)"
    r"|\\(?P<command>[A-Za-z]+)|(?P<word>[A-Za-z]+|[α-ωΑ-Ω])|(?P<mark>[-+*/^_!|'°(){}\[\],]|\\[{}|])"
)  # fmt: skip
_OPEN = {"(": ")", "[": "]", "{": "}"}
_WORDS = re.compile(r"[A-Za-z]{4,}|[A-Za-z]{2,} [A-Za-z]|[A-Za-z] [A-Za-z]{2,}")
_PLAIN_MINUS = re.compile(r"[-+]?[0-9.]+(?: ?- ?[0-9.]+)+|[^-+*/^\\]*/[^-+*^\\/]*/.*")


def evaluate(text: str, *, fold: bool = True) -> tuple[Number, ...]:
    """Return the values of an expression at the fixed points; one value if it has no variables.

    Args:
        text: a tidy answer.
        fold: whether `X` and `x` are one variable.

    Raises:
        Unreadable: if `text` is not an expression.
    """
    if not text or len(text) > MAX_CHARS or _PLAIN_MINUS.fullmatch(text):
        raise Unreadable(text)  # 297-348 is a range, 3-2 a score, 1/2/2020 a date
    plain = re.sub(r"\\[A-Za-z]+|_\{[^{}]*\}|_.", "  ", text)
    for name in _FUNCTIONS:
        plain = plain.replace(name, "  ")
    if _WORDS.search(plain):
        raise Unreadable(text)
    values: list[Number] = []
    for point in range(POINTS):
        reader = _Reader(text, point, fold)
        values.append(snapped(reader.read()))
        if not reader.variables:
            break
    return tuple(values)


# --- the grammar ----------------------------------------------------------------------------------


class _Reader:
    """Reads and computes one expression at one point, by recursive descent."""

    def __init__(self, text: str, point: int, fold: bool) -> None:
        self._tokens = _tokens(text)
        self._at = 0
        self._point = point
        self._fold = fold
        self._depth = 0
        self._bars = 0
        self.variables: set[str] = set()

    def read(self) -> Number:
        value = self._sum()
        if self._peek()[0] != "end":
            raise Unreadable("something is left over")
        return value

    # tokens are (kind, text, whether a blank stands before)
    def _peek(self, ahead: int = 0) -> tuple[str, str, bool]:
        at = self._at + ahead
        return self._tokens[at] if at < len(self._tokens) else ("end", "", False)

    def _next(self) -> tuple[str, str, bool]:
        token = self._peek()
        self._at += 1
        return token

    def _take(self, *marks: str) -> str:
        kind, text, _ = self._peek()
        if kind == "mark" and text in marks:
            self._at += 1
            return text
        return ""

    def _expect(self, mark: str) -> None:
        if not self._take(mark):
            raise Unreadable(f"no {mark}")

    def _sum(self) -> Number:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise Unreadable("too deep")
        value = self._product()
        while sign := self._take("+", "-"):
            term = self._product()
            value = plus(value, term if sign == "+" else times(term, Fraction(-1)))
        self._depth -= 1
        return value

    def _product(self) -> Number:
        start = self._at
        value = self._signed()
        slashed = ""  # after a/b, an implied product is ambiguous: 1/2x
        while True:
            if operator := self._take("*", "/"):
                if operator == "/" and slashed:
                    raise Unreadable("a/b/c")
                before, start = self._at - start, self._at
                factor = self._signed()
                plain = operator == "/" and before == 2 and self._at - start == 1
                value = (over if operator == "/" else times)(value, factor)
                slashed = ("plain" if plain else "any") if operator == "/" else ""
            elif self._starts_factor():
                if slashed and not (slashed == "plain" and self._peek()[2]):
                    raise Unreadable("a/bc")
                value, slashed = times(value, self._postfixed()), ""
            else:
                return value

    def _starts_factor(self) -> bool:
        kind, text, _ = self._peek()
        if kind in ("word", "command"):
            return text not in ("rfloor", "rceil")
        if kind == "number":
            previous = self._peek(-1)
            if previous[0] == "number":
                raise Unreadable("two numbers side by side")
            return previous[1] in (")", "}", "]", "!") and self._peek()[1][0] != "."
        return kind == "mark" and (text in _OPEN or (text == "|" and not self._bars))

    def _signed(self) -> Number:
        if sign := self._take("+", "-"):
            value = self._signed_factor()
            return times(value, Fraction(-1)) if sign == "-" else value
        return self._postfixed()

    def _signed_factor(self) -> Number:
        if self._peek()[1] in ("+", "-"):
            raise Unreadable("two signs")
        return self._postfixed()

    def _postfixed(self) -> Number:
        value = self._atom()
        while mark := self._take("!", "^", "°"):
            if mark == "!":
                value = factorial(value)
                if self._peek()[1] == "!":
                    raise Unreadable("double factorial")
            elif mark == "°":
                value = times(value, over(constant("pi"), Fraction(180)))
            else:
                value = power(value, self._exponent())
        return value

    def _exponent(self) -> Number:
        if self._take("{"):
            value = self._sum()
            self._expect("}")
            return value
        sign = self._take("-", "+")
        value = self._atom()
        if self._take("^"):
            value = power(value, self._exponent())
        return times(value, Fraction(-1)) if sign == "-" else value

    def _atom(self) -> Number:
        kind, text, _ = self._next()
        if kind == "number":
            return self._mixed(text)
        if kind == "word":
            return self._word(text)
        if kind == "command":
            return self._command(text)
        if text in _OPEN:
            value = self._sum()
            self._expect(_OPEN[text])
            return value
        if text == "|":
            return self._between_bars()
        raise Unreadable(text)

    def _mixed(self, text: str) -> Number:
        """Read a number; 2\\frac{1}{3} and 2 1/3 are 2 + 1/3."""
        whole = _number(text)
        rest = "".join(f" {t}" if blank and i == 0 else t for i, (_, t, blank) in
                       enumerate(self._tokens[self._at : self._at + 7]))  # fmt: skip
        ascii_part = re.match(r" ([0-9]+)/([0-9]+)", rest)
        latex = re.match(r" ?frac\{([0-9]+)\}\{([0-9]+)\}| ?frac([0-9])([0-9])", rest)
        part = ascii_part or latex
        if part is None or not text.isdigit():
            if re.match(r" ?frac", rest) and self._peek()[0] == "command":
                raise Unreadable("2 a/b may be a product or a sum")
            return whole
        above, below = (int(digits) for digits in part.groups() if digits)
        if not 0 < above < below or self._peek()[0] == "word":
            raise Unreadable("neither a mixed number nor a product")
        self._at += 3 if ascii_part else (7 if part[1] else 3)
        return whole + Fraction(above, below)

    def _word(self, text: str) -> Number:
        if text in _FUNCTIONS:
            return self._applied(text)
        if text in ("abs", "exp"):
            return self._applied(text)
        if len(text) == 1:
            return self._symbol(text)
        if len(text) > 3:
            raise Unreadable(text)
        # abc is a·b·c; what is raised or indexed is the last letter only.
        self._at -= 1
        self._tokens[self._at : self._at + 1] = [("word", letter, False) for letter in text]
        return self._atom()

    def _symbol(self, name: str) -> Number:
        if name in ("π", "e", "i") and self._peek()[1] != "_":
            return constant({"π": "pi"}.get(name, name))
        if name in "fghFGHPQ" and self._peek()[1] == "(" and not self._peek()[2]:
            raise Unreadable("a value of an unknown function")
        if self._fold and name.isascii():
            name = name.lower()
        if self._take("_"):
            name += "_" + self._index()
        while self._take("'"):
            name += "'"
        self.variables.add(name)
        return value_of(name, self._point)

    def _index(self) -> str:
        if not self._take("{"):
            return self._next()[1].lower()
        name = ""
        while not self._take("}"):
            kind, text, _ = self._next()
            if kind == "end" or text in "{_^":
                raise Unreadable("index")
            name += text.lower()
        return name

    def _command(self, name: str) -> Number:
        if name == "frac":
            return over(self._group(), self._group())
        if name == "sqrt":
            degree = Fraction(2)
            if self._take("["):
                degree = self._sum()
                self._expect("]")
            value = self._group()
            if degree == 0:
                raise Unreadable("root of degree 0")
            return root(value, degree)
        if name == "binom":
            return binomial(self._group(), self._group())
        if name in ("lfloor", "lceil"):
            value = self._sum()
            if self._next()[1] != {"lfloor": "rfloor", "lceil": "rceil"}[name] or not isinstance(
                value, Fraction
            ):
                raise Unreadable(name)
            return Fraction(math.floor(value) if name == "lfloor" else math.ceil(value))
        if name in _FUNCTIONS:
            return self._applied(name)
        if name in ("overline", "vec", "bar", "hat", "overrightarrow", "widehat", "tilde"):
            named = f"{name} {self._braced()}"
            self.variables.add(named)
            return value_of(named, self._point)
        raise Unreadable(name)

    def _braced(self) -> str:
        self._expect("{")
        name = ""
        while not self._take("}"):
            kind, text, _ = self._next()
            if kind != "word":
                raise Unreadable("name")
            name += text
        return name

    def _group(self) -> Number:
        """Read the argument of a LaTeX command: {…}, (…) or one digit or letter."""
        kind, text, _ = self._next()
        if text in ("{", "("):
            value = self._sum()
            self._expect(_OPEN[text])
            return value
        if kind == "number" and text.isdigit():
            if len(text) > 1:
                self._tokens[self._at - 1 : self._at] = [("number", digit, False) for digit in text]
            return Fraction(int(text[0]))
        if kind == "word":
            if len(text) > 1:
                self._tokens[self._at - 1 : self._at] = [("word", c, False) for c in text]
            return self._symbol(text[0])
        if kind == "command":
            return self._command(text)
        raise Unreadable("argument")

    def _applied(self, name: str) -> Number:
        """Read what a function is applied to: sin^2 x, log_2 8, sin(x+1), sin 2x."""
        raised: Number = Fraction(1)
        base: Number = None
        while mark := self._take("^", "_"):
            if mark == "^":
                raised = self._exponent()
            else:
                base = self._group()
        if raised == -1 and name in ("sin", "cos", "tan"):
            name, raised = f"arc{name}", Fraction(1)
        if self._peek()[1] in ("(", "[", "{") and self._peek()[0] == "mark":
            argument = self._group() if self._peek()[1] != "[" else self._atom()
        else:
            argument = self._run()
        if name == "abs":
            return absolute(argument)
        if base is not None:
            if name != "log":
                raise Unreadable(name)
            value = over(applied("ln", argument), applied("ln", base))
        else:
            value = applied(name, argument)
        return value if raised == 1 else power(value, raised)

    def _run(self) -> Number:
        """Read the argument of a function without brackets: sin 2πx, up to a sign or a function."""
        value = self._postfixed()
        while True:
            kind, text, _ = self._peek()
            if kind not in ("word", "command") or text in _FUNCTIONS or text in ("rfloor", "rceil"):
                return value
            value = times(value, self._postfixed())

    def _between_bars(self) -> Number:
        self._bars += 1
        value = self._sum()
        self._bars -= 1
        self._expect("|")
        return absolute(value)


def _tokens(text: str) -> list[tuple[str, str, bool]]:
    tokens: list[tuple[str, str, bool]] = []
    at, blank = 0, False
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise Unreadable(text[at])
        at = match.end()
        if match.lastgroup == "blank":
            blank = True
            continue
        tokens.append((match.lastgroup or "", match[match.lastgroup or 0], blank))
        blank = False
    return tokens


def _number(text: str) -> Fraction:
    repeating = re.fullmatch(r"([0-9]+)\.([0-9]*)\\overline ?\{([0-9]+)\}", text)
    if repeating is not None:
        whole, fixed, period = repeating.groups()
        below = 10 ** len(fixed)
        part = Fraction(int(period), below * (10 ** len(period) - 1))
        return Fraction(int(whole)) + Fraction(int(fixed or 0), below) + part
    if "\\" in text:
        raise Unreadable(text)
    mantissa, _, exponent = text.lower().partition("e")
    value = Fraction(mantissa if mantissa[-1] != "." else mantissa[:-1])
    return checked(value * power(Fraction(10), Fraction(int(exponent or 0))))
