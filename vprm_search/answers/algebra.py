"""Equality of mathematical expressions through math-verify, an optional extra (`math`).

Its own timeout needs SIGALRM, which works in the main thread only and takes the host's alarm
away; and a limit in seconds would make the vote depend on the machine's load. So the work is
bounded twice without a clock: only short expressions built from harmless commands with small
exponents get through, and a comparison may make a fixed number of Python calls.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec

MAX_EXPRESSION_CHARS = 200
MAX_CALLS = 4_000_000
"""Python calls and returns one comparison may make: a few seconds at the most."""

_COMMAND_NAMES = (
    "frac sqrt pi sin cos tan cot sec csc arcsin arccos arctan log ln exp pm infty cup cap le leq "
    "ge geq lt gt ne neq alpha beta gamma delta epsilon theta lambda mu rho sigma phi omega"
)
_COMMANDS = frozenset(_COMMAND_NAMES.split())
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_POWER = re.compile(r"\^(\{[^{}]*\}|.)?")
_HARMLESS_POWER = re.compile(
    r"\{?(-?[0-9]{1,3}|-?[0-9]?[a-z]|[a-z][-+][0-9]{1,2}|-?[0-9]{1,2}/[0-9]{1,2}|-?[0-9]\.[0-9])\}?"
)
_MAX_POWER_PRODUCT = 1_000
_ALLOWED = re.compile(r"[-+*/=<>^_|.,(){}\[\]\\ 0-9A-Za-z]*")


class _OutOfCalls(BaseException):
    """Not an `Exception`: the library under watch must not catch it."""


def algebra_available() -> bool:
    """Return whether the extra `math` is installed."""
    return find_spec("math_verify") is not None


def is_expression(text: str) -> bool:
    """Return whether a canonical answer is a mathematical expression that is safe to evaluate."""
    if len(text) > MAX_EXPRESSION_CHARS or not _ALLOWED.fullmatch(text):
        return False
    if not set(_COMMAND.findall(text)) <= _COMMANDS:
        return False
    plain = _COMMAND.sub(" ", text)
    if re.search(r"[A-Za-z]{2}|[A-Za-z] [A-Za-z]|[0-9]{16}", plain):
        return False  # words, or a number so long that floating point would blur it
    if not re.search(r"[0-9A-Za-z]", text) or "\\ " in text or text.endswith("\\"):
        return False
    # "(1, 2)" is a point for the asker but an interval for the library; only sets are safe.
    if "," in text and not (text.startswith("\\{") and text.endswith("\\}")):
        return False
    return _harmless_powers(text)


def same_expression(a: str, b: str) -> bool:
    """Return whether two expressions are mathematically equal.

    Symmetric. False if one is not an expression, if the extra is missing, or if the comparison
    needs too much work. Numbers that are not exact are compared to six decimal places.
    """
    if not (is_expression(a) and is_expression(b) and algebra_available()):
        return False
    return _compare(min(a, b), max(a, b))


def _harmless_powers(text: str) -> bool:
    product = 1
    for match in _POWER.finditer(text):
        exponent = match[1] or ""
        if not _HARMLESS_POWER.fullmatch(exponent):
            return False
        for digits in re.findall(r"[0-9]+", exponent):
            product *= max(1, int(digits))
    return product <= _MAX_POWER_PRODUCT


@lru_cache(maxsize=4096)
def _compare(a: str, b: str) -> bool:
    from math_verify import LatexExtractionConfig, LatexNormalizationConfig, parse, verify

    # The library's own clean-up would take the s of 3s for seconds; the text is clean already.
    as_it_is = LatexNormalizationConfig(basic_latex=False, boxed="none")
    rules = [LatexExtractionConfig(normalization_config=as_it_is)]

    def compare() -> bool:
        left, right = (
            parse(f"${text}$", rules, fallback_mode="no_fallback", parsing_timeout=None)
            for text in (a, b)
        )
        if not left or not right:
            return False
        # The library's rule depends on which side is the truth; a vote must not.
        return all(verify(*pair, timeout_seconds=None) for pair in ((left, right), (right, left)))

    for module in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(module).addFilter(_not_about_timeouts)
    try:
        return _within_calls(MAX_CALLS, compare)
    except (_OutOfCalls, Exception):
        return False  # a comparison that fails proves nothing; the answers stay apart


def _within_calls(limit: int, function: Callable[[], bool]) -> bool:
    """Run `function`, raising `_OutOfCalls` after `limit` calls and returns.

    Under a profiler there is no bound, because the thread has only one such hook.
    """
    if sys.getprofile() is not None:
        return function()
    left = limit

    def count(_frame: object, _event: str, _argument: object) -> None:  # pragma: no cover
        nonlocal left
        left -= 1
        if left < 0:
            raise _OutOfCalls

    sys.setprofile(count)
    try:
        return function()
    finally:
        sys.setprofile(None)


def _not_about_timeouts(record: logging.LogRecord) -> bool:
    """Drop the library's warning that its timeout is off: it is off on purpose."""
    return not record.getMessage().startswith("Timeout is disabled")
