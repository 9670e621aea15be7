"""A search as a PNG: the problem's image, the tree with P('+') per step, and what was pruned."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from vprm_search.errors import ConfigError
from vprm_search.images.normalise import open_rgb
from vprm_search.report.view import NodeView, Rgb, SearchView, score_rgb, shortened
from vprm_search.types import ImageData, NodeId

MAX_PIXELS = 60_000_000

_INK: Rgb = (29, 35, 41)
_SOFT: Rgb = (110, 120, 130)
_LINE: Rgb = (200, 206, 212)
_MARK: Rgb = (36, 99, 196)
_CARD: Rgb = (246, 247, 249)
_WHITE: Rgb = (255, 255, 255)
_MARGIN = 24
_HEAD = 216
_SCORE_WIDTH = 46


@dataclass(frozen=True, slots=True)
class _Box:
    """Sizes of a drawn step and of the grid, in pixels."""

    width: int = 268
    height: int = 44
    across: int = 296
    down: int = 56


_BOX = _Box()
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def png_picture(view: SearchView, images: Sequence[ImageData] = ()) -> bytes:
    """Return a PNG of a search with the problem's images above it.

    Raises `ConfigError` if the picture would have more than `MAX_PIXELS` pixels.
    """
    width = max(2 * _MARGIN + view.columns * _BOX.across, 900)
    height = _HEAD + 2 * _MARGIN + view.rows * _BOX.down
    if width * height > MAX_PIXELS:
        raise ConfigError(
            f"a picture of {len(view.nodes)} steps would be {width}x{height} pixels (at most "
            f"{MAX_PIXELS}); write the HTML page, or show fewer steps with max_nodes"
        )
    canvas = Image.new("RGB", (width, height), _WHITE)
    draw = ImageDraw.Draw(canvas)
    _head(canvas, draw, view, images)
    places = {node.id: _place(node) for node in view.nodes}
    for node in sorted(view.nodes, key=lambda n: n.chosen):  # the answer's path lies on top
        _edge(draw, node, places)
    for node in view.nodes:
        _node(draw, node, places[node.id])
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _font(size: int) -> Font:
    return ImageFont.load_default(size)


def _head(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, view: SearchView, images: Sequence[ImageData]
) -> None:
    left, side = _MARGIN, _HEAD - 2 * _MARGIN
    for image in images:
        picture = open_rgb(image.png)
        scale = min(side / picture.height, 2 * side / picture.width)
        how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        if left + size[0] > canvas.width // 2:
            break
        canvas.paste(picture.resize(size, how), (left, _MARGIN))
        left += size[0] + 16
    room = max(20, (canvas.width - left) // 10)
    draw.text((left, _MARGIN), shortened(view.title, room), _SOFT, _font(15))
    draw.text((left, _MARGIN + 26), shortened(view.question, room), _INK, _font(20))
    answer, colour = _answer(view)
    draw.text((left, _MARGIN + 62), shortened(answer, room), colour, _font(20))
    spent = view.usage
    facts = f"{view.ended_by}; {spent.rounds} rounds, {spent.candidates} candidates"
    draw.text((left, _MARGIN + 94), shortened(facts, 2 * room), _SOFT, _font(14))
    costs = f"{spent.generated_tokens} tokens generated, {spent.scored_tokens} scored"
    costs += f"; {spent.work()}" if spent.work() else ""
    draw.text((left, _MARGIN + 114), costs, _SOFT, _font(14))
    _scale(draw, left, _MARGIN + 142, view.hidden)


def _answer(view: SearchView) -> tuple[str, Rgb]:
    text = f"Answer: {view.said}"
    if view.expected is None:
        return text, _INK
    if view.answer == view.expected:
        return f"{text} (right)", score_rgb(1.0)
    return f"{text} (wrong, it is {view.expected})", score_rgb(0.0)


def _scale(draw: ImageDraw.ImageDraw, left: int, top: int, hidden: int) -> None:
    draw.text((left, top + 1), "P('+')  0", _SOFT, _font(13))
    start = left + 62
    for step in range(101):
        draw.line(
            [(start + step, top), (start + step, top + 16)], fill=score_rgb(step / 100), width=1
        )
    more = f"   {hidden} more steps are not shown" if hidden else ""
    legend = f"1     blue line: the answer's path     grey: pruned, with the reason{more}"
    draw.text((start + 108, top + 1), legend, _SOFT, _font(13))


def _place(node: NodeView) -> tuple[int, int]:
    return (
        _MARGIN + node.column * _BOX.across,
        _HEAD + _MARGIN + round(node.row * _BOX.down),
    )


def _edge(draw: ImageDraw.ImageDraw, node: NodeView, places: dict[NodeId, tuple[int, int]]) -> None:
    if node.parent is None:
        return
    from_x, from_y = places[node.parent]
    to_x, to_y = places[node.id]
    start = (from_x + _BOX.width, from_y + _BOX.height // 2)
    middle = (start[0] + to_x) // 2
    end = (to_x, to_y + _BOX.height // 2)
    line = [start, (middle, start[1]), (middle, end[1]), end]
    draw.line(line, fill=_MARK if node.chosen else _LINE, width=3 if node.chosen else 1)


def _node(draw: ImageDraw.ImageDraw, node: NodeView, place: tuple[int, int]) -> None:
    x, y = place
    gone = node.status in ("pruned", "failed")
    colour = _faded(score_rgb(node.score)) if gone else score_rgb(node.score)
    ink = _SOFT if gone else _INK
    outline = _MARK if node.chosen else colour
    box = (x, y, x + _BOX.width, y + _BOX.height)
    draw.rounded_rectangle(box, 6, fill=_CARD, outline=outline, width=3 if node.chosen else 1)
    draw.rounded_rectangle((x, y, x + _SCORE_WIDTH, y + _BOX.height), 6, fill=colour)
    score = "?" if node.score is None else f"{node.score:.2f}"
    centre = (x + _SCORE_WIDTH // 2, y + _BOX.height // 2)
    draw.text(centre, score, _WHITE, _font(15), anchor="mm")
    text_x = x + _SCORE_WIDTH + 8
    _fitted(draw, (text_x, y + 5), node.text or "(end)", ink, 14)
    _fitted(draw, (text_x, y + 25), _note(node), _SOFT, 11)


def _note(node: NodeView) -> str:
    copies = f"proposed {node.copies} times" if node.copies > 1 else ""
    state = f"{node.status}: {node.reason}" if node.reason else node.status
    if node.said:
        state = node.said
    elif node.status == "open":
        state = node.score_reason
    return "; ".join(part for part in (state, copies) if part)


def _fitted(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, colour: Rgb, size: int
) -> None:
    """Write one line, cut to the width of a box."""
    room = _BOX.width - _SCORE_WIDTH - 14
    font = _font(size)
    limit = 60
    line = shortened(text, limit)
    while limit > 4 and draw.textlength(line, font=font) > room:
        limit = min(limit - 1, len(line) - 1)
        line = shortened(text, limit)
    draw.text(place, line, colour, font)


def _faded(colour: Rgb) -> Rgb:
    red, green, blue = ((channel + 2 * 255) // 3 for channel in colour)
    return red, green, blue
