"""From searches to accuracies, costs and paired differences, with 95 % intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vprm_search.budget import Prices
from vprm_search.compare.entrants import REFERENCE
from vprm_search.compare.intervals import RESAMPLES
from vprm_search.datasets.known import SetName
from vprm_search.errors import RecordError
from vprm_search.evaluate.critics import Measure, Place, measures_of
from vprm_search.evaluate.search_records import MAX_FAILED, Choice, Failures, Record, RecordFile
from vprm_search.evaluate.side_by_side import FREE

HEADLINE = "weighted-vote:product"
"""The selector under which strategies are held against one another, where all have it."""

Column = NDArray[np.float64]
Rule = Callable[[Record, Choice], bool]
"""Whether what a selector chose in a search is right."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One strategy at one size: on which problems, cost of each, right answers, failures."""

    name: str
    size: int
    problems: tuple[int, ...]
    costs: Mapping[str, Column]
    right: Mapping[str, Column]
    failures: Failures = field(default_factory=Failures)

    def at(self, choice: str, problems: tuple[int, ...]) -> Column:
        """Return what is right by a selector on some of its problems."""
        if problems == self.problems:
            return self.right[choice]
        return self.right[choice][np.searchsorted(self.problems, problems)]


def read_cells(
    out: Path,
    choices: Sequence[str] = (),
    problems: int | None = None,
    *,
    prices: Prices = FREE,
) -> list[Measured]:
    """Read all cells of a folder, in the order of the problems.

    Strategies and sizes that were not measured on every problem yet are left out. Raises
    `RecordError` if nothing is left or a record is damaged.

    Args:
        out: the folder.
        choices: selectors to add where they were not asked; they choose from the recorded trees.
        problems: how many count, the first. Default: as many as anything was measured on.
        prices: what tokens cost. Default: nothing.
    """
    records = RecordFile(out)
    kept = [record for record in records if problems is None or record.problem < problems]
    found = cells_of(records, kept, lambda _, choice: choice.right, choices, prices)
    problems = problems or len({record.problem for record in kept})
    whole = [cell for cell in found if len(cell.problems) == problems]
    if not whole:
        raise RecordError(f"{out}: nothing was measured on all problems yet; run the comparison")
    return whole


def cells_of(
    file: RecordFile,
    records: Iterable[Record],
    rule: Rule,
    choices: Sequence[str] = (),
    prices: Prices = FREE,
) -> list[Measured]:
    """Return the cells that some records of a file make.

    Args:
        file: of the records, with their trees.
        records: which of them.
        rule: tells what is right.
        choices: selectors to add.
        prices: what tokens cost.
    """
    parts: dict[tuple[str, int], list[Record]] = {}
    for record in records:
        parts.setdefault((record.name, record.size), []).append(record)
    cells = [_joined(rows, file, rule, choices, prices) for rows in parts.values()]
    return sorted(cells, key=lambda cell: (cell.size, cell.name != REFERENCE, cell.name))


def _joined(
    rows: list[Record], file: RecordFile, rule: Rule, choices: Sequence[str], prices: Prices
) -> Measured:
    rows.sort(key=lambda record: record.problem)
    costs = [{**row.cost, "cost": prices.cost_of(row.usage)} for row in rows]
    right = {}
    for name in dict.fromkeys((*rows[0].choices, *choices)):
        found = [file.choice(record, name) for record in rows]
        if None not in found:
            right[name] = np.array(
                [rule(row, one) for row, one in zip(rows, found, strict=True) if one is not None],
                dtype=np.float64,
            )
    return Measured(
        name=rows[0].name,
        size=rows[0].size,
        problems=tuple(record.problem for record in rows),
        costs={name: np.array([float(cost[name]) for cost in costs]) for name in costs[0]},
        right=right,
        failures=Failures.sum(record.failures for record in rows),
    )


def headline_of(cells: Sequence[Measured]) -> str:
    """Return the selector under which strategies are compared: `HEADLINE`, or the last shared."""
    names = cells[0].right if cells else ()
    shared = [name for name in names if all(name in cell.right for cell in cells)]
    return HEADLINE if HEADLINE in shared or not shared else shared[-1]


Key = tuple[Measured, str]
"""A cell and a selector."""


