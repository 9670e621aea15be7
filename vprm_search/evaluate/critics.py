"""All critics at every N from one pool, with intervals over questions; as plain JSON in the end.

Problems are taken one by one, and of each only a row of numbers is kept: the texts of ten thousand
pools are never in memory together. Intervals resample whole questions (a problem's group: variants
and steps of one question are not independent); below `intervals.SMALL` questions they are Wilson's.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vprm_search.compare.intervals import (
    SMALL,
    Estimate,
    numbered,
    percentiles,
    resampled_means,
    share_estimate,
)
from vprm_search.compare.report import many
from vprm_search.datasets.known import SetName
from vprm_search.datasets.set_scores import Graded, unit_scores
from vprm_search.errors import InputError, RecordError
from vprm_search.evaluate.estimators import (
    ORACLE,
    PASS_1,
    RESAMPLES,
    VOTE,
    figures_of,
    selectors_of,
    sizes_of,
)
from vprm_search.evaluate.pool import PooledProblem
from vprm_search.evaluate.search_records import MAX_FAILED

FORMAT = "vprm-search evaluate 2"
COSTS = ("generated_tokens", "scored_tokens", "seconds", "cost")
_GROUPED: tuple[SetName, ...] = ("dynamath", "wemath")
_BOOTSTRAP = 2000

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a problem belongs, without its candidates."""

    id: str
    group: str
    variant: str
    category: str


@dataclass(slots=True)
class Table:
    """What every selector is worth at every N, problem by problem.

    Args:
        name: of the set, "" if it is none that is known.
        sizes: the N's.
        critics: the names of the scores.
        places: `[problems]`.
        first: `[problems]` of `[selectors, sizes]`, as `estimators.ProblemFigures` has it.
        expected: likewise.
        variance: `[selectors, sizes]` what drawn sets left, summed over problems.
        costs: `[problems]` of `[sizes, costs]`: of N candidates of the pool, on average.
        candidates: how many there are in all.
        unscored: by critic, the candidates that it did not score.
        short: by N, the problems whose pool is smaller.
    """

    name: SetName
    sizes: tuple[int, ...]
    critics: tuple[str, ...] = ()
    places: list[Place] = field(default_factory=list)
    first: list[Matrix] = field(default_factory=list)
    expected: list[Matrix] = field(default_factory=list)
    variance: Matrix | None = None
    costs: list[Matrix] = field(default_factory=list)
    candidates: int = 0
    unscored: Counter[str] = field(default_factory=Counter)
    short: Counter[int] = field(default_factory=Counter)

    @property
    def selectors(self) -> tuple[str, ...]:
        """The names of the rows."""
        return selectors_of(self.critics)

    @property
    def lacking(self) -> dict[str, float]:
        """Critics that left too many candidates without a score to be measured, with the share."""
        shares = {name: count / max(1, self.candidates) for name, count in self.unscored.items()}
        return {name: share for name, share in shares.items() if share > MAX_FAILED}


