"""Cells: what one strategy did at one size on a range of problems, as version 0.1 kept it.

They are read beside the records; other libraries' results come in this form, too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vprm_search.errors import RecordError

Row = dict[str, Any]
"""A cell as plain JSON: who, what it is, and one value per problem in every list."""

CELL_COUNTS = (
    "budget",
    "generated_tokens",
    "scored_tokens",
    "computed_tokens",
    "rounds",
    "cut",
    "finished",
)
"""The lists of a cell."""


def cell_path(out: Path, start: int, stop: int, name: str, size: int) -> Path:
    """Return where a cell stands."""
    return out / "cells" / f"{start:06}-{stop:06}" / f"{name}@{size}.json"


_RENAMED = {"refill_heat": "refill_temperature_scale"}
_GONE: dict[str, Any] = {
    "context_cost": 0.0,
    "tempering": False,
    "apart": False,
    "prune_below": None,
    "prune_margin": None,
    "keep_at_least": 1,
    "start": 1.0,
    "levels": None,
}
"""Options of version 0.1, and the value at which each of them did nothing."""


def same_strategy(stored: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Tell whether a stored cell was measured with these options, under their names then or now."""
    facts = {_RENAMED.get(name, name): value for name, value in stored.items()}
    for name, harmless in _GONE.items():
        if name not in wanted and facts.get(name) == harmless:
            facts.pop(name, None)
    if facts.get("refill") == 0 and "refill" in wanted:
        facts["refill"] = wanted["refill"]  # a budget of tokens pays for no refills
    inside, other = facts.get("strategy"), wanted.get("strategy")  # of a cascade, a lookahead
    if isinstance(inside, dict) and isinstance(other, dict) and same_strategy(inside, other):
        facts["strategy"] = other
    return facts == wanted


def read_cell(path: Path) -> Row:
    """Read a measured cell. Raises `RecordError` if it is damaged."""
    try:
        row = json.loads(path.read_text())
        lists = [row[name] for name in CELL_COUNTS] + list(row["right"].values())
        if not row["right"] or len({len(values) for values in lists}) != 1:
            raise ValueError("its lists differ in length")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{path}: not a measured cell ({error}); remove it") from error
    return dict(row)
