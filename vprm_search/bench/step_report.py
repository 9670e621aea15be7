"""A benchmark of step scores as Markdown: the paper's table, with trivial scorers beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from vprm_search.compare.report import many, table_head

PAPER_SOURCES: Mapping[str, str] = MappingProxyType(
    {
        "MMMU_DEV_VAL": "MMMU",
        "MathVision_MINI": "MathVision",
        "MathVerse_MINI_Vision_Only": "MathVerse-VO",
        "DynaMath": "DynaMath",
        "WeMath": "WeMath",
    }
)
"""VisualProcessBench's sources and the paper's columns, in its order."""

PAPER_ROWS: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        "GPT-4o-Mini": (53.6, 58.9, 57.1, 56.7, 58.5, 57.9),
        "GPT-4o": (56.3, 60.2, 59.7, 59.0, 63.3, 60.3),
        "Gemini-2.0-Flash": (58.5, 60.1, 62.8, 66.7, 58.7, 62.3),
        "MiniCPM-V2.6-8B": (44.9, 50.9, 58.9, 46.7, 57.4, 50.4),
        "LLaVA-OV-7B": (45.7, 43.0, 42.2, 44.7, 52.5, 44.4),
        "LLaVA-OV-72B": (46.1, 48.4, 53.0, 57.0, 57.3, 52.3),
        "Qwen2.5-VL-7B": (53.1, 51.8, 47.8, 51.3, 54.2, 51.0),
        "Qwen2.5-VL-72B": (59.2, 59.0, 59.7, 62.9, 62.3, 60.5),
        "InternVL2.5-8B": (47.1, 45.5, 47.8, 50.3, 50.8, 48.0),
        "InternVL2.5-26B": (48.8, 47.4, 49.2, 50.4, 51.4, 49.2),
        "InternVL2.5-38B": (51.5, 48.4, 50.9, 51.8, 52.5, 50.8),
        "InternVL2.5-78B": (52.0, 51.7, 53.7, 50.8, 52.5, 52.6),
        "VisualPRM-8B": (58.5, 62.1, 61.0, 62.7, 61.8, 62.0),
    }
)
"""Macro F1 in % as the paper gives it (arXiv 2503.10291, table 3): its sources, then overall."""


def report(summary: Mapping[str, Any], scorer: str) -> str:
    """Return the whole report of a run.

    Args:
        summary: what `step_results.summarise` returned, with "defects" and "left_out".
        scorer: what the row of the run is called.
    """
    labels = summary["labels"]
    parts = [
        f"{many(summary['solutions'], 'solution')} to {many(summary['questions'], 'question')}, "
        f"{many(summary['steps'], 'step')}: {labels['right']} right, {labels['wrong']} wrong, "
        f"{labels['neutral']} without a verdict (dropped).",
        *_defects(summary),
        "### Macro F1, %",
        _main_table(summary, scorer),
        "A step is right if P('+') is above the threshold t (a margin of 2t - 1 over P('-')). "
        "Overall: all steps together, with a 95 % interval from resampled questions; mean and "
        'weighted: of the sources. Coins by their expected counts. "Position only" knows how '
        "often a step at that place is right in other questions."
        + (" Rows marked * are the paper's." if _is_paper(summary["sources"]) else ""),
        "### Right and wrong steps apart, %",
        _class_table(summary),
        "### The first wrong step, % of solutions",
        _first_table(summary),
        _areas(summary),
        *_tuned(summary),
    ]
    return "\n\n".join(parts) + "\n"


def _defects(summary: Mapping[str, Any]) -> list[str]:
    told = [f"{defect}: {count}" for defect, count in summary.get("defects", {}).items()]
    if summary.get("left_out"):
        told.append(f"left out for it: {many(summary['left_out'], 'solution')}")
    if summary["unscored"]:
        why = ", ".join(f"{reason} ({count})" for reason, count in summary["reasons"].items())
        told.append(
            f"{summary['unscored']} labelled steps have no score and count as wrong verdicts: {why}"
        )
    return [f"Records with a defect: {'; '.join(told)}."] if told else []


def _is_paper(sources: Sequence[str]) -> bool:
    return set(sources) == set(PAPER_SOURCES)


def _order(sources: Sequence[str]) -> list[int]:
    if _is_paper(sources):
        return [list(sources).index(name) for name in PAPER_SOURCES]
    return list(range(len(sources)))


def _row(name: str, values: Sequence[str]) -> str:
    return f"| {name} | " + " | ".join(values) + " |"


def _main_table(summary: Mapping[str, Any], scorer: str) -> str:
    sources = summary["sources"]
    order = _order(sources)
    names = [PAPER_SOURCES.get(sources[n], sources[n]) or "–" for n in order]
    lines = table_head("scorer", *names, "Overall", "mean", "weighted")

    def line(name: str, found: Mapping[str, Any], interval: Sequence[float] | None) -> str:
        cells = [_percent(found["sources"][n]) for n in order]
        overall = _percent(found["pooled"])
        if interval is not None:
            overall += f" [{_percent(interval[0])}, {_percent(interval[1])}]"
        means = [_percent(found["mean"]), _percent(found["weighted"])]
        return _row(name, [*cells, overall, *means])

    for name, found in summary["baselines"].items():
        lines.append(line(name, found, None))
    if _is_paper(sources):
        for name, row in PAPER_ROWS.items():
            lines.append(_row(f"{name} *", [*(f"{value:.1f}" for value in row), "–", "–"]))
    for found in summary["thresholds"]:
        name = f"**{scorer}**, t = {found['threshold']:g}"
        lines.append(line(name, found, found["interval"]["pooled"]))
    return "\n".join(lines)


def _class_table(summary: Mapping[str, Any]) -> str:
    names = ("f1", "precision", "recall")
    head = ["threshold", *(f"{name}, {kind}" for kind in ("right", "wrong") for name in names)]
    lines = table_head(*head)
    for found in summary["thresholds"]:
        cells = [_percent(found[f"{name}_{kind}"]) for kind in ("right", "wrong") for name in names]
        lines.append(_row(f"{found['threshold']:g}", cells))
    return "\n".join(lines)


def _first_table(summary: Mapping[str, Any]) -> str:
    lines = table_head("threshold", "found in erroneous ones", "correct ones passed", "F1")
    for found in summary["thresholds"]:
        first = found["first_error"]
        cells = [_percent(first[name]) for name in ("erroneous", "correct", "f1")]
        lines.append(_row(f"{found['threshold']:g}", cells))
    return "\n".join(lines)


def _areas(summary: Mapping[str, Any]) -> str:
    area, place = summary["auroc"], summary["baselines"]["position only"]["auroc"]
    each = ", ".join(
        f"{summary['sources'][n] or '–'} {_share(area['sources'][n])}"
        for n in _order(summary["sources"])
    )
    return (
        f"AUROC of the steps that have a score: {_share(area['pooled'])} over all ({each}); of the "
        f"place alone {_share(None if place != place else place)}."
    )


def _tuned(summary: Mapping[str, Any]) -> list[str]:
    if "tuned" not in summary:
        return []
    tuned = summary["tuned"]
    return [
        f"With the threshold that is best on {tuned['on']} ({tuned['threshold']:.3f}), macro F1 on "
        f"all other sources is {_percent(tuned['pooled_of_others'])} %."
    ]


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
