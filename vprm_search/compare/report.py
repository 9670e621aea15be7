"""What is shown of a comparison: tables as Markdown, accuracy against cost as a PNG."""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vprm_search.compare.entrants import REFERENCE
from vprm_search.errors import MissingDependencyError, RecordError

Rows = Sequence[Mapping[str, Any]]


BUDGET_RULE = (
    "At every N the budget of a problem is what best-of-N generated on that very problem. A search "
    "begins no round, and is cut to the children, that would exceed it at the mean cost of its "
    "children so far. Selectors of one strategy choose from the same searches, the samples of a "
    "smaller N are among those of a larger one, and differences are paired over problems."
)


def full_report(summary: Mapping[str, Any]) -> str:
    """Return everything: accuracies, gains over best-of-N, costs, all pairs, what is missing."""
    sizes = _sizes(summary)
    headline = summary["headline"]
    results = [
        f"{summary['problems']} problems; 95 % bootstrap intervals over problems.",
        BUDGET_RULE,
        "### Accuracy, %",
        accuracy_table(summary),
        f"### Points over best-of-N of the same N, both by {headline}",
        gain_table(summary),
        "### Cost of a problem",
        cost_table(summary),
        *(part for size in sizes for part in _pair_section(summary, size)),
    ]
    return "\n\n".join([*(results if sizes else []), *no_results_section(summary)])


def no_results_section(summary: Mapping[str, Any]) -> list[str]:
    """Return which cells are no results and why, what to do about it, and what was left out."""
    lines = table_head("strategy", "N", "failed calls", "most frequent error")
    for cell in summary["no_results"]:
        error = cell["error"].replace("|", "\\|")
        lines.append(f"| {cell['name']} | {cell['size']} | {cell['failed']} | {error} |")
    parts = []
    if summary["no_results"]:
        limit = f"{100 * summary['max_failed']:g} %"
        parts = [
            "### No results",
            f"More than {limit} of the calls failed, so these strategies have no accuracy. The "
            "same command makes the searches again in which calls failed, and no others.",
            "\n".join(lines),
        ]
    if left_out := summary.get("not_measured"):
        parts.append(f"Not measured on all problems: {', '.join(left_out)}.")
    return parts


def page_section(summary: Mapping[str, Any]) -> str:
    """Return what a page shows: accuracies, gains, and the cost at the largest N."""
    largest = _sizes(summary)[-1]
    return "\n\n".join(
        [
            f"Accuracy in % on {summary['problems']} problems, 95 % intervals. {BUDGET_RULE}",
            accuracy_table(summary),
            f"Points over best-of-N of the same N, both by {summary['headline']} (bold: the "
            "interval excludes 0):",
            gain_table(summary),
            f"Cost of a problem at N={largest}:",
            cost_table(summary, [largest]),
        ]
    )


def _pair_section(summary: Mapping[str, Any], size: int) -> list[str]:
    if not any(pair["size"] == size for pair in summary["pairs"]):
        return []
    return [f"### Row less column at N={size}, points", pair_table(summary, size)]


def accuracy_table(summary: Mapping[str, Any]) -> str:
    """Return accuracies in % with 95 % intervals: a line per strategy and selector, N across."""
    sizes = _sizes(summary)
    lines = table_head("strategy, selector", *(f"N={size}" for size in sizes))
    for name, choice in _lines(summary["rows"]):
        entries = []
        for size in sizes:
            row = _find(summary["rows"], name, size, choice)
            entries.append("–" if row is None else percent(row["accuracy"]))
        bold = "**" if choice == summary["headline"] else ""
        lines.append(f"| {bold}{name}, {choice}{bold} | " + " | ".join(entries) + " |")
    return "\n".join(lines)


def gain_table(summary: Mapping[str, Any]) -> str:
    """Return paired differences to best-of-N of the same N, both with the headline selector."""
    sizes = _sizes(summary)
    rows = [row for row in summary["rows"] if row["headline"] and row["name"] != REFERENCE]
    lines = table_head(summary["headline"], *(f"N={size}" for size in sizes))
    for name in dict.fromkeys(row["name"] for row in rows):
        entries = []
        for size in sizes:
            row = next((r for r in rows if (r["name"], r["size"]) == (name, size)), None)
            against = None if row is None else row["against_reference"]
            entries.append("–" if against is None else points(against))
        lines.append(f"| {name} | " + " | ".join(entries) + " |")
    return "\n".join(lines)


