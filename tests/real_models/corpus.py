"""The recorded solutions of SmolLM2-135M-Instruct, as `record.py` wrote them."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.real_models.word_problems import WORD_PROBLEMS, WordProblem

FILE = Path(__file__).parent / "solutions.jsonl.gz"


@dataclass(frozen=True)
class Solution:
    """One recorded solution: what was asked, in which way, what came and why it ended."""

    problem: WordProblem
    asked: str
    finish: str
    text: str


@cache
def recorded() -> tuple[dict[str, Any], tuple[Solution, ...]]:
    """Return the header and all solutions."""
    header, *lines = map(json.loads, gzip.decompress(FILE.read_bytes()).decode().splitlines())
    solutions = (
        Solution(WORD_PROBLEMS[line["problem"]], line["asked"], line["finish"], line["text"])
        for line in lines
    )
    return header, tuple(solutions)
