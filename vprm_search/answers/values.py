"""Numbers of expressions: exact fractions where that is possible, else 120 digits by mpmath.

Every operation is bounded: what grows too large, or would lose its digits, is `Unreadable`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any

MAX_BITS = 60_000
"""Exact numbers beyond so many bits are not computed."""
POINTS = 3
"""Variables have a value at each of so many points."""
_DIGITS = 120
_LOST_BITS, _NOISE_BITS = 130, 265
"""Terms further apart than 2^130 are not added; a sum smaller than 2^-265 of its terms is 0."""
_KEY_DIGITS = 50

Number = Any
"""A `Fraction`, or a real or complex number of mpmath."""


class Unreadable(ValueError):
    """The text is no expression, or one that is not computed."""


def key(values: tuple[Number, ...]) -> tuple[object, ...]:
    """Return what two equal expressions share: exact fractions, or digits of complex numbers."""
    digits = [_digits(value) for value in values]
    if len(values) == POINTS and [_is_real(v) for v in values] == [True, True, False]:
        digits[-1] = None  # √x is not defined for a negative x
    return tuple(digits[:1] if len(set(digits)) == 1 else digits)


def scaled(values: tuple[Number, ...], factor: Fraction) -> tuple[Number, ...]:
    """Return the values times `factor`."""
    return tuple(snapped(times(value, factor)) for value in values)


def differences(left: tuple[Number, ...], right: tuple[Number, ...]) -> tuple[Number, ...]:
    """Return left minus right at every point."""
    n = max(len(left), len(right))
    pairs = zip(left * (n // len(left)), right * (n // len(right)), strict=True)
    return tuple(plus(a, times(b, Fraction(-1))) for a, b in pairs)


def proportion(values: tuple[Number, ...], *, signed: bool) -> tuple[object, ...]:
    """Return a key that a constant factor does not change; with `signed`, a positive factor.

    Raises:
        Unreadable: for constants, which are all proportional.
    """
    first = values[0]
    if len(values) < POINTS or first == 0:
        raise Unreadable("constant")
    if signed:
        if not _is_real(first):
            raise Unreadable("complex")
        positive = first > 0 if isinstance(first, Fraction) else first.real > 0
        first = first if positive else times(first, Fraction(-1))
    found = key(tuple(snapped(over(value, first)) for value in values))
    if len(found) == 1:
        raise Unreadable("constant")
    return found


@lru_cache(maxsize=1)
def _context() -> Any:
    """Return the one context: only functions that leave its precision alone are used of it."""
    import mpmath

    context = mpmath.MPContext()
    context.dps = _DIGITS
    return context


def checked(value: Fraction) -> Fraction:
    if value.numerator.bit_length() + value.denominator.bit_length() > MAX_BITS:
        raise Unreadable("too large")
    return value


def _inexact(value: Number) -> Any:
    if not isinstance(value, Fraction):
        return value
    context = _context()
    return context.mpf(value.numerator) / value.denominator


def _size(value: Any) -> int:
    """Return the exponent of 2 of a computed number that is not 0."""
    parts = value._mpc_ if hasattr(value, "_mpc_") else (value._mpf_,)
    return int(max(exponent + bits for _, mantissa, exponent, bits in parts if mantissa))


def plus(a: Number, b: Number) -> Number:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return checked(a + b)
    a, b = _inexact(a), _inexact(b)
    if a == 0 or b == 0:
        return a + b
    larger, smaller = sorted((_size(a), _size(b)), reverse=True)
    if larger > smaller + _LOST_BITS:
        raise Unreadable("digits would be lost")
    total = a + b
    return Fraction(0) if total == 0 or _size(total) < larger - _NOISE_BITS else total


def times(a: Number, b: Number) -> Number:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return checked(a * b)
    if a == 0 or b == 0:
        return Fraction(0)
    return _inexact(a) * _inexact(b)


def over(a: Number, b: Number) -> Number:
    if b == 0:
        raise Unreadable("division by zero")
    if isinstance(b, Fraction):
        return times(a, 1 / b)
    return _inexact(a) / b


def power(base: Number, exponent: Number) -> Number:
    if isinstance(exponent, Fraction) and exponent.denominator == 1:
        n = exponent.numerator
        if base == 0 and n <= 0:
            raise Unreadable("0^0")
        if isinstance(base, Fraction):
            bits = base.numerator.bit_length() + base.denominator.bit_length()
            if abs(n) * max(1, bits - 1) > MAX_BITS:
                raise Unreadable("too large")
            return base**n
    if base == 0:
        raise Unreadable("0 to a power that is not whole")
    if exponent == 0:
        return Fraction(1)
    if isinstance(exponent, Fraction) and exponent.denominator % 2 and _is_real(base):
        real = base if isinstance(base, Fraction) else base.real
        if real < 0:  # (-8)^{1/3} is -2, as at school
            sign = Fraction(-1 if exponent.numerator % 2 else 1)
            return times(power(times(base, Fraction(-1)), exponent), sign)
    base, exponent = _inexact(base), _inexact(exponent)
    if _size(exponent) > 14 or abs(_size(base)) > 3000:
        raise Unreadable("too large")
    return base**exponent


def _basic(name: str, x: Number) -> Number:
    context = _context()
    if name in ("log", "lg"):
        # Without a base, log may mean the natural or the decimal one: here neither, with its laws.
        base = Fraction(10) if name == "lg" else value_of("log", 0) + 9
        return over(_basic("ln", x), _basic("ln", base))
    x = _inexact(x)
    if x != 0 and _size(x) > (3000 if name == "ln" else 14):
        raise Unreadable("too large")
    named = {"arcsin": "asin", "arccos": "acos", "arctan": "atan"}.get(name, name)
    try:
        value = getattr(context, named)(x)
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise Unreadable(name) from error
    if not context.isfinite(value):
        raise Unreadable(name)
    return Fraction(0) if value == 0 or _size(value) < -_NOISE_BITS else value


def snapped(value: Number) -> Number:
    """Return the fraction that a computed number is, if it is one up to rounding."""
    if isinstance(value, Fraction):
        return value
    if abs(value.imag) > abs(value.real) * 10**-80:
        tiny = abs(value.real) < abs(value.imag) * 10**-80
        return type(value)(0, value.imag) if tiny and value.real else value
    real = value.real
    size = abs(real)
    if not 1e-18 < size < 1e40:
        return type(value)(real) if value.imag else value
    # mpmath keeps (sign, mantissa, exponent, bits)
    sign, mantissa, exponent, _ = real._mpf_
    exact = Fraction(int(mantissa)) * Fraction(2) ** exponent
    near = exact.limit_denominator(10**18)
    if abs(exact - near) > exact / 10**80:
        return type(value)(real) if value.imag else value
    return -near if sign else near


def _is_real(value: Number) -> bool:
    return isinstance(value, Fraction) or value.imag == 0


def _digits(value: Number) -> object:
    if isinstance(value, Fraction):
        return value
    digits = _context().nstr
    return digits(value.real, _KEY_DIGITS), digits(value.imag, _KEY_DIGITS)


def constant(name: str) -> Number:
    """Return pi, e or i."""
    context = _context()
    return context.mpc(0, 1) if name == "i" else +getattr(context, name)


def value_of(name: str, point: int) -> Fraction:
    digest = hashlib.sha256(f"{point} {name}".encode()).digest()
    value = Fraction(int.from_bytes(digest[:4], "big") + 1, 2**30 + 3)
    return -value if point == 2 else value


def factorial(value: Number) -> Number:
    value = snapped(value)
    if not isinstance(value, Fraction) or value.denominator != 1 or not 0 <= value <= 2_000:
        raise Unreadable("factorial")
    return Fraction(math.factorial(value.numerator))


def binomial(n: Number, k: Number) -> Number:
    if not all(isinstance(v, Fraction) and v.denominator == 1 and 0 <= v <= 2_000 for v in (n, k)):
        raise Unreadable("binomial")
    return Fraction(math.comb(n.numerator, k.numerator))


def root(value: Number, degree: Number) -> Number:
    return value if value == 0 else power(value, over(Fraction(1), degree))


def absolute(value: Number) -> Number:
    return abs(value)


def applied(name: str, x: Number) -> Number:
    of: dict[str, Callable[[], Number]] = {
        "sec": lambda: _basic("cos", x),
        "csc": lambda: _basic("sin", x),
        "cot": lambda: _basic("tan", x),
    }
    return over(Fraction(1), of[name]()) if name in of else _basic(name, x)
