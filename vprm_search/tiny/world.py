"""The tiny visual-maths world: an endless, split-safe source of problems with exact ground truth.

Three families share one question and step grammar, so one small language model serves them all:

* ``tiles``: four coloured number tiles on a board, two or three operations (5 or 7 steps);
* ``tiles-long``: five or six tiles, four or five operations (9 or 11 steps);
* ``bars``: a four-bar chart, two or three operations (5 or 7 steps).

A picture is a noisy, jittered 4x4 grid of 16-pixel cells. A vision tower with 8-pixel patches and
a 2x2 pixel shuffle gives one image token per cell, and each value belongs to one token
(`value_cells`): a tile lies inside its cell, a bar counts to the bottom cell of its column.
"""

from __future__ import annotations

import functools
import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

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


# --- one problem, and what is right ---


STEP_SEPARATOR = "\n\n"
COLOURS: tuple[str, ...] = ("red", "blue", "green", "yellow", "purple", "black")
OPERATORS: tuple[str, ...] = ("+", "-", "x")
SMALLEST_RESULT, LARGEST_RESULT = 0, 99
_ANSWER = re.compile(r"Answer: (\d+)\s*$")


def apply_operator(left: int, operator: str, right: int) -> int:
    """Return ``left operator right`` for one of ``+``, ``-`` and ``x``."""
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    if operator == "x":
        return left * right
    raise ValueError(f"unknown operator {operator!r}; expected one of {', '.join(OPERATORS)}")


def in_range(result: int) -> bool:
    """Tell whether a result can be written in the world's language (0 to 99)."""
    return SMALLEST_RESULT <= result <= LARGEST_RESULT


@dataclass(frozen=True, slots=True)
class TinyProblem:
    """A picture of coloured values and a question about them; only the picture tells the values.

    `names` and `values` say what is drawn; the expression is evaluated strictly from left to right:
    ``((operands[0] operators[0] operands[1]) operators[1] operands[2]) ...``.
    """

    id: str
    family: str
    split: str
    index: int
    names: tuple[str, ...]
    values: tuple[int, ...]
    operands: tuple[str, ...]
    operators: tuple[str, ...]
    image_seed: int

    @property
    def expression(self) -> str:
        """The asked expression, fully parenthesised except for the outermost pair."""
        text = self.operands[0]
        for position, operator in enumerate(self.operators):
            left = f"({text})" if position else text
            text = f"{left} {operator} {self.operands[position + 1]}"
        return text

    @property
    def question(self) -> str:
        """The question: colours and operators only, never a value."""
        return f"What is {self.expression}?"

    @property
    def steps(self) -> tuple[str, ...]:
        """The gold steps: read the first value, then read and calculate once per operator."""
        value_of = dict(zip(self.names, self.values, strict=True))
        result = value_of[self.operands[0]]
        steps = [reading_step(1, self.operands[0], result)]
        for position, operator in enumerate(self.operators):
            name = self.operands[position + 1]
            left, right = result, value_of[name]
            result = apply_operator(left, operator, right)
            steps.append(reading_step(len(steps) + 1, name, right))
            steps.append(arithmetic_step(len(steps) + 1, left, operator, right, result))
        steps[-1] += answer_suffix(result)
        return tuple(steps)

    @property
    def solution(self) -> str:
        """The gold steps joined by a blank line."""
        return STEP_SEPARATOR.join(self.steps)

    @property
    def answer(self) -> str:
        """The final result, in decimal digits."""
        return self.steps[-1].rsplit(" ", 1)[-1]

    @property
    def content(self) -> str:
        """What the problem *is*, whatever its id or rendering: splits are told apart by it."""
        shown = ",".join(
            f"{name}={value}" for name, value in sorted(zip(self.names, self.values, strict=True))
        )
        return f"{self.family}|{shown}|{self.expression}"


def reading_step(number: int, name: str, value: int) -> str:
    """Write the step that reads one value off the picture."""
    return f"Step {number}: {name} = {value}."


def arithmetic_step(number: int, left: int, operator: str, right: int, result: int) -> str:
    """Write the step that calculates one intermediate result."""
    return f"Step {number}: {left} {operator} {right} = {result}."


def answer_suffix(result: int) -> str:
    """Write what the last step carries after its calculation."""
    return f" Answer: {result}"


# --- judging what was written ---


def parse_answer(text: str) -> str | None:
    """Return the digits after a solution's final ``Answer:``, or None if it ends without one."""
    match = _ANSWER.search(text)
    return match.group(1) if match else None


