"""From records to accuracies, costs and paired differences, with 95 % intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vprm_search.compare.entrants import REFERENCE
from vprm_search.compare.intervals import percentiles, resampled_means
from vprm_search.errors import RecordError
from vprm_search.evaluate.search_records import MAX_FAILED, Failures, Record, RecordFile

HEADLINE = "weighted-vote:product"
"""The selector under which strategies are held against one another, where they have it."""

Key = tuple[str, int, str]
"""Strategy, size, selector."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One strategy at one size over all problems: cost per problem, right answers, failures."""

    name: str
    size: int
    seconds: float
    costs: Mapping[str, NDArray[np.float64]]
    right: Mapping[str, NDArray[np.float64]]
    failures: Failures

    @property
    def headline(self) -> str:
        """The selector under which this strategy is compared with others."""
        return HEADLINE if HEADLINE in self.right else list(self.right)[-1]


def read_cells(
    out: Path, choices: Sequence[str] = (), problems: int | None = None
) -> list[Measured]:
    """Read all cells of a folder, in the order of the problems.

    Strategies and sizes that were not measured on every problem yet are left out. Raises
    `RecordError` if nothing is left or a record is damaged.

    Args:
        out: the folder.
        choices: selectors to add where they were not asked; they choose from the recorded trees.
        problems: how many there are. Default: as many as anything was measured on.
    """
    records = RecordFile(out)
    parts: dict[tuple[str, int], list[Record]] = {}
    for record in records:
        parts.setdefault((record.name, record.size), []).append(record)
    problems = problems or len({record.problem for record in records})
    whole = [_joined(rows, records, choices) for rows in parts.values() if len(rows) == problems]
    if not whole:
        raise RecordError(f"{out}: nothing was measured on all problems yet; run the comparison")
    return sorted(whole, key=lambda cell: (cell.size, cell.name != REFERENCE, cell.name))


def _joined(rows: list[Record], records: RecordFile, choices: Sequence[str]) -> Measured:
    rows.sort(key=lambda record: record.problem)
    costs = [record.cost for record in rows]
    asked = dict.fromkeys((*rows[0].choices, *choices))
    chosen = {name: [records.choice(record, name) for record in rows] for name in asked}
    return Measured(
        name=rows[0].name,
        size=rows[0].size,
        seconds=sum(record.seconds for record in rows),
        costs={name: np.array([float(cost[name]) for cost in costs]) for name in costs[0]},
        right={
            name: np.array([float(choice.right) for choice in found if choice is not None])
            for name, found in chosen.items()
            if None not in found
        },
        failures=Failures.sum(record.failures for record in rows),
    )


def summarise(cells: Sequence[Measured], max_failed: float = MAX_FAILED) -> dict[str, Any]:
    """Return all results as plain JSON: rows (one per strategy, size, selector) and pairs.

    Every row's `against_reference` is its accuracy less that of best-of-N of the same size with
    the headline selector; `pairs` hold the strategies of one size against each other. A cell of
    whose calls a larger share than `max_failed` failed is no result: it has no rows, and stands
    under `no_results` with its most frequent error.
    """
    lacking = [cell for cell in cells if cell.failures.share > max_failed]
    whole: dict[str, Any] = {
        "problems": max((len(v) for c in cells for v in c.right.values()), default=0),
        "headline": HEADLINE,
        "max_failed": max_failed,
        "rows": [],
        "pairs": [],
        "no_results": [_no_result(cell) for cell in lacking],
    }
    cells = [cell for cell in cells if cell.failures.share <= max_failed]
    if not cells:
        return whole
    keys = [(c.name, c.size, choice) for c in cells for choice in c.right]
    columns = np.stack([c.right[choice] for c in cells for choice in c.right], axis=1)
    means = resampled_means(columns)
    place = {key: index for index, key in enumerate(keys)}
    exact = columns.mean(axis=0).tolist()

    def difference(a: Key, b: Key) -> dict[str, float]:
        gap = means[:, place[a]] - means[:, place[b]]
        return percentiles(exact[place[a]] - exact[place[b]], gap, len(columns)).to_json()

    headline = {(c.name, c.size): (c.name, c.size, c.headline) for c in cells}
    rows = []
    for cell in cells:
        reference = headline.get((REFERENCE, cell.size))
        for choice in cell.right:
            key = (cell.name, cell.size, choice)
            against = difference(key, reference) if reference not in (None, key) else None
            accuracy = percentiles(exact[place[key]], means[:, place[key]], len(columns))
            rows.append(_row(cell, choice, accuracy.to_json(), against))
    pairs = [
        {"size": a[1], "first": a[0], "second": b[0], "difference": difference(a, b)}
        for a, b in combinations(headline.values(), 2)
        if a[1] == b[1]
    ]
    return {**whole, "rows": rows, "pairs": pairs}


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
    cell: Measured, choice: str, accuracy: dict[str, float], against: dict[str, float] | None
) -> dict[str, Any]:
    costs = {name: float(values.mean()) for name, values in cell.costs.items()}
    return {
        "name": cell.name,
        "size": cell.size,
        "choice": choice,
        "headline": choice == cell.headline,
        "accuracy": accuracy,
        "against_reference": against,
        "seconds": cell.seconds / len(next(iter(cell.costs.values()))),
        "failed": cell.failures.share,
        **costs,
    }
