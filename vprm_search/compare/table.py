"""Tables of a comparison as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vprm_search.compare.entrants import REFERENCE
from vprm_search.errors import RecordError

Rows = Sequence[Mapping[str, Any]]


BUDGET_RULE = (
    "At every N the budget of a problem is what best-of-N generated on that very problem. A search "
    "begins no round, and is cut to the children, that would exceed it at the mean cost of its "
    "children so far. Selectors of one strategy choose from the same searches, the samples of a "
    "smaller N are among those of a larger one, and differences are paired over problems."
)


def full_report(summary: Mapping[str, Any]) -> str:
    """Return everything: accuracies, gains over best-of-N, costs, and all pairs at every N."""
    sizes = _sizes(summary)
    headline = summary["headline"]
    return "\n\n".join(
        [
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
    )


def readme_section(summary: Mapping[str, Any]) -> str:
    """Return the short tables of the README: accuracies, and the cost at the largest N."""
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
    lines = [
        "| strategy, selector | " + " | ".join(f"N={size}" for size in sizes) + " |",
        "|---|" + "---|" * len(sizes),
    ]
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
    lines = [
        f"| {summary['headline']} | " + " | ".join(f"N={size}" for size in sizes) + " |",
        "|---|" + "---|" * len(sizes),
    ]
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
        "| computed by the scorer | rounds | finished paths | ms |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for size in _sizes(summary) if sizes is None else sizes:
        for row in summary["rows"]:
            if row["size"] == size and row["headline"]:
                lines.append(
                    f"| {row['name']} | {size} | {row['generated_tokens']:.0f} "
                    f"| {100 * row['generated_tokens'] / row['budget']:.1f} % "
                    f"| {100 * row['cut']:.0f} % | {row['scored_tokens']:.0f} "
                    f"| {row['computed_tokens']:.0f} | {row['rounds']:.1f} "
                    f"| {row['finished']:.1f} | {1000 * row['seconds']:.0f} |"
                )
    return "\n".join(lines)


def pair_table(summary: Mapping[str, Any], size: int) -> str:
    """Return the paired difference of every two strategies at one size: row less column."""
    pairs = [pair for pair in summary["pairs"] if pair["size"] == size]
    names = list(dict.fromkeys([p["first"] for p in pairs] + [p["second"] for p in pairs]))
    known = {(pair["first"], pair["second"]): pair["difference"] for pair in pairs}
    lines = [
        f"| N={size} | " + " | ".join(names[:-1]) + " |",
        "|---|" + "---|" * (len(names) - 1),
    ]
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


def percent(estimate: Mapping[str, float]) -> str:
    """Return an accuracy in % with its interval."""
    mean, low, high = (100 * estimate[key] for key in ("mean", "low", "high"))
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def points(estimate: Mapping[str, float]) -> str:
    """Return a difference in percentage points with its interval, in bold if it excludes 0."""
    mean, low, high = (100 * estimate[key] for key in ("mean", "low", "high"))
    text = f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"
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