def exact_labels(problem: TinyProblem, steps: Sequence[str]) -> list[bool]:
    """Label each step: True while every step so far equals the gold solution.

    A solution that stops early has its last label False: ending there is the error.
    """
    gold = problem.steps
    labels: list[bool] = []
    correct = True
    for position, step in enumerate(steps):
        correct = correct and position < len(gold) and step.strip() == gold[position]
        labels.append(correct)
    if labels and correct and len(steps) < len(gold):
        labels[-1] = False
    return labels


# --- its picture ---


IMAGE_SIZE = 64
CELL = 16
CELLS_PER_SIDE = IMAGE_SIZE // CELL
NOISE_RANGE = (15.0, 65.0)
"""Standard deviation of the pixel noise, drawn once per picture (in 0..255 units)."""
PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (214, 39, 40),
    "blue": (31, 97, 200),
    "green": (44, 150, 60),
    "yellow": (235, 200, 40),
    "purple": (140, 60, 180),
    "black": (40, 40, 40),
}
FONT_SIZES = (11, 12, 13)
LIGHT_INK, DARK_INK = 250.0, 30.0
BAR_UNIT = 6
"""Pixels of bar height per unit of value."""

Canvas = npt.NDArray[np.float32]
BARS = "bars"


def render(problem: TinyProblem) -> Image.Image:
    """Draw the problem as a 64x64 RGB picture; a pure function of the problem."""
    rng = np.random.Generator(np.random.PCG64(problem.image_seed))
    background = rng.integers(190, 256)
    canvas: Canvas = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), background, dtype=np.float32)
    draw = _draw_bars if problem.family == BARS else _draw_tiles
    draw(canvas, problem, rng)
    noise = rng.standard_normal(canvas.shape, dtype=np.float32)
    canvas += noise * np.float32(rng.uniform(*NOISE_RANGE))
    return Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))


def value_cells(problem: TinyProblem) -> tuple[int, ...]:
    """Say which cell (row-major, 0..15) carries each value, in the order of `names`."""
    if problem.family == BARS:
        bottom = CELLS_PER_SIDE * (CELLS_PER_SIDE - 1)
        return tuple(bottom + column for column in range(len(problem.names)))
    order = np.random.Generator(np.random.PCG64(problem.image_seed + 1)).permutation(16)
    return tuple(int(cell) for cell in order[: len(problem.names)])


def _colour(name: str, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Jitter a palette colour, as different printers would."""
    return np.clip(np.asarray(PALETTE[name]) + rng.integers(-20, 21, 3), 0, 255).astype(np.float32)


def _draw_tiles(canvas: Canvas, problem: TinyProblem, rng: np.random.Generator) -> None:
    """Put each value as a digit on a coloured tile inside its own cell."""
    cells = value_cells(problem)
    for name, value, cell in zip(problem.names, problem.values, cells, strict=True):
        top, left = CELL * (cell // CELLS_PER_SIDE), CELL * (cell % CELLS_PER_SIDE)
        patch = canvas[top : top + CELL, left : left + CELL]
        x, y, width, shift, font = (
            int(rng.integers(low, high))
            for low, high in ((1, 4), (1, 4), (12, 14), (-1, 2), (0, 3))
        )
        width = min(width, CELL - x, CELL - y)
        patch[y : y + width, x : x + width] = _colour(name, rng)
        glyph = _glyph(value, FONT_SIZES[font], x + width / 2 + shift, y + width / 2)
        ink = DARK_INK if name == "yellow" else LIGHT_INK
        patch *= 1 - glyph
        patch += ink * glyph


@functools.lru_cache(maxsize=4096)
def _glyph(value: int, size: int, x: float, y: float) -> Any:
    """Return the digit's coverage mask on one cell, `[16, 16, 1]` in 0..1, centred at (x, y)."""
    cell = Image.new("L", (CELL, CELL))
    font = ImageFont.load_default(size=size)
    ImageDraw.Draw(cell).text((x, y), str(value), fill=255, font=font, anchor="mm")
    return (np.asarray(cell, dtype=np.float32) / 255)[..., None]


def _draw_bars(canvas: Canvas, problem: TinyProblem, rng: np.random.Generator) -> None:
    """Draw one bar per column on a common axis, with light gridlines every three units."""
    axis = int(rng.integers(57, 61))
    for line in range(axis - 3 * BAR_UNIT, 0, -3 * BAR_UNIT):
        canvas[line] -= 25
    for column, (name, value) in enumerate(zip(problem.names, problem.values, strict=True)):
        width = int(rng.integers(8, 12))
        left = CELL * column + int(rng.integers(1, CELL - width))
        canvas[axis - BAR_UNIT * value : axis, left : left + width] = _colour(name, rng)
    canvas[axis] = 90
