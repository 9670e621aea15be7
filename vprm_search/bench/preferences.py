"""Which of two responses a scorer prefers, against people: VL-RewardBench (Li et al., 2024).

Each response's step scores are aggregated, and the higher one is preferred. A tie counts one half:
in the published file the preferred response nearly always stands first, so that whoever gives ties
to the first would be right for nothing. The figures are the accuracy by group, over all pairs
("overall") and the mean of the groups ("macro").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vprm_search.aggregate import counted_scores, path_score
from vprm_search.bench.labelled_solutions import LabelledSteps
from vprm_search.compare.intervals import numbered, resampled_means
from vprm_search.compare.report import many, table_head
from vprm_search.errors import ConfigError

AGGREGATES = ("mean", "min", "last")
Pair = tuple[LabelledSteps, LabelledSteps]
"""The preferred response, and the other one."""


def summarise_pairs(
    solutions: Sequence[LabelledSteps],
    scores: Sequence[Sequence[float | None]],
    *,
    seed: int = 0,
    resamples: int = 2000,
) -> dict[str, Any]:
    """Return everything that is told of a run, as plain JSON.

    Args:
        solutions: the responses as `read_step_benchmark` has them: of each pair the preferred one,
            then the other. A pair of which one is missing is left out.
        scores: `[solutions][steps]`, None for a step without a score; a pair with such a response
            counts as wrong.
        seed: of the bootstrap over questions.
        resamples: of questions.

    Raises:
        ConfigError: there is no pair.
    """
    by_row: dict[int, list[int]] = {}
    for place, solution in enumerate(solutions):
        by_row.setdefault(solution.row, []).append(place)
    pairs = [places for places in by_row.values() if len(places) == 2]
    if not pairs:
        raise ConfigError("no pair of responses: there is nothing to measure")
    first = [solutions[one] for one, _ in pairs]
    groups = tuple(sorted({solution.source for solution in first}))
    member = np.array([groups.index(solution.source) for solution in first])
    questions = numbered([solution.asked for solution in first])

    def valued(value: Callable[[int], float | None]) -> list[tuple[float | None, float | None]]:
        return [(value(one), value(other)) for one, other in pairs]

    def path(name: str) -> Callable[[int], float | None]:
        return lambda n: path_score(name, counted_scores(solutions[n].steps, scores[n]))

    ways: Mapping[str, Callable[[int], float | None]] = {name: path(name) for name in AGGREGATES}
    measured = [
        {"aggregate": name, **_figures(valued(way), member, groups, questions, seed, resamples)}
        for name, way in ways.items()
    ]
    length = _figures(
        valued(lambda n: float(sum(map(len, solutions[n].steps)))),
        member, groups, questions, seed, resamples,
    )  # fmt: skip
    return {
        "pairs": len(pairs),
        "questions": int(questions.max()) + 1,
        "groups": {name: int((member == n).sum()) for n, name in enumerate(groups)},
        "measured": measured,
        "baselines": {"the longer response": length},
    }


def _figures(
    values: Sequence[tuple[float | None, float | None]],
    member: NDArray[np.int64],
    groups: Sequence[str],
    questions: NDArray[np.int64],
    seed: int,
    resamples: int,
) -> dict[str, Any]:
    right = np.array([_right(one, other) for one, other in values])
    columns = np.zeros((len(right), 2 * len(groups)))  # right pairs, and all, of each group
    columns[np.arange(len(right)), member] = right
    columns[np.arange(len(right)), len(groups) + member] = 1.0
    means = resampled_means(columns, questions, seed=seed, resamples=resamples)
    drawn = means[:, : len(groups)].sum(axis=1) / means[:, len(groups) :].sum(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    each = [float(right[member == n].mean()) for n in range(len(groups))]
    return {
        "groups": each,
        "overall": float(right.mean()),
        "interval": [float(low), float(high)],
        "macro": float(np.mean(each)),
        "ties": sum(one == other is not None for one, other in values),
        "unscored": sum(one is None or other is None for one, other in values),
    }


def _right(preferred: float | None, other: float | None) -> float:
    if preferred is None or other is None:
        return 0.0
    return 1.0 if preferred > other else 0.5 if preferred == other else 0.0


def report_pairs(summary: Mapping[str, Any], scorer: str) -> str:
    """Return the report of a run as Markdown.

    Args:
        summary: what `summarise_pairs` returned, with "defects", "left_out" and "reasons".
        scorer: what the rows of the run are called.
    """
    groups = summary["groups"]
    head = ["prefers", *(f"{name or '–'} ({count})" for name, count in groups.items()),
            "Overall", "Macro", "ties"]  # fmt: skip
    rows = [["a coin", *["50.0"] * (len(groups) + 2), "–"]]
    for name, found in summary["baselines"].items():
        rows.append(_cells(name, found))
    for found in summary["measured"]:
        rows.append(_cells(f"**{scorer}**, {found['aggregate']} of the steps", found))
    defects = [f"{defect}: {count}" for defect, count in summary.get("defects", {}).items()]
    if summary.get("left_out"):
        defects.append(f"left out for it: {summary['left_out']} responses")
    if unscored := summary["measured"][0]["unscored"]:
        why = ", ".join(f"{reason} ({count})" for reason, count in summary["reasons"].items())
        defects.append(f"pairs with a response that has no score, which count as wrong: {unscored}"
                       f" ({why})")  # fmt: skip
    lines = [*table_head(*head), *(f"| {' | '.join(row)} |" for row in rows)]
    parts = [
        f"{many(summary['pairs'], 'pair')} of responses to "
        f"{many(summary['questions'], 'question')}.",
        *([f"Records with a defect: {'; '.join(defects)}."] if defects else []),
        "### Pairs in which the response that people prefer scores higher, %",
        "\n".join(lines),
        "Overall: all pairs, with a 95 % interval from resampled questions; macro: the mean of the "
        "groups. A tie counts one half.",
    ]
    return "\n\n".join(parts) + "\n"


def _cells(name: str, found: Mapping[str, Any]) -> list[str]:
    low, high = (f"{100 * value:.1f}" for value in found["interval"])
    overall = f"{100 * found['overall']:.1f} [{low}, {high}]"
    each = [f"{100 * value:.1f}" for value in found["groups"]]
    return [name, *each, overall, f"{100 * found['macro']:.1f}", str(found["ties"])]
