"""Strategies beside one another: what is right, at which cost, and by how much they differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vprm_search.compare.entrants import REFERENCE
from vprm_search.compare.report import cell, many, percent, points, table_head

Row = Mapping[str, Any]
Rows = Sequence[Row]

BUDGET_RULE = (
    "At every N the budget of a problem is what best-of-N generated on that very problem. A search "
    "begins no round, and is cut to the children, that would exceed it at the mean cost of its "
    "children so far. Selectors of one strategy choose from the same searches, the samples of a "
    "smaller N are among those of a larger one, and differences are paired over problems."
)


def section(summary: Mapping[str, Any], currency: str = "") -> list[str]:
    """Return everything: accuracies, gains over best-of-N, costs, all pairs, what is missing.

    Args:
        summary: what `search_summary.summarise` returned.
        currency: of the costs.
    """
    sizes = _sizes(summary)
    headline = summary["headline"]
    measure = summary["rows"][0]["measure"].capitalize() if sizes else ""
    results = [
        f"{many(summary['problems'], 'problem')}; 95 % intervals over questions.",
        BUDGET_RULE,
        f"### {measure}, %",
        accuracy_table(summary),
        f"### Points over best-of-N of the same N, both by {headline}",
        gain_table(summary),
        "### Cost of a problem",
        cost_table(summary, currency=currency),
        *(part for size in sizes for part in _pair_section(summary, size)),
    ]
    return [*(results if sizes else []), *no_results_section(summary)]


def no_results_section(summary: Mapping[str, Any]) -> list[str]:
    """Return which cells are no results and why, what to do about it, and what was left out."""
    lines = table_head("strategy", "N", "failed calls", "most frequent error")
    for found in summary["no_results"]:
        said = (found["name"], str(found["size"]), found["failed"], found["error"])
        lines.append("| " + " | ".join(map(cell, said)) + " |")
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
    problems = many(summary["problems"], "problem")
    return "\n\n".join(
        [
            f"Accuracy in % on {problems}, 95 % intervals. {BUDGET_RULE}",
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
            entries.append("–" if row is None else percent(row["accuracy"]) + _of(row, summary))
        bold = "**" if choice == summary["headline"] else ""
        lines.append(f"| {bold}{cell(f'{name}, {choice}')}{bold} | " + " | ".join(entries) + " |")
    return "\n".join(lines)


def _of(row: Row, summary: Mapping[str, Any]) -> str:
    """Say where a row is of fewer problems, or of another measure, than the others."""
    said = []
    if row["measure"] != summary["rows"][0]["measure"]:
        said.append(row["measure"])
    if row["problems"] != summary["problems"]:
        said.append(many(row["problems"], "problem"))
    return f" ({', '.join(said)})" if said else ""


def gain_table(summary: Mapping[str, Any]) -> str:
    """Return paired differences to best-of-N of the same N, both with the headline selector.

    A strategy that lacks it stands by its own, which its line says.
    """
    sizes = _sizes(summary)
    headline = summary["headline"]
    rows = [row for row in summary["rows"] if row["headline"] and row["name"] != REFERENCE]
    lines = table_head(headline, *(f"N={size}" for size in sizes))
    for name in dict.fromkeys(row["name"] for row in rows):
        entries = []
        for size in sizes:
            row = next((r for r in rows if (r["name"], r["size"]) == (name, size)), None)
            against = None if row is None else row["against_reference"]
            entries.append("–" if against is None else points(against))
        own = next(row["choice"] for row in rows if row["name"] == name)
        by = "" if own == headline else f" (by {own})"
        lines.append(f"| {cell(name + by)} | " + " | ".join(entries) + " |")
    return "\n".join(lines)


def cost_table(
    summary: Mapping[str, Any], sizes: Iterable[int] | None = None, currency: str = ""
) -> str:
    """Return what a problem cost on average, and what was left of its budget."""
    rows = [
        row
        for size in (_sizes(summary) if sizes is None else sizes)
        for row in summary["rows"]
        if row["size"] == size and row["headline"]
    ]
    paid = [f"cost {currency}".strip()] if any(row.get("cost") for row in rows) else []
    lines = table_head(
        "strategy", "N", "generated tokens", "of the budget", "ended by it", "scored tokens",
        "computed by the scorer", "rounds", "finished paths", "failed calls", "ms", *paid,
    )  # fmt: skip
    for row in rows:
        entries = [
            cell(row["name"]), str(row["size"]), f"{row['generated_tokens']:.0f}",
            _share(row["generated_tokens"], row.get("budget")), _told(row, "cut", "{:.0%}"),
            f"{row['scored_tokens']:.0f}", _told(row, "computed_tokens", "{:.0f}"),
            _told(row, "rounds", "{:.1f}"), _finished(row), f"{100 * row['failed']:.1f} %",
            f"{1000 * row['seconds']:.0f}", *(f"{row['cost']:.4g}" for _ in paid),
        ]  # fmt: skip
        lines.append("| " + " | ".join(entries) + " |")
    return "\n".join(lines)


def _told(row: Row, name: str, form: str) -> str:
    """Return a cost; what a pool of candidates does not tell is a dash."""
    return form.format(row[name]).replace("%", " %") if name in row else "–"


def _finished(row: Row) -> str:
    """Return the finished paths per problem, and of how many problems there was none."""
    none = row.get("unfinished")
    return _told(row, "finished", "{:.1f}") + (f" (none in {100 * none:.1f} %)" if none else "")


def _share(part: float, whole: float | None) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"


def pair_table(summary: Mapping[str, Any], size: int) -> str:
    """Return the paired difference of every two strategies at one size: row less column."""
    pairs = [pair for pair in summary["pairs"] if pair["size"] == size]
    names = list(dict.fromkeys([p["first"] for p in pairs] + [p["second"] for p in pairs]))
    known = {(pair["first"], pair["second"]): pair["difference"] for pair in pairs}
    lines = table_head(f"N={size}", *map(cell, names[:-1]))
    for place, name in enumerate(names[1:], start=1):
        found = [known.get((other, name)) for other in names[:place]]
        entries = ["–" if one is None else points(_negated(one)) for one in found]
        entries += [""] * (len(names) - 1 - place)
        lines.append(f"| {cell(name)} | " + " | ".join(entries) + " |")
    return "\n".join(lines)


def _negated(estimate: Mapping[str, float]) -> dict[str, float]:
    return {"mean": -estimate["mean"], "low": -estimate["high"], "high": -estimate["low"]}


def _sizes(summary: Mapping[str, Any]) -> list[int]:
    return sorted({row["size"] for row in summary["rows"]})


def _lines(rows: Rows) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row["name"], row["choice"]) for row in rows))


def _find(rows: Rows, name: str, size: int, choice: str) -> Mapping[str, Any] | None:
    wanted = (name, size, choice)
    return next((r for r in rows if (r["name"], r["size"], r["choice"]) == wanted), None)


def drawn_lines(rows: Rows) -> dict[str, list[Row]]:
    """Return the lines of the plots by name, each with its rows in the order of N."""
    lines: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["size"]):
        if row["headline"]:
            lines.setdefault(row["name"], []).append(row)
        elif row["choice"] == "majority" and row["name"] == "best-of-n":
            lines.setdefault("majority of N", []).append(row)
    return lines
