"""What reports are made of: cells of Markdown tables, sections of pages, lines of plots."""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vprm_search.errors import MissingDependencyError, RecordError


def table_head(*names: str) -> list[str]:
    """Return the two first lines of a table."""
    return ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]


def cell(text: str) -> str:
    """Return text that cannot leave its cell, nor be HTML."""
    for sign, safe in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("\n", " ")):
        text = text.replace(sign, safe)
    return text


def many(count: int, one: str, more: str = "") -> str:
    """Return a number of things, as "1 problem" or "2 problems"; `more` where it is no "s"."""
    return f"{count} {one if count == 1 else more or f'{one}s'}"


def percent(estimate: Mapping[str, float]) -> str:
    """Return an accuracy in % with its interval."""
    mean, low, high = (100 * estimate[key] for key in ("mean", "low", "high"))
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def points(estimate: Mapping[str, float]) -> str:
    """Return a difference in percentage points with its interval, in bold if it excludes 0."""
    mean, low, high = (100 * estimate[key] for key in ("mean", "low", "high"))
    text = f"{mean:+z.1f} [{low:+z.1f}, {high:+z.1f}]"  # z: never -0.0
    return f"**{text}**" if low > 0 or high < 0 else text


def fill_section(path: Path, text: str, marks: Iterable[str] = ("results",)) -> None:
    """Replace what stands between `<!-- results:begin -->` and `<!-- results:end -->` in a file.

    Raises `RecordError` if the marks are missing.
    """
    content = path.read_text()
    for mark in marks:
        begin, end = f"<!-- {mark}:begin -->", f"<!-- {mark}:end -->"
        if begin not in content or end not in content:
            raise RecordError(f"{path}: the marks {begin} and {end} are missing")
        before, rest = content.split(begin, 1)
        content = f"{before}{begin}\n{text}\n{end}{rest.split(end, 1)[1]}"
    path.write_text(content)


# --- the picture

_COLOURS = (
    "#1d2329",
    "#c82d2d",
    "#1e6fb8",
    "#1e8c46",
    "#b8731e",
    "#7a3fb0",
    "#0f8f8f",
    "#b03f7a",
    "#6b7a1e",
    "#505a64",
)
_MARKERS = "osD^vP*Xdh"


def new_figure(**options: Any) -> Any:
    """Return a matplotlib `Figure`, without pyplot and its global state.

    Raises `MissingDependencyError` without matplotlib (extra `plots`).
    """
    try:
        return importlib.import_module("matplotlib.figure").Figure(**options)
    except ModuleNotFoundError as error:
        raise MissingDependencyError("matplotlib", "plots") from error


def png_of(figure: Any) -> bytes:
    """Return a figure as PNG; equal figures give equal bytes."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110, metadata={"Software": None})
    return data.getvalue()


def label_text(text: str) -> str:
    """Return text that matplotlib shows as it is: no formula between dollars, none hidden."""
    return text.replace("$", "\\$").lstrip("_")


def log_axis(axes: Any, label: str) -> None:
    """Make the axis of costs one of powers, with readable numbers, and a quiet grid."""
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    ticker = importlib.import_module("matplotlib.ticker")
    axes.xaxis.set_minor_locator(ticker.LogLocator(subs=(2.0, 5.0)))
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="x", which="both", labelsize=8, labelrotation=45)
    axes.set_xlabel(label_text(label))
    axes.grid(True, color="#e4e7ea", linewidth=0.8)
    axes.set_axisbelow(True)


def draw_line(
    axes: Any,
    name: str,
    points: Sequence[tuple[float, Mapping[str, float]]],
    number: int,
    *,
    hollow: bool = False,
) -> None:
    """Draw a line of costs and estimates in %, with their intervals, in the colour of its number.

    Points whose cost is 0 have no place on the axis.
    """
    points = [(cost, found) for cost, found in points if cost > 0]
    if not points:
        return
    means = [100 * found["mean"] for _, found in points]
    below = [100 * (found["mean"] - found["low"]) for _, found in points]
    above = [100 * (found["high"] - found["mean"]) for _, found in points]
    axes.errorbar(
        [cost for cost, _ in points],
        means,
        yerr=[below, above],
        label=label_text(name),
        color=_COLOURS[number % len(_COLOURS)],
        marker=_MARKERS[number % len(_MARKERS)],
        markerfacecolor="white" if hollow else None,
        markersize=5,
        linewidth=1.3,
        elinewidth=0.7,
        capsize=2,
        linestyle="--" if number >= len(_COLOURS) else "-",
    )
