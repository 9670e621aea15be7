"""One cell of a comparison: what one strategy did at one size on one shard, and its file."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vprm_search.compare.entrants import choice_of
from vprm_search.compare.worlds import Task, is_right
from vprm_search.errors import RecordError
from vprm_search.graph.run import SearchRun

CUT = "budget: generated_tokens"
"""How the reason begins for which a search ends that has used up its tokens."""

Row = dict[str, Any]
"""A cell as plain JSON: who, what it is, and one value per problem in every list."""


@dataclass(slots=True)
class Spent:
    """A stopwatch that can be stopped and started again: wall time and this process's CPU time."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def __enter__(self) -> Spent:
        self.seconds -= time.perf_counter()
        self.cpu_seconds -= time.process_time()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds += time.perf_counter()
        self.cpu_seconds += time.process_time()


@dataclass(slots=True)
class Cell:
    """The measurements of one strategy at one size, problem by problem."""

    name: str
    size: int
    choices: tuple[str, ...]
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    generated_tokens: list[int] = field(default_factory=list)
    scored_tokens: list[int] = field(default_factory=list)
    computed_tokens: list[int] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    cut: list[int] = field(default_factory=list)
    finished: list[int] = field(default_factory=list)
    right: dict[str, list[int]] = field(default_factory=dict)

    def add(self, tasks: Sequence[Task], runs: Sequence[SearchRun], spent: Spent) -> None:
        """Take in the searches of a batch; `spent` is what they took together."""
        self.seconds += spent.seconds
        self.cpu_seconds += spent.cpu_seconds
        for run in runs:
            totals = run.tree.totals
            self.generated_tokens.append(totals.generated_tokens)
            self.scored_tokens.append(totals.scored_tokens)
            self.computed_tokens.append(totals.tokens_computed)
            self.rounds.append(totals.rounds)
            self.cut.append(int(run.result.ended_by.startswith(CUT)))
            self.finished.append(len(run.tree.finished()))
        for choice in self.choices:
            selector = choice_of(choice)
            values = self.right.setdefault(choice, [])
            for task, run in zip(tasks, runs, strict=True):
                node = selector.select(run.tree, run.tree.finished()).node
                values.append(int(node is not None and is_right(task, run.tree[node].answer)))

    def to_json(self, strategy: dict[str, Any], budgets: Sequence[int]) -> Row:
        """Return the cell as plain JSON."""
        lists = ("generated_tokens", "scored_tokens", "computed_tokens", "rounds", "cut")
        return {
            "name": self.name,
            "size": self.size,
            "strategy": strategy,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "budget": list(budgets),
            **{name: getattr(self, name) for name in (*lists, "finished")},
            "right": self.right,
        }


def cell_path(out: Path, start: int, stop: int, name: str, size: int) -> Path:
    """Return where a cell is written."""
    return out / "cells" / f"{start:06}-{stop:06}" / f"{name}@{size}.json"


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that it is never there in part."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    partial.write_text(text)
    partial.replace(path)


_RENAMED = {"refill_heat": "refill_temperature_scale"}
_GONE: dict[str, Any] = {
    "context_cost": 0.0,
    "tempering": False,
    "apart": False,
    "prune_below": None,
    "prune_margin": None,
    "keep_at_least": 1,
}
"""Options of version 0.1, and the value at which each of them did nothing."""


def same_strategy(stored: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Tell whether a stored cell was measured with these options, under their names then or now."""
    facts = {_RENAMED.get(name, name): value for name, value in stored.items()}
    for name, harmless in _GONE.items():
        if name not in wanted and facts.get(name) == harmless:
            facts.pop(name, None)
    inside, other = facts.get("strategy"), wanted.get("strategy")  # of a cascade, a lookahead
    if isinstance(inside, dict) and isinstance(other, dict) and same_strategy(inside, other):
        facts["strategy"] = other
    return facts == wanted


def read_cell(path: Path) -> Row:
    """Read a measured cell. Raises `RecordError` if it is damaged."""
    try:
        row = json.loads(path.read_text())
        problems = len(row["generated_tokens"])
        if not all(len(values) == problems for values in row["right"].values()):
            raise ValueError("its lists differ in length")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{path}: not a measured cell ({error}); remove it") from error
    return dict(row)
