"""Reliability diagrams as a PNG, and the measures of a calibration as a table."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont
from rich.table import Table

from vprm_search.calibration.fit import Reliability
from vprm_search.compare.statistics import Estimate
from vprm_search.errors import ConfigError
from vprm_search.report.colours import Rgb, score_rgb
from vprm_search.report.printable import printable, shortened

MAX_ROWS = 20

_INK: Rgb = (29, 35, 41)
_SOFT: Rgb = (110, 120, 130)
_LINE: Rgb = (200, 206, 212)
_WHITE: Rgb = (255, 255, 255)
_SIDE, _COUNTS = 300, 60  # the square of a diagram and the strip of counts below it, in pixels
_LEFT, _TOP, _GAP, _BOTTOM = 64, 84, 96, 48
_ROW = _TOP + _SIDE + 8 + _COUNTS + _BOTTOM


@dataclass(frozen=True, slots=True)
class Calibrated:
    """One policy's scores on held-out problems, before and after the calibration.

    `brier_change` is after minus before, with an interval over problems: below 0 is better.
    """

    policy: str
    method: str
    before: Reliability
    after: Reliability
    brier_change: Estimate


_MEASURES = {"ECE": "ece", "Brier score": "brier", "log loss": "log_loss"}


def calibration_table(rows: Sequence[Calibrated]) -> Table:
    """Return the measures before and after, four lines per policy."""
    table = Table(header_style="bold")
    table.add_column("policy, method")
    table.add_column("on held-out problems")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    for row in rows:
        facts = f"{row.before.points} points, {row.before.right:.1%} right"
        table.add_row(f"{printable(row.policy)}, {row.method}", facts, style="bold")
        for name, measure in _MEASURES.items():
            old, new = getattr(row.before, measure), getattr(row.after, measure)
            table.add_row("", name, f"{old:.4f}", f"{new:.4f}")
        change = row.brier_change
        table.add_row("", "change of Brier per problem", "", f"{change.mean:+.4f}")
        interval = f"{change.low:+.4f} … {change.high:+.4f}"
        table.add_row("", "its 95 % interval", "", interval, end_section=True)
    return table


def png_reliability(rows: Sequence[Calibrated]) -> bytes:
    """Return a PNG: per policy one diagram before and one after the calibration.

    A bar stands over each interval of scores and is as high as the share of right points in it; the
    dot marks their mean score on the diagonal, where a calibrated score lies. The strip below shows
    how many points lie where. Raises `ConfigError` for no policy, or for more than `MAX_ROWS`.
    """
    if not 1 <= len(rows) <= MAX_ROWS:
        raise ConfigError(
            f"{len(rows)} policies cannot be drawn; draw 1 to {MAX_ROWS} in a picture"
        )
    width = _LEFT + 2 * _SIDE + _GAP + 32
    canvas = Image.new("RGB", (width, len(rows) * _ROW), _WHITE)
    draw = ImageDraw.Draw(canvas)
    for number, row in enumerate(rows):
        top = number * _ROW
        head = f"{shortened(row.policy, 60)} ({row.method}, held-out problems)"
        draw.text((_LEFT, top + 16), head, _INK, _font(18))
        _diagram(draw, _LEFT, top + _TOP, row.before, "before")
        _diagram(draw, _LEFT + _SIDE + _GAP, top + _TOP, row.after, "after")
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _diagram(
    draw: ImageDraw.ImageDraw, left: int, top: int, measured: Reliability, title: str
) -> None:
    bottom = top + _SIDE
    facts = f"{title}: ECE {measured.ece:.3f}, Brier {measured.brier:.3f}"
    draw.text((left, top - 26), facts, _INK, _font(15))
    for mark in range(6):
        y = bottom - round(mark / 5 * _SIDE)
        draw.line([(left, y), (left + _SIDE, y)], fill=_LINE, width=1)
        draw.text((left - 8, y), f"{mark / 5:.1f}", _SOFT, _font(12), anchor="rm")
        x = left + round(mark / 5 * _SIDE)
        draw.text((x, bottom + 14 + _COUNTS), f"{mark / 5:.1f}", _SOFT, _font(12), anchor="mt")
    most = max(part.count for part in measured.bins)
    floor = bottom + 8 + _COUNTS
    for part in measured.bins:
        x0, x1 = left + round(part.low * _SIDE) + 1, left + round(part.high * _SIDE) - 1
        height = round(part.right * _SIDE)
        draw.rectangle((x0, bottom - height, x1, bottom), fill=score_rgb(part.right))
        draw.rectangle((x0, floor - max(1, round(part.count / most * _COUNTS)), x1, floor), _SOFT)
    draw.line([(left, bottom), (left + _SIDE, top)], fill=_INK, width=2)
    for part in measured.bins:
        along = round(part.mean_score * _SIDE)
        dot = (left + along - 3, bottom - along - 3, left + along + 3, bottom - along + 3)
        draw.ellipse(dot, fill=_WHITE, outline=_INK)
    draw.rectangle((left, top, left + _SIDE, bottom), outline=_SOFT)
    label = f"score; {measured.points} points, {measured.right:.2f} of them right"
    draw.text((left, floor + 22), label, _SOFT, _font(12))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