def tabulate(
    problems: Iterable[PooledProblem],
    samples: int,
    *,
    name: SetName = "",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Table:
    """Return the table of a pool. Problems are read once, one at a time.

    Args:
        problems: with their pools, scored and graded.
        samples: candidates of a problem, the largest N.
        name: the set, for its group scores.
        seed: of drawn sets of votes.
        resamples: sets that are drawn where there are more.

    Raises:
        RecordError: no problem at all, one twice, one with other critics than the first, or a
            score that is none.
    """
    table = Table(name, sizes_of(samples))
    seen: set[str] = set()
    for problem in problems:
        if problem.id in seen:
            raise RecordError(f"problem {problem.id} stands twice in the pool")
        seen.add(problem.id)
        _add(table, problem, seed, resamples)
    if not seen:
        raise RecordError(
            f"no problem has N = {samples} candidates: nothing to report; run --stage generate, "
            "or give a smaller --n"
        )
    return table


def _add(table: Table, problem: PooledProblem, seed: int, resamples: int) -> None:
    pool = problem.candidates
    critics = tuple(dict.fromkeys(name for candidate in pool for name in candidate.scores))
    if not table.candidates:
        table.critics = critics
        blank = np.zeros((len(table.selectors), len(table.sizes)))
        table.first = [blank] * len(table.places)  # problems before it that have no candidates
        table.expected = [blank] * len(table.places)
        table.variance = blank if pool else None
    if new := set(critics) - set(table.critics):
        raise RecordError(
            f"problem {problem.id} has scores of {', '.join(sorted(new))}, which problems before "
            "it have not; let the critic score all problems"
        )
    table.candidates += len(pool)
    for critic in table.critics:
        table.unscored[critic] += sum(c.scores.get(critic) is None for c in pool)
    table.short.update(size for size in table.sizes if len(pool) < size)
    figures = figures_of(problem, table.critics, table.sizes, seed=seed, resamples=resamples)
    table.places.append(
        Place(problem.id, problem.group or problem.id, problem.variant, problem.category)
    )
    table.first.append(figures.first)
    table.expected.append(figures.expected)
    if table.variance is not None:
        table.variance = table.variance + figures.variance
    each = np.array([[float(getattr(c, cost)) for cost in COSTS] for c in pool])
    mean = each.mean(axis=0) if len(pool) else np.zeros(len(COSTS))
    table.costs.append(np.array([mean * min(size, len(pool)) for size in table.sizes]))


# --- the summary ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Measure:
    """One published figure of a set: `exact` `[columns]` and its `means` `[resamples, columns]`."""

    exact: list[float]
    means: Matrix
    questions: int

    def share(self, column: int) -> dict[str, float]:
        """Return the estimate of a column."""
        return share_estimate(self.exact[column], self.means[:, column], self.questions).to_json()

    def less(self, column: int, other: int) -> dict[str, float]:
        """Return the estimate of a column less another one."""
        gap = self.means[:, column] - self.means[:, other]
        exact = self.exact[column] - self.exact[other]
        return percentiles(exact, gap, self.questions).to_json()


def measures_of(
    name: SetName, places: Sequence[Place], values: Matrix, *, resamples: int = _BOOTSTRAP
) -> dict[str, Measure]:
    """Return the figures of a set, the headline first, of `values` `[problems, columns]`."""
    found = {}
    if name in _GROUPED and _whole_units(name, places):
        columns = [_unit_columns(name, places, values[:, n]) for n in range(values.shape[1])]
        groups = columns[0][0]
        for figure in columns[0][1]:
            table = np.array([column[figure] for _, column in columns]).T
            found[figure] = _measure(table, groups, resamples)
    found["accuracy"] = _measure(values, [place.group for place in places], resamples)
    return found


def _whole_units(name: SetName, places: Sequence[Place]) -> int:
    """Return how many units of a set (seeds, problems with their steps) have all their rows."""
    try:
        return len(unit_scores(name, [(place, 0.0) for place in places]))
    except InputError:
        return 0


def _group_notes(name: SetName, places: Sequence[Place]) -> list[str]:
    """Return what lacks in the groups that a set is scored by."""
    if name == "dynamath":
        sizes = Counter(place.group for place in places)
        few = sum(size < max(sizes.values()) for size in sizes.values())
        if few:
            return [f"{few} of {len(sizes)} seeds lack variants: their worst case is too easy."]
    if name == "wemath":
        units = len({(place.group, place.variant.partition("_")[0]) for place in places})
        whole = _whole_units(name, places)
        if whole < units:
            instead = "" if whole else "; there is no score, and accuracy stands in its place"
            return [f"{units - whole} of {units} problems lack steps and are left out{instead}."]
    return []


def _unit_columns(
    name: SetName, places: Sequence[Place], chances: Matrix
) -> tuple[list[str], dict[str, list[float]]]:
    graded: Graded = list(zip(places, chances.tolist(), strict=True))
    units = unit_scores(name, graded)
    figures = {figure: [unit.scores[figure] for unit in units] for figure in units[0].scores}
    return [unit.group for unit in units], figures


def _measure(table: Matrix, groups: Sequence[str], resamples: int) -> Measure:
    owners = numbered(groups)
    means = resampled_means(table, owners, resamples=resamples)
    return Measure(table.mean(axis=0).tolist(), means, int(owners.max()) + 1)


def headline_of(critics: Iterable[str]) -> str | None:
    """Return the process reward model's critic that is held against the others: by the mean."""
    prm = [critic for critic in critics if critic.startswith("prm")]
    return next((c for c in prm if c == "prm:mean"), prm[0] if prm else None)


def summarise(
    table: Table,
    *,
    baselines: Mapping[str, Table] | None = None,
) -> dict[str, Any]:
    """Return everything that is told of a run, as plain JSON; docs/evaluate.md has its fields.

    Args:
        table: of the run.
        baselines: other policies alone, by name: of each pool pass@1 counts.

    Raises:
        RecordError: a figure is no number.
    """
    count, selectors, sizes = len(table.places), len(table.selectors), len(table.sizes)
    flat: Matrix = np.empty((count, 2 * selectors * sizes))
    for row, first, expected in zip(flat, table.first, table.expected, strict=True):
        row[:] = np.concatenate([first, expected], axis=None)
    measures = measures_of(table.name, table.places, flat)
    headline = next(iter(measures))

    def at(selector: int, size: int, *, one: bool = False) -> int:
        place: int = (0 if one else selectors * sizes) + selector * sizes + size
        return place

    costs = np.array(table.costs).mean(axis=0)
    drawn = np.zeros((selectors, sizes)) if table.variance is None else table.variance
    error = np.sqrt(drawn) / count if headline == "accuracy" else None
    pass_1 = table.selectors.index(PASS_1)
    rows, pairs = [], []
    prm = headline_of(set(table.critics) - set(table.lacking))
    for place, selector in enumerate(table.selectors):
        if selector.removeprefix(VOTE) in table.lacking:
            continue
        for number, size in enumerate(table.sizes):
            if selector == PASS_1 and number:
                break
            column = at(place, number)
            rows.append(
                {
                    "selector": selector,
                    "size": size,
                    "first": measures[headline].share(at(place, number, one=True)),
                    "expected": measures[headline].share(column),
                    "drawing_error": None if error is None else float(error[place, number]),
                    "gain": measures[headline].less(column, at(pass_1, 0)),
                    "other": {
                        name: {"first": found.share(at(place, number, one=True)),
                               "expected": found.share(column)}
                        for name, found in measures.items() if name != headline
                    },
                    **_costs(selector, costs[number]),
                }
            )  # fmt: skip
            if prm is not None and selector not in (prm, ORACLE, PASS_1):
                against = at(table.selectors.index(prm), number)
                pairs.append(
                    {"size": size, "first": prm, "second": selector,
                     "difference": measures[headline].less(against, column)}
                )  # fmt: skip
    summary: dict[str, Any] = {
        "format": FORMAT,
        "set": table.name,
        "problems": count,
        "questions": measures["accuracy"].questions,
        "candidates": table.candidates,
        "sizes": list(table.sizes),
        "measure": headline,
        "short": {str(size): short for size, short in sorted(table.short.items()) if short},
        "unscored": {name: n for name, n in table.unscored.items() if n},
        "no_results": table.lacking,
        "rows": rows,
        "pairs": pairs,
        "baselines": [_baseline(name, other) for name, other in (baselines or {}).items()],
    }
    return {**summary, "notes": [*_group_notes(table.name, table.places), *_notes(summary)]}


def _costs(selector: str, spent: Matrix) -> dict[str, float | None]:
    """Return what N candidates cost; tokens that ORM and judge read are not in the pool."""
    generated, scored, seconds, cost = (float(value) for value in spent)
    critic = selector.removeprefix(VOTE)
    reads = critic.startswith("prm")
    unknown = critic in ("orm", "judge")
    return {
        "generated_tokens": generated,
        "all_tokens": None if unknown else generated + (scored if reads else 0.0),
        "seconds": seconds,
        "cost": cost,
    }


def _baseline(name: str, table: Table) -> dict[str, Any]:
    """Return what a policy comes to alone: pass@1, and what one candidate costs."""
    expected = np.array(table.expected)[:, table.selectors.index(PASS_1), :1]
    measures = measures_of(table.name, table.places, expected)
    headline = next(iter(measures))
    return {
        "name": name,
        "problems": len(table.places),
        "measure": headline,
        "expected": measures[headline].share(0),
        **_costs(PASS_1, np.array(table.costs).mean(axis=0)[0]),
    }


def _notes(summary: Mapping[str, Any]) -> list[str]:
    """Return what a reader has to know: of overfitting, of pools that lack, of small sets."""
    notes = []
    for size in summary["sizes"][-1:]:
        for pair in summary["pairs"]:
            found = Estimate(**pair["difference"])
            if pair["second"] == "orm" and pair["size"] == size and found.high < 0:
                low, high = -100 * found.high, -100 * found.low
                notes.append(
                    f"At N={size} the outcome score (orm) beats {pair['first']} by "
                    f"{-100 * found.mean:.1f} points [{low:.1f}, {high:.1f}]; in VisualPRM's paper "
                    "it never does. A larger pool holds more wrong solutions that a critic likes: "
                    "if the PRM's line falls with N, its step scores are overfitted."
                )
    for name, share in summary["no_results"].items():
        notes.append(
            f"{name} has no results: {100 * share:.1f} % of the candidates have no score of it."
        )
    for size, short in summary["short"].items():
        fewer = many(short, "problem has", "problems have")
        notes.append(f"{fewer} fewer than {size} candidates; all they have is taken.")
    for name, count in summary["unscored"].items():
        if name not in summary["no_results"]:
            lack = many(count, "candidate has", "candidates have")
            notes.append(f"{lack} no score of {name}; it takes them last.")
    for found in summary["baselines"]:
        if found["problems"] != summary["problems"]:
            notes.append(
                f"{found['name']} was measured on {many(found['problems'], 'problem')} and not on "
                f"{summary['problems']}."
            )
    if summary["questions"] < SMALL:
        notes.append(
            f"Only {many(summary['questions'], 'question')}: intervals of shares are Wilson's; "
            "those of differences are a bootstrap's and may be too narrow."
        )
    if not all(math.isfinite(row["expected"]["mean"]) for row in summary["rows"]):
        raise RecordError("a figure is no number: this is a fault of vprm-search")
    return notes
