"""Reliability diagrams show the measures; the table has every number."""

from __future__ import annotations

import io
from random import Random

import pytest
from PIL import Image
from rich.console import Console

from vprm_search.calibration.fit import Reliability, reliability
from vprm_search.compare.intervals import Estimate
from vprm_search.errors import ConfigError
from vprm_search.report.reliability import (
    Calibrated,
    calibration_table,
    png_reliability,
    reliability_figure,
)


def measured(shift: float) -> Reliability:
    rng = Random(0)
    scores = [rng.random() for _ in range(500)]
    return reliability(scores, [rng.random() < min(1, s + shift) for s in scores])


def row(policy: str = "tiny@0.7") -> Calibrated:
    change = Estimate(-0.0123, -0.02, -0.004, 77)
    return Calibrated(policy, "isotonic", measured(0.3), measured(0.0), change)


def test_the_table_has_every_number_before_and_after() -> None:
    console = Console(width=100, file=io.StringIO())
    one = row("evil\x1b[31m[red]")
    console.print(calibration_table([one, row()]))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for measure in ("ece", "brier", "log_loss"):
        for side in (one.before, one.after):
            assert f"{getattr(side, measure):.4f}" in text
    assert "-0.0123" in text
    assert "-0.0200 … -0.0040" in text
    assert "\x1b" not in text


def test_the_bars_are_as_high_as_the_share_of_right_points() -> None:
    one = row("costs $5 and $6")  # not mathematics
    figure = reliability_figure([one, row("other")])
    above = [part.axes for part in figure.subfigs]
    assert len(above) == 2
    for axes, shown in zip(above[0], (one.before, one.after), strict=False):
        heights = {round(bar.get_x(), 6): bar.get_height() for bar in axes.patches}
        assert heights == {round(part.low, 6): part.right for part in shown.bins}
        assert f"ECE {shown.ece:.3f}" in axes.get_title()
    with Image.open(io.BytesIO(png_reliability([one, row("other")]))) as picture:
        assert picture.format == "PNG"
        with Image.open(io.BytesIO(png_reliability([one]))) as alone:
            assert picture.height == 2 * alone.height


def test_too_many_rows_are_refused() -> None:
    for rows in ([], [row()] * 21):
        with pytest.raises(ConfigError, match="1 to 20"):
            png_reliability(rows)
