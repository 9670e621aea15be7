"""Accuracy against what it cost, as a PNG: generated tokens, scored tokens, wall time."""

from __future__ import annotations

import importlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

from vprm_search.errors import MissingDependencyError

_AXES = (
    ("generated_tokens", "generated tokens per problem"),
    ("scored_tokens", "scored tokens per problem"),
    ("seconds", "seconds per problem"),
)
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

Row = Mapping[str, Any]


def comparison_png(summary: Mapping[str, Any], title: str = "") -> bytes:
    """Draw every strategy's accuracy with its 95 % interval against three costs; N grows along.

    Strategies are drawn with their headline selector, best-of-N by majority besides. Raises
    `MissingDependencyError` without matplotlib (extra `plots`).
    """
    figure = new_figure(figsize=(15, 5.2), layout="constrained")
    lines = drawn_lines(summary["rows"])
    for place, (cost, label) in enumerate(_AXES):
        axes = figure.add_subplot(1, len(_AXES), place + 1)
        for number, (name, rows) in enumerate(lines.items()):
            _draw(axes, name, rows, cost, number)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("{x:g}")
        axes.tick_params(axis="x", which="both", labelsize=8, labelrotation=45)
        axes.set_xlabel(label)
        axes.grid(True, color="#e4e7ea", linewidth=0.8)
        axes.set_axisbelow(True)
        if place == 0:
            axes.set_ylabel("accuracy, %")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    figure.suptitle(title or f"{summary['problems']} problems, 95 % intervals", fontsize=11)
    return png_of(figure)


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


def drawn_lines(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the lines of the plots by name, each with its rows in the order of N."""
    lines: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["size"]):
        if row["headline"]:
            lines.setdefault(row["name"], []).append(row)
        elif row["choice"] == "majority" and row["name"] == "best-of-n":
            lines.setdefault("majority of N", []).append(row)
    return lines


def _draw(axes: Any, name: str, rows: Sequence[Row], cost: str, number: int) -> None:
    points = [row for row in rows if row[cost] > 0]
    if not points:
        return
    means = [100 * row["accuracy"]["mean"] for row in points]
    below = [100 * (row["accuracy"]["mean"] - row["accuracy"]["low"]) for row in points]
    above = [100 * (row["accuracy"]["high"] - row["accuracy"]["mean"]) for row in points]
    axes.errorbar(
        [row[cost] for row in points],
        means,
        yerr=[below, above],
        label=name,
        color=_COLOURS[number % len(_COLOURS)],
        marker=_MARKERS[number % len(_MARKERS)],
        markersize=5,
        linewidth=1.3,
        elinewidth=0.7,
        capsize=2,
        linestyle="--" if number >= len(_COLOURS) else "-",
    )
