"""Sameness beside math-verify: its own public test cases, and what its users expect of them.

The cases are in the library's source distribution, which pip fetches; nothing of it is kept. Texts
are read by the library (`parse` says which part of a text is the answer), so that sameness alone is
compared.
"""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys
import tarfile
from collections.abc import Iterator

import pytest

from vprm_search.answers import same_answer

VERSION = "0.9.0"
MERGED = {
    "test_latex_notation": "their case is about reading: both answers are 9, if they are read",
    "test_set_rel_assymetry": "one of their options off; with it on they call the same pair equal",
}
"""Where they expect two answers to differ and we say that they are the same."""
APART = {
    r"\frac{1}{2}  = \frac{10}{9}": "1/2 = 10/9 is false, so it is no way to write 10/9",
    r"\( 3, \frac{\pi}{2} \)": r"what their reader gives is cut: \( from \left(",
    r"\(\frac{1}{5},\frac{1}{6}\)": r"what their reader gives is cut: \( from \left(",
    r"\(\frac{4}{5},\frac{1}{5}\)": r"what their reader gives is cut: \( from \left(",
    r"\( \frac{4}{3}, -\frac{1}{3} \)": r"what their reader gives is cut: \( from \left(",
    r"1 = \zzz = x = 0": "1 = 0 is false",
    "\\begin{pmatrix}6 & 8": "matrices are not added",
    "\\begin{pmatrix}1 & 0 \\\\ 0 & 1\\end{pmatrix} \\begin": "matrices are not multiplied",
    "0.0833333333333333": "decimals are exact: a rounded answer is another one",
    "0.33\\\\0.2": "decimals are exact",
    "2.6667": "decimals are exact",
    "4.123105625617661": "decimals are exact",
    "{1,3}": "a set is no point",
}
"""Parts of the answers that they expect to be equal and we hold apart, with the reason."""


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str, str, bool]]:
    """Return (name of their test, gold, prediction, expected)."""
    folder = tmp_path_factory.mktemp("sdist")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-binary", ":all:"]
    command += ["--no-deps", "--dest", str(folder), f"math-verify=={VERSION}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"no source distribution of math-verify: {done.stderr[-300:]}")
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    path = next(folder.glob("*/tests/test_all.py"))
    spec = importlib.util.spec_from_file_location("their_test_all", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(_parameters(module))


def _parameters(module: object) -> Iterator[tuple[str, str, str, bool]]:
    for name, function in vars(module).items():
        for mark in getattr(function, "pytestmark", []):
            for gold, prediction, expected, *_ in mark.args[1]:
                yield name, gold, prediction, bool(expected)


def _read(text: str) -> str:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    rules = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
    found = parse(text, rules, parsing_timeout=None)
    return str(found[-1]) if found else text


@pytest.mark.slow
def test_their_cases_come_out_as_they_expect(cases: list[tuple[str, str, str, bool]]) -> None:
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    merged, apart = [], []
    for name, gold, prediction, expected in cases:
        a, b = _read(gold), _read(prediction)
        same = same_answer(a, b)
        if same and not expected and name not in MERGED:
            merged.append((name, a, b))
        if expected and not same and not any(part in a or part in b for part in APART):
            apart.append((name, a, b))
    assert not merged
    assert not apart
    agreed = sum(same_answer(_read(g), _read(p)) == expected for _, g, p, expected in cases)
    assert len(cases) > 190
    assert agreed >= 0.9 * len(cases)