class _Estimates:
    """Estimates over the problems that cells have in common; all cells see the same resamples."""

    def __init__(
        self, cells: Sequence[Measured], name: SetName, places: Mapping[int, Place]
    ) -> None:
        self._cells, self._name, self._places = cells, name, places
        self._known: dict[tuple[int, ...], tuple[str, Measure, dict[object, int]]] = {}

    def of(self, key: Key) -> tuple[str, dict[str, float]]:
        """Return what is measured (a set's own score, or accuracy), and the estimate."""
        name, measure, columns = self._on(key[0].problems)
        return name, measure.share(columns[_named(key)])

    def less(self, a: Key, b: Key) -> dict[str, float] | None:
        """Return the paired difference on the problems that both have, None if there are none."""
        problems = a[0].problems
        if problems != b[0].problems:
            problems = tuple(sorted(set(problems) & set(b[0].problems)))
        if not problems:
            return None
        _, measure, columns = self._on(problems)
        return measure.less(columns[_named(a)], columns[_named(b)])

    def _on(self, problems: tuple[int, ...]) -> tuple[str, Measure, dict[object, int]]:
        if problems not in self._known:
            wanted = set(problems)
            cells = [cell for cell in self._cells if wanted <= set(cell.problems)]
            keys = [(cell, choice) for cell in cells for choice in cell.right]
            values = np.stack([cell.at(choice, problems) for cell, choice in keys], axis=1)
            alone = (Place(str(one), str(one), "", "") for one in problems)
            places = [self._places.get(int(one.id), one) for one in alone]
            measures = measures_of(self._name, places, values, resamples=RESAMPLES)
            columns: dict[object, int] = {_named(key): n for n, key in enumerate(keys)}
            self._known[problems] = (*next(iter(measures.items())), columns)
        return self._known[problems]


def _named(key: Key) -> tuple[str, int, str]:
    return key[0].name, key[0].size, key[1]


def summarise(
    cells: Sequence[Measured],
    max_failed: float = MAX_FAILED,
    *,
    name: SetName = "",
    places: Mapping[int, Place] | None = None,
) -> dict[str, Any]:
    """Return all results as plain JSON: rows (one per strategy, size, selector) and pairs.

    Every row's `against_reference` is its accuracy less that of best-of-N of the same size with
    the headline selector; `pairs` hold the strategies of one size against each other. A cell of
    whose calls a larger share than `max_failed` failed is no result: it has no rows, and stands
    under `no_results` with its most frequent error.

    Args:
        cells: what was measured.
        max_failed: see above.
        name: of the set, if it has a score of its own.
        places: where problems belong: what belongs together is resampled together. Default: each
            is alone.
    """
    lacking = [cell for cell in cells if cell.failures.share > max_failed]
    problems = max((len(cell.problems) for cell in cells), default=0)
    cells = [cell for cell in cells if cell.failures.share <= max_failed]
    headline = headline_of(cells)
    whole: dict[str, Any] = {
        "problems": problems,
        "headline": headline,
        "max_failed": max_failed,
        "rows": [],
        "pairs": [],
        "no_results": [_no_result(cell) for cell in lacking],
    }
    estimates = _Estimates(cells, name, places or {})
    references = {cell.size: cell for cell in cells if cell.name == REFERENCE}
    for cell in cells:
        reference = references.get(cell.size)
        own = headline if headline in cell.right else list(cell.right)[-1]
        for choice in cell.right:
            measure, accuracy = estimates.of((cell, choice))
            itself = cell is reference and choice == headline
            against = (
                None
                if reference is None or itself or headline not in reference.right
                else estimates.less((cell, choice), (reference, headline))
            )
            row = _row(cell, choice, measure, accuracy, against)
            whole["rows"].append({**row, "headline": choice == own})
    for a, b in combinations(cells, 2):
        if a.size == b.size and headline in a.right and headline in b.right:
            difference = estimates.less((a, headline), (b, headline))
            if difference is not None:
                pair = {"size": a.size, "first": a.name, "second": b.name}
                whole["pairs"].append({**pair, "difference": difference})
    return whole


def _no_result(cell: Measured) -> dict[str, Any]:
    failures = cell.failures
    return {
        "name": cell.name,
        "size": cell.size,
        "share": failures.share,
        "failed": str(failures),
        "error": failures.most_frequent,
    }


def _row(
    cell: Measured,
    choice: str,
    measure: str,
    accuracy: dict[str, float],
    against: dict[str, float] | None,
) -> dict[str, Any]:
    costs = {name: float(values.mean()) for name, values in cell.costs.items()}
    return {
        "name": cell.name,
        "size": cell.size,
        "choice": choice,
        "problems": len(cell.problems),
        "measure": measure,
        "accuracy": accuracy,
        "against_reference": against,
        "failed": cell.failures.share,
        **costs,
        "all_tokens": costs["generated_tokens"] + costs["scored_tokens"],
    }