def cost_table(summary: Mapping[str, Any], sizes: Iterable[int] | None = None) -> str:
    """Return what a problem cost on average, and what was left of its budget."""
    lines = [
        "| strategy | N | generated tokens | of the budget | ended by it | scored tokens "
        "| computed by the scorer | rounds | finished paths | failed calls | ms |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for size in _sizes(summary) if sizes is None else sizes:
        for row in summary["rows"]:
            if row["size"] == size and row["headline"]:
                lines.append(
                    f"| {row['name']} | {size} | {row['generated_tokens']:.0f} "
                    f"| {_share(row['generated_tokens'], row['budget'])} "
                    f"| {100 * row['cut']:.0f} % | {row['scored_tokens']:.0f} "
                    f"| {row['computed_tokens']:.0f} | {row['rounds']:.1f} "
                    f"| {_finished(row)} | {100 * row['failed']:.1f} % "
                    f"| {1000 * row['seconds']:.0f} |"
                )
    return "\n".join(lines)


def _finished(row: Mapping[str, Any]) -> str:
    """Return the finished paths per problem, and of how many problems there was none."""
    none = row["unfinished"]
    return f"{row['finished']:.1f}" + (f" (none in {100 * none:.1f} %)" if none else "")


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"


def pair_table(summary: Mapping[str, Any], size: int) -> str:
    """Return the paired difference of every two strategies at one size: row less column."""
    pairs = [pair for pair in summary["pairs"] if pair["size"] == size]
    names = list(dict.fromkeys([p["first"] for p in pairs] + [p["second"] for p in pairs]))
    known = {(pair["first"], pair["second"]): pair["difference"] for pair in pairs}
    lines = table_head(f"N={size}", *names[:-1])
    for place, name in enumerate(names[1:], start=1):
        entries = [points(_negated(known[other, name])) for other in names[:place]]
        entries += [""] * (len(names) - 1 - place)
        lines.append(f"| {name} | " + " | ".join(entries) + " |")
    return "\n".join(lines)


def synthetic_table(summary: Mapping[str, Any]) -> str:
    """Return accuracy and cost in one table, its_hub's rows among this package's."""
    lines = [
        "| N | strategy, selector | accuracy | generated tokens | scored tokens | with an ideal "
        "prefix cache |",
        "|---|---|---|---|---|---|",
    ]
    for size in _sizes(summary):
        rows = [row for row in summary["rows"] if row["size"] == size]
        for row in sorted(rows, key=lambda row: -row["accuracy"]["mean"]):
            peer = row["name"].startswith("its_hub")
            name = f"*{row['name']}*" if peer else row["name"]
            lines.append(
                f"| {size} | {name}, {row['choice']} | {percent(row['accuracy'])} "
                f"| {row['generated_tokens']:.0f} | {row['scored_tokens']:.0f} "
                f"| {row['computed_tokens']:.0f} |"
            )
    return "\n".join(lines)


def table_head(*names: str) -> list[str]:
    """Return the two first lines of a table."""
    return ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]


def percent(estimate: Mapping[str, float]) -> str:
    """Return an accuracy in % with its interval."""
    mean, low, high = (100 * estimate[key] for key in ("mean", "low", "high"))
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def points(estimate: Mapping[str, float]) -> str:
    """Return a difference in percentage points with its interval, in bold if it excludes 0."""
    mean, low, high = (100 * estimate[key] for key in ("mean", "low", "high"))
    text = f"{mean:+z.1f} [{low:+z.1f}, {high:+z.1f}]"  # z: never -0.0
    return f"**{text}**" if low > 0 or high < 0 else text


def _negated(estimate: Mapping[str, float]) -> dict[str, float]:
    return {"mean": -estimate["mean"], "low": -estimate["high"], "high": -estimate["low"]}


def _sizes(summary: Mapping[str, Any]) -> list[int]:
    return sorted({row["size"] for row in summary["rows"]})


def _lines(rows: Rows) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row["name"], row["choice"]) for row in rows))


def _find(rows: Rows, name: str, size: int, choice: str) -> Mapping[str, Any] | None:
    wanted = (name, size, choice)
    return next((r for r in rows if (r["name"], r["size"], r["choice"]) == wanted), None)


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
            draw_line(axes, name, [(row[cost], row["accuracy"]) for row in rows], number)
        log_axis(axes, label)
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
