"""A table of critics as Markdown, and as PNG: what is right at which N, and at which cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vprm_search.compare.entrants import REFERENCE
from vprm_search.compare.report import (
    cell,
    draw_line,
    label_text,
    log_axis,
    many,
    new_figure,
    percent,
    png_of,
    points,
    table_head,
)
from vprm_search.evaluate.critics import headline_of
from vprm_search.evaluate.estimators import FIRST_SEEN, LIKELIHOOD, MAJORITY, ORACLE, PASS_1, VOTE
from vprm_search.evaluate.paper import section as paper_section
from vprm_search.evaluate.search_report import drawn_lines
from vprm_search.evaluate.search_report import section as search_section

Summary = Mapping[str, Any]
Row = Mapping[str, Any]

AXES: Mapping[str, str] = {
    "size": "N",
    "generated_tokens": "generated tokens",
    "all_tokens": "generated + scored tokens",
    "seconds": "seconds",
    "cost": "cost",
}
"""What stands below the plots: fields of a row, and how they are called."""

RULES = (
    "First: one selection among the first N, as papers report it. Expected: the mean over all sets "
    "of N of the pool; exact for selection by score, for votes over all sets or so many drawn ones "
    "that the error in brackets is left. Ties: of scores, the earlier candidate; of votes, shared "
    "(first-seen: the answer that was sampled first). 95 % intervals over questions."
)


def markdown(summary: Summary, *, title: str = "", currency: str = "") -> str:
    """Return the whole report of a run.

    Args:
        summary: what `critics.summarise` returned.
        title: of the run; default: the set's name.
        currency: of the costs.
    """
    sizes = summary["sizes"]
    parts = [
        f"# {cell(title or summary['set'] or 'Best of N')}",
        f"{many(summary['problems'], 'problem')}, {many(summary['questions'], 'question')}, "
        f"{many(summary['candidates'], 'candidate')}. Measure: {summary['measure']}.",
        *(f"> {cell(note)}" for note in summary["notes"]),
        f"## {summary['measure'].capitalize()} in %, expected",
        _table(summary, "expected"),
        f"## {summary['measure'].capitalize()} in %, first",
        _table(summary, "first"),
        RULES,
        *_gains(summary),
        *_pairs(summary),
        *_others(summary),
        f"## What N={sizes[-1]} costs per problem",
        _costs(summary, sizes[-1], currency),
        *_baselines(summary),
        *_searches(summary, currency),
        *paper_section(summary, {name: called(name) for name in _names(summary)}),
    ]
    return "\n\n".join(parts) + "\n"


def called(selector: str) -> str:
    """Return what a selector is called in tables."""
    if selector == ORACLE:
        return "pass@N (oracle)"
    if selector == MAJORITY:
        return "majority"
    if selector == FIRST_SEEN:
        return "majority, first-seen"
    if selector.startswith(VOTE):
        return f"votes weighted by {called(selector.removeprefix(VOTE))}"
    names = {"orm": "ORM", "judge": "judge", LIKELIHOOD: "policy's likelihood"}
    return names.get(selector, selector.replace("prm:", "PRM, "))


def _names(summary: Summary) -> list[str]:
    return list(dict.fromkeys(row["selector"] for row in summary["rows"]))


def _at(summary: Summary) -> dict[tuple[str, int], Row]:
    return {(row["selector"], row["size"]): row for row in summary["rows"]}


def _line(name: str, entries: Iterable[str]) -> str:
    return f"| {cell(name)} | " + " | ".join(entries) + " |"


def _table(summary: Summary, kind: str) -> str:
    rows = _at(summary)
    lines = table_head("", *(f"N={size}" for size in summary["sizes"]))
    for name in _names(summary):
        entries = []
        for size in summary["sizes"]:
            row = rows.get((name, size))
            entries.append("" if row is None else percent(row[kind]) + _error(row, kind))
        lines.append(_line(called(name), entries))
    return "\n".join(lines)


def _error(row: Row, kind: str) -> str:
    error = row["drawing_error"]
    return f" (±{100 * error:.2f})" if kind == "expected" and error else ""


def _gains(summary: Summary) -> list[str]:
    rows = _at(summary)
    sizes = [size for size in summary["sizes"] if size > 1]
    if not sizes:
        return []
    lines = table_head("", *(f"N={size}" for size in sizes))
    for name in _names(summary):
        if name != PASS_1:
            entries = [points(rows[name, size]["gain"]) for size in sizes]
            lines.append(_line(called(name), entries))
    return [f"## Points over one candidate ({PASS_1}), expected", "\n".join(lines)]


def _pairs(summary: Summary) -> list[str]:
    sizes = [size for size in summary["sizes"] if size > 1]
    known = {(pair["second"], pair["size"]): pair for pair in summary["pairs"]}
    names = list(dict.fromkeys(second for second, _ in known))
    if not names or not sizes:
        return []
    prm = summary["pairs"][0]["first"]
    lines = table_head(f"{called(prm)} less", *(f"N={size}" for size in sizes))
    for name in names:
        entries = [points(known[name, size]["difference"]) for size in sizes]
        lines.append(_line(called(name), entries))
    return [f"## {called(prm)} against the others, points, paired by question", "\n".join(lines)]


def _others(summary: Summary) -> list[str]:
    """Return a table for each further figure of the set (WeMath's loose score, accuracy, …)."""
    rows, parts = _at(summary), []
    for figure in summary["rows"][0]["other"]:
        lines = table_head("", *(f"N={size}" for size in summary["sizes"]))
        for name in _names(summary):
            entries = []
            for size in summary["sizes"]:
                row = rows.get((name, size))
                entries.append("" if row is None else percent(row["other"][figure]["expected"]))
            lines.append(_line(called(name), entries))
        parts += [f"## {figure.capitalize()} in %, expected", "\n".join(lines)]
    return parts


def _costs(summary: Summary, size: int, currency: str) -> str:
    rows = _at(summary)
    lines = table_head("", "generated tokens", "generated + scored tokens", "seconds",
                       f"cost {currency}".strip())  # fmt: skip
    for name in _names(summary):
        if (row := rows.get((name, size))) is not None:
            lines.append(_line(called(name), _spent(row)))
    return "\n".join(lines)


def _spent(row: Row) -> list[str]:
    tokens = (row["generated_tokens"], row["all_tokens"])
    return [*("–" if count is None else f"{count:.0f}" for count in tokens),
            f"{row['seconds']:.3g}", f"{row['cost']:.4g}"]  # fmt: skip


def _baselines(summary: Summary) -> list[str]:
    if not summary["baselines"]:
        return []
    lines = table_head("policy alone", f"{PASS_1}, %", "generated tokens",
                       "generated + scored tokens", "seconds", "cost")  # fmt: skip
    for found in summary["baselines"]:
        lines.append(_line(found["name"], [percent(found["expected"]), *_spent(found)]))
    return ["## Other policies alone", "\n".join(lines)]


def _searches(summary: Summary, currency: str) -> list[str]:
    found = summary.get("searches")
    if not found or not (found["rows"] or found["no_results"]):
        return []
    return ["## Search strategies at equal generated tokens", *search_section(found, currency)]


# --- the picture ---------------------------------------------------------------------------------


def drawn(summary: Summary) -> dict[str, list[Row]]:
    """Return the lines of the plots: one aggregation of the PRM, and its weighted vote."""
    rows, names = _at(summary), _names(summary)
    prm = headline_of(names)
    vote = [f"{VOTE}{prm}"] if prm else [f"{VOTE}orm"]
    wanted = [ORACLE, prm, *vote, "orm", MAJORITY, "judge", LIKELIHOOD]
    return {
        called(name): [rows[name, size] for size in summary["sizes"] if (name, size) in rows]
        for name in wanted if name in names
    }  # fmt: skip


def _searched(summary: Summary) -> list[Row]:
    """Return the rows of searches; where there is a pool, best-of-N is in its own lines."""
    rows = summary.get("searches", {}).get("rows", [])
    return [row for row in rows if not (summary["rows"] and row["name"] == REFERENCE)]


def png(summary: Summary, *, title: str = "", currency: str = "") -> bytes:
    """Draw expected accuracy with 95 % intervals against N and every cost that is known.

    Dashed: other policies alone, at what one candidate costs them. Open signs: search strategies.

    Raises:
        MissingDependencyError: matplotlib is not there (extra `plots`).
    """
    known = [*summary["rows"], *_searched(summary)]
    axes = [axis for axis in AXES if axis == "size" or any(row[axis] for row in known)]
    across = min(3, len(axes))
    down = -(-len(axes) // across)
    figure = new_figure(figsize=(4.8 * across, 3.8 * down + 1), layout="constrained")
    for place, axis in enumerate(axes):
        panel = figure.add_subplot(down, across, place + 1)
        _panel(panel, summary, axis)
        unit = f", {currency}" if axis == "cost" and currency else ""
        log_axis(panel, AXES[axis] + unit + ("" if axis == "size" else " per problem"))
        if axis == "size":
            panel.minorticks_off()
            panel.set_xticks(sorted({row["size"] for row in known}))
        if place % across == 0:
            panel.set_ylabel(f"{summary['measure']}, %")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    figure.suptitle(
        label_text(title) or f"{many(summary['problems'], 'problem')}, 95 % intervals", fontsize=11
    )
    return png_of(figure)


def _panel(axes: Any, summary: Summary, axis: str) -> None:
    lines = drawn(summary)
    for number, (name, rows) in enumerate(lines.items()):
        draw_line(axes, name, [(row[axis] or 0, row["expected"]) for row in rows], number)
    searches = drawn_lines(_searched(summary))
    for number, (name, rows) in enumerate(searches.items(), start=len(lines)):
        points = [(row[axis] or 0, row["accuracy"]) for row in rows]
        draw_line(axes, name, points, number, hollow=bool(lines))
    for baseline in summary["baselines"]:
        mean = 100 * baseline["expected"]["mean"]
        line = axes.axhline(mean, color="#505a64", linestyle="--", linewidth=1.1)
        line.set_label(label_text(f"{baseline['name']} alone"))
        if axis != "size" and baseline[axis]:
            axes.plot([baseline[axis]], [mean], "*", color="#505a64")
