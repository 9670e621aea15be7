"""Draw a tiny problem as a noisy, jittered 64x64 picture: number tiles on a board, or a bar chart.

The picture is a 4x4 grid of 16-pixel cells, and a vision tower with 8-pixel patches and a 2x2 pixel
shuffle gives one image token per cell. Each value belongs to one token (`value_cells`): a tile lies
inside its cell, and a bar is attributed to the bottom cell of the column that it stands in.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from vprm_search.tiny.problem import TinyProblem

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
