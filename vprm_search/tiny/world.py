"""The tiny visual-maths world: an endless, split-safe source of problems with exact ground truth.

Three families share one question and step grammar, so one small language model serves them all:

* ``tiles``: four coloured number tiles on a board, two or three operations (5 or 7 steps);
* ``tiles-long``: five or six tiles, four or five operations (9 or 11 steps);
* ``bars``: a four-bar chart, two or three operations (5 or 7 steps).
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

from vprm_search.tiny.problem import (
    COLOURS,
    OPERATORS,
    STEP_SEPARATOR,
    TinyProblem,
    apply_operator,
    consistent_steps,
    exact_labels,
    in_range,
    parse_answer,
)
from vprm_search.tiny.rendering import render, value_cells

__all__ = [
    "FAMILIES",
    "SPLITS",
    "STEP_SEPARATOR",
    "TinyProblem",
    "consistent_steps",
    "exact_labels",
    "generate",
    "parse_answer",
    "render",
    "split_of",
    "value_cells",
]

FAMILIES: tuple[str, ...] = ("tiles", "tiles-long", "bars")
SPLITS: tuple[str, ...] = ("train", "validation", "test")
_BUCKET_TO_SPLIT = ("train",) * 8 + ("validation", "test")
_WORLD_VERSION = "tiny-world-1"


@dataclass(frozen=True, slots=True)
class _Size:
    """How many values a family shows and how many operations it asks for (drawn uniformly)."""

    shown: tuple[int, ...]
    operations: tuple[int, ...]


_SIZES: dict[str, _Size] = {
    "tiles": _Size(shown=(4,), operations=(2, 3, 3)),
    "tiles-long": _Size(shown=(5, 6), operations=(4, 5)),
    "bars": _Size(shown=(4,), operations=(2, 3, 3)),
}


def generate(family: str, split: str, index: int) -> TinyProblem:
    """Return problem number `index` of a split; a pure function of its arguments.

    Problems are drawn until their content falls into the asked split, and content decides the split
    alone (`split_of`), so no problem of one split can ever appear in another.

    Raises:
        ValueError: unknown family or split, or a negative index.
    """
    if family not in _SIZES:
        raise ValueError(f"unknown family {family!r}; expected one of {', '.join(FAMILIES)}")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
    if index < 0:
        raise ValueError(f"index must be at least 0, got {index}")
    rng = random.Random(f"{_WORLD_VERSION}|{family}|{split}|{index}")
    while True:
        problem = _draw(family, split, index, rng)
        if split_of(problem) == split:
            return problem


def split_of(problem: TinyProblem) -> str:
    """Return the split that a problem's content belongs to: 8 of 10 hash buckets are train."""
    digest = hashlib.sha256(problem.content.encode()).digest()
    return _BUCKET_TO_SPLIT[int.from_bytes(digest[:8], "big") % len(_BUCKET_TO_SPLIT)]


def _draw(family: str, split: str, index: int, rng: random.Random) -> TinyProblem:
    """Draw one candidate: values, operands, and operators that keep every result within 0..99."""
    size = _SIZES[family]
    names = tuple(rng.sample(COLOURS, rng.choice(size.shown)))
    values = tuple(rng.randint(1, 9) for _ in names)
    count = rng.choice(size.operations) + 1
    operands = rng.sample(names, min(count, len(names)))
    operands += rng.choices(names, k=count - len(operands))
    value_of = dict(zip(names, values, strict=True))
    running = value_of[operands[0]]
    operators: list[str] = []
    for name in operands[1:]:
        fits = [op for op in OPERATORS if in_range(apply_operator(running, op, value_of[name]))]
        operators.append(rng.choice(fits))
        running = apply_operator(running, operators[-1], value_of[name])
    return TinyProblem(
        id=f"{family}/{split}/{index}",
        family=family,
        split=split,
        index=index,
        names=names,
        values=values,
        operands=tuple(operands),
        operators=tuple(operators),
        image_seed=rng.getrandbits(48),
    )
