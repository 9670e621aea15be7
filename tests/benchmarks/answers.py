"""Votes over 64 answers, and math-verify on the same answers.

    python -m tests.benchmarks.answers           # seconds per vote
    python -m tests.benchmarks.answers library   # math-verify on tests/answers/pairs.txt as well

Every vote is made with an empty cache.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from vprm_search.answers import answer_classes, same_answer
from vprm_search.answers.canonical import tidy_answer
from vprm_search.answers.forms import form_of

VOTES = 64
PAIRS = Path(__file__).parents[1] / "answers" / "pairs.txt"


def kinds() -> dict[str, list[str]]:
    """Return 64 different answers of every kind."""
    random = Random(0)
    root = r"\frac{\sqrt{%d}+\sin\left(%dx\right)}{\sqrt[3]{x^2+%d}-\ln(%dx)}"
    power = r"\left(\frac{%d}{%d}x_{1}+\sqrt{%d}\right)^{%d}\cdot e^{\frac{%d}{7}\pi}"
    return {
        "plain numbers": [str(random.randrange(10**6)) for _ in range(VOTES)],
        "numbers, prices, lengths": [f"{n:,}.50 {u}" for n in range(900, 900 + VOTES // 4)
                                     for u in ("", "cm", "dollars", "km/h")],
        "expressions": [root % (n, n + 1, n + 2, n + 3) for n in range(VOTES)],
        "long expressions": ["+".join(power % (n + k, k + 2, n, k, n) for k in range(1, 6))
                             for n in range(VOTES)],
        "powers at the limit": ["+".join(f"\\frac{{{n}^{{{9000 - k}}}}}{{7^{{{900 + k}}}}}"
                                         for k in range(8)) for n in range(3, 3 + VOTES)],
        "dense powers": ["+".join(["x^x"] * 59) + f"+{n}" for n in range(VOTES)],
        "dense roots": [",".join(["√x"] * 200) + f",{n}" for n in range(VOTES)],
        "dense logarithms": ["-".join([r"\ln x"] * 38) + f"-{n}" for n in range(VOTES)],
        "equations": ["=".join(["x^x"] * 90) + f"+{n}" for n in range(VOTES)],
        "1000 characters": [("\\frac" + str(n % 7) + "(") * 140 + "x" for n in range(VOTES)],
        "nested lists": [",".join([f"(1,{{2,[3,{n}]}})"] * 60) for n in range(VOTES)],
        "words": [f"the {n} answers, and so on " * 30 for n in range(VOTES)],
    }  # fmt: skip


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def votes() -> None:
    same_answer(r"\sqrt{2}", r"\sin 1")  # mpmath is loaded once per process
    print(f"| {VOTES} different answers | example | seconds |\n| --- | --- | --- |")
    for name, answers in kinds().items():

        def vote(answers: list[str] = answers) -> None:
            tidy_answer.cache_clear()
            form_of.cache_clear()
            answer_classes(answers)

        example = answers[0] if len(answers[0]) < 60 else answers[0][:57] + "…"
        print(f"| {name} | `{example}` | {min(timed(vote) for _ in range(3)):.3f} |")


def library() -> None:
    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)

    def theirs(a: str, b: str) -> bool:
        left, right = (parse(f"${text}$") for text in (a, b))
        return verify(left, right, timeout_seconds=None) or verify(
            right, left, timeout_seconds=None
        )

    lines = [line for line in PAIRS.read_text(encoding="utf-8").splitlines()[1:] if line]
    merged = split = 0
    start = time.perf_counter()
    for line in lines:
        a, b = line.split(" == " if " == " in line else " != ")
        try:
            same = theirs(a, b)
        except Exception:
            same = False
        merged += same and " == " not in line
        split += not same and " == " in line
    print(f"math-verify: {merged} false merges, {split} false splits of {len(lines)} pairs,"
          f" {time.perf_counter() - start:.0f} s")  # fmt: skip
    for name in ("expressions", "long expressions"):
        answers = kinds()[name]
        seconds = timed(
            lambda answers=answers: [parse(f"${a}$", parsing_timeout=None) for a in answers]
        )
        print(f"math-verify: {name}: {seconds:.1f} s to read {len(answers)}, none compared")


if __name__ == "__main__":
    votes()
    if sys.argv[1:] == ["library"]:
        library()
